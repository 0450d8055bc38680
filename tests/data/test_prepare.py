"""From archives to a folder that is ready, however it is interrupted on the way."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ccsnet import cli
from ccsnet.data.images import read_label
from ccsnet.data.loading import evaluation_samples
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.data.prepare import Counts, default_out, prepare
from ccsnet.data.record import FINISHED, UNFINISHED
from ccsnet.datasets._archives import Archive, Gunzip, MatToPng, NameList
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.errors import InputError
from ccsnet.plugins import find_plugin

SPEC = DatasetSpec(
    name="tiny",
    classes=("ground", "water"),
    colours=((0, 128, 0), (0, 0, 255)),
    raw_to_class={1: 0, 2: 1},
    ignore_raw=frozenset({0}),
    splits={
        "train": Split(
            images="images/*.png", labels="labels/*.png", names="lists/train.txt", count=4
        ),
        "val": Split(images="images/*.png", labels="labels/*.png", names="lists/val.txt", count=2),
        "test": Split(images="more/*.png", count=1),
    },
    licence="none",
    source="Draw the pictures tiny-images.zip, truth.tgz and more.tar yourself.",
    default_root="data/tiny",
    archives=(
        Archive(file="tiny-images.zip", strip="Tiny"),
        Archive(file="truth.tgz", to="truth"),
        Archive(file="more.tar", optional=True),
    ),
    steps=(
        Gunzip(sources="images/*.png.gz"),
        MatToPng(sources="truth/*.mat", targets="labels/*.png", path=("GT", "S")),
        NameList(target="lists/train.txt", add=("lists/all.txt",), less=("lists/val.txt",)),
    ),
)
NAMES = [f"p{i}" for i in range(6)]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), 10 * number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def truth(number: int) -> np.ndarray:
    return (np.arange(96).reshape(8, 12) + number).astype(np.uint8) % 3


def mat(number: int) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"GT": {"S": truth(number), "Borders": 0}})
    return buffer.getvalue()


def image_files() -> dict[str, bytes]:
    files = {f"images/p{i}.png.gz": gzip.compress(png(i), mtime=0) for i in range(6)}
    files["lists/all.txt"] = "".join(f"{name}\n" for name in NAMES).encode()
    return files | {"lists/val.txt": b"p1\np4 1\n"}


def truth_files() -> dict[str, bytes]:
    return {f"p{i}.mat": mat(i) for i in range(6)}


def write_tar(path: Path, files: dict[str, bytes], mode="w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    with zipfile.ZipFile(folder / "tiny-images.zip", "w") as archive:
        for name, content in image_files().items():
            archive.writestr(f"Tiny/{name}", content)
    write_tar(folder / "truth.tgz", truth_files(), "w:gz")
    write_tar(folder / "more.tar", {"more/a.png": png(9)})
    return folder


@pytest.fixture
def downloads(made_once, tmp_path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "downloads"))


@pytest.fixture
def by_hand(tmp_path) -> Path:
    """The archives as a user has unpacked them into one folder."""
    files = image_files() | {f"truth/{name}": data for name, data in truth_files().items()}
    return write_files(tmp_path / "unpacked", files)


class Told:
    """A reporter that remembers."""

    def __init__(self):
        self.notes, self.stages, self.done, self.ends = [], [], 0, 0

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total, done=0):
        self.stages.append((stage, total, done))

    def advance(self, units=1, **values):
        self.done += units

    def end(self):
        self.ends += 1


def tree(root: Path) -> dict[str, bytes]:
    """All files but the records, whose sources differ."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (FINISHED, UNFINISHED)
    }


def times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def assert_ready(root: Path, spec=SPEC) -> None:
    for split in ("train", "val"):
        for pair in spec.pairs(root, split):
            number = int(pair.name[1:])
            assert pair.image.read_bytes() == png(number)
            label = read_label(pair.label, spec)
            assert np.array_equal(label, np.array([255, 0, 1])[truth(number)])
    assert [pair.name for pair in spec.pairs(root, "train")] == ["p0", "p2", "p3", "p5"]
    assert [pair.name for pair in spec.pairs(root, "val")] == ["p1", "p4"]
    assert (root / FINISHED).is_file()
    assert not (root / UNFINISHED).exists()


# The way through


