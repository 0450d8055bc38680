"""Data sets in tar shards: the index that says where each file lies, and files read from there.

A shard is a plain tar file. Nothing is unpacked: a file of a shard is read by its offset, so any
sample is one read away, in any order. The layout is told in docs/shards.md.
"""

import functools
import hashlib
import io
import json
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ccsnet.datasets._split import Pair, Split
from ccsnet.errors import InputError

INDEX = "shards.json"
"""Lies beside the shards; written last, so that it is there only when all of them are."""
UNFINISHED = ".sharding"
"""Lists the shards that are finished while others are still to be written."""
FORMAT = 1
BLOCK = 512
"""A tar file consists of blocks: a header, the bytes of one file, zeros up to the next."""
MAX_OPEN = 256
"""Shards that a process keeps open. Systems allow 1024 open files or more."""

_FILE = re.compile(r"[A-Za-z0-9_-]+\.tar")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.label)?\.[a-z0-9]+")


class Entry(NamedTuple):
    """Where one sample lies in its shard; the label's part is None where there is no label."""

    name: str
    """Of the pair."""
    image: str
    """Name of the tar's member."""
    image_offset: int
    """Of the first byte behind the header."""
    image_size: int
    label: str | None
    label_offset: int | None
    label_size: int | None


class Shard(NamedTuple):
    """One tar file and the samples in it, in their order."""

    file: str
    size: int
    sha256: str
    entries: list[Entry]


class ShardedSplit(NamedTuple):
    """The shards of a split."""

    rule: str
    """Which patterns and lists chose its files; see `rule_of`."""
    shards: list[Shard]


class Index(NamedTuple):
    """All that a folder of shards holds."""

    dataset: str
    splits: dict[str, ShardedSplit]


class TarFile(NamedTuple):
    """A shard as its members know it."""

    path: Path
    size: int
    sha256: str
    """Not compared with the bytes; a shard that was made anew is thereby another one."""


if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # Before Python 3.12, Path itself cannot be inherited from.


class TarMember(_Path):
    """A file inside a shard, for whoever opens a path, asks for its size or shows its name.

    Its parent is the tar file. Paths made from it, such as that parent, are ordinary ones.
    """

    __slots__ = ("offset", "shard", "size")

    shard: TarFile
    offset: int
    size: int

    def __new__(cls, shard: TarFile, name: str, offset: int, size: int) -> "TarMember":
        """A member by its place; nothing is read."""
        if sys.version_info >= (3, 12):
            self = super().__new__(cls)  # `__init__` does the rest.
        else:
            self, plain = object.__new__(cls), _Path(shard.path, name)
            for part in ("_drv", "_root", "_parts"):
                setattr(self, part, getattr(plain, part))
        self.shard, self.offset, self.size = shard, offset, size
        return self

    if sys.version_info >= (3, 12):

        def __init__(self, shard: TarFile, name: str, offset: int, size: int) -> None:
            super().__init__(shard.path, name)

        def with_segments(self, *segments: Any) -> Path:
            """What is made from this path: an ordinary one."""
            return Path(*segments)
    else:
        # Bound to the base class, so that their results are ordinary paths.
        cwd = _Path.cwd  # pyright: ignore
        _from_parts = _Path._from_parts  # pyright: ignore
        _from_parsed_parts = _Path._from_parsed_parts  # pyright: ignore

    def __reduce__(self) -> Any:
        return TarMember, (self.shard, self.name, self.offset, self.size)

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """The bytes as a file that was read whole.

        Raises:
            FileNotFoundError: The shard is gone.
            InputError: The shard is cut short, or holds something else there.
            OSError: The mode is not "rb".
        """
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} lies in a shard; it can only be opened as 'rb'.")
        data = _read_at(self.shard, self.offset - BLOCK, BLOCK + self.size)
        # Source: POSIX.1-1988 (ustar): the name fills bytes 0 to 99, the size 124 to 135 in octal.
        name, size = data[:100].rstrip(b"\0"), data[124:136].strip(b" \0")
        if name != self.name.encode() or size != b"%011o" % self.size:
            raise InputError(
                f"{self.shard.path} does not hold {self.name} of {self.size:,} bytes where "
                f"{INDEX} says. One of the two was changed or mixed up with another: copy both "
                "again from where they were made, or make them again with `ccsnet data shard`."
            )
        return io.BytesIO(data[BLOCK:])

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The shard's status with the member's size."""
        status = self.shard.path.stat(follow_symlinks=follow_symlinks)
        finer = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        return os.stat_result(
            (*status[:6], self.size, *status[7:10]), {name: getattr(status, name) for name in finer}
        )

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the index lists it; reading tells whether it is there."""
        return True

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """A member is one."""
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """A member is none."""
        return False


_seeking = threading.Lock()


