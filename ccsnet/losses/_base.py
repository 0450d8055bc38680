"""What every loss promises, and what several are made of.

A batch is split over processes and accumulation passes, and the loss must not depend on how. So a
loss is a `total` divided by a `count`, both of which add up over images, and the count needs only
the labels: it is summed over all parts before any of them goes backward. A loss that is a mean over
pixels counts pixels. One that is not (it ranks pixels, or is a ratio of sums) is taken of every
image for itself, and counts images.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ccsnet.errors import InputError

# B images, N classes, K of them present in an image, (H, W) the label's grid.

SMALLEST = 1e-6
"""No count or weight is divided by less: what has none has no total either, and its loss is 0."""


@runtime_checkable
class Loss(Protocol):
    """A loss that is the same however a batch is split.

    `ignores_class_weights = True` on a loss says that it has no use for them. One that can do
    without the full-size map of logits has a method `upsampled_total` besides, with the arguments
    of `total`, which gets the logits on their own grid; it may answer None.
    """

    def count(
        self,
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """What the images count together: their valid pixels, those weighted, or their number."""
        ...

    def total(
        self,
        logits: Float[Tensor, "B N H W"],
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Sum over pixels or images; ignored pixels and what they hold change nothing."""
        ...


class MeanOverPixels:
    """The count of a loss that is a mean over valid pixels."""

    def count(
        self,
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Valid pixels, or the sum of their classes' weights."""
        return total_weight(label, ignore_index, class_weights)


class MeanOverImages:
    """The count of a loss that is taken of every image for itself."""

    def count(
        self,
        label: Int[Tensor, "B H W"],
        ignore_index: int,
        class_weights: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, ""]:
        """Images with a valid pixel."""
        return (label != ignore_index).flatten(1).any(1).sum().float()


def require(loss: str, option: str, value: float | int, holds: bool, allowed: str) -> None:
    """Refuse an option's value.

    Raises:
        InputError: It does not hold what is `allowed`, such as "from 0 to 1".
    """
    if not holds:
        raise InputError(
            f"The loss {loss!r} has {option}={value}; it must be {allowed}. "
            f"Write {loss}({option}=...) with another number, or leave it out."
        )


def total_weight(
    label: Int[Tensor, "B H W"],
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """What the valid pixels of a batch count together: their number, or their classes' weights."""
    if class_weights is None:
        return (label != ignore_index).sum().float()
    return pixel_weights(label, ignore_index, class_weights).sum()


def pixel_weights(
    label: Int[Tensor, "B H W"], ignore_index: int, class_weights: Float[Tensor, " N"] | None
) -> Float[Tensor, "B H W"]:
    """What each pixel counts: 1 or its class's weight; 0 where ignored."""
    valid = label != ignore_index
    if class_weights is None:
        return valid.float()
    return class_weights.to(label.device)[label.where(valid, 0)].where(valid, 0)


def pixel_losses(
    logits: Float[Tensor, "B N H W"], label: Int[Tensor, "B H W"], ignore_index: int
) -> Float[Tensor, "B H W"]:
    """Cross-entropy of every pixel, minus log of the probability of its class; 0 where ignored."""
    return F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")


def sum_over_images(
    of_image: Callable[[Tensor, Tensor], Tensor],
    logits: Float[Tensor, "B N H W"],
    label: Int[Tensor, "B H W"],
) -> Float[Tensor, ""]:
    """The sum of a loss of one image's logits and label.

    Taken apart by `unbind`, going backward the images are put together once; indexing would make a
    gradient as large as the batch for each of them.
    """
    images = zip(logits.unbind(), label.unbind(), strict=True)
    return torch.stack([of_image(*image) for image in images]).sum()


def present_probs(
    logits: Float[Tensor, "N H W"], label: Int[Tensor, "H W"], ignore_index: int
) -> tuple[Float[Tensor, "K H W"], Bool[Tensor, "K H W"]]:
    """Probabilities of the classes that an image's label has, and where it has them.

    A softmax of all N would be kept until the way back; few of 150 classes are in an image.
    """
    classes = label[label != ignore_index].bincount().nonzero()[:, 0]
    probs = (logits[classes] - logits.logsumexp(0)).exp()
    return probs, label == classes[:, None, None]
