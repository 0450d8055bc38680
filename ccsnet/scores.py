"""The formula of every metric, from counts of pixels, and how sure a figure is.

Three counts for each class are enough: the pixels that are right (`hit`), those that the label has
and those that were predicted. Formulas take them with any leading dimensions, so that one set and a
thousand resamples of it are the same computation. A quotient of nothing is NaN, and a mean leaves
NaN out: an absent class neither helps nor harms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from ccsnet.errors import InputError, unknown_name

BLOCK_BYTES = 64 * 2**20
"""What the resamples that are made at once may take."""


class Sums(NamedTuple):
    """Pixels of each class."""

    hit: Float64[np.ndarray, "*S N"]
    """Labelled and predicted as it."""
    label: Float64[np.ndarray, "*S N"]
    """Labelled as it."""
    predicted: Float64[np.ndarray, "*S N"]
    """Predicted as it."""
    beta: float = 1.0
    """How many times more recall counts than precision in the F-score."""


def sums_of(counts: Int64[np.ndarray, "3 N"], beta: float = 1.0) -> Sums:
    """The rows (hit, label, predicted) of a table of counts."""
    hit, label, predicted = counts.astype(np.float64)
    return Sums(hit, label, predicted, beta)


class Interval(NamedTuple):
    """What a figure lies within: numbers, or an entry for each class."""

    low: Float64[np.ndarray, " N"] | np.float64
    high: Float64[np.ndarray, " N"] | np.float64


def iou(sums: Sums) -> Float64[np.ndarray, "*S N"]:
    """Intersection over union: hit / (label + predicted - hit).

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010.
    """
    return ratio(sums.hit, sums.label + sums.predicted - sums.hit)


def precision(sums: Sums) -> Float64[np.ndarray, "*S N"]:
    """Share of what was predicted that is right: hit / predicted."""
    return ratio(sums.hit, sums.predicted)


def recall(sums: Sums) -> Float64[np.ndarray, "*S N"]:
    """Share of what is labelled that was found: hit / label. Also called class accuracy."""
    return ratio(sums.hit, sums.label)


def dice(sums: Sums) -> Float64[np.ndarray, "*S N"]:
    """Dice coefficient: 2 hit / (label + predicted).

    Source: Dice, Measures of the Amount of Ecologic Association Between Species, Ecology 1945.
    """
    return ratio(2 * sums.hit, sums.label + sums.predicted)


def f_score(sums: Sums) -> Float64[np.ndarray, "*S N"]:
    """F-score: (1 + beta^2) hit / (beta^2 label + predicted); at beta 1 the Dice coefficient.

    Source: van Rijsbergen, Information Retrieval, 1979, chapter 7, with the quotients multiplied
    out, so that it is 0 and not 0 / 0 where precision and recall are 0.
    """
    weight = sums.beta**2
    return ratio((1 + weight) * sums.hit, weight * sums.label + sums.predicted)


def pixel_accuracy(sums: Sums) -> Float64[np.ndarray, "*S"]:
    """Share of all valid pixels that are right: sum of hit / sum of label."""
    return ratio(_total(sums.hit), _total(sums.label))


def fw_iou(sums: Sums) -> Float64[np.ndarray, "*S"]:
    """Frequency-weighted IoU: sum of label x IoU / sum of label.

    Source: Long et al., Fully Convolutional Networks, CVPR 2015, section 5.
    """
    # An IoU that does not exist is that of a class without labels, whose weight is 0.
    return ratio(_total(sums.label * np.nan_to_num(iou(sums))), _total(sums.label))


CLASS_SCORES: Mapping[str, Callable[[Sums], Float64[np.ndarray, "*S N"]]] = {
    "iou": iou,
    "dice": dice,
    "accuracy": recall,
    "precision": precision,
    "recall": recall,
    "f_score": f_score,
}
"""A figure for each class."""
MEANS: Mapping[str, str] = {
    "miou": "iou",
    "mean_dice": "dice",
    "mean_accuracy": "accuracy",
    "mean_precision": "precision",
    "mean_recall": "recall",
    "mean_f_score": "f_score",
}
"""One figure for all: the mean over the classes that have one."""
OVERALL: Mapping[str, Callable[[Sums], Float64[np.ndarray, "*S"]]] = {
    "pixel_accuracy": pixel_accuracy,
    "fw_iou": fw_iou,
}
"""One figure for all, over pixels."""


def score(name: str, sums: Sums) -> Float64[np.ndarray, "*S"]:
    """The metric of a name: an entry for each class, or one where it is a mean or overall.

    Raises:
        InputError: No metric has the name.
    """
    if name in CLASS_SCORES:
        return CLASS_SCORES[name](sums)
    if name in MEANS:
        return mean_of_present(CLASS_SCORES[MEANS[name]](sums))
    if name in OVERALL:
        return OVERALL[name](sums)
    raise unknown_name("metric", name, [*CLASS_SCORES, *MEANS, *OVERALL])


def ratio(
    numerator: Float64[np.ndarray, "*S"], denominator: Float64[np.ndarray, "*S"]
) -> Float64[np.ndarray, "*S"]:
    """Quotient, NaN where the denominator is 0."""
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)


def mean_of_present(values: Float64[np.ndarray, "*S N"]) -> Float64[np.ndarray, "*S"]:
    """Mean over classes without the NaNs; NaN where nothing is left."""
    present = ~np.isnan(values)
    return ratio(_total(np.where(present, values, 0.0)), _total(present.astype(np.float64)))


def _total(values: Float64[np.ndarray, "*S N"]) -> Float64[np.ndarray, "*S"]:
    return np.asarray(values.sum(-1))


class Reliability(NamedTuple):
    """How often the pixels of each bin of confidence are right."""

    pixels: Int64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]
    """Share of them that are right; NaN in an empty bin."""
    confidence: Float64[np.ndarray, " bins"]
    """Their mean confidence; NaN in an empty bin."""


CONFIDENCE_UNITS = 2**24
"""A confidence is counted in so many parts of 1: whole numbers have one sum in any order."""


def reliability(counts: Int64[np.ndarray, "3 bins"]) -> Reliability:
    """What a reliability diagram shows, from the counts of `CalibrationCounts`."""
    pixels, right, confidence = counts.astype(np.float64)
    return Reliability(
        counts[0], ratio(right, pixels), ratio(confidence / CONFIDENCE_UNITS, pixels)
    )


def calibration_error(counts: Int64[np.ndarray, "3 bins"]) -> float:
    """Expected calibration error: sum over bins of (pixels / all) x |accuracy - confidence|.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    pixels, accuracy, confidence = reliability(counts)
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return float(ratio(_total(pixels * gaps), _total(pixels.astype(np.float64))))


