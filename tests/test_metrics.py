import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.counts import as_classes
from ccsnet.errors import InputError
from ccsnet.metrics import ConfusionMatrix, ImageCounts, Metrics, confusion_csv
from ccsnet.scores import CLASS_SCORES, MEANS, OVERALL


def measure(label, prediction, num_classes, ignore_index=255, beta=1.0) -> Metrics:
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(torch.as_tensor(label), torch.as_tensor(prediction))
    return Metrics(classes=names(num_classes), confusion=matrix.matrix(), beta=beta)


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


def naive_rest(label, prediction, num_classes, ignore_index, beta):
    """Precision, recall, F-score and frequency-weighted IoU by their definitions."""
    valid = label != ignore_index
    label, prediction = label[valid], prediction[valid]
    precision, recall, f_score, fw_iou = [], [], [], 0.0
    for c in range(num_classes):
        right = int(((label == c) & (prediction == c)).sum())
        wrong = int(((label != c) & (prediction == c)).sum())
        missed = int(((label == c) & (prediction != c)).sum())
        p = right / (right + wrong) if right + wrong else math.nan
        r = right / (right + missed) if right + missed else math.nan
        precision.append(p)
        recall.append(r)
        if right:
            f_score.append((1 + beta**2) * p * r / (beta**2 * p + r))
        else:
            f_score.append(0.0 if wrong + missed else math.nan)
        if right + missed:
            fw_iou += (right + missed) / label.size * right / (right + wrong + missed)
    return precision, recall, f_score, fw_iou if label.size else math.nan


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9999),
    st.sampled_from([(2, 255), (4, 255), (4, 0), (4, 4), (4, -1), (255, 255), (300, 65535)]),
    st.integers(0, 40),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_equals_counting_by_hand(seed, kind, num_pixels, beta):
    num_classes, ignore_index = kind
    rng = np.random.default_rng(seed)
    used = rng.integers(0, num_classes, 3)  # So that classes are absent.
    label = rng.choice([*used, ignore_index], (1, num_pixels, 2))
    prediction = rng.choice([*used, *rng.integers(0, num_classes, 1)], label.shape)
    metrics = measure(label, prediction, num_classes, ignore_index, beta)
    iou, dice, accuracy, pixel_accuracy = naive(label, prediction, num_classes, ignore_index)
    np.testing.assert_allclose(metrics.iou, iou)
    np.testing.assert_allclose(metrics.dice, dice)
    np.testing.assert_allclose(metrics.accuracy, accuracy)
    np.testing.assert_allclose(metrics.pixel_accuracy, pixel_accuracy)
    means = [metrics.miou, metrics.mean_dice, metrics.mean_accuracy]
    np.testing.assert_allclose(means, [mean(iou), mean(dice), mean(accuracy)])
    rest = naive_rest(label, prediction, num_classes, ignore_index, beta)
    found = metrics.precision, metrics.recall, metrics.f_score, metrics.fw_iou
    for ours, theirs in zip(found, rest, strict=True):
        np.testing.assert_allclose(ours, theirs)
    means = [metrics.mean_precision, metrics.mean_recall, metrics.mean_f_score]
    np.testing.assert_allclose(means, [mean(values) for values in rest[:3]])


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


def test_every_metric_has_its_name_everywhere():
    metrics = measure([[[0, 0, 1, 2]]], [[[0, 1, 1, 0]]], 4, beta=2.0)
    values = metrics.to_dict()
    for name in (*MEANS, *OVERALL):
        assert metrics.value(name) == getattr(metrics, name)
        assert values[name] == round(metrics.value(name), 6)
    for name in CLASS_SCORES:
        assert len(getattr(metrics, name)) == len(values[name]) == 4
        with pytest.raises(InputError, match="for each class"):
            metrics.value(name)
    with pytest.raises(InputError, match="Perhaps you meant miou"):
        metrics.value("mioi")


