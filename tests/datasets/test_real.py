"""Real files as they lie: CCSNET_REAL_DATA names a folder that holds some of the sets below."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccsnet.data.check import check_dataset
from ccsnet.data.images import read_image, read_label
from ccsnet.data.loading import evaluation_samples, training_batches
from ccsnet.data.opening import DataConfig
from ccsnet.datasets._spec import Split
from ccsnet.plugins import find_plugin

ROOT = Path(os.environ.get("CCSNET_REAL_DATA", "real-data"))


def real(name: str) -> Path:
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; CCSNET_REAL_DATA names the folder that holds it")
    return folder


def spec_of(name: str):
    return find_plugin("ccsnet.datasets", name, "SPEC")


@pytest.mark.parametrize(
    ("name", "counts", "vessels"),
    [("drive", (20, 20), (0.05, 0.15)), ("chase_db1", (20, 8), (0.05, 0.15))],
)
def test_retina(name, counts, vessels):
    root, spec = real(name), spec_of(name)
    assert (len(spec.pairs(root, "train")), len(spec.pairs(root, "val"))) == counts
    report = check_dataset(spec, root, workers=0)
    assert not report.fails
    assert list(report.problems) == []
    for pair in spec.pairs(root, "train")[:5]:
        image, label = read_image(pair.image), read_label(pair.label, spec)
        assert image.shape[:2] == label.shape
        assert vessels[0] < (label == 1).mean() < vessels[1]
        # Vessels are darker than what lies beside them, in green most of all.
        green = image[..., 1].astype(float)
        beside = cv2.dilate(label, np.ones((9, 9), np.uint8)) - label
        assert green[label == 1].mean() < 0.95 * green[beside == 1].mean()
    config = DataConfig(dataset=name, workers=0)
    (batch,) = training_batches(spec, root, config, batch_size=4, seed=0, steps=1)
    assert batch.image.shape == (4, 3, *spec.crop)
    assert set(batch.label.unique().tolist()) <= {0, 1, 255}


def test_cityscapes():
    root, spec = real("samples/cityscapes"), spec_of("cityscapes")
    (pair,) = spec.pairs(root, "val")
    label = read_label(pair.label, spec)
    train_ids = Path(str(pair.label).replace("_labelIds", "_labelTrainIds"))
    # The two files were made smaller one by one, so that some edges differ.
    assert (label == np.asarray(Image.open(train_ids))).mean() > 0.99
    config = DataConfig(dataset="cityscapes", workers=0, short_side=128)
    (sample,) = evaluation_samples(spec, root, config, "val")
    assert tuple(sample.label.shape) == sample.size


def test_loveda():
    root, spec = real("samples/loveda"), spec_of("loveda")
    split = Split(images="img_dir/*.png", labels="ann_dir/*.png")
    spec = replace(spec, splits={"val": split})
    pairs = spec.pairs(root, "val")
    assert len(pairs) == 3
    for pair in pairs:
        label, raw = read_label(pair.label, spec), np.asarray(Image.open(pair.label))
        assert label.shape == read_image(pair.image).shape[:2] == (1024, 1024)
        assert np.array_equal(label, np.where(raw == 0, 255, raw - 1))
