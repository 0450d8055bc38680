"""What an archive holds, with everything checked that could make unpacking it do harm."""

import posixpath
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

from ccsnet.data.disk import megabytes
from ccsnet.errors import InputError

CHUNK = 1 << 20

# What libraries raise over damaged archives.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError),
    *(NotImplementedError, ValueError, struct.error),
)


class Entry(NamedTuple):
    """What an archive says of one of its members."""

    name: str
    size: int
    crc: int | None
    kind: str
    """A file, folder, link, or what else it is."""
    link: str = ""
    """Of a link, the name in the archive that it points to."""


class Member(NamedTuple):
    """A file to write."""

    name: str
    """Where it goes, relative to the folder."""
    key: int
    """The place of its content in the archive's list."""
    size: int
    crc: int | None


def archive_kind(path: Path) -> str:
    """What the file holds, zip or tar; its name does not count.

    Raises:
        InputError: It is neither; the text tells what it looks like.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    packed = start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))
    # An old tar has no mark, but it begins with a whole header.
    if packed or start[257:262] == b"ustar" or (len(start) == 512 and tarfile.is_tarfile(path)):
        return "tar"
    if not start:
        found = "it is empty (0 bytes)"
    elif start.lstrip()[:1] == b"<":
        found = "it is a web page, perhaps one that asks to log in"
    else:
        found = f"it begins with {start[:8]!r}"
    raise InputError(
        f"{path} is no archive: {found}. It should be a zip or tar file; download it again."
    )


def list_members(path: Path, strip: str = "", room: int | None = None) -> list[Member]:
    """The files of an archive, each with a safe name.

    Args:
        path: The archive.
        strip: A folder of the archive whose content goes to where the archive's does.
        room: Reading ends with an error when so many bytes are passed. None: never.

    Raises:
        InputError: It is no archive, is damaged or encrypted, or a member is not what data sets
            hold; the text names the archive and the member.
    """
    read = {"zip": _zip_entries, "tar": _tar_entries}[archive_kind(path)]
    with damage(path):
        entries = read(path, room)
    places: dict[str, int] = {}  # The last of a name counts, as every unpacker has it.
    for i, entry in enumerate(entries):
        if entry.kind not in ("file", "folder", "link"):
            raise _refused(path, entry.name, f"is {entry.kind}, not a file")
        places[_safe_name(path, entry.name)] = i
    members: dict[str, Member] = {}
    alike: dict[str, str] = {}
    for name, place in places.items():
        if entries[place].kind == "folder" or _is_fork(name):
            continue
        key = _content_of(path, entries, places, place)
        entry = entries[key]
        target = name.removeprefix(f"{strip.strip('/')}/") if strip else name
        # Where capitals do not count, as on most Macs, such names are one file.
        other = alike.setdefault(unicodedata.normalize("NFC", target).casefold(), target)
        if other != target or target in members:
            raise _refused(path, name, f"has the same place as {other!r} on some systems")
        members[target] = Member(target, key, entry.size, entry.crc)
    folders = {parent for name in members for parent in _parents(name)}
    for name in sorted(folders & set(members)):
        raise _refused(path, name, "is a file and a folder at once")
    return list(members.values())


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Tell which archive is damaged, in one way for all libraries.

    Raises:
        InputError: A library found damage.
    """
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(_damaged(path, str(error))) from error
    except OSError as error:
        if error.errno is not None:  # Only gzip's own errors have no number.
            raise
        raise InputError(_damaged(path, str(error))) from error


def _damaged(path: Path, found: str) -> str:
    return (
        f"{path} ({path.stat().st_size:,} bytes) is damaged or not whole: "
        f"{found.partition(chr(10))[0]}. Download it again."
    )


