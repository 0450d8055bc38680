"""How work looks in a terminal: progress bars, tables, plain lines where there is no terminal."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_INTERVAL = 10.0  # Seconds between lines where output is a file.


class TerminalReporter:
    """Draws stages as progress bars; where output is no terminal, as a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._total, self._done, self._last = "", 0, 0, 0.0

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Begin a bar; the bar before it goes away."""
        self.end()
        self._stage, self._total, self._done = stage, total, done
        self._last = time.monotonic()
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task(stage, total=total, completed=done, values="")
        self._progress.start()

    def advance(self, units: int = 1, **values: float | None) -> None:
        """Move the bar, and show the values beside it."""
        self._done += units
        shown = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=units, values=shown)
        elif time.monotonic() - self._last > PLAIN_INTERVAL:
            self._last = time.monotonic()
            self.note(f"{self._stage} {self._done}/{self._total}  {shown}".rstrip())

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def table(title: str, columns: dict[str, str], rows: list[list[str]]) -> Table:
    """A table; `columns` maps headings to "left" or "right"."""
    made = Table(title=title, title_justify="left")
    for name, justify in columns.items():
        made.add_column(name, justify="right" if justify == "right" else "left")
    for row in rows:
        made.add_row(*row)
    return made