LEVEL, RESAMPLES = 0.95, 1000
"""Of intervals, where nothing else is asked for."""


def bootstrap(
    name: str,
    counts: Int64[np.ndarray, "I 3 N"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    beta: float = 1.0,
) -> Interval:
    """The interval of one metric: see `bootstraps`.

    Raises:
        InputError: There is no image or no such metric, or a setting is out of range.
    """
    names = (name,)
    found = bootstraps(names, counts, level=level, resamples=resamples, seed=seed, beta=beta)
    return found[name]


def bootstraps(
    names: Sequence[str],
    counts: Int64[np.ndarray, "I 3 N"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    beta: float = 1.0,
) -> dict[str, Interval]:
    """Percentile intervals of metrics over resamples of the images, drawn with replacement.

    Which images are drawn depends on the seed and on how many there are, so two models that are
    measured on the same images meet the same resamples. Resamples in which a metric does not exist
    (a class was in none of the images drawn) are left out of its interval.

    Args:
        names: The metrics.
        counts: (hit, label, predicted) of every image and class.
        level: Share of the resamples that lies inside.
        resamples: How many are drawn.
        seed: Of the draws.
        beta: Of the F-score.

    Returns:
        Each metric's interval, by its name.

    Raises:
        InputError: There is no image or no such metric, or a setting is out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a number between 0 and 1, such as 0.95.")
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for drawn in resampled(counts, resamples=resamples, seed=seed):
        hit, label, predicted = drawn.swapaxes(0, 1)
        sums = Sums(hit, label, predicted, beta)
        for name in names:
            values[name].append(score(name, sums))
    return {name: middle(np.concatenate(blocks), level) for name, blocks in values.items()}


def resampled(
    counts: Int64[np.ndarray, "I ..."], *, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[Float64[np.ndarray, "num ..."]]:
    """Sums over images that are drawn with replacement, several draws at a time.

    Args:
        counts: What each image adds.
        resamples: How many draws there are in all.
        seed: Of the draws; beside it they depend on the number of images alone.

    Raises:
        InputError: There is no image, or no draw is asked for.
    """
    num_images = len(counts)
    if not num_images:
        raise InputError("An interval over images needs images; there is none.")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give 1 or more, such as 1000.")
    rng = np.random.default_rng(seed)
    # Sums of pixels are whole numbers, and exact in float64, where products are fast.
    flat = counts.reshape(num_images, -1).astype(np.float64)
    at_once = max(1, BLOCK_BYTES // (8 * max(flat.shape)))
    for start in range(0, resamples, at_once):
        num = min(at_once, resamples - start)
        drawn = rng.integers(num_images, size=(num, num_images))
        drawn += num_images * np.arange(num)[:, None]
        times = np.bincount(drawn.ravel(), minlength=num * num_images).reshape(num, num_images)
        yield (times.astype(np.float64) @ flat).reshape(num, *counts.shape[1:])


def middle(values: Float64[np.ndarray, "R ..."], level: float) -> Interval:
    """What the middle share of the resamples lies within; NaN where no resample has a value."""
    exists = ~np.isnan(values).all(0)
    ends = np.full((2, *values.shape[1:]), np.nan)
    tail = 50 * (1 - level)
    ends[:, exists] = np.nanpercentile(values[:, exists], [tail, 100 - tail], axis=0)
    return Interval(ends[0], ends[1])
