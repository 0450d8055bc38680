"""From a folder of files to tar shards: written once, read by offset ever after.

The files' bytes are copied as they are. A shard's content depends on nothing but the files, and is
complete or absent; what was finished is kept when the work is interrupted.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

import ccsnet
from ccsnet.data.disk import disk_errors, free_space, megabytes
from ccsnet.datasets._folder import FILE_NAME, read_spec
from ccsnet.datasets._shards import (
    BLOCK,
    INDEX,
    UNFINISHED,
    Entry,
    Index,
    Shard,
    ShardedSplit,
    index_text,
    read_index,
    rule_of,
)
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.progress import Reporter, Silent

MEBIBYTE = 1 << 20
SHARD_BYTES = 256 * MEBIBYTE
NEEDED = ("train", "val")
"""Splits that are not left out when they or their labels are not there."""

_AT_ONCE = 16 * MEBIBYTE  # Bytes of a file in memory.
# What a process that was killed while it wrote has left aside.
_LEFT = re.compile(r"\.([A-Za-z0-9_-]+-\d{6}|shards|dataset)-\w+\.(tar|json|yaml)")
_END = 2 * BLOCK  # Zeros that end a tar file.
_MAX_FILE = 8**11 - 1  # Bytes. Source: POSIX.1-1988 (ustar), 11 octal digits.


class Made(NamedTuple):
    """What `shard_dataset` has done."""

    index: Index
    written: int
    """Shards that this call has written; the others were there."""
    left_out: Mapping[str, str]
    """Splits that are not there, and why."""


class _Member(NamedTuple):
    """A file to copy."""

    source: Path
    name: str
    size: int
    changed: int
    """Its time in nanoseconds."""


class _Plan(NamedTuple):
    """A shard to be written."""

    file: str
    members: list[_Member]
    entries: list[Entry]
    size: int

    @property
    def source(self) -> str:
        """A hash of the files as they are now, as far as it can be told without reading them."""
        told = [[name, size, changed] for _, name, size, changed in self.members]
        names = [entry.name for entry in self.entries]
        return hashlib.sha256(json.dumps([names, told]).encode()).hexdigest()


def shard_dataset(
    spec: DatasetSpec,
    root: Path,
    out: Path,
    *,
    splits: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    description: Path | None = None,
    reporter: Reporter | None = None,
) -> Made:
    """Copy a data set's files into tar shards with an index.

    Samples stay in the order of the pairs. Reading needs no other, because any sample is one read
    away, and so the same files always make the same shards. Splits can be added later.

    Args:
        spec: The data set.
        root: Its folder.
        out: The shards' folder; new, empty, or what an earlier call has written.
        splits: Which splits; none: all that are there, and those called train and val must be.
        shard_bytes: A shard is ended before it would grow beyond this.
        description: The data set's dataset.yaml, to put beside the shards.
        reporter: Told how it goes.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The folder holds something else, a label is missing, a file changes meanwhile,
            or the disk is full.
    """
    if shard_bytes < 1:
        raise InputError(f"The size of a shard is {shard_bytes} bytes; it must be 1 or more.")
    before = _earlier(spec, out)
    found, left_out = _find(spec, root, splits)
    plans = {split: list(_planned(split, pairs, shard_bytes)) for split, pairs in found.items()}
    done = _record(out)[1]
    for split in (name for name in plans if name in before.splits):
        _refuse_changes(before.splits[split], plans[split], spec, split, out)
        for shard, plan in zip(before.splits[split].shards, plans[split], strict=True):
            done[plan.file] = plan.source, shard.sha256
    written, made = _write_all(spec, plans, done, out, reporter or Silent())
    if description is not None and not (out / FILE_NAME).exists():
        _write_text(out / FILE_NAME, _described(description, spec))
    ready = {**before.splits, **made}
    index = Index(spec.name, {name: ready[name] for name in spec.splits if name in ready})
    if index != before:
        _write_text(out / INDEX, index_text(index, ccsnet.__version__))
    (out / UNFINISHED).unlink(missing_ok=True)
    return Made(index, written, left_out)


def _write_text(path: Path, text: str) -> None:
    with disk_errors(path), atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def own_description(dataset: str, spec: DatasetSpec) -> Path | None:
    """The dataset.yaml that a data set was read from; None for one that is told in Python."""
    place = Path(dataset).expanduser()
    file = place / FILE_NAME if place.is_dir() else place
    if not file.is_file() or file.suffix not in (".yaml", ".yml"):
        return None
    return file if read_spec(file)[0] == spec else None


def _described(file: Path, spec: DatasetSpec) -> str:
    """A dataset.yaml for the shards' folder: with the data set's name, without `root`."""
    text = file.read_text(encoding="utf-8")
    entries = yaml.safe_load(text)
    wanted = {key: value for key, value in entries.items() if key != "root"} | {"name": spec.name}
    # With its comments, if it can be changed line by line.
    kept = re.sub(r"(?m)^(root|name)[ \t]*:.*\n?", "", text).rstrip("\n") + "\n"
    kept += yaml.safe_dump({"name": spec.name}, allow_unicode=True)
    try:
        same = yaml.safe_load(kept) == wanted
    except yaml.YAMLError:
        same = False
    return kept if same else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _earlier(spec: DatasetSpec, out: Path) -> Index:
    """The finished shards in the folder, if there are any.

    Raises:
        InputError: It holds something else.
    """
    if out.is_file():
        raise InputError(f"{out} is a file. Name a folder for the shards.")
    if not out.is_dir() or not any(out.iterdir()):
        return Index(spec.name, {})
    if not (out / INDEX).is_file() and not (out / UNFINISHED).is_file():
        raise InputError(
            f"{out} is not empty and holds no shards. Name a new folder, so that nothing is mixed."
        )
    dataset, index = _record(out)[0] or spec.name, Index(spec.name, {})
    if (out / INDEX).is_file():
        index = read_index(out) or index
        dataset = index.dataset
    if dataset != spec.name:
        raise InputError(
            f"{out} holds shards of the data set {dataset!r}, not of {spec.name!r}. Name another "
            "folder."
        )
    return index


def _find(
    spec: DatasetSpec, root: Path, splits: Sequence[str]
) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """The pairs of each split, and why others are left out."""
    found, left_out = {}, {}
    for split in splits or spec.splits:
        try:
            pairs = spec.pairs(root, split, require_labels=False)
        except FileNotFoundError as error:
            if splits or split in NEEDED:
                raise
            left_out[split] = str(error)
            if len(left_out) == len(spec.splits):
                raise
            continue
        described = any(part.labels is not None for part in spec.parts(split))
        if (described and split in NEEDED) or any(pair.label is not None for pair in pairs):
            pairs = spec.pairs(root, split)  # All or none: tells which lack theirs.
        found[split] = pairs
    return found, left_out


def _planned(split: str, pairs: Sequence[Pair], shard_bytes: int) -> Iterator[_Plan]:
    """The shards of a split: which file lies where."""
    prefix, number = _key(split), 0
    plan = _Plan(f"{prefix}-000000.tar", [], [], _END)
    used: set[str] = set()
    for name, image, label in pairs:
        key = _key(name)
        if key in used:
            raise InputError(f"Two images of {split!r} would be called {key!r}; rename {image}.")
        used.add(key)
        members = [_member(image, f"{key}{_suffix(image)}")]
        if label is not None:
            members.append(_member(label, f"{key}.label{_suffix(label)}"))
        length = sum(_stored(member.size) for member in members)
        if plan.members and plan.size + length > shard_bytes:
            yield plan
            number += 1
            plan = _Plan(f"{prefix}-{number:06}.tar", [], [], _END)
        offset = plan.size - _END + BLOCK
        places: list[str | int | None] = []
        for member in members:
            places += [member.name, offset, member.size]
            offset += _stored(member.size)
        entry = Entry(name, *places, *[None] * (6 - len(places)))  # pyright: ignore
        plan.entries.append(entry)
        plan.members.extend(members)
        plan = plan._replace(size=plan.size + length)
    yield plan


def _key(name: str) -> str:
    """The name as tar files of this kind take it: no dots, no folders, no more than 80 letters.

    Names that are changed get a hash, so that no two become one.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64]
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ".image"


