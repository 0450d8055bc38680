"""Why pixels are lost: what those have in common that one model has wrong and another right.

Letters: H W a size in pixels, N classes, h w the cells of stride 16, C causes and all pixels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from ccsnet.boundary import near_contour
from ccsnet.grid import ScoreGrid
from ccsnet.heads._classes import relevant_classes
from ccsnet.outputs import segments_of
from ccsnet.scores import middle, ratio, resampled

NEAR = 3
"""Pixels from a border within which a pixel counts as near it."""

FEW_CELLS = 4
"""Stride-16 cells in one place of the coarsest features, of which centres are made."""

CAUSES: Mapping[str, str] = {
    "not_relevant": "its class is not among the relevant ones of its stride-16 cell",
    "coarse_wrong": "the coarse prediction has it wrong",
    "coarse_right": "the coarse prediction has it right",
    "in_no_cell": "its class wins no cell of the image's coarse prediction",
    "in_few_cells": f"its class wins 1 to {FEW_CELLS - 1} cells of the image's coarse prediction",
    "near_border": f"within {NEAR} pixels of a border in the label",
    "segment_below_16": "in a segment smaller than a cell of stride 16",
    "segment_below_32": "in a segment smaller than a cell of stride 32",
}
"""What may be true of a pixel; a segment is a connected piece of one class in the label."""

LOST, GAINED, ALL = range(3)
"""Pixels that only the baseline has right; that only the run has right; that count."""


class Choice(NamedTuple):
    """What the head of a CCSNet chose from in one image."""

    coarse: Float[Tensor, "N h w"]
    """Logits of the coarse prediction, by which classes are chosen."""
    finest: tuple[int, int]
    """The grid of the final logits."""
    top_k: int
    """How many classes are relevant at each place."""


class CauseRow(NamedTuple):
    """How frequent one cause is among the lost pixels, and elsewhere; shares are fractions."""

    name: str
    meaning: str
    lost: float
    """Share of the pixels that only the baseline has right."""
    gained: float
    """Share of those that only the run has right."""
    everywhere: float
    """Share of all pixels that count."""
    lift: float
    """How many times as frequent it is among the lost pixels as everywhere."""
    low: float
    """Within this and `high` lie 95 % of the lifts, were the images drawn anew."""
    high: float
    versus_gained: float
    """How many times as frequent it is among the lost pixels as among the gained."""
    versus_low: float
    """Within this and `versus_high` lie 95 % of these, were the images drawn anew."""
    versus_high: float
    by_class: Mapping[str, tuple[float, float]]
    """Of each class with lost pixels: the share of these, and of all pixels of the class."""


def cause_masks(
    label: Int64[Tensor, "H W"],
    num_classes: int,
    seen: tuple[int, int],
    choice: Choice | None = None,
) -> dict[str, Bool[np.ndarray, "H W"]]:
    """Where each cause is at work, by its name; of pixels whose label is no class it says nothing.

    Args:
        label: Classes, and whatever is ignored.
        num_classes: N.
        seen: Height and width at which the model saw the image.
        choice: None leaves out the causes that only a CCSNet has.
    """
    classes = label.cpu().numpy()
    masks = {} if choice is None else _choice_masks(classes, num_classes, choice)
    # Edges repeated outwards: the image's own border separates no classes.
    rows, columns = (np.arange(-NEAR, n + NEAR).clip(0, n - 1) for n in classes.shape)
    wide = torch.from_numpy(classes[rows[:, None], columns])
    masks["near_border"] = near_contour(wide, NEAR)[NEAR:-NEAR, NEAR:-NEAR].numpy()
    ids, segments = segments_of(classes, num_classes)
    areas = np.array([0, *(segment["area"] for segment in segments)])[ids]
    pixels_per_seen = classes.size / (seen[0] * seen[1])
    for stride in (16, 32):
        masks[f"segment_below_{stride}"] = areas < stride**2 * pixels_per_seen
    return masks


def _choice_masks(
    classes: Int64[np.ndarray, "H W"], num_classes: int, choice: Choice
) -> dict[str, Bool[np.ndarray, "H W"]]:
    coarse, size = choice.coarse[None], (classes.shape[0], classes.shape[1])
    grid = (coarse.shape[2], coarse.shape[3])
    true = np.minimum(classes, num_classes - 1)  # What is ignored counts nowhere.
    masks = {}
    if choice.top_k < num_classes:
        relevant = relevant_classes(coarse, choice.top_k)[0].cpu().numpy()
        rows, columns = map(cells_under, size, choice.finest, grid)
        masks["not_relevant"] = ~relevant[true, rows[:, None], columns]
    right = ScoreGrid(coarse, False, 1, grid).label(0, size).cpu().numpy() == classes
    won = np.bincount(coarse[0].argmax(0).flatten().cpu().numpy(), minlength=num_classes)[true]
    return masks | {
        "coarse_wrong": ~right,
        "coarse_right": right,
        "in_no_cell": won == 0,
        "in_few_cells": (won > 0) & (won < FEW_CELLS),
    }


def cells_under(pixels: int, places: int, cells: int) -> Int64[np.ndarray, " pixels"]:
    """Along one side: the cell whose classes serve the stage's place nearest to each pixel.

    See `ccsnet.heads._classes.window_of`, of which this is the way back.
    """
    place = (2 * np.arange(pixels) + 1) * places // (2 * pixels)
    return place * cells // places


class CauseCounts:
    """Streaming counts of lost, gained and all pixels: all of them, and those with each cause.

    Args:
        num_classes: N.
        ignore_index: The label that counts nowhere.

    Attributes:
        names: The causes that were found to apply, in the order of the counts behind the first.
        per_image: Of each image, an array C x (lost, gained, all).
        by_class: Sums over the images, C x (lost, gained, all) x N.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.names: tuple[str, ...] = ()
        self.per_image: list[Int64[np.ndarray, "C 3"]] = []
        self.by_class: Int64[np.ndarray, "C 3 N"] = np.zeros((1, 3, num_classes), np.int64)

    def update(
        self,
        label: Integer[np.ndarray, "H W"],
        run: Integer[np.ndarray, "H W"],
        baseline: Integer[np.ndarray, "H W"],
        masks: Mapping[str, Bool[np.ndarray, "H W"]],
    ) -> None:
        """Add an image; every image has the same causes."""
        if not self.per_image:
            self.names = tuple(name for name in CAUSES if name in masks)
            self.by_class = np.zeros((1 + len(self.names), 3, self.num_classes), np.int64)
        valid = label != self.ignore_index
        of_run, of_baseline = run == label, baseline == label
        kinds = np.full(label.shape, ALL)
        kinds[of_baseline & ~of_run] = LOST
        kinds[of_run & ~of_baseline] = GAINED
        codes = (kinds * self.num_classes + label)[valid]
        selected = [codes, *(codes[masks[name][valid]] for name in self.names)]
        counts = np.stack([np.bincount(part, minlength=3 * self.num_classes) for part in selected])
        counts = counts.reshape(-1, 3, self.num_classes)
        counts[:, ALL] = counts.sum(1)
        self.by_class += counts
        self.per_image.append(counts.sum(2))

    def rows(self, classes: tuple[str, ...]) -> list[CauseRow]:
        """Every cause's shares; NaN where there is no pixel to take a share of."""
        counts = self.by_class.astype(np.float64)
        shares = ratio(counts[1:].sum(2), np.broadcast_to(counts[0].sum(1), (len(self.names), 3)))
        of_class = ratio(counts[1:], np.broadcast_to(counts[0], counts[1:].shape))
        lifts, versus = (ratio(shares[:, LOST], shares[:, other]) for other in (ALL, GAINED))
        lift_within, versus_within = self._intervals()
        having = np.flatnonzero(counts[0, LOST]).tolist()
        return [
            CauseRow(
                name=name,
                meaning=CAUSES[name],
                lost=float(shares[i, LOST]),
                gained=float(shares[i, GAINED]),
                everywhere=float(shares[i, ALL]),
                lift=float(lifts[i]),
                low=float(lift_within[0][i]),
                high=float(lift_within[1][i]),
                versus_gained=float(versus[i]),
                versus_low=float(versus_within[0][i]),
                versus_high=float(versus_within[1][i]),
                by_class={
                    classes[c]: (float(of_class[i, LOST, c]), float(of_class[i, ALL, c]))
                    for c in having
                },
            )
            for i, name in enumerate(self.names)
        ]

    def _intervals(self) -> list[list[Float64[np.ndarray, " causes"]]]:
        """Low and high ends of the lifts, and of lost over gained."""
        drawn = np.concatenate(list(resampled(np.stack(self.per_image))))
        shares = ratio(drawn[:, 1:], np.broadcast_to(drawn[:, :1], drawn[:, 1:].shape))
        # What is nowhere in a draw has no ratio there, which NaN compares as well.
        found = (ratio(shares[..., LOST], shares[..., other]) for other in (ALL, GAINED))
        return [[np.atleast_1d(end) for end in middle(values, 0.95)] for values in found]
