"""The cells of a study: each is one run folder, trained and then evaluated once by `ccsnet`.

What is finished is known from the files alone, so that a study can be killed at any moment, and
several of them can share a folder.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import ccsnet
from ccsnet.checkpoint import BEST, LAST
from ccsnet.config import RunConfig
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.machine import processor
from ccsnet.run_folder import METRICS_FILE, kept
from ccsnet.study import Study, folder_name, seeded

try:
    import fcntl
except ModuleNotFoundError:  # Windows.
    fcntl = None

RECORD_FILE, OUTPUT_FILE, CELL_LOCK = "study.json", "study.log", ".study.lock"
PROGRAM = (sys.executable, "-m", "ccsnet")

State = Literal["not run", "begun", "trained", "done"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row with one seed."""

    row: str
    seed: int
    out: Path
    """The run's folder."""
    report: str
    """The split that it is evaluated on."""
    config: RunConfig
    settings: str
    """All that decides what is trained, but for the data."""
    data: str
    """What it is trained on, as the study calls it."""
    train: tuple[str, ...]
    """Arguments of `ccsnet`."""
    evaluate: tuple[str, ...]
    shown: tuple[str, ...]
    """Both as they are told to readers, without this machine's paths."""

    @property
    def name(self) -> str:
        """The row and the seed."""
        return self.out.name

    @property
    def figures(self) -> Path:
        """What the evaluation leaves."""
        return self.out / f"evaluation-{self.report}.json"

    @property
    def state(self) -> State:
        """How far it is."""
        if self.figures.is_file():
            return "done"
        if (self.out / METRICS_FILE).is_file():
            return "trained"
        return "begun" if kept(self.out, LAST) else "not run"

    def record(self) -> dict[str, Any]:
        """What was noted when it was begun; nothing is an empty one."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads((self.out / RECORD_FILE).read_text("utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    def clear(self) -> None:
        """Take away what `ccsnet train` could neither go on from nor start beside.

        A run that is killed between its first best checkpoint and its first last one leaves that.
        """
        if self.record() and not kept(self.out, LAST):
            for path in kept(self.out, BEST):
                path.unlink()

    def note_start(self) -> None:
        """Note what is trained here, and by which commit on which machine, before it begins."""
        record = self.record()
        origins = record.get("origins", [])
        here = {"commit": commit(), "torch": torch.__version__, "machine": _machine(self.config)}
        if here not in origins:
            origins = [*origins, here]
        values = {"data": self.data, "settings": json.loads(self.settings), "origins": origins}
        with atomic_path(self.out / RECORD_FILE) as aside:
            aside.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def cells_of(study: Study, out: Path) -> list[Cell]:
    """The cells in the order in which they are run: all rows with the first seed come first."""
    return [_cell(study, name, seed, out) for seed in study.seeds for name in study.rows]


def _cell(study: Study, name: str, seed: int, out: Path) -> Cell:
    row = study.rows[name]
    folder = out / f"{folder_name(name)}-{seed}"
    settings = ["--recipe", row.recipe, *row.words]
    if study.select != "val":
        settings += ["--val-split", study.select]
    settings += ["--seed", str(seed)]
    evaluate = ["--split", study.report, *(["--cpu"] if row.config.train.cpu else [])]
    # The run's own settings say where the data lay when it was trained, maybe elsewhere.
    where = study.where[1:] if len(study.where) > 1 else ["--dataset", *study.where]
    figures = folder / f"evaluation-{study.report}.json"
    return Cell(
        row=name,
        seed=seed,
        out=folder,
        report=study.report,
        config=row.config,
        settings=seeded(row, seed),
        data=study.data,
        train=("train", *study.where, *settings, "--out", str(folder), "--resume", "auto"),
        evaluate=(
            *("evaluate", str(folder), *evaluate, *where),
            *("--per-image", "--json", str(figures)),
        ),
        shown=(
            shlex.join(["ccsnet", "train", study.data, *settings, "--out", "RUN"]),
            shlex.join(["ccsnet", "evaluate", "RUN", *evaluate]),
        ),
    )


def check_settings(cells: Sequence[Cell]) -> None:
    """Refuse to go on with runs of other settings.

    Raises:
        InputError: A folder holds one; all of them are named.
    """
    wrong = []
    for cell in cells:
        before, now = cell.record().get("settings"), json.loads(cell.settings)
        if before is None:
            if cell.state != "not run":
                wrong.append(f"{cell.out} holds a run that no study has begun.")
            continue
        changes = [
            f"{name} {_at(before, name)!r}, now {value!r}"
            for name, value in _flat(now)
            if _at(before, name) not in (value, _ABSENT)
        ]
        data = cell.record().get("data", cell.data)
        if data != cell.data:
            changes.insert(0, f"the data {data!r}, now {cell.data!r}")
        if changes:
            wrong.append(f"{cell.out} was trained with {'; '.join(changes)}.")
    if wrong:
        raise InputError(
            "\n  - ".join(["These runs are not what the study describes:", *wrong])
            + "\nGive another --out, or put the study back as it was."
        )


_ABSENT = object()  # A setting that there was not yet, when a run was begun, changes nothing.


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def commit() -> str:
    """The commit of this package where it lies in a checkout, with "-dirty" if it was changed.

    Elsewhere its version.
    """
    package = Path(ccsnet.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # Not in somebody else's repository.
        dirty = "-dirty" if git("status", "--porcelain", "--", ".") else ""
        return git("rev-parse", "--short=10", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return ccsnet.__version__


def _machine(config: RunConfig) -> str:
    if torch.cuda.is_available() and not config.train.cpu:
        return torch.cuda.get_device_name()
    return processor()


class CellLock:
    """Keeps other studies from a cell, for as long as this program or one that it started lives.

    Args:
        cell: Whose.
    """

    def __init__(self, cell: Cell) -> None:
        cell.out.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(cell.out / CELL_LOCK, os.O_RDWR | os.O_CREAT, 0o666)

    @property
    def inherited(self) -> tuple[int, ...]:
        """The open file that programs are given along."""
        return () if fcntl is None else (self.handle,)

    def take(self) -> bool:
        """Whether nobody else has it; then it is ours."""
        if fcntl is None:
            return True
        try:
            # Not lockf: a training that outlives a killed study is to keep the lock, and inherits
            # this one with the open file.
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # A file system without locks.
            return True
        return True

    def release(self) -> None:
        """Leave the cell, and with it all that was inherited of the lock; again does nothing."""
        if fcntl is not None and self.handle >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self.handle, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Let go of the lock here; a program that has inherited it keeps it."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1


def last_lines(path: Path, num: int = 6) -> list[str]:
    """The end of a log, for people."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-num:]
