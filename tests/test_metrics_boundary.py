"""Boundary IoU against its definition: erosion of every class's mask."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.boundary import BoundaryCounts, band_width, near_contour
from ccsnet.errors import InputError
from ccsnet.metrics import Metrics


def band_of(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask without its erosion; outside the image nothing is of the mask."""
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & ~eroded[1:-1, 1:-1].astype(bool)


def naive_counts(label, prediction, num_classes, ignore_index, ratio):
    height, width = label.shape
    distance = max(1, round(ratio * math.sqrt(height**2 + width**2)))
    counts = np.zeros((3, num_classes), np.int64)
    valid = label != ignore_index
    for c in range(num_classes):
        labelled = band_of((label == c) & valid, distance)
        predicted = band_of((prediction == c) & valid, distance)
        counts[:, c] = (labelled & predicted).sum(), labelled.sum(), predicted.sum()
    return counts


def patches(rng, size, values):
    """Rectangles over each other, so that there are interiors and contours."""
    found = np.full(size, rng.choice(values))
    for _ in range(rng.integers(0, 6)):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        high, wide = rng.integers(1, size[0] + 1), rng.integers(1, size[1] + 1)
        found[top : top + high, left : left + wide] = rng.choice(values)
    return found


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 99999),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.001, 0.02, 0.05, 0.1, 0.6]),
    st.sampled_from([(3, 255), (255, 255), (300, 65535), (3, -1), (3, 1)]),
)
def test_equals_erosion_of_every_mask(seed, height, width, ratio, kind):
    num_classes, ignore_index = kind
    rng = np.random.default_rng(seed)
    used = [0, num_classes - 1, *rng.integers(0, num_classes, 1)]
    counter = BoundaryCounts(num_classes, ignore_index, ratio)
    total = np.zeros((3, num_classes), np.int64)
    for _ in range(2):
        label = patches(rng, (height, width), [*used, ignore_index])
        prediction = patches(rng, (height, width), used)
        counter.update(torch.tensor(label)[None], torch.tensor(prediction)[None])
        total += naive_counts(label, prediction, num_classes, ignore_index, ratio)
        height, width = width, height
    np.testing.assert_array_equal(counter.table(), total)
    metrics = Metrics(
        classes=[str(i) for i in range(num_classes)],
        confusion=np.zeros((num_classes, num_classes), np.int64),
        boundary=counter.table(),
    )
    hit, labelled, predicted = total
    either = labelled + predicted - hit
    expected = [a / b if b else math.nan for a, b in zip(hit, either, strict=True)]
    np.testing.assert_allclose(metrics.boundary_iou, expected)
    present = [value for value in expected if not math.isnan(value)]
    if present:
        assert metrics.mean_boundary_iou == pytest.approx(sum(present) / len(present))
    else:
        assert math.isnan(metrics.mean_boundary_iou)


def test_large_images_of_150_classes():
    rng = np.random.default_rng(0)
    label = np.repeat(np.repeat(rng.integers(0, 150, (8, 9)), 60, 0), 50, 1)
    prediction = np.roll(label, (5, 3), (0, 1))
    label[:20] = 255
    counter = BoundaryCounts(150)
    counter.update(torch.tensor(label)[None], torch.tensor(prediction)[None])
    np.testing.assert_array_equal(counter.table(), naive_counts(label, prediction, 150, 255, 0.02))


def test_width_is_the_papers():
    assert band_width((512, 683)) == 17
    assert band_width((480, 640)) == 16
    assert band_width((4, 4)) == 1


def test_perfect_is_1_and_moved_contours_cost_more_than_iou():
    label = torch.zeros(1, 100, 100, dtype=torch.long)
    label[:, 30:70, 30:70] = 1
    counter = BoundaryCounts(2)
    counter.update(label, label)
    hit, labelled, predicted = counter.table()
    assert (hit == labelled).all()
    assert (hit == predicted).all()
    assert hit.all()
    moved = label.roll((2, 2), (1, 2))
    counter = BoundaryCounts(2)
    counter.update(label, moved)
    hit, labelled, predicted = counter.table()[:, 1]
    both, either = ((label == 1) & (moved == 1)).sum(), ((label == 1) | (moved == 1)).sum()
    assert hit / (labelled + predicted - hit) < both / either - 0.2


def test_predictions_where_the_label_is_ignored_change_nothing():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (1, 5, 5), generator=generator)
    label = label.repeat_interleave(12, 1).repeat_interleave(12, 2)
    label[:, 20:45, 10:50] = 255
    ignored = label == 255
    tables = []
    for seed in range(3):
        noise = torch.randint(3, label.shape, generator=torch.Generator().manual_seed(seed))
        counter = BoundaryCounts(3)
        counter.update(label, torch.where(ignored, noise, label.clamp(max=2).roll(1, 1)))
        tables.append(counter.table())
    assert (tables[0] == tables[1]).all()
    assert (tables[0] == tables[2]).all()
    everything = BoundaryCounts(3)
    everything.update(torch.full((1, 9, 9), 255), torch.zeros(1, 9, 9, dtype=torch.long))
    assert not everything.table().any()


def test_batches_and_sums_are_the_same():
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(4, (3, 6, 5), generator=generator).repeat_interleave(9, 2)
    prediction = torch.randint(4, (3, 6, 5), generator=generator).repeat_interleave(9, 2)
    at_once, parts = BoundaryCounts(4), BoundaryCounts(4)
    at_once.update(label, prediction)
    for one, other in zip(label, prediction, strict=True):
        part = BoundaryCounts(4)
        part.update(one, other)
        parts.add(part)
    assert (at_once.table() == parts.table()).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 3), (1, 50)])
def test_small_images(size):
    label = torch.zeros(1, *size, dtype=torch.long)
    assert near_contour(label, 1).sum() == label.numel() - max(0, size[0] - 2) * max(0, size[1] - 2)
    assert near_contour(label, 5).all()


def test_ratio_must_be_above_0():
    for ratio in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0"):
            BoundaryCounts(2, dilation_ratio=ratio)
