"""Who is told how long work goes: a protocol, and one that is not."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Told how work goes; `ccsnet.terminal` draws it as progress bars."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of so many units begins; the stage before it is over."""
        ...

    def advance(self, units: int = 1, **values: float | None) -> None:
        """Units of the stage are done; values are what to show beside the bar."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...


class Silent:
    """A reporter that keeps quiet: what Python callers get unless they ask."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, units: int = 1, **values: float | None) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


def duration(seconds: float) -> str:
    """A time as hours, minutes and seconds, with days where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock
