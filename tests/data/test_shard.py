"""Shards hold what the folder holds: the same bytes, batches and samples."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ccsnet.checkpoint import load_model, read_checkpoint
from ccsnet.cli import run
from ccsnet.data import shard
from ccsnet.data.check import check_dataset
from ccsnet.data.images import image_bands, image_size, label_palette, read_image, read_label
from ccsnet.data.loading import evaluation_samples, training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.data.shard import own_description, shard_dataset
from ccsnet.datasets import _shards
from ccsnet.datasets._shards import INDEX, UNFINISHED, TarMember
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.datasets._split import Split
from ccsnet.errors import InputError
from ccsnet.progress import Silent
from ccsnet.runlog import LOG_FILE, read_log
from tests.shapes import OPTIONS, make_shapes

SMALL = 40_000
"""Bytes per shard that make several of a few pictures."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven training pictures, four to validate on."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=11, val=4)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """Their shards; tests only read them."""
    return make_shards(folder, tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture
def shards(finished, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "shards"))


def make_shards(folder, out, **settings):
    spec, root = open_dataset(DataConfig(dataset=str(folder)))
    description = own_description(str(folder), spec)
    settings = {"shard_bytes": SMALL, "description": description} | settings
    shard_dataset(spec, root, out, **settings)
    return out


def config_of(folder, **settings):
    return DataConfig(dataset=str(folder), **({"workers": 0} | settings))


def batches(folder, settings=None, **more):
    config = config_of(folder, **(settings or {}))
    spec, root = open_dataset(config)
    return list(training_batches(spec, root, config, **({"batch_size": 4, "seed": 3} | more)))


def samples(folder, workers=0, **more):
    config = config_of(folder, workers=workers)
    spec, root = open_dataset(config)
    return list(evaluation_samples(spec, root, config, "val", **more))


def pairs_of(folder, split="train"):
    spec, root = open_dataset(config_of(folder))
    return spec.pairs(root, split)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


# Reading


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("start", [0, 4])  # Eleven pictures, four a step: 4 lies within an epoch.
def test_batches_equal_the_folders_bit_for_bit(folder, finished, workers, rank, world_size, start):
    assert len(list(finished.glob("train-*.tar"))) > 2
    run = {"steps": 7, "start_step": start, "rank": rank, "world_size": world_size}
    one = batches(folder, **run)
    two = batches(finished, {"workers": workers}, **run)
    assert len(one) == len(two) == 7 - start
    for a, b in zip(one, two, strict=True):
        assert a.names == b.names
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)


def test_rare_classes_are_found_in_shards_too(folder, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"repeat_threshold": 1.0, "rare_crop": 0.5}
    for a, b in zip(
        batches(folder, settings, steps=4), batches(finished, settings, steps=4), strict=True
    ):
        assert a.names == b.names
        assert torch.equal(a.image, b.image)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_samples_to_evaluate_equal_the_folders(folder, finished, workers, rank, world_size):
    one = samples(folder, rank=rank, world_size=world_size)
    two = samples(finished, workers, rank=rank, world_size=world_size)
    assert [s.name for s in one] == [s.name for s in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert a.size == b.size


def test_a_process_reads_its_own_samples_alone(finished, monkeypatch):
    read = []
    honest = _shards._read_at

    def told(tar, offset, size):
        read.append((tar.path.name, offset, size))
        return honest(tar, offset, size)

    monkeypatch.setattr(_shards, "_read_at", told)
    (batch,) = batches(finished, steps=1, rank=1, world_size=2)
    wanted = []
    for pair in pairs_of(finished):
        if pair.name in batch.names:
            wanted += [
                (m.parent.name, m.offset - 512, m.size + 512) for m in (pair.image, pair.label)
            ]
    assert len(batch.names) == 2
    assert sorted(read) == sorted(wanted)


def test_a_member_is_a_path_to_whoever_reads_it(folder, finished):
    pair, file = pairs_of(finished)[0], pairs_of(folder)[0]
    assert pair.label is not None
    assert file.label is not None
    for member, source in ((pair.image, file.image), (pair.label, file.label)):
        assert isinstance(member, TarMember)
        assert member.read_bytes() == source.read_bytes()
        with member.open("rb") as opened:
            assert opened.read(8) == source.read_bytes()[:8]
        assert member.stat().st_size == source.stat().st_size
        assert member.stat().st_mtime_ns == member.parent.stat().st_mtime_ns
        assert member.exists()
        assert member.is_file()
        assert not member.is_dir()
        assert str(member).startswith(str(finished / "train-000000.tar") + os.sep)
        assert str(member.relative_to(finished)) == str(member)[len(str(finished)) + 1 :]
        assert member.parent.stat().st_size == member.shard.size
        for made in (member.parent, member.with_suffix(".x"), member.resolve(), member / "x"):
            assert type(made) is type(Path())
        again = pickle.loads(pickle.dumps(member))
        assert again == member
        assert again.read_bytes() == source.read_bytes()
        with pytest.raises(OSError, match="only be opened as 'rb'"):
            member.open("w")
    assert (pair.image.suffix, pair.label.suffix) == (".png", ".png")


def test_another_process_opens_its_own(finished):
    member = pairs_of(finished)[3].image
    code = "import sys, pickle; print(len(pickle.load(sys.stdin.buffer).read_bytes()))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(member), capture_output=True, check=True
    )
    assert int(done.stdout) == member.stat().st_size


