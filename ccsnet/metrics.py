"""One definition of every metric, from one streaming confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a set of images; memory depends on classes only."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: Tensor | None = None

    def update(self, label: Int[Tensor, "*B H W"], prediction: Int[Tensor, "*B H W"]) -> None:
        """Add images of any size. Pixels whose label is ignored count nowhere."""
        codes = label.long() * self.num_classes + prediction.long()
        codes = codes[label != self.ignore_index]
        counts = torch.bincount(codes, minlength=self.num_classes**2)
        self.counts = counts if self.counts is None else self.counts + counts

    def add(self, other: "ConfusionMatrix") -> None:
        """Take in what another one counted."""
        if other.counts is not None:
            self.counts = other.counts if self.counts is None else self.counts + other.counts

    def matrix(self) -> Int64[np.ndarray, "N N"]:
        """Rows are labels, columns predictions, entries pixels."""
        shape = (self.num_classes, self.num_classes)
        if self.counts is None:
            return np.zeros(shape, np.int64)
        return self.counts.cpu().numpy().reshape(shape)


def _ratio(
    numerator: Float64[np.ndarray, " N"], denominator: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0
    )


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Everything read off a confusion matrix. Fractions, not per cent.

    A class is present when a label or a prediction has it. An absent class has no IoU (NaN, shown
    as "-") and is left out of every mean.
    """

    classes: Sequence[str]
    confusion: Int64[np.ndarray, "N N"]
    images: int = field(default=0)

    @property
    def iou(self) -> Float64[np.ndarray, " N"]:
        """Intersection over union per class, over the pixels of the whole set."""
        hit, label, predicted = self._sums
        return _ratio(hit, label + predicted - hit)

    @property
    def dice(self) -> Float64[np.ndarray, " N"]:
        """Dice coefficient (F1 score) per class."""
        hit, label, predicted = self._sums
        return _ratio(2 * hit, label + predicted)

    @property
    def accuracy(self) -> Float64[np.ndarray, " N"]:
        """Share of each class's labelled pixels that were found; NaN where no label has it."""
        hit, label, _ = self._sums
        return _ratio(hit, label)

    @property
    def miou(self) -> float:
        """Mean IoU over the present classes; NaN when nothing was counted."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the present classes."""
        return _mean(self.dice)

    @property
    def mean_accuracy(self) -> float:
        """Mean class accuracy over the classes that a label has."""
        return _mean(self.accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all valid pixels that are right."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    @property
    def _sums(self) -> tuple[Float64[np.ndarray, " N"], ...]:
        confusion = self.confusion.astype(np.float64)
        return np.diag(confusion).copy(), confusion.sum(1), confusion.sum(0)

    def to_dict(self) -> Mapping[str, object]:
        """For JSON: absent classes are null."""

        def per_class(values: Float64[np.ndarray, " N"]) -> dict[str, float | None]:
            return {
                name: None if np.isnan(value) else round(float(value), 6)
                for name, value in zip(self.classes, values, strict=True)
            }

        means = {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_dice": self.mean_dice,
        }
        return {
            **{k: None if np.isnan(v) else round(v, 6) for k, v in means.items()},
            "images": self.images,
            "pixels": int(self.confusion.sum()),
            "iou": per_class(self.iou),
            "dice": per_class(self.dice),
            "accuracy": per_class(self.accuracy),
            "confusion": self.confusion.tolist(),
        }


def _mean(values: Float64[np.ndarray, " N"]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def percent(value: float | None) -> str:
    """A fraction as per cent with one decimal; what does not exist or was not measured is "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