def _member(source: Path, name: str) -> _Member:
    status = source.stat()
    if status.st_size > _MAX_FILE:
        raise InputError(
            f"{source} has {status.st_size:,} bytes; a tar file takes at most {_MAX_FILE:,}. Cut "
            "the image into tiles."
        )
    return _Member(source, name, status.st_size, status.st_mtime_ns)


def _stored(size: int) -> int:
    """Bytes that a file takes in a tar: header, content, zeros up to the next block."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def _refuse_changes(
    before: ShardedSplit, plans: Sequence[_Plan], spec: DatasetSpec, split: str, out: Path
) -> None:
    """Refuse to change shards that may be in use."""
    made = (out / INDEX).stat().st_mtime_ns
    same = before.rule == rule_of(spec.parts(split)) and [
        (shard.file, shard.entries) for shard in before.shards
    ] == [(plan.file, plan.entries) for plan in plans]
    changed = [m.source for plan in plans for m in plan.members if m.changed > made]
    if not same or changed:
        what = f"{changed[0]} has changed" if same else "the files or the size per shard differ"
        raise InputError(
            f"{out} holds finished shards of {split!r}, but since they were made {what}. Name "
            "another folder, or delete this one first."
        )


def _record(out: Path) -> tuple[str | None, dict[str, tuple[str, str]]]:
    """Whose shards are being written, and of each finished one its source and its content.

    The last line may be torn, where the power failed; then that shard is written again.
    """
    path = out / UNFINISHED
    dataset, done = None, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            kind, *values = json.loads(line)
            if kind == "dataset":
                (dataset,) = values
            else:
                done[kind] = values[0], values[1]
        except (ValueError, TypeError, IndexError):
            continue
    return dataset, done


def _note(out: Path, *values: str) -> None:
    """Add a line to the record, and wait until the disk has it."""
    path = out / UNFINISHED
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        # The line before may be torn.
        file.write(f"\n{json.dumps(values)}\n")
        file.flush()
        os.fsync(file.fileno())


def _write_all(
    spec: DatasetSpec,
    plans: Mapping[str, Sequence[_Plan]],
    done: Mapping[str, tuple[str, str]],
    out: Path,
    reporter: Reporter,
) -> tuple[int, dict[str, ShardedSplit]]:
    """Write what is not there yet; how many shards that was, and all splits."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for path in [path for path in out.iterdir() if _LEFT.fullmatch(path.name)]:
        path.unlink()
    missing = {
        plan.file
        for split in plans.values()
        for plan in split
        if not _is_there(out / plan.file, plan, done)
    }
    needed = sum(p.size for split in plans.values() for p in split if p.file in missing)
    if needed > free_space(out):
        raise InputError(
            f"The shards need {megabytes(needed)}; {out} has {megabytes(free_space(out))} free. "
            "Make room, or name a folder on another disk."
        )
    if missing:
        _note(out, "dataset", spec.name)
    made = {}
    for split, shards in plans.items():
        reporter.start(f"sharding {split}", sum(len(plan.members) for plan in shards))
        finished = []
        for plan in shards:
            if plan.file in missing:
                digest = _write(plan, out / plan.file, reporter)
                _note(out, plan.file, plan.source, digest)
            else:
                digest = done[plan.file][1]
                reporter.advance(len(plan.members))
            finished.append(Shard(plan.file, plan.size, digest, plan.entries))
        reporter.end()
        if (out / UNFINISHED).exists():
            _remove_others(out, split, {plan.file for plan in shards})
        made[split] = ShardedSplit(rule_of(spec.parts(split)), finished)
    return len(missing), made


