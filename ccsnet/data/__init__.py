"""How data is read: files to arrays, arrays to samples, samples to batches."""
