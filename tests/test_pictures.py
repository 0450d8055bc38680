"""Pictures of any data are such as a screen can show."""

import numpy as np
import torch

from ccsnet import pictures
from ccsnet.data.loading import Sample
from ccsnet.datasets._folder import read_spec
from tests.shapes import make_shapes

COLOURS = ((128, 64, 128), (0, 0, 255), (255, 255, 0))


def test_comparison_is_image_truth_prediction_errors():
    image = np.full((2, 3, 3), 7, np.uint8)
    label = np.array([[0, 1, 255], [0, 1, 1]], np.uint8)
    prediction = np.array([[0, 0, 0], [0, 1, 1]], np.uint8)
    row = pictures.comparison(image, label, prediction, COLOURS)
    assert row.shape == (2, 4 * 3 + 3 * pictures.GAP, 3)
    step = 3 + pictures.GAP
    np.testing.assert_array_equal(row[:, :3], image)
    assert tuple(row[0, step + 1]) == COLOURS[1]
    assert tuple(row[0, step + 2]) == (0, 0, 0)
    assert tuple(row[0, 2 * step + 1]) == COLOURS[0]
    right, wrong, ignored = row[0, 3 * step : 3 * step + 3]
    assert tuple(wrong) == (200, 30, 30)
    assert tuple(right) != tuple(wrong) != tuple(ignored)


def test_comparison_keeps_labels_when_it_shrinks():
    label = np.repeat(np.array([[0, 299]], np.uint16), 400, 1).repeat(200, 0)
    colours = [(i % 256, i // 256, 9) for i in range(300)]
    image = np.zeros((50, 200, 3), np.uint8)
    row = pictures.comparison(image, label, label, colours, 65535, max_size=(20, 1000))
    assert row.shape == (20, 4 * 80 + 3 * pictures.GAP, 3)
    truth = row[:, 80 + pictures.GAP : 160 + pictures.GAP]
    assert {tuple(c) for c in truth.reshape(-1, 3).tolist()} == {(0, 0, 9), (43, 1, 9)}


def test_sizes_shrink_and_never_grow():
    assert pictures.fitting_size((100, 50), (512, 1024)) == (100, 50)
    assert pictures.fitting_size((1024, 2048), (512, 1024)) == (512, 1024)
    assert pictures.fitting_size((10, 40_000), (512, 1024)) == (1, 1024)


def test_validation_pictures(tmp_path):
    spec, _ = read_spec(make_shapes(tmp_path, train=1, val=1))
    samples = [
        Sample(
            torch.zeros(3, 1024, 1024, dtype=torch.uint8),
            torch.full((2000, 2000), spec.ignore_index),
            f"photo {i}",
            (2000, 2000),
        )
        for i in range(5)
    ]
    predictions = [torch.zeros(2000, 2000, dtype=torch.long) for _ in samples]
    shown = pictures.validation_pictures(samples, predictions, spec)
    assert list(shown) == [f"photo {i}" for i in range(4)]
    assert {p.shape for p in shown.values()} == {(512, 4 * 512 + 3 * pictures.GAP, 3)}
    wide = Sample(
        torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(60, 90).long(), "w", (60, 90)
    )
    two = pictures.validation_pictures([samples[0], wide], [predictions[0], wide.label], spec)
    assert two["w"].shape == (60, 4 * 90 + 3 * pictures.GAP, 3)
    assert pictures.validation_pictures([], [], spec) == {}


def test_mark_leaves_the_image_alone():
    image = np.zeros((40, 40, 3), np.uint8)
    assert pictures.mark(image, 20, 20).any()
    assert not image.any()
