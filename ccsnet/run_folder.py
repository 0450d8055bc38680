"""A run's folder: which checkpoints it keeps, which of them is good, and who may write there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ccsnet.checkpoint import BEST, LAST, Checkpoint, check_whole, read_checkpoint
from ccsnet.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows.
    fcntl = None

CONFIG_FILE, METRICS_FILE, BEST_FILE = "config.json", "metrics.json", "best.json"
LOCK_FILE = ".lock"


def older_name(name: str, step: int) -> str:
    """What a checkpoint is called when a newer or better one takes its name."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{step:08d}{dot}{suffix}"


def kept(out: Path, name: str) -> list[Path]:
    """The checkpoints of a kind, `LAST` or `BEST`: that of this name, and older ones."""
    stem, dot, suffix = name.partition(".")
    older = sorted(out.glob(f"{stem}-{'[0-9]' * 8}{dot}{suffix}"), reverse=True)
    return [path for path in (out / name, *older) if path.is_file()]


def step_of(path: Path) -> int | None:
    """The step that a checkpoint is from; None if there is none, or it cannot be read."""
    with contextlib.suppress(InputError, OSError):
        return read_checkpoint(path).step if path.is_file() else None
    return None


def put_by(out: Path, name: str, step: int) -> None:
    """Give the checkpoint of this name an older one's, because that of a later step is coming."""
    before = step_of(out / name)
    if before is not None and before < step:
        (out / name).replace(out / older_name(name, before))


def prune(out: Path, name: str, keep: int) -> None:
    """Remove the oldest resumable checkpoints beyond so many."""
    for path in kept(out, name)[keep:]:
        path.unlink(missing_ok=True)


def prune_worst(out: Path, keep: int) -> None:
    """Remove the worst of the validated checkpoints beyond so many; the best is never removed."""
    ranked = sorted((_miou(path), path) for path in kept(out, BEST) if path.name != BEST)
    for _, path in ranked[: max(len(ranked) - (keep - 1), 0)]:
        path.unlink(missing_ok=True)


def is_among_best(out: Path, miou: float, keep: int) -> bool:
    """Whether weights that are not the best are worth keeping."""
    others = [_miou(path) for path in kept(out, BEST) if path.name != BEST]
    return len(others) < keep - 1 or (keep > 1 and miou > min(others))


def _miou(path: Path) -> float:
    with contextlib.suppress(InputError, OSError):
        return read_checkpoint(path).miou or 0.0
    return -1.0


def newest(out: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint to resume from, and what is wrong with newer ones.

    Raises:
        InputError: There are some, and none is good.
    """
    found, troubles = kept(out, LAST), []
    for path in found:
        try:
            check_whole(path)
            return read_checkpoint(path), troubles
        except (InputError, OSError) as error:
            troubles.append(str(error))
    if found:
        raise InputError("No checkpoint can be resumed from. " + " ".join(troubles))
    return None, []


def check_folder(out: Path, *, resume: bool) -> None:
    """Refuse to write over a run, or to go on with none.

    Raises:
        InputError: The folder holds a run, and it is not to be resumed.
        FileNotFoundError: There is nothing to resume from.
    """
    if resume and not kept(out, LAST):
        raise FileNotFoundError(
            f"No {out / LAST} to resume from. Start the run without --resume, with --out {out}."
        )
    if not resume and any((out / name).exists() for name in (LAST, BEST, CONFIG_FILE)):
        if kept(out, LAST):
            advice = f"Go on with it by --resume {out}, or choose another --out."
        else:
            advice = "It has no checkpoint to go on from: delete it, or choose another --out."
        raise InputError(f"{out} already holds a run. {advice}")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep every other program from training in this folder; the lock ends with the program.

    Folders that are made for it and stay empty are removed again.

    Raises:
        InputError: Another program has the lock.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_FILE
    with path.open("a+") as file:
        _lock(file, out)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # One is not empty.
                for folder in made:
                    folder.rmdir()


def _lock(file: TextIO, out: Path) -> None:
    if fcntl is None:
        return
    try:
        # Not flock, which worker processes would inherit and hold on to when this one is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise InputError(
            f"Another program (process {file.read().strip() or 'unknown'}) is training in {out} "
            "right now. Wait for it, end it, or choose another --out."
        ) from error
    except OSError:  # A file system without locks.
        return