def _is_there(path: Path, plan: _Plan, done: Mapping[str, tuple[str, str]]) -> bool:
    same = plan.file in done and done[plan.file][0] == plan.source
    return same and path.is_file() and path.stat().st_size == plan.size


def _remove_others(out: Path, split: str, files: set[str]) -> None:
    """Remove what an unfinished call with more or other shards has left."""
    name = re.compile(re.escape(_key(split)) + r"-\d{6}\.tar")
    for path in list(out.iterdir()):
        if name.fullmatch(path.name) and path.name not in files:
            path.unlink()


def _write(plan: _Plan, path: Path, reporter: Reporter) -> str:
    """Write a shard whole or not at all; returns the hash of its bytes."""
    digest = hashlib.sha256()
    with disk_errors(path), atomic_path(path) as aside, aside.open("wb") as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        for member in plan.members:
            info = tarfile.TarInfo(member.name)
            info.size, info.mode = member.size, 0o644  # The rest is zero, as it starts.
            put(info.tobuf(tarfile.USTAR_FORMAT))
            copied = 0
            with member.source.open("rb") as source:
                while data := source.read(_AT_ONCE):
                    copied += len(data)
                    put(data)
            if copied != member.size:
                raise InputError(
                    f"{member.source} had {member.size:,} bytes, then {copied:,}: it changes while "
                    "it is copied. Give the command again when nothing writes to the data."
                )
            put(bytes(_stored(copied) - BLOCK - copied))
            reporter.advance()
        put(bytes(_END))
    return digest.hexdigest()
