"""Tversky loss: Dice that weighs false alarms and misses apart. Options: alpha, beta.

Source: Salehi, Erdogmus, Gholipour, "Tversky Loss Function for Image Segmentation Using 3D Fully
Convolutional Deep Networks", MLMI 2017.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.losses._base import MeanOverImages, present_probs, require, sum_over_images

# B images, N classes, (H, W) the label's grid.


@dataclass(frozen=True, kw_only=True)
class Tversky(MeanOverImages):
    """1 - TP / (TP + alpha FP + beta FN), the mean over the classes that an image's label has.

    TP, FP and FN are sums of probabilities over the image's valid pixels. Of a class that is not in
    the label there is nothing to overlap with; where it is predicted, others lack.
    """

    alpha: float = 0.3
    """Weight of false alarms (FP)."""
    beta: float = 0.7
    """Weight of misses (FN). Source: 0.3 and 0.7 gave the paper's best results."""
    ignores_class_weights: ClassVar[bool] = True
    """Every class present counts the same however small it is, which is what weights are for."""

    def __post_init__(self) -> None:
        require("tversky", "alpha", self.alpha, 0 <= self.alpha < math.inf, "0 or more")
        # With 0 it would cost nothing to miss all of a class.
        require("tversky", "beta", self.beta, 0 < self.beta < math.inf, "more than 0")

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over images of their means over classes."""

        def of_image(logits: Tensor, label: Tensor) -> Tensor:
            probs, truth = present_probs(logits, label, ignore_index)
            hits = (probs * truth).sum((1, 2))
            false = (probs * (~truth & (label != ignore_index))).sum((1, 2))
            missed = truth.sum((1, 2)) - hits
            losses = 1 - hits / (hits + self.alpha * false + self.beta * missed)
            return losses.sum() / max(1, len(losses))

        return sum_over_images(of_image, logits, label)


build = Tversky
