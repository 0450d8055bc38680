"""The record of a run: log.csv has a row for each step, validation.csv for each validation.

Trackers, such as TensorBoard, are sent the same.
"""

import contextlib
import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import UInt8

from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.trackers import Trackers, flat_settings

LOG_FILE, VALIDATION_FILE = "log.csv", "validation.csv"
COLUMNS = {
    LOG_FILE: (
        *("step", "epoch", "seconds", "lr", "loss", "coarse_loss", "images_per_second"),
        *("wait", "memory_gib"),
    ),
    VALIDATION_FILE: ("step", "miou", "pixel_accuracy"),
}
WAIT_LIMIT = 1 / 3  # More of the time than this spent waiting for data is worth a word.


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log file; a last line that is not whole is no row.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is not a log.
    """
    return parse_log(path.read_text(encoding="utf-8"))


def parse_log(text: str) -> list[dict[str, float]]:
    """The rows of a log file's text."""
    whole, _, _ = text.rpartition("\n")  # A full disk or a cut cable ends a line anywhere.
    rows = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
    return [{name: float(value) for name, value in row.items()} for row in rows]


class RunLog:
    """Writes the logs of a run, or goes on with them. Only the main process has one.

    Args:
        out: The run's folder.
        resume_at: The step that the run goes on from; later rows are of steps to be done again.
        trackers: Which others are told, by accelerate's names of them.
        config: The run's settings, for them: a dataclass or a mapping.
        name: What they call the run; none: the folder's name.
        note: Told when one of them fails.

    Attributes:
        seconds: Training time of the rows that are kept.

    Raises:
        InputError: A tracker cannot be used.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        out: Path,
        *,
        resume_at: int = 0,
        trackers: Sequence[str] = ("tensorboard",),
        config: Any = None,
        name: str | None = None,
        note: Callable[[str], None] = warnings.warn,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._trackers = Trackers(
            trackers,
            out,
            name=name or out.resolve().name,
            config=flat_settings(config or {}),
            resume_at=resume_at,
            note=note,
        )
        self._tables = {name: _Table(out / name, COLUMNS[name]) for name in COLUMNS}
        for table in self._tables.values():
            table.keep(resume_at)
        last = self._tables[LOG_FILE].last
        self.seconds = last["seconds"] if last else 0.0

    def step(
        self,
        *,
        step: int,
        epoch: float,
        seconds: float,
        lr: float,
        loss: float,
        coarse_loss: float,
        images_per_second: float,
        wait: float = math.nan,
        memory_gib: float = math.nan,
    ) -> None:
        """Add a training step. The coarse loss is part of the loss.

        Args:
            step: Steps done.
            epoch: Times that the data was seen.
            seconds: Training time so far, over all sittings.
            lr: Learning rate.
            loss: Of this step.
            coarse_loss: The coarse prediction's part of it.
            images_per_second: Speed.
            wait: Share of the step's time that was spent waiting for data.
            memory_gib: The most memory that was taken so far.

        Raises:
            OSError: The disk is full; the row is not in the log.
        """
        values = {"epoch": epoch, "seconds": seconds, "lr": lr, "loss": loss}
        values |= {"coarse_loss": coarse_loss, "images_per_second": images_per_second}
        values |= {"wait": wait, "memory_gib": memory_gib}
        self._tables[LOG_FILE].add({"step": step, **values})
        self._trackers.log({f"train/{k}": v for k, v in values.items()}, step, often=True)

    def validation(
        self,
        *,
        step: int,
        miou: float,
        pixel_accuracy: float,
        class_iou: Mapping[str, float] | None = None,
    ) -> None:
        """Add a validation after a step.

        Args:
            step: Steps done.
            miou: Mean IoU.
            pixel_accuracy: Share of the pixels that are right.
            class_iou: IoU by class, for trackers alone; NaN where a class is absent.

        Raises:
            OSError: The disk is full; the row is not in the log.
        """
        values = {"miou": miou, "pixel_accuracy": pixel_accuracy}
        self._tables[VALIDATION_FILE].add({"step": step, **values})
        sent = {f"val/{k}": v for k, v in values.items()}
        sent |= {f"val/iou/{name}": iou for name, iou in (class_iou or {}).items()}
        self._trackers.log(sent, step)

    def pictures(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
        """Show pictures in the trackers that take them.

        Raises:
            OSError: The disk is full.
        """
        self._trackers.pictures({f"val/{k}": v for k, v in pictures.items()}, step)

    def close(self, finished: bool = True) -> None:
        """Write out what is buffered, and tell trackers whether the run is done.

        Raises:
            OSError: The disk is full.
        """
        with contextlib.ExitStack() as stack:  # One that fails does not keep the others open.
            stack.callback(self._trackers.close, finished)
            for table in self._tables.values():
                stack.callback(table.close)


class _Table:
    """A CSV file whose steps only rise."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.last: dict[str, float | int] | None = None
        self._file: TextIO | None = None

    def keep(self, last_step: int) -> None:
        """Keep the rows to a step, and drop the others."""
        self.close()
        rows = self._rows() if last_step and self.path.is_file() else []
        rows = [row for row in rows if row["step"] <= last_step]
        with atomic_path(self.path) as aside, aside.open("w", newline="") as file:
            # A log of an earlier version lacks the newer columns.
            writer = csv.DictWriter(file, self.columns, restval=math.nan)
            writer.writeheader()
            writer.writerows({**row, "step": int(row["step"])} for row in rows)
        self.last = rows[-1] if rows else None
        self._file = self.path.open("a", newline="", buffering=1)  # A row is written when whole.

    def _rows(self) -> list[dict[str, float]]:
        try:
            rows = read_log(self.path)
            return [{**row, "step": row["step"]} for row in rows]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise InputError(
                f"{self.path} is not as `ccsnet train` wrote it ({error}). Put it back as it was, "
                "or remove it to go on with an empty one."
            ) from error

    def add(self, row: Mapping[str, float | int]) -> None:
        """Write a row; one of the same step or a later one is of work that was done again."""
        if self.last is not None and row["step"] <= self.last["step"]:
            self.keep(int(row["step"]) - 1)
        assert self._file is not None, "rows are added between keep and close"
        try:
            csv.DictWriter(self._file, self.columns).writerow(row)
        except OSError as error:  # Of itself it does not say which file.
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.last = dict(row)

    def close(self) -> None:
        """Close the file; again does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def bottleneck_note(wait_share: float, workers: int, cores: int | None = None) -> str | None:
    """What to say, once, when training mostly waits for its data; None when it does not.

    Args:
        wait_share: Share of the time of the last 50 steps or so that was spent waiting.
        workers: Processes that read ahead, of this process.
        cores: Processors that this process has for itself; none: as many as the program may use.
    """
    if not wait_share > WAIT_LIMIT:
        return None
    if cores is None:
        from ccsnet.data.parallel import num_processors

        cores = num_processors()
    if workers < cores:
        first = f"Try more --workers: there are {workers}, and {cores} processors."
    else:
        first = f"More --workers will hardly help: there are {workers}, and {cores} processors."
    return (
        f"Training waits for data {wait_share:.0%} of the time. {first} What also helps: images "
        "that are no larger on disk than training needs them, many small files packed into shards "
        "(`ccsnet data shard`), fewer augmentations (--no-photometric)."
    )
