"""The training loss."""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.heads._base import Output, resize

# B images, N classes, (H, W) the label's grid, (h, w) the logits' grid.


def cross_entropy(
    logits: Float[Tensor, "B N h w"],
    label: Int[Tensor, "B H W"],
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the valid pixels, at the label's size.

    The logits are resized to the label, as everywhere in the field, not the label to the logits.
    With class weights the mean is weighted: each pixel counts as its class does. A batch without
    a single valid pixel has loss 0, and gradient 0.
    """
    full = resize(logits, (label.shape[-2], label.shape[-1])).float()
    weight = None if class_weights is None else class_weights.to(full)
    total = F.cross_entropy(full, label, weight=weight, ignore_index=ignore_index, reduction="sum")
    return total / total_weight(label, ignore_index, class_weights).clamp(min=1e-6)


def total_weight(
    label: Int[Tensor, "B H W"],
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """What the valid pixels of a batch count together: their number, or their classes' weights."""
    valid = label != ignore_index
    if class_weights is None:
        return valid.sum().float()
    weights = class_weights.to(label.device)[label.where(valid, 0)]
    return weights.where(valid, 0).sum()


def segmentation_loss(
    output: Output,
    label: Int[Tensor, "B H W"],
    *,
    coarse_weight: float = 0.4,
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Mapping[str, Float[Tensor, ""]]:
    """The terms of the loss by name, weighted; their sum is what is minimised.

    Source: weights 0.4 (coarse) and 1.0 (final) from the authors' release.
    """
    losses = {"final": cross_entropy(output.logits, label, ignore_index, class_weights)}
    if output.coarse is not None:
        coarse = cross_entropy(output.coarse, label, ignore_index, class_weights)
        losses["coarse"] = coarse_weight * coarse
    return losses
