"""Writing files that are complete or absent."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ccsnet.errors import InputError

NAME_BYTES = 255
"""The most bytes of a file's name. Source: the limit of ext4, XFS, NTFS (there characters) and
APFS."""
SOME = 32
"""Characters of a name that tell whose a file is; in UTF-8 no more than 128 bytes."""


def fits(name: str) -> bool:
    """Whether a file can be called so, as far as its length goes."""
    return len(os.fsencode(name)) <= NAME_BYTES


def fitting_name(name: str, suffix: str) -> str:
    """The name with a suffix; where that is too long, its beginning, a digest and the suffix."""
    if fits(name + suffix):
        return name + suffix
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return f"{name[:SOME]}-{digest}{suffix}"


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """A name to write to; when the block ends well, the file is moved to `path` as a whole.

    Missing parent folders are made. When the block fails, or the disk is full, nothing is left
    and an older file at `path` is as it was.

    Args:
        path: The file to write.
        durable: Wait until the disk has it, so that it outlives a power cut; not for what is
            quickly made again.
        folder: Where to write it first, on the same disk; none: beside `path`. What a killed
            process leaves there is the folder's owner's to clear.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A part of the name alone: the name itself may be as long as names can be.
    prefix, suffix = f".{path.stem[:SOME]}-", path.suffix[:SOME]
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder or path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        if durable:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read.
        aside.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def check_writable_folder(folder: Path) -> None:
    """Make a folder, and find out before all the work whether files can be made in it.

    Raises:
        InputError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"No results can be written to {folder}: {error.strerror or error}. Give another "
            "folder, or make this one writable."
        ) from error


def check_writable_file(path: Path | None, option: str) -> None:
    """Find out before all the work whether a file can be written after it.

    Args:
        path: The file; none: there is nothing to check.
        option: What it was asked for with, as --json.

    Raises:
        InputError: It is a folder, or none can be made there.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option} is {path}, a folder; name a file, such as {path / 'all.json'}.")
    check_writable_folder(path.parent)


def read_utf8(path: Path) -> str:
    """The text of a user's file.

    Raises:
        InputError: It is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error}). Save it as UTF-8.") from error


def _sync_folder(folder: Path) -> None:
    """Let the disk have the new name too; where folders cannot be opened (Windows), it has."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_folder() -> Path:
    """Where figures that take long to make are kept; what is lost from it is made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccsnet"
