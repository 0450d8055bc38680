"""The runs below a folder: what each trains, how far it is, what it reached.

Only small files are read, and of long logs the end, so that hundreds of runs take a second.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ccsnet.runlog import LOG_FILE, VALIDATION_FILE, parse_log, read_log

CONFIG_FILE, METRICS_FILE, LOCK_FILE = "config.json", "metrics.json", ".lock"
ALIVE_SECONDS = 15 * 60.0  # A run that has written nothing for longer does not run.
TAIL_BYTES = 100_000  # Of a log: about a thousand steps.

State = Literal["finished", "running?", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a line."""

    path: Path
    dataset: str
    backbone: str
    head: str
    step: int
    """Steps done."""
    steps: int
    """Steps to be done."""
    best_miou: float | None
    """Of its validations; none yet: None."""
    best_step: int | None
    images_per_second: float | None
    """Median of the last steps."""
    hours: float
    """Of training, over all sittings."""
    state: State
    """running? is a guess: the run's folder is locked, and its log was written to lately."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def find_runs(folder: Path, now: float | None = None) -> tuple[list[RunSummary], list[str]]:
    """The runs in a folder and below, in the order of their paths, and what could not be read.

    Args:
        folder: Where to look; it may be a run itself.
        now: The time, in seconds since 1970.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}. Name the one that runs are in: ccsnet runs FOLDER"
        )
    now = time.time() if now is None else now
    found: list[RunSummary] = []
    notes: list[str] = []

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename}: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not {CONFIG_FILE, LOG_FILE} & set(files):
            continue
        try:
            found.append(summary(Path(place), now))
            folders.clear()  # What is in a run's folder is its own.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{place} is no run that can be read ({_what(error)})")
    return found, notes


def summary(out: Path, now: float) -> RunSummary:
    """One run.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is damaged; KeyError, TypeError: it is of something else.
    """
    config = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
    data, model, steps = config["data"], config["model"], config["train"]["steps"]
    rows = _last_rows(out / LOG_FILE)
    step = int(rows[-1]["step"]) if rows else 0
    validations = read_log(out / VALIDATION_FILE) if (out / VALIDATION_FILE).is_file() else []
    measured = [row for row in validations if not math.isnan(row["miou"])]
    best = max(measured, key=lambda row: row["miou"], default=None)
    return RunSummary(
        path=out,
        dataset=_short(data["dataset"]),
        backbone=model["backbone"],
        head=model["head"],
        step=step,
        steps=int(steps),
        best_miou=best["miou"] if best else None,
        best_step=int(best["step"]) if best else None,
        images_per_second=median(row["images_per_second"] for row in rows) if rows else None,
        hours=rows[-1]["seconds"] / 3600 if rows else 0.0,
        state=_state(out, step, now),
    )


def _state(out: Path, step: int, now: float) -> State:
    metrics = out / METRICS_FILE
    # Of a finished run that was given more steps they are those of its first end.
    if metrics.is_file() and json.loads(metrics.read_text(encoding="utf-8"))["step"] == step:
        return "finished"
    if not (out / LOCK_FILE).exists():  # A run that ends takes it away; one that is killed cannot.
        return "interrupted"
    written = max(p.stat().st_mtime for p in (out / LOG_FILE, out / LOCK_FILE) if p.is_file())
    return "running?" if now - written < ALIVE_SECONDS else "interrupted"


def _last_rows(path: Path) -> list[dict[str, float]]:
    """The last rows of a log, without reading all of it."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        head = file.readline()
        size = file.seek(0, os.SEEK_END)
        file.seek(max(len(head), size - TAIL_BYTES))
        tail = file.read()
        if size - TAIL_BYTES > len(head):
            _, _, tail = tail.partition(b"\n")  # The first line is cut.
    return parse_log((head + tail).decode())


def _short(dataset: str) -> str:
    """A data set's name; of a folder or a description the last part that says something."""
    path = Path(dataset)
    if path.suffix in (".yaml", ".yml"):
        return path.resolve().parent.name if path.stem == "dataset" else path.stem
    return path.name or dataset


def _what(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no {Path(str(error.filename)).name}"
    if isinstance(error, KeyError):
        return f"it says no {error}"
    return str(error)


def sort_runs(runs: list[RunSummary], by: str) -> list[RunSummary]:
    """Runs by one of their attributes: texts from a to z, numbers from the largest.

    What has no number yet comes last.
    """
    known = [run for run in runs if getattr(run, by) is not None]
    numbers = bool(known) and isinstance(getattr(known[0], by), int | float)
    ordered = sorted(known, key=lambda run: getattr(run, by), reverse=numbers)
    return ordered + [run for run in runs if getattr(run, by) is None]