def test_f_score_weighs_recall_by_beta():
    # Class 0: 3 labelled, 1 found, nothing wrong: precision 1, recall 1/3.
    label, prediction = [[[0, 0, 0, 1]]], [[[0, 1, 1, 1]]]
    found = {b: measure(label, prediction, 2, beta=b) for b in (0.01, 1.0, 100.0)}
    assert found[1.0].f_score[0] == pytest.approx(0.5)
    np.testing.assert_array_equal(found[1.0].f_score, found[1.0].dice)
    assert found[0.01].f_score[0] == pytest.approx(1, abs=1e-3)
    assert found[100.0].f_score[0] == pytest.approx(1 / 3, abs=1e-3)
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0"):
            measure(label, prediction, 2, beta=beta)


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(3, 255), (3, -1), (255, 255)])
def test_what_is_no_class_is_refused(num_classes, ignore_index):
    matrix = ConfusionMatrix(num_classes, ignore_index)
    good = torch.zeros(1, 2, 2, dtype=torch.long)
    wrong = [-2, num_classes, 256, 2**33] if num_classes < 255 else [-2, 256, 2**33]
    for value in wrong:
        bad = good.clone()
        bad[0, 1, 1] = value
        with pytest.raises(InputError, match=rf"A label has the value {value}, which is none"):
            matrix.update(bad, good)
        with pytest.raises(InputError, match=rf"A prediction has the value {value}, which is none"):
            matrix.update(good, bad)
    with pytest.raises(InputError, match="A prediction has the value"):
        matrix.update(good, good + 255)  # Predictions ignore nothing.
    with pytest.raises(InputError, match="own size"):
        as_classes(good, good[:, :1], num_classes, ignore_index)
    assert matrix.matrix().sum() == 0


@pytest.mark.parametrize("ignore_index", [255, 2])
def test_images_without_pixels_and_in_8_bits(ignore_index):
    matrix = ConfusionMatrix(3, ignore_index)
    nothing = torch.zeros(1, 0, 4, dtype=torch.uint8)
    matrix.update(nothing, nothing)
    assert not matrix.matrix().any()
    label = torch.tensor([[[0, 1, ignore_index]]], dtype=torch.uint8)
    matrix.update(label, torch.tensor([[[0, 0, 1]]], dtype=torch.int32))
    assert matrix.matrix().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_counts_do_not_share_memory():
    one, other = ConfusionMatrix(2), ConfusionMatrix(2)
    label = torch.ones(1, 2, 2, dtype=torch.long)
    other.update(label, label)
    one.add(other)
    one.update(label, label)
    assert other.matrix()[1, 1] == 4
    assert one.matrix()[1, 1] == 8


def test_memory_does_not_grow_with_images():
    matrix = ConfusionMatrix(5)
    for _ in range(3):
        matrix.update(torch.ones(2, 9, 9).long(), torch.ones(2, 9, 9).long())
        assert matrix.counts.untyped_storage().nbytes() <= 8 * 6 * 5
    assert matrix.counts.numel() == 25


def test_images_are_ranked_worst_first():
    images = ImageCounts()
    for name, prediction in (("b", [0, 1]), ("c", [0, 0]), ("a", [0, 0]), ("empty", None)):
        alone = ConfusionMatrix(2)
        label = torch.tensor([[0, 1]]) if prediction else torch.full((1, 2), 255)
        alone.update(label, torch.tensor([prediction or [0, 0]]))
        images.update(name, alone)
    assert images.worst_first() == [("a", 0.25), ("c", 0.25), ("b", 1.0)]
    assert images.worst_first("pixel_accuracy") == [("a", 0.5), ("c", 0.5), ("b", 1.0)]
    assert images.table()[:, 0].tolist() == [[1, 0], [1, 1], [1, 0], [0, 0]]  # a b c empty
    with pytest.raises(InputError, match="cannot be ranked"):
        images.worst_first("iou")
    with pytest.raises(InputError, match="No image"):
        ImageCounts().table()


def test_confusion_as_csv():
    metrics = Metrics(classes=("sky", 'a "b", c'), confusion=np.array([[3, 1], [0, 2**40]]))
    rows = list(csv.reader(io.StringIO(confusion_csv(metrics))))
    assert rows == [
        ["labelled \\ predicted", "sky", 'a "b", c'],
        ["sky", "3", "1"],
        ['a "b", c', "0", str(2**40)],
    ]


def test_json_comes_back():
    metrics = Metrics(
        classes=("sky", "road"),
        confusion=np.array([[3, 1], [0, 4]]),
        images=2,
        beta=2.0,
        boundary=np.array([[1, 2], [2, 3], [3, 2]]),
        calibration=np.array([[4, 4], [1, 4], [2**24, 3 * 2**24]]),
    )
    values = json.loads(json.dumps(metrics.to_dict()))
    assert json.loads(json.dumps(Metrics.from_dict(values).to_dict())) == values
    assert values["boundary_iou"] == {"sky": 0.25, "road": 0.666667}
    assert values["mean_boundary_iou"] == pytest.approx((1 / 4 + 2 / 3) / 2, abs=1e-6)
    plain = Metrics(classes=metrics.classes, confusion=metrics.confusion).to_dict()
    assert not {"boundary", "boundary_iou", "ece", "calibration"} & set(plain)
    assert Metrics.from_dict(plain).boundary is None
    assert Metrics.from_dict({k: v for k, v in plain.items() if k != "beta"}).beta == 1
