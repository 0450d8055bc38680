"""How work looks in a terminal: progress bars, tables, plain lines where there is no terminal."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
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
from rich.text import Text

from ccsnet.progress import duration

if TYPE_CHECKING:
    from ccsnet.metrics import Metrics

PLAIN_INTERVAL = 10.0  # Seconds between lines where output is a file.
MIN_TIME = 1.0  # Seconds of a stage before anything can be said of its end.
# Values of a training step, as people read them. All together fit into 78 columns.
FORMS: dict[str, Callable[[float], str]] = {
    "mIoU": lambda value: f"mIoU {100 * value:.1f} %",
    "images_s": lambda value: f"{_number(value)} images/s",
    "wait": lambda value: f"data wait {value:.0%}",
    "GiB": lambda value: f"{value:.1f} GiB",
}


class TerminalReporter:
    """Draws stages as progress bars; where output is no terminal, as a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._task: TaskID | None = None
        self._stage, self._total, self._done, self._last = "", 0, 0, 0.0
        self._began, self._done_before = 0.0, 0

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Begin a bar; the bar before it goes away."""
        self.end()
        self._stage, self._total, self._done = stage, total, done
        self._last = self._began = time.monotonic()
        self._done_before = done
        if not self.console.is_terminal:
            return
        narrow = self.console.width < 100
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=None if narrow else 30),  # None: what the others leave.
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=narrow,
        )
        self._task = self._progress.add_task(stage, total=total, completed=done)
        self._live = Live(self._progress, console=self.console, transient=True)
        self._live.start()

    def advance(self, units: int = 1, **values: float | None) -> None:
        """Move the bar, and show the values below it."""
        self._done += units
        shown = _line(values)
        if self._progress is not None and self._task is not None and self._live is not None:
            self._progress.update(self._task, advance=units)
            below = Text(f"  {shown}", no_wrap=True, overflow="ellipsis")
            self._live.update(Group(self._progress, below) if shown else self._progress)
        elif time.monotonic() - self._last > PLAIN_INTERVAL:
            self._last = time.monotonic()
            parts = (f"{self._stage} {self._done}/{self._total}", shown, self._left())
            self.note("  ".join(filter(None, parts)))

    def _left(self) -> str:
        """How long the stage will take from here."""
        done, took = self._done - self._done_before, time.monotonic() - self._began
        if done < 1 or took < MIN_TIME or self._done > self._total:
            return ""
        return f"{duration(took / done * (self._total - self._done))} left"

    def end(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
        self._progress = self._task = self._live = None


def _line(values: Mapping[str, float | None]) -> str:
    """Values as they stand beside each other; what is not known yet is left out."""
    return "  ".join(
        FORMS[name](value) if name in FORMS else f"{name} {_number(value)}"
        for name, value in values.items()
        if value is not None
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if 1 <= value < 1000 else f"{value:.0f}" if value >= 1 else f"{value:.3f}"


def table(
    title: str, columns: dict[str, str], rows: list[list[str]], *, compact: bool = False
) -> Table:
    """A table; `columns` maps headings to "left" or "right".

    A compact one has no lines between its columns: for many columns. Text on the left is folded
    where there is no room; numbers, on the right, are not.
    """
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    made = Table(title=title, title_justify="left", **(style if compact else {}))
    for name, justify in columns.items():
        right = justify == "right"
        made.add_column(
            name, justify="right" if right else "left", overflow="fold", no_wrap=right and compact
        )
    for row in rows:
        made.add_row(*map(escape, row))  # A name in brackets is no colour.
    return made


def make_console() -> Console:
    """Where results are printed; long lines are the terminal's to break."""
    return Console(soft_wrap=True)


def metrics_table(metrics: "Metrics") -> tuple[Table, str]:
    """The figures of every class, and the line below them."""
    from ccsnet.metrics import percent, shown_columns  # It needs torch, which tables do not.

    values = shown_columns(metrics)
    columns = {"class": "left", **{f"{heading} %": "right" for heading in values}}
    rows = [
        [name, *map(percent, row)]
        for name, *row in zip([*metrics.classes, "mean"], *values.values(), strict=True)
    ]
    line = f"mIoU {percent(metrics.miou)}   pixel accuracy {percent(metrics.pixel_accuracy)}"
    return table(f"{metrics.images} images", columns, rows), line
