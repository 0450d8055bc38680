import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.metrics import ConfusionMatrix, Metrics


def measure(label, prediction, num_classes, ignore_index=255) -> Metrics:
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(torch.as_tensor(label), torch.as_tensor(prediction))
    return Metrics(classes=names(num_classes), confusion=matrix.matrix())


def names(num_classes):
    return [f"class {i}" for i in range(num_classes)]


def naive(label, prediction, num_classes, ignore_index):
    """Every metric by counting pixels one at a time."""
    pixels = [
        (a, b)
        for a, b in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True)
        if a != ignore_index
    ]
    iou, dice, accuracy = [], [], []
    for c in range(num_classes):
        both = sum(a == c and b == c for a, b in pixels)
        either = sum(a == c or b == c for a, b in pixels)
        labelled = sum(a == c for a, b in pixels)
        predicted = sum(b == c for a, b in pixels)
        iou.append(both / either if either else math.nan)
        dice.append(2 * both / (labelled + predicted) if labelled + predicted else math.nan)
        accuracy.append(both / labelled if labelled else math.nan)
    right = sum(a == b for a, b in pixels)
    return iou, dice, accuracy, right / len(pixels) if pixels else math.nan


def mean(values):
    present = [v for v in values if not math.isnan(v)]
    return sum(present) / len(present) if present else math.nan


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9999), st.sampled_from([(2, 255), (4, 255), (300, 65535)]), st.integers(0, 40)
)
def test_equals_counting_by_hand(seed, kind, num_pixels):
    num_classes, ignore_index = kind
    rng = np.random.default_rng(seed)
    used = rng.integers(0, num_classes, 3)  # So that classes are absent.
    label = rng.choice([*used, ignore_index], (1, num_pixels, 2))
    prediction = rng.choice([*used, *rng.integers(0, num_classes, 1)], label.shape)
    metrics = measure(label, prediction, num_classes, ignore_index)
    iou, dice, accuracy, pixel_accuracy = naive(label, prediction, num_classes, ignore_index)
    np.testing.assert_allclose(metrics.iou, iou)
    np.testing.assert_allclose(metrics.dice, dice)
    np.testing.assert_allclose(metrics.accuracy, accuracy)
    np.testing.assert_allclose(metrics.pixel_accuracy, pixel_accuracy)
    means = [metrics.miou, metrics.mean_dice, metrics.mean_accuracy]
    np.testing.assert_allclose(means, [mean(iou), mean(dice), mean(accuracy)])


def test_absent_classes_are_left_out():
    metrics = measure([[[0, 0, 1]]], [[[0, 0, 0]]], 4)
    assert np.isnan(metrics.iou[2:]).all()
    assert metrics.iou[:2].tolist() == [2 / 3, 0]
    assert metrics.miou == pytest.approx(1 / 3)
    # Predicted but never labelled: it has an IoU of 0, and no accuracy.
    metrics = measure([[[0, 0]]], [[[0, 3]]], 4)
    assert metrics.iou[3] == 0
    assert np.isnan(metrics.accuracy[3])
    assert metrics.mean_accuracy == 0.5


def test_ignored_pixels_count_nowhere():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (2, 8, 8), generator=generator)
    prediction = torch.randint(3, (2, 8, 8), generator=generator)
    ignored = torch.rand(2, 8, 8, generator=generator) < 0.5
    label[ignored] = 255
    before = measure(label, prediction, 3).confusion
    assert before.sum() == (~ignored).sum()
    assert (measure(label, (prediction + ignored.long()) % 3, 3).confusion == before).all()
    assert measure(label, prediction, 3).confusion.tolist() == before.tolist()


def test_nothing_counted():
    for metrics in (
        measure(torch.full((1, 3, 3), 255), torch.zeros(1, 3, 3, dtype=torch.long), 3),
        Metrics(classes=names(3), confusion=ConfusionMatrix(3).matrix()),
    ):
        assert math.isnan(metrics.miou)
        assert math.isnan(metrics.pixel_accuracy)
        assert json.loads(json.dumps(metrics.to_dict()))["miou"] is None


def test_streaming_equals_at_once():
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(300, (6, 9, 7), generator=generator)
    prediction = torch.randint(300, (6, 9, 7), generator=generator)
    stream = ConfusionMatrix(300, 65535)
    stream.update(label[:1, :3], prediction[:1, :3])
    stream.update(label[0, 3:], prediction[0, 3:])  # Without a batch dimension, another size.
    stream.update(label[1:], prediction[1:])
    at_once = ConfusionMatrix(300, 65535)
    at_once.update(label, prediction)
    assert (stream.matrix() == at_once.matrix()).all()
    assert at_once.matrix()[label[0, 0, 0], prediction[0, 0, 0]] >= 1
    assert at_once.matrix().sum() == label.numel()


def test_small_integers_do_not_overflow():
    label = torch.full((1, 4, 4), 200, dtype=torch.int16)
    metrics = measure(label, label, 201)
    assert metrics.confusion[200, 200] == 16


def test_json_says_null_for_absent_classes():
    values = json.loads(json.dumps(measure([[[0, 0, 1]]], [[[0, 0, 0]]], 3).to_dict()))
    assert values["iou"] == {"class 0": 0.666667, "class 1": 0.0, "class 2": None}
    assert values["pixels"] == 3
    assert values["confusion"] == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
