"""Boundary IoU: how well contours are met, from streaming counts of the pixels near them."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from ccsnet.counts import Counts, as_classes
from ccsnet.errors import InputError

DILATION_RATIO = 0.02
"""Width of the band along a contour, as a share of the image's diagonal.

Source: Cheng et al., Boundary IoU, CVPR 2021: 2 % of the diagonal, about 15 pixels.
"""


class BoundaryCounts(Counts):
    """Counts of the pixels near contours over a set of images.

    For each class, of its labelled pixels those within `band_width` of the label's contour, of its
    predicted pixels those near the prediction's, and those in both; boundary IoU is both / either
    over the whole set, as IoU is. As in the paper's code, the image's border is a contour; so
    is the edge of what is ignored, for there the image ends as well.

    Source: Cheng et al., Boundary IoU, CVPR 2021.

    Args:
        num_classes: Classes, from 0.
        ignore_index: The label that counts nowhere.
        dilation_ratio: Width of the band, as a share of the image's diagonal.

    Raises:
        InputError: The ratio is not above 0.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        dilation_ratio: float = DILATION_RATIO,
    ) -> None:
        if not 0 < dilation_ratio < math.inf:
            raise InputError(
                f"dilation_ratio is {dilation_ratio}; give a number above 0, such as "
                f"{DILATION_RATIO}."
            )
        super().__init__(3 * num_classes, num_classes, ignore_index)
        self.dilation_ratio = dilation_ratio

    def update(
        self, label: Integer[Tensor, "*B H W"], prediction: Integer[Tensor, "*B H W"]
    ) -> None:
        """Add images of one size.

        Raises:
            InputError: A label or a prediction is no class, or their sizes differ.
        """
        num = self.num_classes
        label, prediction = as_classes(label, prediction, num, self.ignore_index)
        # Ignored (0) in the label is ignored in both.
        prediction = (prediction + 1) * label.clamp(max=1)
        width = band_width((label.shape[-2], label.shape[-1]), self.dilation_ratio)
        labelled, predicted = near_contour(label, width), near_contour(prediction, width)
        hit = labelled & predicted & (label == prediction)
        # In the label's band, and in both: states 1 and 2.
        of_label = _count(label, labelled.byte() + hit.byte(), num, 3)
        of_prediction = _count(prediction, predicted, num, 2)
        self._count(torch.cat([of_label[2], of_label[1] + of_label[2], of_prediction[1]]))

    def table(self) -> Int64[np.ndarray, "3 N"]:
        """For `Metrics.boundary`: pixels in both bands, in the label's, in the prediction's."""
        return self.counts.cpu().numpy().reshape(3, self.num_classes)


def band_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """Pixels from a contour that still count as near it: a share of the diagonal, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def near_contour(classes: Integer[Tensor, "*B H W"], width: int) -> Bool[Tensor, "*B H W"]:
    """True where a pixel's class ends within `width` pixels, diagonals counted as 1.

    The same as what `width` erosions by 3x3 take away from the mask of the pixel's class, for all
    classes at once: a pixel stays where the square of side 2 width + 1 around it is of one class.
    That square is of one class where all of its 2x2 blocks are.
    """
    height, wide = classes.shape[-2:]
    near = torch.ones(classes.shape, dtype=torch.bool, device=classes.device)
    if min(height, wide) <= 2 * width:
        return near  # No square lies inside the image.
    across = classes[..., :, 1:] != classes[..., :, :-1]
    down = classes[..., 1:, :] != classes[..., :-1, :]
    # Both rows of a block are of one class, and one column is: so is the other.
    mixed = across[..., 1:, :] | across[..., :-1, :] | down[..., :, 1:]
    mixed = _any_of(_any_of(mixed, 2 * width, -2), 2 * width, -1)
    near[..., width : height - width, width : wide - width] = mixed
    return near


def _any_of(mask: Bool[Tensor, "*B H W"], length: int, dim: int) -> Bool[Tensor, "*B h w"]:
    """Whether any of `length` neighbours is true, by doubling: log2(length) steps."""
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        rest = mask.shape[dim] - step
        mask = mask.narrow(dim, 0, rest) | mask.narrow(dim, step, rest)
        covered += step
    return mask


def _count(
    classes: Integer[Tensor, "*B H W"], state: Tensor, num_classes: int, num_states: int
) -> Int64[Tensor, "states N"]:
    """Pixels of each class (from 1) in each state, ignored ones left out."""
    codes = (state.int() * (num_classes + 1)).add_(classes).flatten()
    counts = torch.bincount(codes, minlength=num_states * (num_classes + 1))
    return counts.view(num_states, num_classes + 1)[:, 1:]
