"""A reporter that remembers."""

from ccsnet.progress import Silent


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """One line."""
        self.notes.append(text)