def test_from_archives_to_ready(downloads, tmp_path):
    told = Told()
    made = prepare(SPEC, [downloads], tmp_path / "data", reporter=told)
    assert_ready(tmp_path / "data")
    assert made.found == {"train": Counts(4, 4), "val": Counts(2, 2), "test": Counts(1, 0)}
    assert made.promised == {"train": 4, "val": 2, "test": 1}
    assert (made.root, made.problems, made.reused) == (tmp_path / "data", [], False)
    record = json.loads((tmp_path / "data" / FINISHED).read_text())
    assert record["dataset"] == "tiny"
    assert record["splits"]["train"] == {"images": 4, "labels": 4, "promised": 4}
    assert [name for name, _ in record["archives"]] == [a.file for a in SPEC.archives]
    unpacking = [("unpacking", n, 0) for n in (8, 6, 1)]
    assert told.stages == [*unpacking, *(("converting", n, 0) for n in (6, 6, 1))]
    assert told.done == 8 + 6 + 1 + 6 + 6 + 1
    assert told.ends >= len(told.stages)


def test_a_prepared_folder_is_recognised_and_left_alone(downloads, tmp_path):
    root = tmp_path / "data"
    first = prepare(SPEC, [downloads], root)
    before = times(root)
    for sources in ([downloads], [], [tmp_path / "gone"]):
        again = prepare(SPEC, sources, root)
        assert again.reused
        assert (again.found, again.problems) == (first.found, [])
    assert times(root) == before


@pytest.mark.parametrize("where", ["files", "deeper", "renamed", "both", "in the folder itself"])
def test_where_archives_may_be(where, downloads, tmp_path):
    root, sources = tmp_path / "data", [downloads]
    if where == "files":
        sources = sorted(downloads.iterdir())
    elif where == "deeper":
        sources = [tmp_path]
    elif where == "renamed":
        (downloads / "truth.tgz").rename(downloads / "truth (1).tgz")
        (downloads / "more.tar").rename(downloads / "more(2).tar")
    elif where == "both":
        (downloads / "truth (1).tgz").write_bytes(b"begun and not finished")
    else:
        downloads.rename(root)
        sources = []
    assert not prepare(SPEC, sources, root).problems
    assert_ready(root)


def test_archives_that_differ_by_their_folders(tmp_path):
    archives = tuple(Archive(file=f"{s}/images/part1.zip", to=s) for s in ("train", "val"))
    splits = {s: Split(images=f"{s}/*.png") for s in ("train", "val")}
    spec = dataclasses.replace(SPEC, archives=archives, splits=splits, steps=())
    for i, split in enumerate(splits):
        path = tmp_path / "downloads" / split / "images" / "part1.zip"
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{split}.png", png(i))
    for sources in ([tmp_path / "downloads"], sorted(tmp_path.rglob("part1.zip"))):
        root = tmp_path / f"data{len(sources)}"
        prepare(spec, sources, root)
        assert tree(root) == {"train/train.png": png(0), "val/val.png": png(1)}


def test_every_part_of_a_download(tmp_path):
    archive = Archive(file="photos-*.zip")
    spec = dataclasses.replace(
        SPEC, archives=(archive,), splits={"train": Split(images="*.png")}, steps=()
    )
    for i, name in enumerate(("photos-20-001", "photos-20-002", "photos-20-002 (1)")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            file.writestr(f"{min(i, 1)}.png", png(min(i, 1)) + bytes(min(i, 1)))
    made = prepare(spec, [tmp_path], tmp_path / "data")
    assert made.found["train"].images == 2


def test_a_file_that_is_no_archive_is_linked(downloads, tmp_path):
    spec = dataclasses.replace(SPEC, archives=(*SPEC.archives, Archive(file="a.json", to="x")))
    (downloads / "a.json").write_text("{}")
    prepare(spec, [downloads], tmp_path / "data")
    assert (tmp_path / "data/x/a.json").resolve() == downloads / "a.json"


def test_what_needs_no_archives(tmp_path):
    earth = find_plugin("ccsnet.datasets", "earth", "SPEC")
    spec = dataclasses.replace(
        SPEC,
        archives=(),
        steps=(),
        splits={"train": Split(images="images/*.png")},
        prepare=lambda root: write_files(root, {"images/a.png": png(1)}) and None,
    )
    made = prepare(spec, [], tmp_path / "data")
    assert (made.found, made.reused) == ({"train": Counts(1, 0)}, False)
    assert earth.prepare is not None


# What is missing


def test_missing_archives_are_named(downloads, tmp_path):
    (downloads / "truth.tgz").unlink()
    (downloads / "more.tar").unlink()
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError) as caught:
        prepare(SPEC, [downloads], root)
    text = str(caught.value)
    assert "\n  truth.tgz\n" in text
    assert "tiny-images" not in text.replace(SPEC.source, "")
    assert "more.tar" not in text.replace(SPEC.source, "")
    assert str(downloads) in text
    assert SPEC.source in text
    assert not root.exists()
    with pytest.raises(FileNotFoundError, match=r"no folder was named:\n  tiny-images\.zip"):
        prepare(SPEC, [], root)