class _Descriptor:
    """An open shard; closed when the last reader lets go of it."""

    _close = staticmethod(os.close)  # Names of modules may be gone when Python ends.

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes from there on, or fewer."""
        if hasattr(os, "pread"):
            return os.pread(self.number, size, offset)
        with _seeking:  # Windows, where no process inherits another's position either.
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, size)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            self._close(self.number)


# A forked worker inherits these. It may use them, because reading at an offset moves no shared
# position; a spawned one opens its own.
@functools.lru_cache(maxsize=MAX_OPEN)
def _opened(shard: TarFile) -> _Descriptor:
    try:
        descriptor = _Descriptor(shard.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(shard.path, 1)) from error
    size = os.fstat(descriptor.number).st_size
    if size != shard.size:
        raise InputError(_wrong_size(shard.path, size, shard.size))
    return descriptor


def _read_at(shard: TarFile, offset: int, size: int) -> bytes:
    descriptor = _opened(shard)
    parts = []
    while size:
        part = descriptor.read(size, offset)
        if not part:
            found = os.fstat(descriptor.number).st_size
            raise InputError(_wrong_size(shard.path, found, shard.size))
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _missing(path: Path, num: int) -> str:
    return (
        f"No file {path}, though {path.parent / INDEX} lists it ({num} of its shards "
        f"{'are' if num > 1 else 'is'} missing). Copy the whole folder, or make the shards again."
    )


def _wrong_size(path: Path, found: int, size: int) -> str:
    return (
        f"{path} has {found:,} bytes; {path.parent / INDEX} says {size:,}. The copy of the "
        "shard is not complete, or the two do not belong together: copy both again."
    )


def rule_of(parts: Sequence[Split]) -> str:
    """What chooses the files of a split, as a hash: other patterns, lists or shares have another.

    So the shards are not taken for a split that has been described anew since.
    """
    told = [[p.images, p.labels, p.names, *map(float, p.share), p.start, p.stop] for p in parts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def read_index(root: Path) -> Index | None:
    """What a folder's shards hold; None if it has none.

    Raises:
        InputError: The shards are not finished, or the index is damaged or of another version.
    """
    path = root / INDEX
    if not path.is_file():
        if (root / UNFINISHED).is_file():
            raise InputError(
                f"The shards in {root} are not finished: `ccsnet data shard` was interrupted or is "
                "still at work. Give the same command again; it goes on from there."
            )
        return None
    try:
        found = json.loads(path.read_bytes())
        version = found["format"]
        if version == FORMAT:
            splits = {name: _split(split) for name, split in found["splits"].items()}
            return Index(str(found["dataset"]), splits)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: {type(error).__name__}: {error}. Copy it again from where the "
            "shards were made, or delete the folder and make it again with `ccsnet data shard`."
        ) from error
    raise InputError(
        f"{path} has the format {version!r}; this ccsnet reads {FORMAT}. Make the shards again "
        "with this version, or use the version that made them."
    )


def _split(found: Mapping[str, Any]) -> ShardedSplit:
    shards = []
    for shard in found["shards"]:
        entries = [Entry(*values) for values in shard["samples"]]
        made = Shard(shard["file"], shard["size"], shard["sha256"], entries)
        if not _FILE.fullmatch(made.file) or type(made.size) is not int:
            raise ValueError(f"{made.file!r} is no shard")
        for entry in entries:
            label = entry[4:]
            if not isinstance(entry.name, str) or not (
                _lies_within(made.size, *entry[1:4])
                and (label == (None, None, None) or _lies_within(made.size, *label))
            ):
                raise ValueError(f"the sample {entry.name!r} cannot lie in {made.file}")
        shards.append(made)
    return ShardedSplit(str(found["rule"]), shards)


def _lies_within(shard_size: int, name: Any, offset: Any, size: Any) -> bool:
    """Whether a member can be where an index says."""
    if type(offset) is not int or type(size) is not int:  # Not bool either.
        return False
    return bool(_NAME.fullmatch(name)) and offset >= BLOCK and 0 <= size <= shard_size - offset


def index_text(index: Index, version: str) -> str:
    """The index as the file holds it."""
    splits = {
        name: {
            "rule": split.rule,
            "shards": [
                {"file": s.file, "size": s.size, "sha256": s.sha256, "samples": s.entries}
                for s in split.shards
            ],
        }
        for name, split in index.splits.items()
    }
    head = {"format": FORMAT, "ccsnet": version, "dataset": index.dataset, "columns": Entry._fields}
    return json.dumps({**head, "splits": splits}) + "\n"


def sharded_pairs(index: Index, root: Path, split: str, parts: Sequence[Split]) -> list[Pair]:
    """The images of a split with their labels, in the order in which they were found.

    Args:
        index: What `read_index` has read.
        root: The folder of the shards.
        split: Which of its splits.
        parts: How the data set describes it.

    Raises:
        FileNotFoundError: The split was not sharded, or a shard is gone.
        InputError: A shard has another size, or the split was described otherwise.
    """
    if split not in index.splits:
        raise FileNotFoundError(
            f"The shards in {root} hold {', '.join(index.splits)}, not the split {split!r}. Add "
            f"it: `ccsnet data shard` with --out {root} --splits {split}."
        )
    found = index.splits[split]
    if found.rule != rule_of(parts):
        raise InputError(
            f"The shards in {root} were made of {index.dataset!r} when other patterns, lists or "
            f"shares chose the files of {split!r}. Make them again, or undo that change."
        )
    sizes = {shard.file: _size(root / shard.file) for shard in found.shards}
    missing = [file for file, size in sizes.items() if size is None]
    if missing:
        raise FileNotFoundError(_missing(root / missing[0], len(missing)))
    pairs = []
    for shard in found.shards:
        size = sizes[shard.file] or 0
        if size != shard.size:
            raise InputError(_wrong_size(root / shard.file, size, shard.size))
        tar = TarFile(root / shard.file, shard.size, shard.sha256)
        for name, image, offset, length, label, label_offset, label_length in shard.entries:
            truth = None
            if label is not None and label_offset is not None and label_length is not None:
                truth = TarMember(tar, label, label_offset, label_length)
            pairs.append(Pair(name, TarMember(tar, image, offset, length), truth))
    return pairs


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
