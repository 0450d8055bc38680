"""Label an image in overlapping windows, for images larger than what a model should see at once.

Letters: B images, C bands, H W a size in pixels, N classes, h w places of the logits.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from ccsnet.errors import InputError
from ccsnet.upsample import upsample_argmax

LOGIT_STRIDE = 4
"""The coarsest grid that windows are blended on, in pixels: that of most heads' logits."""

DEVICE_BYTES = 2**30
"""Sums of windows up to this size stay on the model's device; larger ones are kept by the CPU."""


def stride_of(window: int, overlap: float) -> int:
    """Pixels from one window to the next where they share so much of their side.

    A multiple of 4, so that the logits of all windows lie on one grid of stride 4.
    """
    return max(1, round(window * (1 - overlap) / LOGIT_STRIDE)) * LOGIT_STRIDE


def sliding_label(
    model: nn.Module,
    image: Num[Tensor, "C H W"],
    num_classes: int,
    size: tuple[int, int],
    *,
    window: int,
    stride: int,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Int64[Tensor, "rows columns"]:
    """The most likely class of every pixel, from the blended logits of overlapping windows.

    Args:
        model: A `Segmenter` in evaluation mode.
        image: Raw pixel values at the size at which the model sees them.
        num_classes: N.
        size: Height and width of the label map.
        window: Side of a window, a multiple of 32.
        stride: Pixels from one window to the next.
        batch_size: Windows in each forward pass.
        progress: Called with windows done and windows in all.

    Raises:
        InputError: The window or its stride is impossible.
    """
    logits, cell = sliding_logits(
        model,
        image,
        num_classes,
        window=window,
        stride=stride,
        batch_size=batch_size,
        progress=progress,
    )
    height, width = grid_size(size, logits.shape[1:], cell, image.shape[1:])
    return upsample_argmax(logits[None], (height, width))[0, : size[0], : size[1]]


def grid_size(
    size: Sequence[int], places: Sequence[int], cell: int, image: Sequence[int]
) -> tuple[int, int]:
    """Height and width of what a whole grid of logits covers in a map of so many pixels.

    The grid may reach up to 3 pixels beyond the image: what it makes of them is to be cut off.

    Args:
        size: Height and width of the map.
        places: Rows and columns of the grid.
        cell: Pixels of the image from one place to the next.
        image: Height and width of the image.
    """
    rows, columns = (
        round(wanted * number * cell / side)
        for wanted, number, side in zip(size, places, image, strict=True)
    )
    return rows, columns


def sliding_logits(
    model: nn.Module,
    image: Num[Tensor, "C H W"],
    num_classes: int,
    *,
    window: int,
    stride: int,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "N h w"], int]:
    """`sliding_batch` of one image."""
    logits, cell = sliding_batch(
        model,
        image[None],
        num_classes,
        window=window,
        stride=stride,
        batch_size=batch_size,
        progress=progress,
    )
    return logits[0], cell


@torch.inference_mode()
def sliding_batch(
    model: nn.Module,
    images: Num[Tensor, "B C H W"],
    num_classes: int,
    *,
    window: int,
    stride: int,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "B N h w"], int]:
    """Logits of images of any size from overlapping square windows, and their grid's stride.

    Windows start at multiples of `stride`; the last of a row or column is moved back so that it
    ends with the image. They are blended with weights that fall linearly towards their edges, so
    that no seam shows. An image smaller than a window is filled up with 0.

    The grid has stride 4, a sixteenth of the memory of full-size logits, unless the model's own
    logits are finer; then the last window may reach up to 3 pixels beyond the image. If the
    windows' stride is no multiple of 4, the grid has stride 1, and it ends exactly with the image.

    Args:
        model: A `Segmenter` in evaluation mode.
        images: Raw pixel values.
        num_classes: N.
        window: Side of a window, a multiple of 32.
        stride: Pixels from one window to the next.
        batch_size: Windows in each forward pass, of one image or of several.
        progress: Called with windows done and windows in all.

    Raises:
        InputError: The window or its stride is impossible.
    """
    _check_window(window, stride)
    device = next(model.parameters()).device
    num, bands, height, width = images.shape
    step = 1 if stride % LOGIT_STRIDE else LOGIT_STRIDE  # Windows start at multiples of it.
    rows, columns = (-(-side // step) * step for side in (height, width))
    padded = images.new_zeros(num, bands, max(rows, window), max(columns, window))
    padded[..., :height, :width] = images
    corners = window_corners((height, width), window, stride)
    places = [(index, top, left) for index in range(num) for top, left in corners]
    cell, total, weights, weight = 0, torch.empty(0), torch.empty(0), torch.empty(0)
    for start in range(0, len(places), batch_size):
        group = places[start : start + batch_size]
        crops = [padded[i, :, y : y + window, x : x + window] for i, y, x in group]
        logits = model(torch.stack(crops).to(device)).logits.float()
        if not cell:  # Only now it is known how fine the model's logits are.
            cell = math.gcd(step, max(1, window // logits.shape[-1]))
            shape = (padded.shape[2] // cell, padded.shape[3] // cell)
            bytes_needed = 4 * num * num_classes * math.prod(shape)
            home = device if bytes_needed <= DEVICE_BYTES else torch.device("cpu")
            weights = torch.zeros(num, *shape, device=home)
            total = torch.zeros(num, num_classes, *shape, device=home)
            weight = _falling(window // cell).to(home)
        logits = logits.to(total.device)
        if logits.shape[-2:] != weight.shape:
            logits = torch.nn.functional.interpolate(
                logits, size=weight.shape, mode="bilinear", align_corners=False
            )
        for (index, top, left), one in zip(group, logits, strict=True):
            part = (
                slice(top // cell, (top + window) // cell),
                slice(left // cell, (left + window) // cell),
            )
            total[index, :, *part] += one * weight
            weights[index, *part] += weight
        if progress is not None:
            progress(start + len(group), len(places))
    total /= weights[:, None]
    return total[..., : -(-height // cell), : -(-width // cell)], cell


def window_corners(size: Sequence[int], window: int, stride: int) -> list[tuple[int, int]]:
    """Top and left of the windows over an image of so many rows and columns."""
    step = 1 if stride % LOGIT_STRIDE else LOGIT_STRIDE
    tops, lefts = (_starts(-(-side // step) * step, window, stride) for side in size)
    return [(top, left) for top in tops for left in lefts]


def _check_window(window: int, stride: int) -> None:
    if window < 32 or window % 32:
        raise InputError(f"window is {window}; it must be a multiple of 32, such as 512.")
    if not 1 <= stride <= window:
        raise InputError(
            f"The stride of the windows is {stride}; it must be from 1 to their side, {window}."
        )


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin so that they cover `length`."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def _falling(side: int) -> Float[Tensor, "side side"]:
    """Weights of a window's places: largest in its middle, never 0."""
    ramp = torch.arange(side, dtype=torch.float32)
    ramp = torch.minimum(ramp, ramp.flip(0)) + 1
    return ramp[:, None] * ramp