def test_optional_archives_may_be_missing_and_come_later(downloads, tmp_path):
    root, told = tmp_path / "data", Told()
    (downloads / "more.tar").rename(tmp_path / "more.tar")
    made = prepare(SPEC, [downloads], root, reporter=told)
    assert (made.found["test"], made.problems) == (Counts(0, 0), [])
    assert any("more.tar, which is optional" in note for note in told.notes)
    labels = times(root / "labels")
    assert prepare(SPEC, [downloads], root).reused
    made = prepare(SPEC, [tmp_path / "more.tar"], root)
    assert (made.reused, made.found["test"]) == (False, Counts(1, 0))
    assert times(root / "labels") == labels
    assert_ready(root)


def test_fewer_than_promised_is_a_problem(downloads, tmp_path):
    spec = dataclasses.replace(
        SPEC, splits=SPEC.splits | {"val": dataclasses.replace(SPEC.parts("val")[0], count=500)}
    )
    for reused in (False, True):
        made = prepare(spec, [downloads], tmp_path / "data")
        assert made.problems == ["The split 'val' has 2 of 500 images."]
        assert made.reused == reused


def test_labels_that_are_missing_are_a_problem(downloads, tmp_path):
    write_tar(downloads / "truth.tgz", {"p0.mat": mat(0), "p1.mat": mat(1)}, "w:gz")
    made = prepare(SPEC, [downloads], tmp_path / "data")
    assert made.problems == [
        "3 of 4 images in the split 'train' lack a label.",
        "1 of 2 images in the split 'val' lack a label.",
    ]


def test_archives_of_something_else(downloads, tmp_path):
    write_tar(downloads / "truth.tgz", {"other.txt": b""}, "w:gz")
    with pytest.raises(FileNotFoundError, match=r"truth/\*\.mat.*something else than 'tiny'"):
        prepare(SPEC, [downloads], tmp_path / "data")
    spec = dataclasses.replace(SPEC, steps=(), splits={"train": Split(images="photos/*.png")})
    with pytest.raises(InputError, match=r"No image of 'tiny' was found.*\n  photos/\*\.png"):
        prepare(spec, [downloads], tmp_path / "other")
    for root in (tmp_path / "data", tmp_path / "other"):
        assert (root / UNFINISHED).is_file()
        assert not (root / FINISHED).exists()


