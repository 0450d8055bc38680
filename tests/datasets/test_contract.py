"""What every built-in data set must do; a new file in ccsnet/datasets is tested by being there.

Those that come in archives are prepared from small ones in the official layout and then read; a
new one needs a function in `official.py`. Others are read from a tree made after their patterns.
"""

import fnmatch
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ccsnet.data.check import check_labels
from ccsnet.data.images import image_size, read_image, read_label
from ccsnet.data.loading import evaluation_samples, training_batches
from ccsnet.data.opening import DataConfig
from ccsnet.data.prepare import Prepared, prepare
from ccsnet.datasets._archives import Tiles
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.plugins import find_plugin, plugin_names
from tests.datasets.encoding import write_zip
from tests.datasets.official import BUILDERS, Truth, from_patterns

NAMES = plugin_names("ccsnet.datasets")
# A split that holds another, as published.
HOLDS = {("pascal_voc12", "trainaug"): "train"}


def spec_of(name: str) -> DatasetSpec:
    return find_plugin("ccsnet.datasets", name, "SPEC")


WITH_ARCHIVES = [name for name in NAMES if spec_of(name).archives]
in_archives = pytest.mark.parametrize("made", WITH_ARCHIVES, indirect=True)


@pytest.fixture(params=NAMES)
def spec(request) -> DatasetSpec:
    return spec_of(request.param)


class Made(NamedTuple):
    """A data set ready to read."""

    spec: DatasetSpec
    truth: Truth
    downloads: Path
    root: Path
    prepared: Prepared | None
    """None where there were no archives."""


def without_sums(spec: DatasetSpec) -> DatasetSpec:
    """The published sums are those of the real archives."""
    return replace(spec, archives=tuple(replace(a, md5=None) for a in spec.archives))