def test_few_shards_stay_open(finished, monkeypatch):
    """Those that were not read for long are closed, and opened again when needed."""
    opened = _shards.functools.lru_cache(maxsize=1)(_shards._opened.__wrapped__)
    monkeypatch.setattr(_shards, "_opened", opened)
    closed = []
    honest = os.close
    monkeypatch.setattr(
        _shards._Descriptor, "_close", staticmethod(lambda n: (closed.append(n), honest(n)))
    )
    members = [pair.image for pair in pairs_of(finished)]
    for member in (*members, *members):
        member.read_bytes()
    num = len({member.parent for member in members})
    assert len(closed) == 2 * num - 1
    opened.cache_clear()
    assert len(closed) == 2 * num


def test_systems_without_pread(folder, finished, monkeypatch):
    monkeypatch.delattr(os, "pread")
    for pair, file in zip(pairs_of(finished), pairs_of(folder), strict=True):
        assert pair.image.read_bytes() == file.image.read_bytes()


def test_reads_that_give_less_than_asked_for(folder, finished, monkeypatch):
    honest = os.pread
    monkeypatch.setattr(os, "pread", lambda number, size, at: honest(number, min(size, 700), at))
    assert pairs_of(finished)[1].image.read_bytes() == pairs_of(folder)[1].image.read_bytes()


def test_what_was_made_anew_is_opened_anew(folder, shards):
    """A process that has read the old shards does not read their bytes for the new ones."""
    assert len(batches(shards, steps=2)) == 2
    shutil.rmtree(shards)
    make_shards(folder, shards, shard_bytes=10**9)
    for pair, file in zip(pairs_of(shards), pairs_of(folder), strict=True):
        assert pair.image.read_bytes() == file.image.read_bytes()


# Every kind of file


def save_kinds(root):
    """Files of many kinds; name of the data set -> its description and its pictures."""
    rng = np.random.default_rng(5)
    rgb = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    label = rng.integers(0, 2, (9, 12), dtype=np.uint8)
    painted = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)[label]
    palette = Image.fromarray(label)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    deep = rng.integers(0, 65536, (9, 12, 5), dtype=np.uint16)
    text = (
        "images: images/*.{JPG,png,tif,bmp}\nlabels: labels/*.{png,tif}\nsplits: {all: all.txt}\n"
    )
    kinds = {
        "jpeg with palette": ("classes: [a, b]\n", rgb, palette, ".JPG", ".png"),
        "coloured": (
            "classes: [a, b]\nraw_colours: [[10, 20, 30], [40, 50, 60]]\n",
            *(rgb, painted, ".png", ".png"),
        ),
        "five bands": ("classes: [a, b]\nchannels: 5\n", deep, label, ".tif", ".tif"),
        "deep labels": (
            "classes: [a, b]\nraw_values: [300, 4000]\n",
            *(rgb, np.array([300, 4000], np.uint16)[label], ".bmp", ".png"),
        ),
    }
    for kind, (head, image, truth, *suffixes) in kinds.items():
        folder = root / kind
        for place, pixels, suffix in zip(
            ("images", "labels"), (image, truth), suffixes, strict=True
        ):
            path = folder / place / f"a b.v1{suffix}"
            path.parent.mkdir(parents=True)
            if suffix == ".tif":
                tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
            else:
                picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
                picture.save(path)
        (folder / "all.txt").write_text("a b.v1\n")
        (folder / "dataset.yaml").write_text(head + text)
    return kinds


