"""Unpack archives, whatever they hold, into one folder and nowhere else.

Everything is checked before anything is written: names, links, kinds and sizes of all members,
and that the archive is whole. `zipfile` and `tarfile` only read; files are written here, each
whole or not at all, and no link is ever made: a link inside the archive becomes a copy of what it
points to. So there is nothing that a later member could be written through.
"""

import functools
import hashlib
import io
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from ccsnet.data.archive_list import CHUNK, Member, archive_kind, damage, list_members
from ccsnet.data.disk import disk_errors, existing, free_space, megabytes
from ccsnet.data.parallel import run_all
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.progress import Reporter

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
Content = Callable[[], IO[bytes] | io.BufferedIOBase]
PER_TASK = 32  # Members that a process unpacks at a time.


def unpack(
    path: Path,
    folder: Path,
    *,
    to: str = "",
    strip: str = "",
    skip: Iterable[str] = (),
    since: float = 0.0,
    workers: int = 1,
    reporter: Reporter,
) -> int:
    """Unpack a zip or tar file; returns how many files it holds.

    Files that are there already, whole, are left as they are, so that an interrupted call is
    finished by the next one.

    Args:
        path: The archive.
        folder: Nothing is written elsewhere.
        to: The folder in that folder that its content goes to; "" is that folder itself.
        strip: A folder of the archive whose content goes there instead of itself.
        skip: Names that are not unpacked, relative to the folder.
        since: Files that are older, in seconds since 1970, count as absent.
        workers: Processes that share the work (for a zip; a tar is one stream).
        reporter: Told the progress in files.

    Raises:
        InputError: It is no archive, is damaged or encrypted, does not fit the disk, or a member
            would land outside the folder; the text names the archive and the member.
    """
    left_out = set(skip)
    room = shutil.disk_usage(existing(folder)).total
    members = list_members(path, strip, room)
    if to:
        members = [member._replace(name=f"{to}/{member.name}") for member in members]
    members = [member for member in members if member.name not in left_out]
    _check_folders(path, folder, members)
    _check_space(path, folder, members)
    reporter.start("unpacking", len(members))
    if archive_kind(path) == "zip":
        groups = [members[i : i + PER_TASK] for i in range(0, len(members), PER_TASK)]
        tasks = [(path, folder, group, since) for group in groups]
        try:
            run_all(_unpack_zip_members, tasks, workers=workers, reporter=reporter)
        finally:
            _open_zip.cache_clear()
    else:
        _unpack_tar_members(path, folder, members, since, reporter)
    reporter.end()
    return len(members)


def is_archive_name(name: str) -> bool:
    """Whether a file of that name is unpacked, or taken as it is."""
    return name.lower().endswith(SUFFIXES)


def md5_of(path: Path) -> str:
    """The file's MD5 sum, as data sets publish it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _check_folders(path: Path, folder: Path, members: list[Member]) -> None:
    """Refuse to write through links that are in the folder already."""
    root = folder.resolve()
    for parent in {posixpath.dirname(member.name) for member in members}:
        found = (folder / parent).resolve()
        if not found.is_relative_to(root):
            raise InputError(
                f"{path} was not unpacked: {folder / parent} is a link that leads out of {folder}, "
                f"to {found}. Take the link away, or name another --out."
            )


def _check_space(path: Path, folder: Path, members: list[Member]) -> None:
    """Refuse what cannot fit, such as an archive made to fill disks."""
    needed = sum(m.size for m in members if not _has_size(folder / m.name, m.size))
    free = free_space(folder)
    if needed > free:
        raise InputError(
            f"{path} does not fit: its files take {megabytes(needed)} more, and "
            f"{megabytes(free)} are free at {folder}. Make room, or name another --out."
        )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_whole(path: Path, member: Member, since: float) -> bool:
    """Whether the file is there as the archive has it."""
    if not _has_size(path, member.size) or path.stat().st_mtime < since:
        return False
    if member.crc is None:
        return True
    crc = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return crc == member.crc


def _write(target: Path, member: Member, since: float, content: Content) -> None:
    if _is_whole(target, member, since):
        return
    with disk_errors(target), atomic_path(target, durable=False) as aside:
        with content() as source, aside.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
            written = file.tell()
        if written != member.size:
            raise EOFError(f"{member.name!r} ends after {written:,} of {member.size:,} bytes")


@functools.lru_cache(maxsize=1)
def _open_zip(path: Path, changed: int) -> zipfile.ZipFile:
    """The archive with its list of members, which is long to read: kept for the next group."""
    return zipfile.ZipFile(path)


def _unpack_zip_members(task: tuple[Path, Path, list[Member], float]) -> int:
    path, folder, members, since = task
    with damage(path):
        archive = _open_zip(path, path.stat().st_mtime_ns)
        infos = archive.infolist()
        for member in members:
            _write(
                folder / member.name,
                member,
                since,
                functools.partial(archive.open, infos[member.key]),
            )
    return len(members)


def _unpack_tar_members(
    path: Path, folder: Path, members: list[Member], since: float, reporter: Reporter
) -> None:
    wanted: dict[int, list[Member]] = {}
    for member in members:
        wanted.setdefault(member.key, []).append(member)
    with damage(path), tarfile.open(path) as archive:
        for key, info in enumerate(archive):
            for member in wanted.get(key, ()):
                _write(
                    folder / member.name,
                    member,
                    since,
                    functools.partial(_tar_content, archive, info),
                )
                reporter.advance()


def _tar_content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> io.BufferedIOBase:
    content = archive.extractfile(info)
    assert isinstance(content, io.BufferedIOBase), "only files are asked for"
    return content
