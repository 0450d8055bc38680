"""Intervals over images against a loop, and against what they promise."""

import numpy as np
import pytest

from ccsnet import scores
from ccsnet.errors import InputError
from ccsnet.metrics import Metrics
from ccsnet.scores import CLASS_SCORES, MEANS, OVERALL, bootstrap, bootstraps


def made(seed, num_images, num_classes=3):
    """Confusion matrices of images, and their (hit, label, predicted)."""
    rng = np.random.default_rng(seed)
    confusions = rng.integers(0, 50, (num_images, num_classes, num_classes))
    confusions *= rng.random(confusions.shape) < 0.5
    hit = confusions.diagonal(axis1=1, axis2=2)
    return confusions, np.stack([hit, confusions.sum(2), confusions.sum(1)], 1)


def names(num):
    return [str(i) for i in range(num)]


@pytest.mark.parametrize("name", [*CLASS_SCORES, *MEANS, *OVERALL])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_equals_a_loop_over_resamples(name, beta):
    confusions, counts = made(1, 7)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(60):
        some = rng.integers(7, size=7)
        one = Metrics(classes=names(3), confusion=confusions[some].sum(0), beta=beta)
        drawn.append(getattr(one, name))
    found = bootstrap(name, counts, level=0.9, resamples=60, seed=5, beta=beta)
    np.testing.assert_allclose(found.low, np.nanpercentile(drawn, 5, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.high, np.nanpercentile(drawn, 95, axis=0), rtol=1e-12)


def test_several_metrics_are_of_the_same_draws():
    counts = made(7, 12)[1]
    names = [*CLASS_SCORES, *MEANS, *OVERALL]
    found = bootstraps(names, counts, resamples=50, seed=3, beta=2.0)
    assert list(found) == names
    for name in names:
        alone = bootstrap(name, counts, resamples=50, seed=3, beta=2.0)
        np.testing.assert_array_equal(found[name], alone)


def test_blocks_do_not_show(monkeypatch):
    counts = made(2, 9)[1]
    whole = bootstrap("iou", counts, resamples=50)
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 9 * 7)  # 7 resamples at once.
    np.testing.assert_array_equal(bootstrap("iou", counts, resamples=50), whole)
    assert not np.array_equal(bootstrap("iou", counts, resamples=50, seed=1), whole)


def test_absent_classes_have_no_interval():
    counts = made(3, 6)[1]
    counts[:, :, 1] = 0  # In no image.
    counts[1:, :, 2] = 0  # In one image, so not in every resample.
    counts[0, :, 2] = (5, 10, 5)
    found = bootstrap("iou", counts)
    assert np.isnan(found.low).tolist() == [False, True, False]
    assert np.isnan(found.high).tolist() == [False, True, False]
    assert found.low[2] == found.high[2] == 0.5
    counts[:] = 0
    assert np.isnan(bootstrap("miou", counts)).all()


def test_covers_the_truth_as_often_as_it_says():
    """Of 90 % intervals of pixel accuracy, about 90 % hold that of all images ever."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        right = rng.binomial(100, rng.beta(8, 2, 40))  # True mean 0.8, images unlike each other.
        counts = np.stack([right, np.full(40, 100), np.full(40, 100)], 1)[:, :, None]
        low, high = bootstrap("pixel_accuracy", counts, level=0.9, resamples=300, seed=seed)
        held += bool(low <= 0.8 <= high)
    assert 0.84 <= held / 300 <= 0.95


def test_one_image_is_certain():
    confusions, counts = made(4, 1)
    metrics = Metrics(classes=names(3), confusion=confusions[0], images=1, per_image=counts)
    low, high = metrics.interval()
    assert low == high == pytest.approx(metrics.miou)


def test_metrics_have_intervals_round_their_figures():
    confusions, counts = made(5, 200)
    metrics = Metrics(
        classes=names(3), confusion=confusions.sum(0), images=200, per_image=counts, beta=2.0
    )
    for name in (*MEANS, *OVERALL):
        low, high = metrics.interval(name)
        assert low < metrics.value(name) < high
        narrow = metrics.interval(name, level=0.5)
        assert low < narrow.low < narrow.high < high
    low, high = metrics.interval("f_score")
    np.testing.assert_array_equal((low, high), bootstrap("f_score", counts, beta=2.0))
    assert not np.array_equal((low, high), bootstrap("f_score", counts))
    assert ((low < metrics.f_score) & (metrics.f_score < high)).all()
    assert np.array_equal(metrics.interval("miou"), metrics.interval("miou"))


def test_what_is_refused():
    confusions, counts = made(6, 2)
    metrics = Metrics(classes=names(3), confusion=confusions.sum(0))
    with pytest.raises(InputError, match="not kept"):
        metrics.interval()
    for settings, message in (
        ({"level": 1.0}, "level is 1.0"),
        ({"level": 0.0}, "level is 0.0"),
        ({"resamples": 0}, "resamples is 0"),
    ):
        with pytest.raises(InputError, match=message):
            bootstrap("miou", counts, **settings)
    with pytest.raises(InputError, match="there is none"):
        bootstrap("miou", counts[:0])
    with pytest.raises(InputError, match="No metric is called"):
        bootstrap("boundary_iou", counts)
