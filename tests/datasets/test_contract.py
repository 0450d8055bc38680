"""What every built-in data set must do; a new file in ccsnet/datasets is tested by being there."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccsnet.data.check import check_labels
from ccsnet.data.images import read_label
from ccsnet.data.loading import DataConfig, evaluation_samples, training_batches
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.plugins import find_plugin, plugin_names

NAMES = plugin_names("ccsnet.datasets")


@pytest.fixture(params=NAMES)
def spec(request) -> DatasetSpec:
    return find_plugin("ccsnet.datasets", request.param, "SPEC")


def fill(pattern: str, words: list[str]) -> str:
    for word in words:
        pattern = pattern.replace("*", word, 1)
    return pattern


def fake_tree(root: Path, spec: DatasetSpec, num: int = 2) -> None:
    """Files where the data set's own patterns look for them; every raw value occurs."""
    raws = np.array([*spec.raw_to_class, *sorted(spec.ignore_raw or {0})])
    dtype = np.uint8 if raws.max() < 256 else np.uint16
    label = np.resize(raws, (40, 60)).astype(dtype)
    for split in spec.splits.values():
        for i in range(num):
            words = [f"{'abc'[k]}{i}" for k in range(split.images.count("*"))]
            image, truth = root / fill(split.images, words), root / fill(split.labels, words)
            image.parent.mkdir(parents=True, exist_ok=True)
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 60, 3), 90 + i, np.uint8)).save(image)
            Image.fromarray(label).save(truth)


def test_names_are_only_data_sets():
    assert {"ade20k", "cityscapes", "earth"} <= set(NAMES)


def test_spec_states_where_it_is_from(spec, request):
    assert spec.name in NAMES
    assert spec.licence
    assert spec.source
    assert spec.default_root == f"data/{spec.name}"


def test_colours_and_names_are_distinct(spec):
    assert len(set(spec.colours)) == len(set(spec.classes)) == spec.num_classes
    assert all(name == name.strip() for name in spec.classes)


def test_splits_are_disjoint(spec, tmp_path):
    fake_tree(tmp_path, spec)
    files = [{pair.image for pair in spec.pairs(tmp_path, split)} for split in spec.splits]
    assert sum(map(len, files)) == len(set().union(*files)) > 0


def test_map_round_trips_and_ignore_is_never_counted(spec, tmp_path):
    fake_tree(tmp_path, spec)
    pair = spec.pairs(tmp_path, "train")[0]
    label = read_label(pair.label, spec)
    raw = np.asarray(Image.open(pair.label))
    assert label.dtype == spec.label_dtype
    for value, index in spec.raw_to_class.items():
        assert (label[raw == value] == index).all()
    assert (label[~np.isin(raw, list(spec.raw_to_class))] == spec.ignore_index).all()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The split 'train'")  # Fewer images than published.
        counts = check_labels(spec, tmp_path, "train")
    assert counts.sum() == 2 * (label != spec.ignore_index).sum()
    assert counts.all()


def test_fake_tree_loads(spec, tmp_path):
    fake_tree(tmp_path, spec)
    config = DataConfig(dataset=spec.name, workers=0, crop=(32, 32), short_side=40)
    (batch,) = training_batches(spec, tmp_path, config, batch_size=2, seed=0, steps=1)
    assert batch.image.shape == (2, 3, 32, 32)
    samples = list(evaluation_samples(spec, tmp_path, config, "val"))
    assert [tuple(s.image.shape) for s in samples] == [(3, 64, 64)] * 2
    assert all(s.label.shape == s.size == (40, 60) for s in samples)


def test_absent_data_names_the_path_and_the_source(spec, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        spec.pairs(tmp_path / "nowhere", "train")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert spec.source in str(caught.value)
    assert spec.splits["train"].images in str(caught.value)
