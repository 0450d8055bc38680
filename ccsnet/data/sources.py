"""Where a data set's archives and unpacked files are among what the user named."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ccsnet.data.disk import disk_errors
from ccsnet.data.steps import inputs, matches
from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.files import atomic_path


class Found(NamedTuple):
    """An archive on the disk."""

    archive: Archive
    path: Path


class Mount(NamedTuple):
    """A folder that was unpacked by hand, and where its files belong."""

    folder: Path
    to: str
    """Folder below the data set's; "" is that folder itself."""


def check_sources(spec: DatasetSpec, sources: Iterable[Path]) -> None:
    """Refuse sources that cannot be meant.

    Raises:
        FileNotFoundError: A source does not exist.
        InputError: A file is none of the data set's archives.
    """
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(
                f"No {source}. Give the archives of {spec.name!r}, or a folder that holds them."
            )
        if source.is_file() and not any(_is(archive, source) for archive in spec.archives):
            names = "".join(f"\n  {archive.file}" for archive in spec.archives) or " none"
            raise InputError(
                f"{source} is none of the archives of {spec.name!r}, which are:{names}\n"
                "If it was renamed, give it its name again."
            )


def find_archives(spec: DatasetSpec, sources: Sequence[Path]) -> list[Found]:
    """The data set's archives among the sources, and in the folders that they are or hold.

    What a browser makes of a second download, "name (1).zip", is taken where "name.zip" is not.
    """
    found = []
    for archive in spec.archives:
        paths: dict[Path, None] = {}
        for source in sources:
            paths |= dict.fromkeys(_candidates(archive, source))
        exact = [path for path in paths if path.match(archive.file)]
        if "*" in archive.file:
            # Several parts of a download; not one of them twice.
            distinct = {path.stat().st_size: path for path in [*paths, *exact]}
            found += [Found(archive, path) for path in sorted(distinct.values())]
        elif paths:
            found.append(Found(archive, [*exact, *paths][0]))
    return found


def _is(archive: Archive, path: Path) -> bool:
    """Whether a file has an archive's name, with its folders if that has some."""
    *folders, name = archive.file.split("/")
    *parents, last = path.resolve().parts
    stem, dot, suffix = name.partition(".")
    pattern = re.escape(stem).replace(r"\*", ".*") + r"( ?\(\d+\))?"
    pattern += re.escape(dot + suffix).replace(r"\*", ".*")
    return bool(re.fullmatch(pattern, last)) and parents[len(parents) - len(folders) :] == folders


def _candidates(archive: Archive, source: Path) -> list[Path]:
    if not source.is_dir():
        return [source] if _is(archive, source) else []
    folder = archive.file.rpartition("/")[0]
    suffix = Path(archive.file).suffix
    # In the folder, or one level deeper.
    return [
        path
        for start in ("", "*/")
        for path in sorted(source.glob(f"{start}{folder}/*{suffix}".replace("//", "/").lstrip("/")))
        if path.is_file() and _is(archive, path)
    ]


def needed_patterns(spec: DatasetSpec) -> list[str]:
    """Patterns of all files that splits or steps read."""
    parts = [part for split in spec.splits for part in spec.parts(split)]
    read = [p for part in parts for p in (part.images, part.labels, part.names) if p]
    made_of = [pattern for step in spec.steps for pattern in inputs(step)]
    return list(dict.fromkeys(read + made_of))


def find_mounts(spec: DatasetSpec, source: Path) -> list[Mount]:
    """Which of a folder's files belong where, if archives were unpacked there by hand.

    Most often that is the data set's folder itself. An archive may also have been unpacked as it
    is, with a folder at its top, or without the folder that it belongs to.
    """
    mounts = [Mount(source, "")]
    for archive in spec.archives:
        strip = archive.strip.strip("/")
        alike = {a.to for a in spec.archives if a.strip.strip("/") == strip}
        if strip and len(alike) == 1 and (source / strip).is_dir():
            mounts.append(Mount(source / strip, archive.to))
        elif not strip and archive.to:
            mounts.append(Mount(source, archive.to))
    return [mount for mount in dict.fromkeys(mounts) if any(_mounted(spec, mount))]


def _mounted(spec: DatasetSpec, mount: Mount) -> Iterable[tuple[Path, str]]:
    """The files that a mount brings, with their names below the data set's folder."""
    for pattern in needed_patterns(spec):
        below = pattern
        if mount.to:
            if not pattern.startswith(f"{mount.to}/"):
                continue
            below = pattern.removeprefix(f"{mount.to}/")
            # Bare file names say too little of what a folder is.
            if "/" not in below and not mount.folder.match(f"*/{mount.to}"):
                continue
        for path, _ in matches(mount.folder, below):
            name = path.relative_to(mount.folder).as_posix()
            yield path, f"{mount.to}/{name}" if mount.to else name


def link_files(spec: DatasetSpec, mounts: Sequence[Mount], root: Path) -> int:
    """Make the mounted files appear in the data set's folder; returns how many are new there.

    Raises:
        InputError: The disk is full.
    """
    done = 0
    for mount in mounts:
        for path, name in _mounted(spec, mount):
            done += link(path, root / name)
    return done


def link(path: Path, target: Path) -> bool:
    """Make a file appear under another name, by a link or else a copy; False if it is there.

    Raises:
        InputError: The disk is full.
    """
    if target.exists():
        return False
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # A link to what has gone.
        try:
            target.symlink_to(path.resolve())
        except (OSError, NotImplementedError):  # Windows asks for a right that few have.
            with atomic_path(target, durable=False) as aside:
                shutil.copyfile(path, aside)
    return True
