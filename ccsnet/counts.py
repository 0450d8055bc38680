"""Streaming counts of pixels: of a set, and of every image where that is asked for."""

import math

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from ccsnet.errors import InputError
from ccsnet.scores import CLASS_SCORES, MEANS, OVERALL, score, sums_of


class Counts:
    """Whole numbers that a set of images adds up to; memory depends on classes only.

    They are summed in any order and over any number of processes to the same figures:
    `counter.counts = processes.sum(counter.counts)`.

    Args:
        size: How many numbers.
        num_classes: Classes, from 0.
        ignore_index: The label that counts nowhere.

    Attributes:
        counts: The numbers, where the images were counted.
    """

    def __init__(self, size: int, num_classes: int, ignore_index: int) -> None:
        self.counts: Tensor = torch.zeros(size, dtype=torch.long)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def add(self, other: "Counts") -> None:
        """Take in what another one counted."""
        self._count(other.counts)

    def _count(self, more: Int64[Tensor, " K"]) -> None:
        self.counts = self.counts.to(more.device) + more


class ConfusionMatrix(Counts):
    """Counts of (label, prediction) pairs over a set of images.

    Args:
        num_classes: Classes, from 0.
        ignore_index: The label that counts nowhere.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes**2, num_classes, ignore_index)

    def update(
        self, label: Integer[Tensor, "*B H W"], prediction: Integer[Tensor, "*B H W"]
    ) -> None:
        """Add images of any size. Pixels whose label is ignored count nowhere.

        Raises:
            InputError: A label or a prediction is no class, or their sizes differ.
        """
        num = self.num_classes
        label, prediction = as_classes(label, prediction, num, self.ignore_index)
        # Ignored pixels get a row of their own, which costs less than leaving them out.
        codes = (label.int() * num).add_(prediction).flatten()
        self._count(torch.bincount(codes, minlength=(num + 1) * num)[num:])

    def matrix(self) -> Int64[np.ndarray, "N N"]:
        """Rows are labels, columns predictions, entries pixels."""
        return self.counts.cpu().numpy().reshape(self.num_classes, self.num_classes)

    def sums(self) -> Int64[np.ndarray, "3 N"]:
        """Pixels of each class: right, labelled, predicted."""
        matrix = self.matrix()
        return np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)])


def as_classes(
    label: Integer[Tensor, "..."],
    prediction: Integer[Tensor, "..."],
    num_classes: int,
    ignore_index: int,
) -> tuple[Integer[Tensor, "..."], Integer[Tensor, "..."]]:
    """The label's classes from 1, with 0 for ignored; the prediction's from 0; in small integers.

    Raises:
        InputError: A label or a prediction is no class, or their sizes differ.
    """
    if label.shape != prediction.shape:
        raise InputError(
            f"A label of {tuple(label.shape)} cannot be compared with a prediction of "
            f"{tuple(prediction.shape)}: predict at the label's own size."
        )
    small = torch.uint8 if num_classes < 256 else torch.int32
    if ignore_index == 255 and small == torch.uint8:
        # 8 bits go round: 255 + 1 is 0. Several times faster than a mask.
        _check_range("label", label, 256, num_classes, ignore_index)
        label = label.to(small) + 1
        _check_range("label", label, num_classes + 1, num_classes, ignore_index, start=1)
    else:
        label = label.long()
        ignored = label == ignore_index
        label = label.masked_fill(ignored, 0)
        _check_range("label", label, num_classes, num_classes, ignore_index)
        label = (label + 1).masked_fill_(ignored, 0).to(small)
    _check_range("prediction", prediction, num_classes, num_classes, ignore_index)
    return label, prediction.to(small)


def _check_range(
    what: str, values: Tensor, end: int, num_classes: int, ignore_index: int, start: int = 0
) -> None:
    """Raise where values are below 0 or not below `end`; class 0 has the value `start`."""
    if not values.numel():
        return
    low, high = (int(value) for value in torch.aminmax(values))
    if low < 0 or high >= end:
        raise InputError(
            f"A {what} has the value {(low if low < 0 else high) - start}, which is none of the "
            f"{num_classes} classes (0 to {num_classes - 1}). Only labels may be other than "
            f"classes, and only {ignore_index}, which is ignored."
        )


class ImageCounts:
    """What each image has by itself, for ranking images and for intervals over them.

    It grows with the number of images, so it is kept only when asked for. Processes that share a
    set put theirs together by `kept.rows = processes.gather(kept.rows)`.

    Attributes:
        rows: Name of an image, and its pixels of each class: right, labelled, predicted.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, Int64[np.ndarray, "3 N"]]] = []

    def update(self, name: str, counted: ConfusionMatrix) -> None:
        """Add the image that a confusion matrix counted."""
        self.rows.append((name, counted.sums()))

    def table(self) -> Int64[np.ndarray, "I 3 N"]:
        """For `Metrics.per_image`: by name, so that the number of processes does not show.

        Raises:
            InputError: No image was counted.
        """
        if not self.rows:
            raise InputError("No image was counted, so there is no table of their counts.")
        return np.stack([counts for _, counts in sorted(self.rows, key=_name_and_bytes)])

    def worst_first(self, name: str = "miou", beta: float = 1.0) -> list[tuple[str, float]]:
        """Images with a mean or overall metric; those without a valid pixel are left out.

        Args:
            name: The metric.
            beta: Of the F-score.

        Raises:
            InputError: The metric does not exist, or is not one number.
        """
        if name in CLASS_SCORES:
            raise InputError(
                f"{name!r} has a value for each class, so images cannot be ranked by it: give one "
                f"of {', '.join([*MEANS, *OVERALL])}."
            )
        ranking = [
            (image, float(score(name, sums_of(counts, beta)))) for image, counts in self.rows
        ]
        counted = [row for row in ranking if not math.isnan(row[1])]
        return sorted(counted, key=lambda row: (row[1], row[0]))


def _name_and_bytes(row: tuple[str, Int64[np.ndarray, "3 N"]]) -> tuple[str, bytes]:
    return row[0], row[1].tobytes()
