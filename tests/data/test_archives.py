"""Archives of all kinds, whole, damaged and made to do harm."""

import bz2
import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from ccsnet.data import archives
from ccsnet.data.archive_list import archive_kind, list_members
from ccsnet.data.archives import md5_of, unpack
from ccsnet.errors import InputError
from ccsnet.progress import Silent

FILES = {
    "top/images/a.jpg": b"a" * 3000,
    "top/images/b.jpg": bytes(range(256)) * 40,
    "top/labels/a.png": b"",
    "top/names.txt": b"a\nb\n",
}


def write_zip(path, files=FILES, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files=FILES, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


WRITERS = {
    "a.zip": write_zip,
    "stored.zip": lambda path, files=FILES: write_zip(path, files, zipfile.ZIP_STORED),
    "a.tar": write_tar,
    "a.tgz": lambda path, files=FILES: write_tar(path, files, "w:gz"),
    "a.tar.bz2": lambda path, files=FILES: write_tar(path, files, "w:bz2"),
    "a.tar.xz": lambda path, files=FILES: write_tar(path, files, "w:xz"),
}


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    """Where things are unpacked, in a folder whose other content must stay as it is."""
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe" / "mine.txt").write_text("mine")
    return tmp_path / "safe" / "out"


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def unpacked(path, folder, **settings):
    settings = {"reporter": Silent()} | settings
    return unpack(path, folder, **settings)


def refused(path, folder, match):
    """The text of the error; nothing may have been written anywhere."""
    before = tree(folder.parent.parent)
    with pytest.raises(InputError, match=match) as caught:
        unpacked(path, folder)
    assert str(path) in str(caught.value)
    assert tree(folder.parent.parent) == before
    return str(caught.value)


# What is whole


def test_every_kind_of_archive(kind, tmp_path, folder):
    assert unpacked(WRITERS[kind](tmp_path / kind), folder) == len(FILES)
    assert tree(folder) == FILES


def test_the_content_says_what_an_archive_is_not_its_name(tmp_path, folder):
    path = write_tar(tmp_path / "a.zip", mode="w:gz")
    assert archive_kind(path) == "tar"
    unpacked(path, folder)
    assert tree(folder) == FILES


def test_a_folder_at_the_top_is_taken_away(kind, tmp_path, folder):
    path = WRITERS[kind](tmp_path / kind, FILES | {"readme.txt": b"beside it"})
    unpacked(path, folder, strip="top", to="below")
    expected = {f"below/{name.removeprefix('top/')}": data for name, data in FILES.items()}
    assert tree(folder) == expected | {"below/readme.txt": b"beside it"}


def test_what_systems_add_is_left_out(kind, tmp_path, folder):
    added = {"__MACOSX/top/._a.jpg": b"x", "top/._a.jpg": b"x", "top/.DS_Store": b"x"}
    path = WRITERS[kind](tmp_path / kind, FILES | added | {"prepared.json": b"{}"})
    unpacked(path, folder, skip=["prepared.json"])
    assert tree(folder) == FILES


def test_names_with_windows_slashes_and_dots(tmp_path, folder):
    unpacked(write_zip(tmp_path / "a.zip", {"./top\\images//c.jpg": b"c"}), folder)
    assert tree(folder) == {"top/images/c.jpg": b"c"}


def test_the_last_of_two_members_of_one_name_counts(tmp_path, folder):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("a.txt")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    unpacked(tmp_path / "a.tar", folder)
    assert tree(folder) == {"a.txt": b"newer"}


def test_links_inside_become_copies(tmp_path, folder):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name, kind, link in (
            ("top/one.txt", tarfile.SYMTYPE, "../data/two.txt"),
            ("data/two.txt", tarfile.SYMTYPE, "three.txt"),
            ("top/hard.txt", tarfile.LNKTYPE, "data/three.txt"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
        info = tarfile.TarInfo("data/three.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"three"))
    unpacked(tmp_path / "a.tgz", folder)
    names = ["data/three.txt", "data/two.txt", "top/hard.txt", "top/one.txt"]
    assert tree(folder) == dict.fromkeys(names, b"three")
    assert not any((folder / name).is_symlink() for name in names)
    assert all((folder / name).stat().st_nlink == 1 for name in names)


def test_md5(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert md5_of(tmp_path / "a") == "900150983cd24fb0d6963f7d28e17f72"


# What is made to do harm

OUTSIDE = [
    "../evil.txt",
    "top/../../evil.txt",
    "/evil.txt",
    "//server/evil.txt",
    "C:/evil.txt",
    "c:evil.txt",
    "..\\evil.txt",
    "top\\..\\..\\evil.txt",
    "\\\\server\\evil.txt",
    "top/.. /evil.txt",
    "top/.../evil.txt",
    "．．/evil.txt",  # Dots that normalisation makes plain ones.
    "top/‥/evil.txt",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_names_that_lead_outside(kind, name, tmp_path, folder):
    path = WRITERS[kind](tmp_path / kind, {"top/a.txt": b"a", name: b"evil"})
    assert repr(name) in refused(path, folder, "absolute path|leads out of the folder")


@pytest.mark.parametrize("link", ["/etc", "..", "../../safe", "top/../..", "../safe/mine.txt"])
@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_writing_through_a_link(link, type_, tmp_path, folder):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("door")
        info.type, info.linkname = type_, link
        archive.addfile(info)
        for name in ("door", "door/mine.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
    refused(tmp_path / "a.tar", folder, "link|a file and a folder")


def test_link_to_a_folder_inside_or_to_itself(tmp_path, folder):
    for link in ("top", "door", "nothing.txt"):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            info = tarfile.TarInfo("top")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            info = tarfile.TarInfo("door")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        refused(tmp_path / "a.tar", folder, f"'door' is a link to '{link}', which is no file")


@pytest.mark.parametrize("target", ["../mine.txt", "/etc/passwd", "x" * 5000])
def test_link_in_a_zip(target, tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("door")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    refused(tmp_path / "a.zip", folder, "is a link")


@pytest.mark.parametrize("type_", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(type_, tmp_path, folder):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("null")
        info.type, info.devmajor, info.devminor = type_, 1, 3
        archive.addfile(info)
    refused(tmp_path / "a.tar", folder, "'null' is a device or pipe")


def test_device_in_a_zip(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("pipe")
        info.external_attr = (stat.S_IFIFO | 0o666) << 16
        archive.writestr(info, b"")
    refused(tmp_path / "a.zip", folder, "'pipe' is a device or pipe")


@pytest.mark.parametrize(
    ("one", "other"),
    [("A.txt", "a.txt"), ("top/Straße", "top/STRASSE"), ("caf\u00e9", "cafe\u0301")],
)
def test_names_that_are_one_on_some_systems(one, other, tmp_path, folder):
    refused(write_zip(tmp_path / "a.zip", {one: b"1", other: b"2"}), folder, "the same place")


def test_a_file_that_is_a_folder_too(kind, tmp_path, folder):
    path = WRITERS[kind](tmp_path / kind, {"a": b"1", "a/b/c": b"2"})
    refused(path, folder, "'a' is a file and a folder")


def test_a_link_that_is_there_already_leads_nothing_outside(kind, tmp_path, folder):
    folder.mkdir()
    (folder / "top").symlink_to(folder.parent)
    path = WRITERS[kind](tmp_path / kind, {"top/mine.txt": b"evil"})
    refused(path, folder, "is a link that leads out")


def test_more_than_the_disk_holds_is_not_begun(tmp_path, folder, monkeypatch):
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a"})
    # The size in the list of members, which is at the archive's end.
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02") + 24
    path.write_bytes(data[:at] + (4_000_000_000).to_bytes(4, "little") + data[at + 4 :])
    usage = type("Usage", (), {"total": 10**12, "free": 3 * 10**9})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused(path, folder, r"does not fit: its files take 4,000 MB more, and 3,000 MB are free")
    usage.total = 10**9
    refused(path, folder, r"take more than 4,000 MB, and the whole disk has 1,000 MB")


def test_a_size_that_no_disk_has(tmp_path, folder):
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 60
    (tmp_path / "a.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(10240)))
    refused(tmp_path / "a.tgz", folder, "does not fit")


def test_a_size_that_lies(tmp_path, folder):
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a" * 5000})
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02") + 24
    path.write_bytes(data[:at] + (100).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(InputError, match="damaged or not whole"):
        unpacked(path, folder)
    assert tree(folder) == {}


# What is damaged


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>Please log in", "a web page, perhaps one that asks to log in"),
        (b"just text", "no archive: it begins with b'just tex'"),
        (os.urandom(2000), "no archive|damaged"),
        (gzip.compress(b"no tar" * 100, mtime=0), "damaged or not whole"),
        (bz2.compress(b"no tar" * 100), "damaged or not whole"),
    ],
)
def test_what_is_no_archive(content, match, tmp_path, folder):
    for name in ("a.zip", "a.tgz"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, folder, match)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.98])
def test_cut_off(kind, share, tmp_path, folder):
    path = WRITERS[kind](tmp_path / kind)
    data = path.read_bytes()
    # A tar is filled up with zeros, of which the last may be missed.
    length = len(data.rstrip(b"\0")) if kind == "a.tar" else len(data)
    path.write_bytes(data[: int(length * share)])
    refused(path, folder, "damaged or not whole|is no archive")


def test_a_tar_cut_off_between_its_members(tmp_path, folder):
    path = write_tar(tmp_path / "a.tar")
    data = path.read_bytes()
    second = 512 + 3072
    for end in (second, second + 100, second + 512 + 10):
        path.write_bytes(data[:end])
        refused(path, folder, "damaged or not whole")
    path.write_bytes(data[:second] + b"x" * 512 + data[second + 512 :])
    refused(path, folder, "without the mark of a tar's end")


def test_a_packed_tar_without_its_checksum(tmp_path, folder):
    path = WRITERS["a.tgz"](tmp_path / "a.tgz")
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, folder, "damaged or not whole")


def test_a_changed_byte_is_found(tmp_path, folder):
    path = write_zip(tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"aaaa") + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip .*damaged or not whole: Bad CRC-32.*a\.jpg"):
        unpacked(path, folder)
    assert "top/images/a.jpg" not in tree(folder)


def test_encrypted(tmp_path, folder):
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, folder, "is encrypted. Unpack it with its password")


def test_compression_that_python_lacks(tmp_path, folder):
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a"})
    data = bytearray(path.read_bytes())
    data[8] = data[data.rindex(b"PK\x01\x02") + 10] = 9
    path.write_bytes(data)
    refused(path, folder, "compressed by method 9, which Python cannot read.* give the folder")


# Interrupted, and gone on with


class StopAfter:
    """Writes so many files, then raises."""

    def __init__(self, num, error):
        self.left, self.error, self.write = num, error, archives.shutil.copyfileobj

    def __call__(self, source, file, length):
        file.write(b"begun")
        if self.left == 0:
            raise self.error
        self.left -= 1
        file.seek(0)
        file.truncate()
        self.write(source, file, length)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_interrupted(kind, num, tmp_path, folder, monkeypatch):
    path = WRITERS[kind](tmp_path / kind)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", StopAfter(num, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            unpacked(path, folder)
    part = tree(folder)
    assert len(part) == num
    assert all(FILES[name] == data for name, data in part.items())
    times = {name: (folder / name).stat().st_mtime_ns for name in part}
    unpacked(path, folder)
    assert tree(folder) == FILES
    assert {name: (folder / name).stat().st_mtime_ns for name in part} == times


def test_what_is_there_but_differs_is_replaced(tmp_path, folder):
    path = write_zip(tmp_path / "a.zip")
    unpacked(path, folder)
    (folder / "top/images/a.jpg").write_bytes(b"b" * 3000)  # Of the same size.
    (folder / "top/images/b.jpg").write_bytes(b"short")
    unpacked(path, folder)
    assert tree(folder) == FILES


def test_what_is_older_is_made_anew(kind, tmp_path, folder):
    path = WRITERS[kind](tmp_path / kind)
    unpacked(path, folder)
    os.utime(folder / "top/images/a.jpg", (1000, 1000))
    os.utime(folder / "top/names.txt", (3000, 3000))
    unpacked(path, folder, since=2000.0)
    assert (folder / "top/images/a.jpg").stat().st_mtime > 3000
    assert (folder / "top/names.txt").stat().st_mtime == 3000


def test_a_link_in_the_folder_is_replaced_not_followed(tmp_path, folder):
    (folder / "top").mkdir(parents=True)
    (folder / "top" / "names.txt").symlink_to(folder.parent / "mine.txt")
    unpacked(write_zip(tmp_path / "a.zip"), folder)
    assert (folder.parent / "mine.txt").read_text() == "mine"
    assert tree(folder) == FILES


def test_full_disk(kind, tmp_path, folder, monkeypatch):
    path = WRITERS[kind](tmp_path / kind)
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", StopAfter(1, full))
        with pytest.raises(InputError, match=r"disk is full: no room for .*b\.jpg \([\d,]+ MB"):
            unpacked(path, folder)
    assert set(tree(folder)) == {"top/images/a.jpg"}
    unpacked(path, folder)
    assert tree(folder) == FILES


@pytest.mark.slow
def test_processes_make_the_same(tmp_path):
    files = {f"images/{i:03}.bin": os.urandom(50 + i) for i in range(100)}
    path = write_zip(tmp_path / "a.zip", files)
    for workers in (1, 2):
        assert unpacked(path, tmp_path / str(workers), workers=workers) == 100
        assert tree(tmp_path / str(workers)) == files
    damaged = bytearray(write_zip(path, files, zipfile.ZIP_STORED).read_bytes())
    damaged[damaged.index(files["images/070.bin"]) + 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"Bad CRC-32.*images/070\.bin"):
        unpacked(path, tmp_path / "other", workers=2)


def test_members_know_their_sizes(tmp_path):
    members = list_members(write_zip(tmp_path / "a.zip"), "top")
    assert {m.name: m.size for m in members} == {
        name.removeprefix("top/"): len(data) for name, data in FILES.items()
    }