def test_sources_that_cannot_be_meant(downloads, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No .*nowhere\. Give the archives of 'tiny'"):
        prepare(SPEC, [tmp_path / "nowhere"], tmp_path / "data")
    (downloads / "x.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.zip is none of the archives .*\n  tiny-images\.zip"):
        prepare(SPEC, [downloads / "x.zip"], tmp_path / "data")
    with pytest.raises(InputError, match=r"x\.zip is a file; --out must be a folder"):
        prepare(SPEC, [downloads], downloads / "x.zip")
    with pytest.raises(InputError, match="workers is -1"):
        prepare(SPEC, [downloads], tmp_path / "data", workers=-1)


def test_published_sums(downloads, tmp_path):
    good, bad = "900150983cd24fb0d6963f7d28e17f72", "0" * 32
    spec = dataclasses.replace(SPEC, archives=(*SPEC.archives, Archive(file="a.txt", md5=good)))
    (downloads / "a.txt").write_text("abc")
    prepare(spec, [downloads], tmp_path / "data")
    spec = dataclasses.replace(SPEC, archives=(*SPEC.archives, Archive(file="a.txt", md5=bad)))
    with pytest.raises(InputError, match=f"a.txt has the MD5 sum {good}, but the .* has {bad}"):
        prepare(spec, [downloads], tmp_path / "other")
    assert (tmp_path / "other" / UNFINISHED).is_file()


def test_scipy_is_asked_for_before_anything_is_done(downloads, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scipy.*pip install 'ccsnet\[prepare\]'"):
        prepare(SPEC, [downloads], tmp_path / "data")
    assert not (tmp_path / "data").exists()


# Interrupted, and gone on with


def stop_after(num, error, monkeypatch):
    """Let so many files be written, and then no other."""
    replace, left = Path.replace, [num]

    def stopping(self, target):
        if not left[0]:
            raise error
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
    return left


@pytest.fixture
def whole(downloads, tmp_path) -> dict[str, bytes]:
    """What comes of it without interruption."""
    prepare(SPEC, [downloads], tmp_path / "whole")
    return tree(tmp_path / "whole")


@pytest.mark.parametrize("num", [0, 1, 2, 5, 9, 10, 16, 19, 22, 27, 30, 32])
def test_interrupted_anywhere(num, downloads, whole, tmp_path, monkeypatch):
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        left = stop_after(num, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            prepare(SPEC, [downloads], root)
        assert left == [0]
    part = tree(root)
    assert part.items() <= whole.items()
    assert not (root / FINISHED).exists()
    if num == 0:  # Nothing is there, not even the record.
        assert part == {}
        prepare(SPEC, [downloads], root)
    else:
        with pytest.raises(InputError, match=f"is not finished.*--out {root}"):
            open_dataset(config_of(root))
        labels = {name: time for name, time in times(root).items() if name.endswith(".png")}
        prepare(SPEC, [], root)  # The sources are known.
        assert {name: times(root)[name] for name in labels} == labels
    assert tree(root) == whole
    assert_ready(root)
    open_dataset(config_of(root))


def test_there_are_as_many_places_to_stop_as_the_test_above_takes(downloads, tmp_path, monkeypatch):
    left = stop_after(100, KeyboardInterrupt(), monkeypatch)
    prepare(SPEC, [downloads], tmp_path / "data")
    assert 100 - left[0] == 33


def config_of(root: Path) -> DataConfig:
    return DataConfig(dataset="tests.data.test_prepare:SPEC", root=root, workers=0)


def test_interrupted_between_the_two_records(downloads, whole, tmp_path, monkeypatch):
    root = tmp_path / "data"

    unlink = Path.unlink

    def stop(self, missing_ok=False):
        if self.name == UNFINISHED:
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(SPEC, [downloads], root)
    assert (root / UNFINISHED).is_file()
    assert (root / FINISHED).is_file()
    with pytest.raises(InputError, match="is not finished"):
        open_dataset(config_of(root))
    prepare(SPEC, [], root)
    assert tree(root) == whole
    assert_ready(root)


@pytest.mark.parametrize("num", [4, 12, 25, 31])
def test_full_disk(num, downloads, whole, tmp_path, monkeypatch):
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        stop_after(num, OSError(28, "No space left on device"), patch)
        with pytest.raises(InputError, match=rf"disk is full: no room for {root}/.* MB free"):
            prepare(SPEC, [downloads], root)
    assert (root / UNFINISHED).is_file()
    assert not (root / FINISHED).exists()
    prepare(SPEC, [downloads], root)
    assert tree(root) == whole


def test_sources_of_an_interrupted_preparation_that_have_gone(downloads, tmp_path, monkeypatch):
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        stop_after(12, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            prepare(SPEC, [downloads], root)
    shutil.rmtree(downloads)
    with pytest.raises(FileNotFoundError, match=r"\n  truth\.tgz\n") as caught:
        prepare(SPEC, [], root)
    assert "tiny-images" not in str(caught.value).replace(SPEC.source, "")


def test_again_makes_everything_anew(downloads, whole, tmp_path, monkeypatch):
    root = tmp_path / "data"
    prepare(SPEC, [downloads], root)
    (root / "labels" / "p0.png").write_bytes(b"spoilt")
    (root / "images" / "p0.png.gz").write_bytes(b"spoilt")
    for path in root.rglob("*"):
        os.utime(path, (1000, 1000))
    assert prepare(SPEC, [downloads], root).reused
    with monkeypatch.context() as patch:
        stop_after(20, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            prepare(SPEC, [downloads], root, again=True)
    assert not prepare(SPEC, [], root).reused  # It remembers what is old.
    assert tree(root) == whole
    assert all(path.stat().st_mtime > 1000 for path in root.rglob("*") if path.is_file())


@pytest.mark.slow
def test_processes_make_the_same(downloads, whole, tmp_path):
    prepare(SPEC, [downloads], tmp_path / "data", workers=2)
    assert tree(tmp_path / "data") == whole
    write_tar(downloads / "truth.tgz", truth_files() | {"p3.mat": b"x" * 300}, "w:gz")
    with pytest.raises(InputError, match=r"Cannot read .*truth/p3\.mat"):
        prepare(SPEC, [downloads], tmp_path / "other", workers=2)
    assert (tmp_path / "other" / UNFINISHED).is_file()


# A folder of one's own


def test_unpacked_by_hand_in_place(by_hand):
    before = tree(by_hand)
    assert default_out(SPEC, [by_hand]) == by_hand
    made = prepare(SPEC, [by_hand], by_hand)
    assert (made.found["train"], made.problems) == (Counts(4, 4), [])
    assert_ready(by_hand)
    assert before.items() <= tree(by_hand).items()
    assert not any(path.is_symlink() for path in by_hand.rglob("*"))
    assert prepare(SPEC, [by_hand], by_hand).reused
    assert prepare(SPEC, [], by_hand).reused


def test_unpacked_by_hand_elsewhere(by_hand, tmp_path, monkeypatch):
    before, root = times(by_hand), tmp_path / "data"
    prepare(SPEC, [by_hand], root)
    assert_ready(root)
    assert times(by_hand) == before
    assert (root / "images/p0.png.gz").resolve() == by_hand / "images/p0.png.gz"
    assert not (root / "images").is_symlink()
    assert not (root / "labels/p0.png").is_symlink()

    def refuse(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    prepare(SPEC, [by_hand], tmp_path / "copied")
    assert not any(path.is_symlink() for path in (tmp_path / "copied").rglob("*"))
    assert tree(tmp_path / "copied") == tree(root)


def test_unpacked_by_hand_as_the_archive_is(by_hand, tmp_path):
    """With the folder at the top of the archive, and the labels where they were unpacked."""
    whole = tmp_path / "home"
    by_hand.rename(tmp_path / "Tiny")
    whole.mkdir()
    (tmp_path / "Tiny").rename(whole / "Tiny")
    (whole / "Tiny" / "truth").rename(whole / "truth")
    prepare(SPEC, [whole], tmp_path / "data")
    assert_ready(tmp_path / "data")


def test_some_unpacked_by_hand_and_some_not(by_hand, downloads, tmp_path):
    shutil.rmtree(by_hand / "truth")
    prepare(SPEC, [by_hand, downloads / "truth.tgz"], tmp_path / "data")
    assert_ready(tmp_path / "data")
    told = Told()
    made = prepare(SPEC, [by_hand], tmp_path / "other", reporter=told)
    assert made.found["train"] == Counts(4, 0)
    assert any(note.startswith("Left out: labels/*.png. No ") for note in told.notes)
    assert made.problems


def test_nothing_is_unpacked_over_what_is_complete(by_hand, downloads, tmp_path):
    write_files(by_hand, {"more/a.png": png(9)})
    for path in downloads.iterdir():
        path.rename(by_hand / path.name)
    told = Told()
    prepare(SPEC, [by_hand], by_hand, reporter=told)
    assert not any(stage == "unpacking" for stage, *_ in told.stages)
    assert_ready(by_hand)
    assert prepare(SPEC, [by_hand], by_hand).reused


def test_another_data_sets_folder(downloads, tmp_path):
    root = tmp_path / "data"
    prepare(SPEC, [downloads], root)
    other = dataclasses.replace(SPEC, name="other", default_root=str(tmp_path / "default"))
    before = times(root)
    with pytest.raises(InputError, match="holds the data set 'tiny', not 'other'"):
        prepare(other, [downloads], root)
    # Its files can be taken nevertheless.
    assert default_out(other, [root]) == tmp_path / "default"
    prepare(other, [root], tmp_path / "default")
    assert_ready(tmp_path / "default")
    assert times(root) == before


def test_damaged_record(downloads, tmp_path):
    root = tmp_path / "data"
    prepare(SPEC, [downloads], root)
    for content in ("{", "[]", '{"wrong": 1}'):
        (root / FINISHED).write_text(content)
        with pytest.raises(InputError, match=rf"{FINISHED} is damaged.*Delete it"):
            prepare(SPEC, [downloads], root)


def test_folders_without_a_record_are_read(by_hand):
    write_files(by_hand, {"labels/p0.png": b"", "lists/train.txt": b"p0\n"})
    assert open_dataset(config_of(by_hand))[1] == by_hand


def test_a_prepared_folder_gives_samples(downloads, tmp_path):
    prepare(SPEC, [downloads], tmp_path / "data")
    spec, root = open_dataset(config_of(tmp_path / "data"))
    samples = list(evaluation_samples(spec, root, config_of(root), "val"))
    assert [sample.name for sample in samples] == ["p1", "p4"]


# The command line


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = cli.run(["data", "prepare", *map(str, arguments)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out, printed.err

    return call


NAME = "tests.data.test_prepare:SPEC"


def test_command(call, downloads, tmp_path):
    status, out, err = call(NAME, downloads, "--out", "made", "--workers", 0)
    assert (status, err) == (0, "")
    table = [line.split() for line in out.splitlines() if "│" in line]
    assert [row[1:-1:2] for row in table if row[1] in SPEC.splits] == [
        *(["train", "4", "4", "4"], ["val", "2", "2", "2"], ["test", "1", "1", "0"])
    ]
    assert f"Ready: ccsnet train {NAME} --root made" in out
    assert_ready(tmp_path / "made")
    status, out, err = call(NAME, downloads, "--out", "made")
    assert (status, err) == (0, "")
    assert "Was prepared already" in out
    status, out, err = call(NAME, downloads / "truth.tgz", downloads, "--workers", 1)
    assert (status, err) == (0, "")
    assert f"Ready: ccsnet train {NAME}\n" in out
    assert_ready(tmp_path / "data" / "tiny")


def test_command_in_a_folder_unpacked_by_hand(call, by_hand):
    status, out, _ = call(NAME, by_hand)
    assert status == 0
    assert f"--root {by_hand}" in out
    assert_ready(by_hand)


def test_command_warns_of_less_than_promised(call, downloads, tmp_path):
    write_tar(downloads / "more.tar", {"nothing.txt": b""})
    status, out, err = call(NAME, downloads, "--out", "made", "--workers", 0)
    assert status == 1
    assert "warning: The split 'test' of 'tiny'" in err or "warning: No folder" in err
    assert "Ready: " in out


def test_command_refuses(call, downloads, tmp_path):
    (downloads / "truth.tgz").unlink()
    for arguments, match in (
        ((NAME, downloads), "truth.tgz"),
        ((NAME,), "no folder was named"),
        (("citiscapes", downloads), "Perhaps you meant cityscapes?"),
        (("--out", "made"), "First comes the data set: ccsnet data prepare DATASET"),
        ((NAME, downloads / "nothing.zip"), "nothing.zip"),
    ):
        status, _, err = call(*arguments)
        assert status == 2
        assert match in err
    assert not (tmp_path / "data").exists()
    status, out, _ = call("--help")
    assert status == 0
    assert "ccsnet data prepare NAME SOURCE" in out


def test_command_tells_how_to_go_on(call, downloads, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(8, KeyboardInterrupt(), patch)
        status, out, _ = call(NAME, downloads, "--out", "made", "--workers", 0)
    assert status == 130
    assert f"Stopped; what is finished is kept. `ccsnet data prepare {NAME} --out made`" in out
    assert call(NAME, "--out", "made", "--workers", 0)[0] == 0
    assert_ready(tmp_path / "made")


def _started(program: subprocess.Popen, ready) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert program.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def _wait_for_end(group: int) -> None:
    for _ in range(100):
        os.killpg(group, 0)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("workers", [0, 2])
def test_command_stopped_from_outside(sent, workers, made_once, tmp_path):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    # Many files, so that there is time to stop.
    with zipfile.ZipFile(downloads / "tiny-images.zip", "w") as archive:
        for name, content in image_files().items():
            archive.writestr(name, content)
        for i in range(4_000):
            archive.writestr(f"images/z{i}.png", b"z")
    for name in ("truth.tgz", "more.tar"):
        shutil.copy(made_once / name, downloads)
    root = tmp_path / "data"
    command = [sys.executable, "-m", "ccsnet", "data", "prepare", NAME]
    program = subprocess.Popen(
        [*command, str(downloads), "--out", str(root), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started(program, (root / "images" / "z300.png").exists)
    os.killpg(program.pid, sent)
    out = program.communicate(timeout=60)[0]
    if sent == signal.SIGINT:
        assert program.returncode == 130
        assert "Stopped; what is finished is kept." in out
        assert not any(path.name.startswith(".p") for path in (root / "images").iterdir())
    with pytest.raises(ProcessLookupError):  # No worker outlives it.
        _wait_for_end(program.pid)
    assert (root / UNFINISHED).is_file()
    assert not (root / "labels").exists()
    prepare(SPEC, [], root)
    assert_ready(root)
    assert sum(path.name.startswith("z") for path in (root / "images").iterdir()) == 4_000
