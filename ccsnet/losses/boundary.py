"""Cross-entropy in which pixels near class boundaries count more. Options: radius, weight.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, section 3: a map of weights that is high at borders. Theirs falls off
with the distance to two cells; this one has two values.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ccsnet.losses._base import pixel_losses, pixel_weights, require

# B images, N classes, (H, W) the label's grid.


def near_boundary(
    label: Int[Tensor, "B H W"], ignore_index: int, radius: int
) -> Bool[Tensor, "B H W"]:
    """True for pixels with one of another class at most `radius` rows and columns away.

    Ignored pixels are of no class: what lies beside them is near no boundary, and neither are they.
    """
    valid = label != ignore_index
    classes = label.float()  # Exact to 2^24; pooling knows no integers on some devices.
    highest = _highest(classes.masked_fill(~valid, -math.inf), radius)
    lowest = -_highest((-classes).masked_fill(~valid, -math.inf), radius)
    return valid & (highest != lowest)


def _highest(x: Float[Tensor, "B H W"], radius: int) -> Float[Tensor, "B H W"]:
    """Maximum over the square around each place: over columns, then over rows."""
    size = 2 * radius + 1
    x = F.max_pool2d(x, (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(x, (size, 1), stride=1, padding=(radius, 0))


@dataclass(frozen=True, kw_only=True)
class BoundaryAware:
    """Mean cross-entropy over valid pixels; those near a class boundary count `weight` times.

    With class weights each pixel counts as its class does, times that.
    """

    radius: int = 3
    """How many rows and columns away a pixel of another class may be."""
    weight: float = 3.0
    """How often a pixel near a boundary counts. Below 1 it counts less: for unsure borders."""

    def __post_init__(self) -> None:
        require("boundary", "radius", self.radius, self.radius >= 1, "a whole number from 1 on")
        require("boundary", "weight", self.weight, 0 <= self.weight < math.inf, "0 or more")

    def count(
        self,
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """What the valid pixels count together."""
        return self._weights(label, ignore_index, class_weights).sum()

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over the valid pixels."""
        weights = self._weights(label, ignore_index, class_weights).to(logits)
        return (weights * pixel_losses(logits, label, ignore_index)).sum()

    def _weights(
        self,
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, "B H W"]:
        weights = pixel_weights(label, ignore_index, class_weights)
        near = near_boundary(label, ignore_index, self.radius)
        return weights.where(~near, self.weight * weights)


build = BoundaryAware
