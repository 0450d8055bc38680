"""The server: uploads in, label maps out."""
