"""One definition of every metric, from streaming counts of pixels."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ccsnet.counts import ConfusionMatrix, ImageCounts
from ccsnet.errors import InputError
from ccsnet.scores import (
    CLASS_SCORES,
    MEANS,
    OVERALL,
    Interval,
    Sums,
    bootstrap,
    calibration_error,
    mean_of_present,
    score,
    sums_of,
)

__all__ = ["ConfusionMatrix", "ImageCounts", "Metrics", "confusion_csv", "percent"]


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
        self, name: str = "miou", *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> Interval:
        """What a metric lies within, were the images drawn anew: see `scores.bootstrap`.

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

    @property
    def _sums(self) -> Sums:
        confusion = self.confusion.astype(np.float64)
        return Sums(np.diag(confusion).copy(), confusion.sum(1), confusion.sum(0), self.beta)

    def to_dict(self) -> Mapping[str, object]:
        """For JSON: absent classes are null; what was not measured is left out."""
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
        return {
            **{name: _rounded(value) for name, value in means.items()},
            "beta": self.beta,
            "images": self.images,
            "pixels": int(self.confusion.sum()),
            **{
                name: {
                    one: _rounded(float(value))
                    for one, value in zip(self.classes, values, strict=True)
                }
                for name, values in per_class.items()
            },
            "confusion": self.confusion.tolist(),
            **counts,
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> "Metrics":
        """What `to_dict` wrote; files of earlier versions lack some of it.

        Raises:
            KeyError: It is something else.
        """

        def counts(name: str) -> Int64[np.ndarray, "A B"] | None:
            return np.array(values[name], np.int64) if name in values else None

        return cls(
            classes=tuple(values["iou"]),
            confusion=np.array(values["confusion"], np.int64),
            images=values["images"],
            beta=values.get("beta", 1.0),
            boundary=counts("boundary"),
            calibration=counts("calibration"),
        )


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


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def percent(value: float | None) -> str:
    """A fraction as per cent with one decimal; what does not exist or was not measured is "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