def _safe_name(path: Path, name: str) -> str:
    """The name, relative and with plain slashes.

    Raises:
        InputError: It would lead out of the folder on any system.
    """
    plain = name.replace("\\", "/")
    # What looks like a dot or slash and is made one by a file system that normalises names.
    for text in (plain, unicodedata.normalize("NFKC", plain)):
        if text.startswith("/") or re.match("[A-Za-z]:", text):
            raise _refused(path, name, "is an absolute path")
        for part in text.split("/"):
            # Windows drops dots and spaces at the end: ".. " is "..".
            if part not in ("", ".") and not part.rstrip(". "):
                raise _refused(path, name, "leads out of the folder")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    return "/".join(parts)


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _is_fork(name: str) -> bool:
    """Whether it is what macOS adds beside the files."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in ("", ".DS_Store")


def _content_of(path: Path, entries: list[Entry], places: dict[str, int], place: int) -> int:
    """The place of the file that an entry is, or that its links end at."""
    seen = set()
    first = entries[place].name
    while entries[place].kind == "link":
        seen.add(place)
        link = posixpath.normpath(entries[place].link)
        if (
            link == ".."
            or link.startswith(("/", "../"))
            or re.match("[A-Za-z]:", link)
            or "\\" in link
        ):
            raise _refused(path, first, f"is a link out of the folder, to {link!r}")
        place = places.get(link, -1)
        if place < 0 or place in seen or entries[place].kind == "folder":
            raise _refused(path, first, f"is a link to {link!r}, which is no file in it")
    return place


def _refused(path: Path, name: str, why: str) -> InputError:
    return InputError(
        f"{path} was not unpacked: its member {name!r} {why}. The official archives have no such "
        "member; download it again from the data set's own site."
    )


def _zip_entries(path: Path, room: int | None) -> list[Entry]:
    entries = []
    total = 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.flag_bits & 1:
                raise InputError(
                    f"{path} is encrypted. Unpack it with its password and give the folder."
                )
            if info.compress_type not in (0, 8, 12, 14):  # Stored, deflate, bzip2, LZMA.
                raise InputError(
                    f"{path} is compressed by method {info.compress_type}, which Python cannot "
                    "read. Unpack it with another program, such as 7-Zip, and give the folder."
                )
            mode = info.external_attr >> 16
            kind = "folder" if info.is_dir() else "file"
            link = ""
            if stat.S_ISLNK(mode):
                kind = "link"
                target = archive.read(info) if info.file_size < 4096 else b"/"
                link = posixpath.join(posixpath.dirname(info.filename), target.decode("utf-8"))
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a device or pipe"
            total += info.file_size
            _check_total(path, total, room)
            entries.append(Entry(info.filename, info.file_size, info.CRC, kind, link))
    return entries


def _tar_entries(path: Path, room: int | None) -> list[Entry]:
    entries = []
    total = 0
    with tarfile.open(path) as archive:
        for info in archive:
            kind, link = "a device or pipe", ""
            if info.isreg():
                kind = "file"
            elif info.isdir():
                kind = "folder"
            elif info.issym():
                kind = "link"
                link = posixpath.join(posixpath.dirname(info.name), info.linkname)
            elif info.islnk():
                kind, link = "link", info.linkname
            total += info.size
            _check_total(path, total, room)  # Here already: what follows is read to the end.
            entries.append(Entry(info.name, info.size, None, kind, link))
        assert archive.fileobj is not None, "an open archive has a file"
        # tarfile takes damage for the end; the true end is a block of zeros.
        archive.fileobj.seek(archive.offset)
        end = archive.fileobj.read(512)
        if len(end) < 512 or any(end):
            raise tarfile.ReadError("it ends without the mark of a tar's end")
        while archive.fileobj.read(CHUNK):  # The checksum of the compressed stream is at its end.
            pass
    return entries


def _check_total(path: Path, total: int, room: int | None) -> None:
    if room is not None and total > room:
        raise InputError(
            f"{path} does not fit: its files take more than {megabytes(total)}, and the whole "
            f"disk has {megabytes(room)}. It may be made to fill disks; the official one is not."
        )
