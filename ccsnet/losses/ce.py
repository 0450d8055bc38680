"""Cross-entropy, the mean over valid pixels. Option: label_smoothing.

With class weights the mean is weighted: each pixel counts as its class does.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.losses._base import MeanOverPixels, require
from ccsnet.losses._upsampled import upsampled_cross_entropy

# B images, N classes, (H, W) the label's grid, (h, w) the logits' own.


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(MeanOverPixels):
    """Minus log of the probability of each pixel's class."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes.

    With class weights, what is spread on a class weighs as that class, as torch has it.

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7.
    """

    def __post_init__(self) -> None:
        holds = 0 <= self.label_smoothing < 1
        require("ce", "label_smoothing", self.label_smoothing, holds, "from 0 to below 1")

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over the valid pixels."""
        return F.cross_entropy(
            logits,
            label,
            weight=None if class_weights is None else class_weights.to(logits),
            ignore_index=ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def upsampled_total(
        self,
        logits: Float[Tensor, "B N h w"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""] | None:
        """The total of logits on a coarser grid; None if it needs their full-size map.

        So does a compiled loss: how the strips go on depends on the label's values.
        """
        if (
            torch.compiler.is_compiling()
            or self.label_smoothing
            or logits.shape[-2:] == label.shape[-2:]
        ):
            return None
        return upsampled_cross_entropy(logits, label, ignore_index, class_weights)


build = CrossEntropy