@pytest.fixture(scope="module", params=NAMES)
def made(request, tmp_path_factory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp(request.param)
    spec = without_sums(spec_of(request.param))
    downloads, root = folder / "downloads", folder / "data"
    downloads.mkdir()
    if spec.archives:
        truth = BUILDERS[request.param](spec, downloads)
        yield Made(spec, truth, downloads, root, prepare(spec, [downloads], root))
    else:
        yield Made(spec, from_patterns(spec, root), downloads, root, None)
    shutil.rmtree(folder)


def labelled(made: Made) -> list[str]:
    return [
        split
        for split, truth in made.truth.items()
        if all(classes is not None for classes in truth.values())
    ]


def check_quietly(made: Made, split: str) -> np.ndarray:
    """The check's counts; the small trees hold fewer images than are published."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"The split '{split}'")
        return check_labels(made.spec, made.root, split)


def test_every_set_with_archives_has_a_tree():
    assert set(WITH_ARCHIVES) == set(BUILDERS)
    assert len(WITH_ARCHIVES) == 17  # 16, and Pascal Context in two ways.


def test_spec_states_where_it_is_from(spec):
    assert spec.name in NAMES
    assert spec.licence
    assert spec.default_root == f"data/{spec.name}"
    if spec.archives:
        assert spec.source.endswith(f"Then: ccsnet data prepare {spec.name} DOWNLOADS...")
        for archive in spec.archives:
            # What the label's second observer said is nothing to fetch.
            assert Path(archive.file).name in spec.source or archive.optional


def test_colours_and_names_are_distinct(spec):
    assert len(set(spec.colours)) == len(set(spec.classes)) == spec.num_classes
    assert all(name == name.strip() for name in spec.classes)


def test_map_covers_the_classes(spec):
    means = spec.raw_to_class if spec.colour_to_class is None else spec.colour_to_class
    assert set(means.values()) == set(range(spec.num_classes))
    if spec.colour_to_class is not None:
        # What the files are painted in is also how the classes are shown.
        assert tuple(spec.colour_to_class) == spec.colours


@in_archives
def test_archives_are_those_of_the_spec(made):
    written = {p.relative_to(made.downloads).as_posix() for p in made.downloads.rglob("*.*")}
    named = [archive.file for archive in made.spec.archives]
    assert len(named) == len(set(named)) == len(written)
    assert all(fnmatch.filter(written, name) for name in named)


@in_archives
def test_prepare_counts_what_it_found(made):
    found = {split: len(truth) for split, truth in made.truth.items()}
    assert made.prepared.root == made.root
    assert not made.prepared.reused
    assert {split: counts.images for split, counts in made.prepared.found.items()} == found
    for split, counts in made.prepared.found.items():
        assert counts.labels == (found[split] if split in labelled(made) else 0)
        assert made.prepared.promised[split] == made.spec.published_count(split)


@in_archives
def test_a_finished_folder_is_recognised(made):
    assert prepare(made.spec, [made.downloads], made.root).reused


def test_every_split_is_read_as_drawn(made):
    assert set(made.truth) == set(made.spec.splits)
    for split, truth in made.truth.items():
        pairs = made.spec.pairs(made.root, split, require_labels=False)
        assert {pair.name for pair in pairs} == set(truth)
        for pair in pairs:
            image, classes = read_image(pair.image), truth[pair.name]
            assert image.shape == (*image_size(pair.image), 3)
            assert (pair.label is None) == (classes is None)
            if pair.label is not None:
                label = read_label(pair.label, made.spec)
                assert label.dtype == made.spec.label_dtype
                assert label.shape == image.shape[:2]
                np.testing.assert_array_equal(label, classes)


def test_tiles_show_the_place_that_their_name_tells(made):
    if not any(isinstance(step, Tiles) for step in made.spec.steps):
        return
    rows, columns = np.indices((40, 60))  # The smallest image that is cut.
    for split in labelled(made):
        for pair in made.spec.pairs(made.root, split):
            corners = [int(word) for word in pair.name.split("_")[-4:]]
            top, left = corners[:3:2] if made.spec.name == "isaid" else corners[1::-1]
            shown = [(left + columns) * 5, (top + rows) * (left + columns)]  # As `photo` draws.
            expected = np.stack(shown, axis=-1) % 256
            np.testing.assert_array_equal(read_image(pair.image)[:40, :60, 1:], expected)


def test_every_class_is_counted_and_ignore_never(made):
    for split in labelled(made):
        every = np.concatenate([t.ravel() for t in made.truth[split].values() if t is not None])
        expected = np.bincount(every[every != made.spec.ignore_index], minlength=1)
        assert check_quietly(made, split).tolist() == expected.tolist()
        assert len(expected) == made.spec.num_classes
        assert expected.all()


def test_splits_are_disjoint(made):
    own = {}
    for split in made.spec.splits:
        pairs = made.spec.pairs(made.root, split, require_labels=False)
        own[split] = {pair.image for pair in pairs}
    for name, split in HOLDS:
        if name == made.spec.name:
            assert own[split] > own[HOLDS[name, split]]
            own[split] -= own[HOLDS[name, split]]
    assert sum(map(len, own.values())) == len(set().union(*own.values())) > 0


def test_every_split_gives_a_batch(made):
    sizes = {"crop": (32, 32), "short_side": 48, "long_side": 96, "max_class_share": 1.0}
    for split in labelled(made):
        config = DataConfig(dataset=made.spec.name, workers=0, train_split=split, **sizes)
        (batch,) = training_batches(made.spec, made.root, config, batch_size=2, seed=0, steps=1)
        assert batch.image.shape == (2, 3, 32, 32)
        seen = set(np.unique(batch.label.numpy()).tolist())
        assert seen <= {*range(made.spec.num_classes), made.spec.ignore_index}
        samples = list(evaluation_samples(made.spec, made.root, config, split))
        assert len(samples) == len(made.truth[split])
        for sample in samples:
            assert tuple(sample.label.shape) == sample.size == made.truth[split][sample.name].shape


def test_splits_without_labels_say_so(made):
    for split in set(made.spec.splits) - set(labelled(made)):
        with pytest.raises(InputError, match="published without labels"):
            made.spec.pairs(made.root, split)


def test_absent_data_names_the_path_and_the_source(spec, tmp_path):
    for split in spec.splits:
        with pytest.raises(FileNotFoundError) as caught:
            spec.pairs(tmp_path / "nowhere", split)
        assert str(tmp_path / "nowhere") in str(caught.value)
        assert spec.source in str(caught.value)
        assert all(part.images in str(caught.value) for part in spec.parts(split))


@in_archives
def test_optional_archives_may_be_absent(made, tmp_path):
    if not any(archive.optional for archive in made.spec.archives):
        return
    needed = tmp_path / "downloads"
    for archive in made.spec.archives:
        if not archive.optional:
            (needed / archive.file).parent.mkdir(parents=True, exist_ok=True)
            (needed / archive.file).symlink_to(made.downloads / archive.file)
    found = prepare(made.spec, [needed], tmp_path / "data").found
    usual = {"train", "val"} & set(made.spec.splits) or set(made.spec.splits)
    assert all(found[split] == made.prepared.found[split] for split in usual)


def test_drive_as_now_published_lacks_the_labels_of_its_test_archive(tmp_path):
    spec = spec_of("drive")
    truth = BUILDERS["drive"](spec, tmp_path)
    with zipfile.ZipFile(tmp_path / "test.zip") as whole:
        kept = {n: whole.read(n) for n in whole.namelist() if "1st_manual" not in n}
    write_zip(tmp_path / "test.zip", kept)
    prepared = prepare(spec, [tmp_path], tmp_path / "data")
    assert prepared.found["train"].labels == len(truth["train"])
    assert prepared.found["val"] == (20, 0)
    assert any("'val' lack a label" in problem for problem in prepared.problems)
    with pytest.raises(InputError, match="20 of 20 images in the split 'val'"):
        spec.pairs(tmp_path / "data", "val")


def contents(archive: Path) -> Iterator[bytes]:
    """What each file of an archive holds."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            yield from (opened.read(info) for info in opened.infolist())
    elif archive.suffix == ".json":
        yield archive.read_bytes()
    else:
        with tarfile.open(archive) as opened:
            yield from (opened.extractfile(info).read() for info in opened)


@in_archives
def test_nothing_is_written_again_that_can_be_read_in_place(made):
    """A set without steps is unpacked and nothing else: no copy of it, only to renumber it."""
    if made.spec.steps:
        return
    published = {data for file in made.downloads.rglob("*.*") for data in contents(file)}
    files = [path for path in made.root.rglob("*") if path.is_file()]
    assert {path for path in files if path.read_bytes() not in published} == {
        made.root / "prepared.json"
    }
