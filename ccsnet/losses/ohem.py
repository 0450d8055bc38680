"""Cross-entropy of each image's hardest pixels (OHEM). Options: threshold, min_kept.

Source: Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard
Example Mining", CVPR 2016, there of regions; a threshold on the probability and a least number of
pixels are how segmentation took it over.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.losses._base import SMALLEST, MeanOverImages, pixel_losses, pixel_weights, require

# B images, N classes, P valid pixels of an image, (H, W) the label's grid.


@dataclass(frozen=True, kw_only=True)
class HardPixels(MeanOverImages):
    """Mean cross-entropy over an image's pixels whose class is not probable yet.

    With class weights each kept pixel counts as its class does; which are kept does not depend on
    them. It counts images: how many pixels are kept is known only with the logits.
    """

    threshold: float = 0.7
    """A pixel is kept while the probability of its class is at most this."""
    min_kept: float = 0.1
    """Share of an image's valid pixels that is kept at least, the hardest, and one at least.

    A share and no number: it means the same for every crop size, and where much is ignored.
    """

    def __post_init__(self) -> None:
        for name in ("threshold", "min_kept"):
            value = getattr(self, name)
            require("ohem", name, value, 0 <= value <= 1, "from 0 to 1")

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over images of their means."""
        losses = pixel_losses(logits, label, ignore_index)
        with torch.no_grad():
            images = zip(losses, label != ignore_index, strict=True)
            cuts = torch.stack([self._cut(of_image[valid]) for of_image, valid in images])
            kept = losses >= cuts[:, None, None]  # Ignored pixels may be: they weigh 0.
            weights = pixel_weights(label, ignore_index, class_weights).where(kept, 0).to(losses)
            weights /= weights.sum((1, 2), keepdim=True).clamp(min=SMALLEST)
        return (losses * weights).sum()

    def _cut(self, losses: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """The loss from which on an image's pixels are kept."""
        improbable = -math.log(self.threshold) if self.threshold else math.inf
        if not len(losses):
            return losses.new_tensor(improbable)
        num = max(1, round(self.min_kept * len(losses)))
        return losses.topk(num).values[-1].clamp(max=improbable)


build = HardPixels
