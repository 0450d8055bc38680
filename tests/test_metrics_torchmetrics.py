"""The same figures as torchmetrics, where it is installed and has the metric."""

import math
import warnings

import numpy as np
import pytest
import torch

from ccsnet.backbones import make_torchvision_importable
from ccsnet.calibration import CalibrationCounts
from ccsnet.metrics import ConfusionMatrix, Metrics

make_torchvision_importable()  # It imports it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # What it imports is not ours to mend.
    theirs = pytest.importorskip("torchmetrics.classification")

NUM = 7


def made(seed, absent=()):
    """Batches of labels, with ignored pixels, and probabilities; some classes are in neither."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in ((2, 11, 13), (1, 20, 9)):
        label = torch.randint(NUM, size, generator=generator)
        probs = torch.rand(size[0], NUM, *size[1:], generator=generator)
        # Some pixels are right.
        hint = torch.nn.functional.one_hot(label, NUM).movedim(-1, 1)
        probs = (3 * probs + 2 * hint * torch.rand(size, generator=generator)[:, None]).softmax(1)
        for c in absent:
            label[label == c] = 255
            probs[:, c] = 0
        probs = probs / probs.sum(1, keepdim=True)
        label[torch.rand(size, generator=generator) < 0.2] = 255
        batches.append((label, probs))
    return batches


def ours(batches, beta=1.0):
    matrix, bins = ConfusionMatrix(NUM), CalibrationCounts(NUM)
    for label, probs in batches:
        confidence, prediction = probs.max(1)
        matrix.update(label, prediction)
        bins.update(label, prediction, confidence)
    return Metrics(
        classes=[str(i) for i in range(NUM)],
        confusion=matrix.matrix(),
        calibration=bins.table(),
        beta=beta,
    )


def measured(metric, batches):
    for label, probs in batches:
        metric.update(probs, label)
    return metric.compute().double().numpy()


@pytest.mark.parametrize("absent", [(), (0, 4)])
@pytest.mark.parametrize(
    ("name", "metric", "settings"),
    [
        ("iou", "MulticlassJaccardIndex", {}),
        ("dice", "MulticlassF1Score", {}),
        ("accuracy", "MulticlassAccuracy", {}),
        ("precision", "MulticlassPrecision", {}),
        ("recall", "MulticlassRecall", {}),
        ("f_score", "MulticlassFBetaScore", {"beta": 2.0}),
    ],
)
def test_classes(name, metric, settings, absent):
    batches = made(0, absent)
    metrics = ours(batches, settings.get("beta", 1.0))
    found = getattr(metrics, name)
    metric = getattr(theirs, metric)(num_classes=NUM, average="none", ignore_index=255, **settings)
    values = measured(metric, batches)
    present = ~np.isnan(found)
    assert present.sum() == NUM - len(absent)
    np.testing.assert_allclose(found[present], values[present], atol=1e-6)
    # Absent classes are 0 or NaN there, by the metric; here they are NaN in all.
    mean = getattr(metrics, {"iou": "miou"}.get(name, f"mean_{name}"))
    assert mean == pytest.approx(values[present].mean(), abs=1e-6)


@pytest.mark.parametrize("absent", [(), (0, 4)])
@pytest.mark.parametrize(
    ("name", "metric", "average"),
    [
        ("miou", "MulticlassJaccardIndex", "macro"),
        ("fw_iou", "MulticlassJaccardIndex", "weighted"),
        ("mean_accuracy", "MulticlassAccuracy", "macro"),
        ("mean_dice", "MulticlassF1Score", "macro"),
        ("pixel_accuracy", "MulticlassAccuracy", "micro"),
    ],
)
def test_all_classes(name, metric, average, absent):
    batches = made(1, absent)
    metric = getattr(theirs, metric)(num_classes=NUM, average=average, ignore_index=255)
    expected = float(measured(metric, batches))
    assert ours(batches).value(name) == pytest.approx(expected, abs=1e-6)


def test_confusion():
    batches = made(2)
    metric = theirs.MulticlassConfusionMatrix(num_classes=NUM, ignore_index=255)
    np.testing.assert_array_equal(ours(batches).confusion, measured(metric, batches))


def test_calibration():
    batches = made(3)
    metric = theirs.MulticlassCalibrationError(
        num_classes=NUM, n_bins=15, norm="l1", ignore_index=255
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says that it keeps every pixel.
        expected = float(measured(metric, batches))
    assert not math.isnan(expected)
    assert ours(batches).ece == pytest.approx(expected, abs=1e-6)
