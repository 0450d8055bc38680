"""Lovász-Softmax: the convex closure of the IoU loss, per image and class. No options.

Source: Berman, Rannen Triki, Blaschko, "The Lovász-Softmax Loss: A Tractable Surrogate for the
Optimization of the Intersection-Over-Union Measure in Neural Networks", CVPR 2018.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ccsnet.losses._base import MeanOverImages, present_probs, sum_over_images

# B images, N classes, K of them present in an image, P valid pixels of it, (H, W) the label's grid.


@dataclass(frozen=True, kw_only=True)
class LovaszSoftmax(MeanOverImages):
    """The Lovász extension of 1 - IoU at the pixels' errors, the mean over the classes present.

    A pixel's error for a class is 1 - p where the label has the class, p elsewhere.
    """

    ignores_class_weights: ClassVar[bool] = True
    """Every class present counts the same however small it is, which is what weights are for."""

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
            with torch.no_grad():
                slopes = torch.zeros_like(probs)
                valid = label != ignore_index
                for slope, class_probs, class_truth in zip(slopes, probs, truth, strict=True):
                    positive = class_truth[valid]
                    errors = (positive.to(probs) - class_probs[valid]).abs()
                    slope[valid] = lovasz_slopes(errors, positive)
            # The loss is linear while the order of the errors stays: no sort goes backward.
            errors = torch.where(truth, 1 - probs, probs)
            return (errors * slopes).sum() / max(1, len(probs))

        return sum_over_images(of_image, logits, label)


def lovasz_slopes(errors: Float[Tensor, " P"], positive: Bool[Tensor, " P"]) -> Float[Tensor, " P"]:
    """How much each pixel's error adds to the Lovász extension of 1 - IoU.

    Largest error first, pixel after pixel is taken for wrong; a pixel's slope is what 1 - IoU
    grows by. The paper's algorithm 1 subtracts neighbouring values, each near the next; here is
    the difference itself: 1/U for a pixel of the class and I/(U(U - 1)) for another, where the
    intersection I and the union U are those after it.
    """
    order = errors.sort(descending=True, stable=True).indices
    hit = positive[order]
    size = hit.sum()
    intersection = size - hit.cumsum(0)
    union = (size + (~hit).cumsum(0)).to(errors)
    # A union is 1 only where its pixel is of the class: the other form is not asked for there.
    slopes = torch.where(hit, 1, intersection / (union - 1).clamp(min=1)) / union
    return torch.empty_like(slopes).scatter_(0, order, slopes)


build = LovaszSoftmax
