"""Focal loss: cross-entropy, less of it the more probable a pixel's class. Option: gamma.

Source: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
equation 4. Theirs is of independent classes; here the probability is that of a softmax.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.losses._base import MeanOverPixels, pixel_losses, pixel_weights, require

# B images, N classes, (H, W) the label's grid.

TINY = 1e-20
"""Below this, 1 - p counts as this: the slope of a root at 0 is infinite, and its product NaN."""


@dataclass(frozen=True, kw_only=True)
class Focal(MeanOverPixels):
    """Mean over valid pixels of (1 - p)^gamma times the cross-entropy.

    The mean is over all valid pixels, as that of cross-entropy, not over a sum of the factors: it
    gets small as pixels are learnt. With class weights each pixel counts as its class does.
    """

    gamma: float = 2.0
    """How fast probable pixels stop counting; 0 is cross-entropy."""

    def __post_init__(self) -> None:
        require("focal", "gamma", self.gamma, self.gamma >= 0, "0 or more")

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over the valid pixels."""
        losses = pixel_losses(logits, label, ignore_index)
        missing = -(-losses).expm1()  # 1 - p, exact where p is nearly 1.
        weights = pixel_weights(label, ignore_index, class_weights).to(losses)
        return (weights * missing.clamp(min=TINY) ** self.gamma * losses).sum()


build = Focal
