"""How full the disk is, and what is told when it is full."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccsnet.errors import InputError

# Windows has no quotas of this kind.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Tell which file did not fit when the disk is full.

    Raises:
        InputError: The disk, or what the user may have of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"The disk is full: no room for {path} ({megabytes(free_space(path))} free). What is "
            "finished stays. Make room, and give the same command again: it goes on from there."
        ) from error


def free_space(path: Path) -> int:
    """Bytes that are free where the path is, or will be."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def megabytes(num: int) -> str:
    """A number of bytes as text."""
    return f"{num / 1e6:,.0f} MB"