def test_every_kind_of_file_reads_as_from_the_folder(tmp_path):
    for kind in save_kinds(tmp_path):
        folder = tmp_path / kind
        out = make_shards(folder, tmp_path / f"{kind} shards")
        spec, root = open_dataset(config_of(out))
        (pair,), (file,) = spec.pairs(root, "all"), pairs_of(folder, "all")
        assert pair.name == file.name == "a b.v1"
        assert pair.label is not None
        assert file.label is not None
        for member, source in ((pair.image, file.image), (pair.label, file.label)):
            assert member.read_bytes() == source.read_bytes(), kind
            assert image_size(member) == image_size(source) == (9, 12)
            assert image_bands(member) == image_bands(source)
        image, expected = (read_image(p.image, spec.channels) for p in (pair, file))
        assert image.dtype == expected.dtype
        assert np.array_equal(image, expected)
        assert np.array_equal(read_label(pair.label, spec), read_label(file.label, spec))
        if kind != "five bands":
            assert label_palette(pair.label) == label_palette(file.label)


# The files


def test_layout_is_that_of_webdataset(folder, finished):
    """Members of a sample lie together and have one name up to the first dot."""
    names = []
    for path in sorted(finished.glob("train-*.tar")):
        assert path.stat().st_size <= SMALL
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, _, suffix = image.name.partition(".")
                assert (suffix, label.name) == ("png", f"{key}.label.png")
                names.append(key)
                for member, kind in ((image, "images"), (label, "labels")):
                    source = folder / kind / "train" / f"{key}.png"
                    assert tar.extractfile(member).read() == source.read_bytes()
                    assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
    assert names == [pair.name for pair in pairs_of(folder)]


def test_shards_depend_on_nothing_but_the_files(folder, finished, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "shapes"))
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert contents(make_shards(moved, tmp_path / "again")) == contents(finished)


def test_shards_of_shards(finished, tmp_path):
    """Of another size, and back."""
    large = make_shards(finished, tmp_path / "large", shard_bytes=10**9)
    assert len(list(large.glob("*.tar"))) == 2
    assert contents(make_shards(large, tmp_path / "small")) == contents(finished)


def test_index_has_the_hash_of_every_shard(finished):
    index = json.loads((finished / INDEX).read_text())
    told = {s["file"]: s["sha256"] for split in index["splits"].values() for s in split["shards"]}
    assert sorted(told) == sorted(path.name for path in finished.glob("*.tar"))
    for name, sha256 in told.items():
        assert hashlib.sha256((finished / name).read_bytes()).hexdigest() == sha256


