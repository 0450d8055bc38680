"""One definition of every metric, from streaming counts of pixels."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from ccsnet.counts import ConfusionMatrix, ImageCounts
from ccsnet.errors import InputError
from ccsnet.scores import (
    CLASS_SCORES,
    LEVEL,
    MEANS,
    OVERALL,
    RESAMPLES,
    Interval,
    Sums,
    bootstrap,
    bootstraps,
    calibration_error,
    mean_of_present,
    score,
    sums_of,
)

__all__ = [
    "ConfusionMatrix",
    "ImageCounts",
    "ImageScores",
    "Metrics",
    "confusion_csv",
    "image_scores",
    "percent",
    "shown_columns",
]

SHOWN: Mapping[str, tuple[str, str]] = {
    "IoU": ("iou", "miou"),
    "Dice": ("dice", "mean_dice"),
    "accuracy": ("accuracy", "mean_accuracy"),
    "precision": ("precision", "mean_precision"),
    "boundary IoU": ("boundary_iou", "mean_boundary_iou"),
}
"""Columns of tables for people: heading, the classes' figures, their mean."""
WITH_INTERVAL = (*MEANS, *OVERALL, "iou")
"""What `Metrics.intervals` has."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Everything read off the counts. Fractions, not per cent; the formulas are in scores.py.

    A class is present when a label or a prediction has it. An absent class has no IoU (NaN, shown
    as "-") and is left out of every mean.
    """

    classes: Sequence[str]
    confusion: Int64[np.ndarray, "N N"]
    images: int = 0
    beta: float = 1.0
    """How many times more recall counts than precision in the F-score."""
    per_image: Int64[np.ndarray, "I 3 N"] | None = None
    """What `ImageCounts.table` gives; only intervals need it."""
    boundary: Int64[np.ndarray, "3 N"] | None = None
    """What `BoundaryCounts.table` gives, where it was measured."""
    calibration: Int64[np.ndarray, "3 bins"] | None = None
    """What `CalibrationCounts.table` gives, where it was measured."""
    stored_intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Those that were read from a file, which does not hold the counts of images."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise InputError(f"beta is {self.beta}; give a number above 0, such as 1 or 2.")

    @property
    def iou(self) -> Float64[np.ndarray, " N"]:
        """Intersection over union per class, over the pixels of the whole set."""
        return score("iou", self._sums)

    @property
    def dice(self) -> Float64[np.ndarray, " N"]:
        """Dice coefficient (F1 score) per class."""
        return score("dice", self._sums)

    @property
    def accuracy(self) -> Float64[np.ndarray, " N"]:
        """Share of each class's labelled pixels that were found; NaN where no label has it."""
        return score("accuracy", self._sums)

    @property
    def precision(self) -> Float64[np.ndarray, " N"]:
        """Share of each class's predicted pixels that are right; NaN where none predicts it."""
        return score("precision", self._sums)

    @property
    def recall(self) -> Float64[np.ndarray, " N"]:
        """The same as `accuracy`, by its other name."""
        return score("recall", self._sums)

    @property
    def f_score(self) -> Float64[np.ndarray, " N"]:
        """F-score per class, recall weighted by `beta`."""
        return score("f_score", self._sums)

    @property
    def boundary_iou(self) -> Float64[np.ndarray, " N"]:
        """IoU per class of what lies near the contours; NaN for all where not measured."""
        if self.boundary is None:
            return np.full(len(self.classes), np.nan)
        return score("iou", sums_of(self.boundary))

    @property
    def miou(self) -> float:
        """Mean IoU over the present classes; NaN when nothing was counted."""
        return self.value("miou")

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the present classes."""
        return self.value("mean_dice")

    @property
    def mean_accuracy(self) -> float:
        """Mean class accuracy over the classes that a label has."""
        return self.value("mean_accuracy")

    @property
    def mean_precision(self) -> float:
        """Mean precision over the classes that were predicted anywhere."""
        return self.value("mean_precision")

    @property
    def mean_recall(self) -> float:
        """The same as `mean_accuracy`, by its other name."""
        return self.value("mean_recall")

    @property
    def mean_f_score(self) -> float:
        """Mean F-score over the present classes."""
        return self.value("mean_f_score")

    @property
    def mean_boundary_iou(self) -> float:
        """Mean boundary IoU over the present classes; NaN where not measured."""
        return float(mean_of_present(self.boundary_iou))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all valid pixels that are right."""
        return self.value("pixel_accuracy")

    @property
    def fw_iou(self) -> float:
        """Mean IoU in which a class weighs as many pixels as are labelled so."""
        return self.value("fw_iou")

    @property
    def ece(self) -> float:
        """Expected calibration error over pixels; NaN where not measured."""
        return math.nan if self.calibration is None else calibration_error(self.calibration)

    def value(self, name: str) -> float:
        """A mean or overall metric by its name.

        Raises:
            InputError: It does not exist, or has a value for each class.
        """
        if name in CLASS_SCORES:
            raise InputError(f"{name!r} has a value for each class: read Metrics.{name}.")
        return float(score(name, self._sums))

    def interval(
        self,
        name: str = "miou",
        *,
        level: float = LEVEL,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Interval:
        """What a metric lies within, were the images drawn anew: see `scores.bootstraps`.

        Args:
            name: A metric of the confusion matrix, one number or one per class.
            level: Share of the resamples that lies inside.
            resamples: How many are drawn.
            seed: Of the draws.

        Raises:
            InputError: The counts of the images were not kept, or an argument is out of range.
        """
        if self.per_image is None:
            raise InputError(
                "An interval needs the counts of every image, which were not kept: measure with "
                "ImageCounts and give Metrics(per_image=...)."
            )
        return bootstrap(
            name, self.per_image, level=level, resamples=resamples, seed=seed, beta=self.beta
        )

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """The 95 % intervals of all means and overall metrics, and of the classes' IoU.

        Empty where the counts of the images were neither kept nor stored as intervals.
        """
        if self.per_image is None:
            return self.stored_intervals
        return bootstraps(WITH_INTERVAL, self.per_image, beta=self.beta)

    @property
    def _sums(self) -> Sums:
        confusion = self.confusion.astype(np.float64)
        return Sums(np.diag(confusion).copy(), confusion.sum(1), confusion.sum(0), self.beta)

    def to_dict(self) -> Mapping[str, object]:
        """For JSON: absent classes are null; what was not measured is left out.

        Of the images, their number and the intervals over them are kept.
        """
        means = {name: self.value(name) for name in (*MEANS, *OVERALL)}
        per_class = {name: score(name, self._sums) for name in CLASS_SCORES}
        counts: dict[str, object] = {}
        if self.boundary is not None:
            means["mean_boundary_iou"] = self.mean_boundary_iou
            per_class["boundary_iou"] = self.boundary_iou
            counts["boundary"] = self.boundary.tolist()
        if self.calibration is not None:
            means["ece"] = self.ece
            counts["calibration"] = self.calibration.tolist()
        if self.intervals:
            counts["intervals"] = {
                name: self._by_class(np.stack(ends, 1)) if name in CLASS_SCORES else _rounded(ends)
                for name, ends in self.intervals.items()
            }
        return {
            **{name: _rounded(value) for name, value in means.items()},
            "beta": self.beta,
            "images": self.images,
            "pixels": int(self.confusion.sum()),
            **{name: self._by_class(values) for name, values in per_class.items()},
            "confusion": self.confusion.tolist(),
            **counts,
        }

    def _by_class(self, values: Float64[np.ndarray, "N ..."]) -> dict[str, object]:
        return {one: _rounded(value) for one, value in zip(self.classes, values, strict=True)}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Metrics":
        """What `to_dict` wrote; files of earlier versions lack some of it.

        Raises:
            KeyError: It is something else.
        """

        def counts(name: str) -> Int64[np.ndarray, "A B"] | None:
            return np.array(values[name], np.int64) if name in values else None

        def interval(ends: Mapping | Sequence) -> Interval:
            rows = list(ends.values()) if isinstance(ends, Mapping) else ends
            return Interval(*np.array(rows, np.float64).T)  # None becomes NaN.

        stored = values.get("intervals", {})
        return cls(
            classes=tuple(values["iou"]),
            confusion=np.array(values["confusion"], np.int64),
            images=values["images"],
            beta=values.get("beta", 1.0),
            boundary=counts("boundary"),
            calibration=counts("calibration"),
            stored_intervals={name: interval(ends) for name, ends in stored.items()},
        )


class ImageScores(NamedTuple):
    """The figures of one image; a mean is over the classes that are present in it."""

    image: str
    pixels: int
    """Labelled and not ignored."""
    miou: float
    mean_dice: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: Float64[np.ndarray, " N"]
    """Per class; NaN where the image has none of it."""
    counts: Int64[np.ndarray, "3 N"]
    """Pixels of each class: right, labelled, predicted. Sums of them give figures of any set."""

    def to_dict(self, classes: Sequence[str]) -> dict[str, object]:
        """For JSON; only the present classes have an IoU and counts."""
        means = {name: _rounded(getattr(self, name)) for name in IMAGE_MEANS}
        present = np.flatnonzero(~np.isnan(self.iou)).tolist()
        return {
            "image": self.image,
            "pixels": self.pixels,
            **means,
            "iou": {classes[i]: _rounded(self.iou[i]) for i in present},
            "counts": {classes[i]: self.counts[:, i].tolist() for i in present},
        }


IMAGE_MEANS = ("miou", "mean_dice", "mean_accuracy", "pixel_accuracy")
"""What is one number for an image, in the order of `ImageScores`."""


def image_scores(metrics: Metrics, ranking: Sequence[tuple[str, float]]) -> list[ImageScores]:
    """The figures of every image with a valid pixel, worst mIoU first.

    Args:
        metrics: With the counts of the images.
        ranking: Names and mIoU of these images, as `ImageCounts.worst_first` gives them.

    Raises:
        InputError: The counts of the images were not kept.
    """
    if metrics.per_image is None:
        raise InputError(
            "A table of the images needs the counts of every image, which were not kept: measure "
            "with ImageCounts and give Metrics(per_image=...)."
        )
    # The counts are in the order of the names; the ranking has all but those without a pixel.
    counted = [counts for counts in metrics.per_image if counts[1].any()]
    found = []
    for (name, _), counts in zip(sorted(ranking), counted, strict=True):
        sums = sums_of(counts, metrics.beta)
        found.append(
            ImageScores(
                image=name,
                pixels=int(counts[1].sum()),
                **{one: float(score(one, sums)) for one in IMAGE_MEANS},
                iou=score("iou", sums),
                counts=counts,
            )
        )
    return sorted(found, key=lambda row: (row.miou, row.image))


def shown_columns(metrics: Metrics) -> dict[str, list[float]]:
    """Headings of tables for people, and below each the classes' figures and their mean."""
    return {
        heading: [*getattr(metrics, name).tolist(), getattr(metrics, mean)]
        for heading, (name, mean) in SHOWN.items()
        if name != "boundary_iou" or metrics.boundary is not None
    }


def confusion_csv(metrics: Metrics) -> str:
    """The confusion matrix as CSV text: a row for each labelled class, a column for each predicted.

    Entries are pixels; the first row and column are the classes' names.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["labelled \\ predicted", *metrics.classes])
    for name, row in zip(metrics.classes, metrics.confusion.tolist(), strict=True):
        writer.writerow([name, *row])
    return text.getvalue()


def _rounded(value: Any) -> object:
    """Six digits, and None for NaN, which JSON does not have; of several numbers a list."""
    if np.ndim(value):
        return [_rounded(one) for one in value]
    return None if math.isnan(value) else round(float(value), 6)


def percent(value: float | None) -> str:
    """A fraction as per cent with one decimal; what does not exist or was not measured is "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
