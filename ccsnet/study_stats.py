"""How sure a difference between two rows is: over seeds, and over images."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ccsnet.errors import InputError
from ccsnet.scores import LEVEL, RESAMPLES, Interval, Sums, middle, resampled, score


def t_share(t: float, freedom: int) -> float:
    """Share of Student's t distribution between -t and t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = total = 0.0
    for power in range(odd, freedom - 1, 2):  # cos, 2/3 cos^3, ... or 1, 1/2 cos^2, ...
        term = (cosine if odd else 1.0) if power == odd else term * cosine**2 * (power - 1) / power
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def t_quantile(level: float, freedom: int) -> float:
    """The t between whose negative and itself that share lies.

    Args:
        level: The share, such as 0.95.
        freedom: Degrees of freedom, from 1.
    """
    low, high = 0.0, 1.0
    while t_share(high, freedom) < level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_share(middle, freedom) < level else (low, middle)
    return high


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """What the mean lies within were the values drawn anew; None for fewer than two.

    Student's t: the values are taken for draws of one normal distribution. Differences of pairs
    make it the paired t interval.
    """
    num = len(values)
    if num < 2:
        return None
    mean = math.fsum(values) / num
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = t_quantile(level, num - 1) * deviation / math.sqrt(num)
    return Interval(np.asarray(mean - half), np.asarray(mean + half))


def paired_bootstrap(
    ours: Sequence[Int64[np.ndarray, "_ 3 _"]],
    theirs: Sequence[Int64[np.ndarray, "_ 3 _"]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """What a difference of mIoU lies within, were the images drawn anew and the models the same.

    All models meet the same draws. The difference of a draw is the mean over the pairs.

    Args:
        ours: (hit, label, predicted) of every image and class, for each seed.
        theirs: The other row's, of the same images and seeds.
        level: Share of the draws that lies inside.
        resamples: How many are drawn, with replacement.
        seed: Of the draws.

    Raises:
        InputError: There is no pair or no image, or the images are not the same.
    """
    if len(ours) != len(theirs) or len({counts.shape for counts in (*ours, *theirs)}) != 1:
        raise InputError("A paired interval needs the same images and seeds on both sides.")
    both = np.stack([np.stack(ours, 1), np.stack(theirs, 1)], 1)
    differences = []
    for drawn in resampled(both, resamples=resamples, seed=seed):  # draw, side, seed, 3, class
        hit, label, predicted = np.moveaxis(drawn, -2, 0)
        mious = score("miou", Sums(hit, label, predicted))
        differences.append((mious[:, 0] - mious[:, 1]).mean(-1))
    return middle(np.concatenate(differences), level)