def test_names_that_tar_readers_would_confuse(tmp_path):
    """Folders, dots and other letters leave the key; the pair keeps its name."""
    names = ["a/1", "b/1", "b_1", "b.1", "c é", "x" * 200]
    for name in names:
        for kind in ("images", "labels"):
            path = tmp_path / "data" / kind / ("a" if "/" in name else "0") / f"{name}.png"
            path = tmp_path / "data" / kind / (name if "/" in name else f"0/{name}")
            path = path.with_name(f"{path.name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), len(name) % 2, np.uint8)).save(path)
    (tmp_path / "data" / "dataset.yaml").write_text(
        "classes: [a, b]\nimages: images/*/*.png\nlabels: labels/*/*.png\nsplit: 0.5\n"
    )
    out = make_shards(tmp_path / "data", tmp_path / "out")
    seen = {}
    for split in ("train", "val"):
        keys = []
        for pair, file in zip(
            pairs_of(out, split), pairs_of(tmp_path / "data", split), strict=True
        ):
            assert pair.name == file.name
            assert pair.image.read_bytes() == file.image.read_bytes()
            keys.append(pair.image.name.partition(".")[0])
            assert pair.image.name == f"{keys[-1]}.png"
            assert len(pair.image.name) <= 100
            seen[pair.name] = keys[-1]
        assert len(set(keys)) == len(keys)
    assert len(seen) == 6


def test_images_without_labels(folder, tmp_path):
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    shutil.copytree(data / "images" / "val", data / "images" / "test")
    text = (data / "dataset.yaml").read_text()
    (data / "dataset.yaml").write_text(f"{text}splits: [train, val, test]\n")
    out = make_shards(data, tmp_path / "out")
    spec, root = open_dataset(config_of(out))
    found = spec.pairs(root, "test", require_labels=False)
    assert [pair.label for pair in found] == [None] * 4
    assert image_size(found[0].image) == image_size(folder / "images" / "val" / "0.png")
    with pytest.raises(InputError, match="4 of 4 images in the split 'test' of 'data' have no la"):
        spec.pairs(root, "test")
    shutil.rmtree(data / "labels" / "val")
    with pytest.raises(InputError, match="4 of 4 images in the split 'val' of 'data' have no la"):
        make_shards(data, tmp_path / "again")


def test_some_labels_missing_is_refused(folder, tmp_path):
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    (data / "labels" / "train" / "3.png").unlink()
    with pytest.raises(InputError, match="1 of 11 images in the split 'train'"):
        make_shards(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Writing


class Stops(Silent):
    """Presses Ctrl-C after so many files."""

    def __init__(self, files):
        self.left = files

    def advance(self, units=1, **values):
        self.left -= units
        if self.left < 0:
            raise KeyboardInterrupt


def test_interrupted_work_goes_on(folder, finished, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(folder, out, reporter=Stops(14))
    left = {path.name for path in out.iterdir()}
    assert UNFINISHED in left
    assert INDEX not in left
    written = left - {UNFINISHED}
    assert written < set(contents(finished))
    for name in written:
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    (out / "dataset.yaml").write_bytes((folder / "dataset.yaml").read_bytes())
    with pytest.raises(InputError, match=r"not finished.*Give the same command again"):
        pairs_of(out)
    (out / "dataset.yaml").unlink()
    times = {name: (out / name).stat().st_mtime_ns for name in written}
    make_shards(folder, out)
    assert contents(out) == contents(finished)
    assert {name: (out / name).stat().st_mtime_ns for name in written} == times


def test_files_that_changed_in_between_are_copied_again(folder, tmp_path):
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(data, out, reporter=Stops(14))
    label = data / "labels" / "train" / "0.png"
    Image.fromarray(np.ones((72, 96), np.uint8)).save(label)
    make_shards(data, out)
    for pair, file in zip(pairs_of(out), pairs_of(data), strict=True):
        assert pair.label.read_bytes() == file.label.read_bytes()


def test_larger_shards_after_an_interruption_leave_no_old_ones(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(folder, out, reporter=Stops(20))
    assert len(list(out.glob("*.tar"))) > 1
    make_shards(folder, out, shard_bytes=10**9)
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]


def test_other_files_in_the_folder_stay(folder, shards):
    others = ("train-000099.tar", ".notes.yaml", ".hidden.tar", "readme.txt")
    for name in others:
        (shards / name).write_text("mine")
    (shards / "val-000000.tar").unlink()
    make_shards(folder, shards, splits=("val",))
    assert all((shards / name).read_text() == "mine" for name in others)


def test_killed_process_leaves_no_half_shard(folder, finished, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from ccsnet.data.shard import shard_dataset\n"
        "from ccsnet.datasets._folder import read_spec\nfrom ccsnet.progress import Silent\n"
        "class Slow(Silent):\n"
        "    def advance(self, units=1, **values):\n"
        "        time.sleep(0.05)\n"
        f"spec, root = read_spec(Path({str(folder)!r}))\n"
        f"shard_dataset(spec, root, Path({str(out)!r}), shard_bytes={SMALL}, reporter=Slow())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 60
        # One shard is finished and the next begun.
        while not list(out.glob("train-*.tar")) or not list(out.glob(".train-*.tar")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert list(out.glob(".train-*.tar")), "the half of a shard, aside"
    assert not (out / INDEX).exists()
    for path in out.glob("train-*.tar"):
        assert path.read_bytes() == (finished / path.name).read_bytes()
    make_shards(folder, out)
    assert contents(out) == contents(finished)


def test_disk_that_is_full(folder, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    honest, calls = tarfile.TarInfo.tobuf, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarInfo, "tobuf", full)
        with pytest.raises(InputError, match=r"The disk is full: no room for .*train-00000\d.tar"):
            make_shards(folder, out)
    assert not list(out.glob(".*.tar"))
    make_shards(folder, out)
    assert contents(out) == contents(finished)


def test_disk_without_room_is_told_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "free_space", lambda path: 1000)
    with pytest.raises(InputError, match=r"The shards need 0 MB; .* has 0 MB free. Make room"):
        make_shards(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_file_that_grows_while_it_is_copied(folder, tmp_path, monkeypatch):
    data = Path(shutil.copytree(folder, tmp_path / "data"))

    class Grows(Silent):
        def start(self, stage, total, done=0):
            with (data / "images" / "train" / "1.png").open("ab") as file:
                file.write(b"more")

    with pytest.raises(InputError, match=r"1.png had [\d,]+ bytes, then .* it changes while"):
        make_shards(data, tmp_path / "out", reporter=Grows())
    assert not (tmp_path / "out" / INDEX).exists()


def test_finished_shards_are_left_alone(folder, shards):
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    make_shards(folder, shards)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_finished_shards_are_not_changed(folder, finished, tmp_path):
    data = Path(shutil.copytree(folder, tmp_path / "shapes"))
    out = make_shards(data, tmp_path / "out")
    with pytest.raises(InputError, match=r"the files or the size per shard differ. Name another"):
        make_shards(data, out, shard_bytes=SMALL * 2)
    later = time.time() + 10
    os.utime(data / "labels" / "train" / "5.png", (later, later))
    with pytest.raises(InputError, match=r"since they were made .*5.png has changed"):
        make_shards(data, out)
    assert contents(out) == contents(finished)


def test_lost_shard_is_made_again(folder, finished, shards):
    (shards / "train-000001.tar").unlink()
    with (shards / "val-000000.tar").open("r+b") as file:
        file.truncate(1000)
    make_shards(folder, shards)
    assert contents(shards) == contents(finished)


def test_splits_can_be_added(folder, finished, tmp_path):
    out = make_shards(folder, tmp_path / "out", splits=("val",))
    assert not list(out.glob("train-*"))
    with pytest.raises(FileNotFoundError, match=r"hold val, not the split 'train'. Add it: `ccsn"):
        pairs_of(out)
    make_shards(folder, out, splits=("train",))
    assert contents(out) == contents(finished)


def test_splits_that_are_not_there(folder, tmp_path):
    spec, root = open_dataset(config_of(folder))
    more = {**spec.splits, "test": Split(images="images/test/*.png")}
    spec = dataclasses.replace(spec, splits=more)
    made = shard_dataset(spec, root, tmp_path / "out")
    assert set(made.index.splits) == {"train", "val"}
    assert "images" in made.left_out["test"]
    with pytest.raises(FileNotFoundError, match="No folder"):
        shard_dataset(spec, root, tmp_path / "out", splits=("test",))
    only = dataclasses.replace(spec, splits={"test": more["test"]})
    with pytest.raises(FileNotFoundError, match="No folder"):
        shard_dataset(only, root, tmp_path / "other")


def test_folders_that_hold_something_else(folder, shards, tmp_path):
    with pytest.raises(InputError, match="is not empty and holds no shards"):
        make_shards(folder, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is a file. Name a folder"):
        make_shards(folder, tmp_path / "file")
    other = make_shapes(tmp_path / "other", train=2, val=2)
    with pytest.raises(InputError, match="holds shards of the data set 'shapes', not of 'other'"):
        make_shards(other, shards)
    with pytest.raises(InputError, match="size of a shard is 0 bytes"):
        make_shards(folder, tmp_path / "out", shard_bytes=0)


def test_description_keeps_its_comments_and_loses_its_root(folder, tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    text = (folder / "dataset.yaml").read_text()
    (place / "dataset.yaml").write_text(f"# By hand.\nroot: {folder}\n{text}")
    out = make_shards(place, tmp_path / "out")
    made = (out / "dataset.yaml").read_text()
    assert made.startswith("# By hand.\n")
    assert "root" not in made
    assert open_dataset(config_of(out))[0].name == "mine"
    assert len(pairs_of(out)) == 11
    entries = "{classes: [ground, disc, box], images: 'images/{split}/*.png', "
    (place / "dataset.yaml").write_text(
        f"{entries}labels: 'labels/{{split}}/*.png',\nroot: {folder}}}\n"
    )
    out = make_shards(place, tmp_path / "flow")
    assert len(pairs_of(out)) == 11


def test_description_of_the_shards_is_the_users(shards, folder):
    """Classes may be put together in it; the label files' values stay what they were."""
    text = (shards / "dataset.yaml").read_text() + "merge: {thing: [disc, box]}\n"
    (shards / "dataset.yaml").write_text(text.replace("colours", "# colours"))
    assert open_dataset(config_of(shards))[0].classes == ("ground", "thing")
    assert max(int(batch.label[batch.label < 255].max()) for batch in batches(shards, steps=2)) == 1
    make_shards(folder, shards)
    assert "merge" in (shards / "dataset.yaml").read_text()


def test_splits_chosen_anew_are_told(shards):
    text = (shards / "dataset.yaml").read_text()
    (shards / "dataset.yaml").write_text(text.replace("labels/{split}", "corrected/{split}"))
    with pytest.raises(InputError, match="when other patterns, lists or shares chose the files"):
        pairs_of(shards)


# Damage


def test_missing_shard(shards):
    (shards / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*train-000001.tar, though .*1 of its"):
        pairs_of(shards)


def test_truncated_shard(shards):
    path = shards / "train-000000.tar"
    found = pairs_of(shards)
    with path.open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(InputError, match=r"train-000000.tar has 3,000 bytes; .* says \d"):
        pairs_of(shards)
    with pytest.raises(InputError, match="has 3,000 bytes"):
        [pair.image.read_bytes() for pair in found]
    path.unlink()
    _shards._opened.cache_clear()
    with pytest.raises(FileNotFoundError, match="No file"):
        found[0].image.read_bytes()


def test_shard_that_shrinks_while_it_is_open(shards):
    found = pairs_of(shards)
    found[0].image.read_bytes()
    with (shards / "train-000000.tar").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match="has 2,000 bytes"):
        found[1].image.read_bytes()


@pytest.mark.parametrize(
    ("column", "value"), [(2, 1024), (3, 100), (5, 512), (6, 5), (1, "other.png")]
)
def test_index_that_does_not_fit_its_shard(shards, column, value):
    """Another sample's pixels would be learnt silently; the header before them tells."""

    def change(index):
        index["splits"]["train"]["shards"][0]["samples"][1][column] = value

    edit_index(shards, change)
    with pytest.raises(InputError, match=r"does not hold .* where shards.json says"):
        batches(shards, steps=3)


def test_workers_tell_of_damage_too(shards):
    edit_index(shards, lambda i: i["splits"]["train"]["shards"][0]["samples"][0].__setitem__(3, 9))
    with pytest.raises(InputError, match="does not hold"):
        batches(shards, {"workers": 1}, steps=3)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((2, 0), (2, -512), (2, 10**15), (3, -1), (3, 10**15), (3, "9"), (3, 1.5), (3, True)),
        *((1, "../a.png"), (1, "a/b.png"), (1, None), (4, 7), (5, None), (0, 7)),
    ],
)
def test_impossible_places(shards, column, value):
    def change(index):
        index["splits"]["train"]["shards"][0]["samples"][1][column] = value

    edit_index(shards, change)
    with pytest.raises(InputError, match=r"shards.json is damaged: .* Copy it again"):
        pairs_of(shards)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i["splits"]["train"]["shards"][0].update(file="../../etc/passwd"),
        lambda i: i["splits"]["train"]["shards"][0].update(file=3),
        lambda i: i["splits"]["train"]["shards"][0].update(size="9"),
        lambda i: i["splits"]["train"]["shards"][0]["samples"][0].pop(),
        lambda i: i["splits"]["train"].pop("rule"),
        lambda i: i.update(splits=[]),
        lambda i: i.pop("format"),
    ],
)
def test_damaged_index(shards, change):
    edit_index(shards, change)
    with pytest.raises(InputError, match=r"shards.json is damaged"):
        pairs_of(shards)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 1', "\x00", "[" * 100_000])
def test_index_that_is_none(shards, text):
    (shards / INDEX).write_text(text)
    with pytest.raises(InputError, match=r"shards.json is damaged"):
        pairs_of(shards)


def test_index_of_another_version(shards):
    edit_index(shards, lambda index: index.update(format=2))
    with pytest.raises(InputError, match=r"has the format 2; this ccsnet reads 1"):
        pairs_of(shards)


def test_damaged_picture_in_a_shard_is_named(folder, tmp_path):
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    path = data / "images" / "train" / "2.png"
    path.write_bytes(path.read_bytes()[:300])
    (data / "images" / "train" / "4.png").write_bytes(b"")
    out = make_shards(data, tmp_path / "out")
    spec, root = open_dataset(config_of(out))
    report = check_dataset(spec, root, workers=0)
    assert report.fails
    told = {p.file.name: p.text for p in report.problems if p.kind == "unreadable image"}
    assert set(told) == {"2.png", "4.png"}
    assert "tar/2.png" in told["2.png"]
    assert "the file is empty" in told["4.png"]


# The command line


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command; returns its status and what it printed, on one line."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("ccsnet.cli.keep_freed_memory", lambda: True)

    def call(*arguments):
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return call


def test_shard_check_and_browse(call, folder, tmp_path):
    out = tmp_path / "out"
    status, text = call("data", "shard", folder, "--out", out, "--size", 1)
    assert status == 0
    assert f"Wrote 2 shards. Next: ccsnet train {out}" in text
    assert "train │ 11 │ 11 │ 1 │" in text
    assert "All shards were there." in call("data", "shard", folder, "--out", out, "--size", 1)[1]
    status, text = call("data", "check", out, "--workers", 0)
    assert status == 0
    assert "train │ 11 │ yes" in text
    page = tmp_path / "page.html"
    status, text = call("data", "browse", out, "--out", page, "--workers", 0)
    assert status == 0
    assert "problem" not in text
    assert page.stat().st_size > 10_000


def test_check_tells_what_is_wrong_with_shards(call, shards):
    (shards / "val-000000.tar").unlink()
    status, text = call("data", "check", shards, "--workers", 0)
    assert status == 1
    assert "val-000000.tar, though" in text


def test_data_set_told_in_python(call, folder, tmp_path, monkeypatch):
    """It is used by its name, with the shards as --root."""
    source = (
        "from ccsnet.datasets._spec import DatasetSpec\n"
        "from ccsnet.datasets._split import Split\n"
        "SPEC = DatasetSpec(name='mine', classes=('a', 'b', 'c'), licence='', source='',\n"
        "    colours=((0, 0, 0), (1, 1, 1), (2, 2, 2)), raw_to_class={0: 0, 1: 1, 2: 2},\n"
        f"    ignore_raw=frozenset([255]), default_root={str(folder)!r},\n"
        "    splits={n: Split(images=f'images/{n}/*.png', labels=f'labels/{n}/*.png')\n"
        "            for n in ('train', 'val')})\n"
    )
    (tmp_path / "told_in_python.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    status, text = call("data", "shard", "told_in_python:SPEC", "--out", out)
    assert status == 0
    assert f"Next: ccsnet train told_in_python:SPEC --root {out}" in text
    assert not (out / "dataset.yaml").exists()
    config = DataConfig(dataset="told_in_python:SPEC", root=out)
    spec, root = open_dataset(config)
    assert isinstance(spec, DatasetSpec)
    assert isinstance(spec.pairs(root, "train")[0].image, TarMember)
    assert call("data", "check", "told_in_python:SPEC", "--root", out, "--workers", 0)[0] == 0


def test_mistakes_in_the_command(call, folder, tmp_path):
    assert call("data", "shard", folder)[0] == 2
    status, text = call("data", "shard", folder, "--out", tmp_path / "out", "--size", 0)
    assert (status, "it must be 1 or more" in text) == (2, True)
    status, text = call("data", "shard", folder, "--out", tmp_path / "out", "--splits", "vall")
    assert (status, "Perhaps you meant val?" in text) == (2, True)


def test_interrupted_command(call, folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_write", stop)
        status, text = call("data", "shard", folder, "--out", tmp_path / "out")
    assert status == 130
    assert "The same command goes on." in text
    assert call("data", "shard", folder, "--out", tmp_path / "out")[0] == 0


@pytest.mark.slow
def test_training_on_shards_gives_the_same_weights(call, folder, finished, tmp_path):
    weights, losses = [], []
    for name, data in (("one", folder), ("two", finished)):
        out = tmp_path / name
        status, text = call("train", data, *OPTIONS, "--steps", 4, "--out", out)
        assert status == 0, text
        weights.append(load_model(read_checkpoint(out)).state_dict())
        losses.append([row["loss"] for row in read_log(out / LOG_FILE)])
        assert call("evaluate", out)[0] == 0
    assert losses[0] == losses[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
