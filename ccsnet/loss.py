"""The training loss."""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.heads._base import Output, resize

# B images, N classes, (H, W) the label's grid, (h, w) the logits' grid.


def cross_entropy(
    logits: Float[Tensor, "B N h w"], label: Int[Tensor, "B H W"], ignore_index: int = 255
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the valid pixels, at the label's size.

    The logits are resized to the label, as everywhere in the field, not the label to the logits.
    A batch without a single valid pixel has loss 0, and gradient 0.
    """
    full = resize(logits, (label.shape[-2], label.shape[-1])).float()
    valid = (label != ignore_index).sum().clamp(min=1)
    return F.cross_entropy(full, label, ignore_index=ignore_index, reduction="sum") / valid


def segmentation_loss(
    output: Output,
    label: Int[Tensor, "B H W"],
    *,
    coarse_weight: float = 0.4,
    ignore_index: int = 255,
) -> Mapping[str, Float[Tensor, ""]]:
    """The terms of the loss by name, weighted; their sum is what is minimised.

    Source: weights 0.4 (coarse) and 1.0 (final) from the authors' release.
    """
    losses = {"final": cross_entropy(output.logits, label, ignore_index)}
    if output.coarse is not None:
        losses["coarse"] = coarse_weight * cross_entropy(output.coarse, label, ignore_index)
    return losses
