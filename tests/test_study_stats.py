"""Intervals of differences against slow, obvious versions."""

import numpy as np
import pytest
from scipy import stats

from ccsnet.errors import InputError
from ccsnet.metrics import Metrics
from ccsnet.study_stats import mean_interval, paired_bootstrap, t_quantile, t_share


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 29, 100])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_t_equals_scipys(freedom, level):
    expected = stats.t.ppf((1 + level) / 2, freedom)
    assert t_quantile(level, freedom) == pytest.approx(expected, rel=1e-9)
    assert t_share(expected, freedom) == pytest.approx(level, rel=1e-9)


def test_three_seeds_have_the_textbooks_number():
    assert t_quantile(0.95, 2) == pytest.approx(4.303, abs=5e-4)


@pytest.mark.parametrize("num", [2, 3, 5, 20])
def test_the_interval_of_a_mean(num):
    values = np.random.default_rng(num).normal(0.3, 2.0, num)
    found = mean_interval(values.tolist())
    assert found is not None
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (float(found.low), float(found.high)) == pytest.approx((low, high), rel=1e-9)


def test_one_seed_tells_nothing_of_others():
    assert mean_interval([0.5]) is None
    assert mean_interval([]) is None


def test_pairs_tell_more_than_means():
    """Seeds differ by 10 points, the rows always by 1: only the pairs see it."""
    base = np.array([0.4, 0.5, 0.6])
    found = mean_interval((base + 0.01 - base).tolist())
    assert found is not None
    assert (float(found.low), float(found.high)) == pytest.approx((0.01, 0.01))


def made(seed, num_images=6, num_classes=3):
    rng = np.random.default_rng(seed)
    confusions = rng.integers(0, 40, (num_images, num_classes, num_classes))
    hit = confusions.diagonal(axis1=1, axis2=2)
    return confusions, np.stack([hit, confusions.sum(2), confusions.sum(1)], 1)


def test_images_are_drawn_for_both_rows_and_all_seeds_alike():
    ours, theirs = [made(seed) for seed in (1, 2)], [made(seed) for seed in (3, 4)]
    rng = np.random.default_rng(7)
    differences = []
    for _ in range(80):
        drawn = rng.integers(6, size=6)

        def miou(confusions, drawn=drawn):
            return Metrics(classes=("a", "b", "c"), confusion=confusions[drawn].sum(0)).miou

        pairs = zip(ours, theirs, strict=True)
        differences.append(np.mean([miou(a) - miou(b) for (a, _), (b, _) in pairs]))
    found = paired_bootstrap(
        [c for _, c in ours], [c for _, c in theirs], level=0.9, resamples=80, seed=7
    )
    assert float(found.low) == pytest.approx(np.percentile(differences, 5), rel=1e-12)
    assert float(found.high) == pytest.approx(np.percentile(differences, 95), rel=1e-12)


def test_a_row_does_not_differ_from_itself():
    counts = made(5)[1]
    assert [float(end) for end in paired_bootstrap([counts], [counts])] == [0, 0]


def test_other_images_are_refused():
    with pytest.raises(InputError, match="same images and seeds"):
        paired_bootstrap([made(1)[1]], [made(1, num_images=5)[1]])
    with pytest.raises(InputError, match="same images and seeds"):
        paired_bootstrap([made(1)[1]], [made(1)[1], made(2)[1]])
    with pytest.raises(InputError, match="there is none"):
        paired_bootstrap([made(1)[1][:0]], [made(1)[1][:0]])
