"""Expected calibration error against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.calibration import CalibrationCounts
from ccsnet.errors import InputError
from ccsnet.metrics import Metrics
from ccsnet.scores import reliability


def naive_error(label, prediction, confidence, ignore_index, num_bins):
    valid = label != ignore_index
    right = (label == prediction)[valid]
    confidence = confidence[valid].astype(np.float64)
    error = 0.0
    for i in range(num_bins):
        low = -1 if i == 0 else np.float32(i / num_bins)
        inside = (confidence > low) & (confidence <= np.float32((i + 1) / num_bins))
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() / valid.sum() * gap
    return error if valid.any() else math.nan


def error_of(counter):
    num = counter.num_classes
    return Metrics(
        classes=[str(i) for i in range(num)],
        confusion=np.zeros((num, num), np.int64),
        calibration=counter.table(),
    ).ece


def made(seed, size, num_classes, ignore_index):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, size)
    label[rng.random(size) < 0.2] = ignore_index
    prediction = rng.integers(0, num_classes, size)
    confidence = rng.random(size, dtype=np.float32)
    confidence[rng.random(size) < 0.1] = rng.integers(0, 2)  # Exactly 0 or 1.
    return label, prediction, confidence


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9999),
    st.sampled_from([(1, 1), (7, 9), (30, 40)]),
    st.sampled_from([(2, 255), (300, 65535), (3, -1)]),
    st.sampled_from([1, 10, 15, 100]),
)
def test_equals_the_definition(seed, size, kind, num_bins):
    num_classes, ignore_index = kind
    counter = CalibrationCounts(num_classes, ignore_index, num_bins)
    label, prediction, confidence = made(seed, size, num_classes, ignore_index)
    # In two parts, as a stream.
    for part in (slice(0, 3), slice(3, None)):
        arrays = (torch.tensor(array[part])[None] for array in (label, prediction, confidence))
        counter.update(*arrays)
    expected = naive_error(label, prediction, confidence, ignore_index, num_bins)
    np.testing.assert_allclose(error_of(counter), expected, atol=1e-6)


def test_bins_are_those_of_their_bounds():
    counter = CalibrationCounts(2)
    confidence = torch.arange(16)[None, None] / 15
    zeros = torch.zeros(1, 1, 16, dtype=torch.long)
    counter.update(zeros, zeros, confidence)
    assert counter.table()[0].tolist() == [2] + [1] * 14  # 0 and 1/15, then one bound each.
    bins = reliability(counter.table())
    np.testing.assert_allclose(bins.confidence[1:], np.arange(2, 16) / 15, atol=1e-7)
    assert (bins.accuracy == 1).all()


def test_calibrated_is_0_and_overconfident_is_not():
    counter = CalibrationCounts(2)
    label = torch.tensor([[[0, 0, 0, 1]]])
    counter.update(label, torch.zeros_like(label), torch.full((1, 1, 4), 0.75))
    assert error_of(counter) == 0
    counter = CalibrationCounts(2)
    counter.update(label, torch.zeros_like(label), torch.ones(1, 1, 4))
    assert error_of(counter) == 0.25


def test_order_and_parts_do_not_show():
    label, prediction, confidence = (torch.tensor(a)[None] for a in made(0, (40, 50), 5, 255))
    counters = [CalibrationCounts(5) for _ in range(3)]
    counters[0].update(label, prediction, confidence)
    for row in reversed(range(40)):
        part = slice(row, row + 1)
        arrays = (array[:, part] for array in (label, prediction, confidence))
        counters[1].update(*arrays)
    counters[2].add(counters[1])
    for counter in counters[1:]:
        assert (counter.table() == counters[0].table()).all()


def test_nothing_counted():
    counter = CalibrationCounts(2)
    assert math.isnan(error_of(counter))
    counter.update(torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2))
    assert math.isnan(error_of(counter))
    counter.update(*(torch.zeros(1, 0, 2).long(),) * 2, torch.zeros(1, 0, 2))
    assert not counter.table().any()


def test_what_is_no_probability_is_refused():
    counter = CalibrationCounts(2)
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    for value in (-0.1, 1.1, math.nan):
        confidence = torch.full((1, 2, 2), 0.5)
        confidence[0, 0, 0] = value
        with pytest.raises(InputError, match="probabilities"):
            counter.update(label, label, confidence)
    counter.update(label, label, torch.full((1, 2, 2), 1 + 2e-7))  # As softmax may round.
    assert counter.table()[0].tolist() == [0] * 14 + [4]
    with pytest.raises(InputError, match="num_bins"):
        CalibrationCounts(2, num_bins=0)
