"""From a network's logits to label maps in NumPy, as `ccsnet.upsample` and `ccsnet.sliding` do it.

Letters: B images, C bands, N classes, h w places of the logits, H W the size that is wanted.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Integer, Num

LOGIT_STRIDE = 4
"""The coarsest grid that windows are blended on, as in `ccsnet.sliding`."""
CHUNK_BYTES = 2**20
"""Logits of single pixels held at once: they stay in the cache."""

Network = Callable[[Float32[np.ndarray, "B C H W"]], np.ndarray]
"""Raw pixel values in; logits (B N h w) or label maps (B H W) out."""


def resize_nearest(
    label: Integer[np.ndarray, "h w"], size: tuple[int, int]
) -> Integer[np.ndarray, "H W"]:
    """A label map of another size."""
    rows, columns = (
        np.arange(wanted) * found // wanted for wanted, found in zip(size, label.shape, strict=True)
    )
    return label[rows[:, None], columns]


def _sources(
    wanted: int, places: int
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " wanted"]]:
    """The two places that each pixel lies between, and the weight of the second.

    Corners are not aligned, as in torch's bilinear interpolation.
    """
    source = np.maximum((np.arange(wanted) + 0.5) * places / wanted - 0.5, 0)
    first = np.minimum(source.astype(np.int64), places - 1)
    return first, np.minimum(first + 1, places - 1), (source - first).astype(np.float32)


def resize_logits(
    logits: Float32[np.ndarray, "N h w"], size: tuple[int, int]
) -> Float32[np.ndarray, "N H W"]:
    """Bilinear resize of a map of any number of channels."""
    above, below, down = _sources(size[0], logits.shape[1])
    left, right, across = _sources(size[1], logits.shape[2])
    rows = logits[:, above] + (logits[:, below] - logits[:, above]) * down[:, None]
    return rows[:, :, left] + (rows[:, :, right] - rows[:, :, left]) * across


def upsample_argmax(
    logits: Float32[np.ndarray, "N h w"], size: tuple[int, int]
) -> Integer[np.ndarray, "H W"]:
    """The most likely class of every pixel: bilinear resize to `size`, then argmax over classes.

    Where one class is the best of all four places around a pixel it is the best of their mean:
    only the other pixels are interpolated, so many at once as `CHUNK_BYTES` holds.
    """
    places = np.ascontiguousarray(logits.transpose(1, 2, 0))  # A place's classes side by side.
    best = places.argmax(2)
    above, below, down = _sources(size[0], logits.shape[1])
    left, right, across = _sources(size[1], logits.shape[2])
    upper, lower = best[above], best[below]
    label = upper[:, left]
    rows, columns = np.nonzero(
        (label != upper[:, right]) | (label != lower[:, left]) | (label != lower[:, right])
    )
    chunk = max(1, CHUNK_BYTES // (16 * logits.shape[0]))
    for start in range(0, len(rows), chunk):
        y, x = rows[start : start + chunk], columns[start : start + chunk]
        weight = across[x, None]
        top = _between(places[above[y], left[x]], places[above[y], right[x]], weight)
        bottom = _between(places[below[y], left[x]], places[below[y], right[x]], weight)
        label[y, x] = _between(top, bottom, down[y, None]).argmax(1)
    return label


def _between(
    first: Float32[np.ndarray, "P N"],
    second: Float32[np.ndarray, "P N"],
    weight: Float32[np.ndarray, "P 1"],
) -> Float32[np.ndarray, "P N"]:
    """The mean of the two, `weight` being the second's; both are overwritten."""
    first *= 1 - weight
    second *= weight
    first += second
    return first


def sliding_logits(
    network: Network,
    image: Num[np.ndarray, "H W C"],
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
) -> tuple[Float32[np.ndarray, "N h w"], int]:
    """Logits from overlapping windows, and their grid's stride: as `ccsnet.sliding` makes them."""
    height, width = image.shape[:2]
    step = 1 if any(s % LOGIT_STRIDE for s in stride) else LOGIT_STRIDE
    padded, places = windows_of(image, window, stride)
    cell, total, weights, weight = 0, np.empty(0), np.empty(0), np.empty(0)
    for start in range(0, len(places), batch_size):
        group = places[start : start + batch_size]
        crops = [padded[:, y : y + window[0], x : x + window[1]] for y, x in group]
        for (top, left), one in zip(group, network(np.stack(crops)), strict=True):
            if not cell:  # Only now it is known how fine the network's logits are.
                cell = math.gcd(step, max(1, window[1] // one.shape[-1]))
                weights = np.zeros([side // cell for side in padded.shape[1:]], np.float32)
                total = np.zeros((one.shape[0], *weights.shape), np.float32)
                weight = np.outer(_falling(window[0] // cell), _falling(window[1] // cell))
            if one.shape[1:] != weight.shape:
                one = resize_logits(one, (window[0] // cell, window[1] // cell))
            part = (
                slice(top // cell, (top + window[0]) // cell),
                slice(left // cell, (left + window[1]) // cell),
            )
            total[:, *part] += one * weight
            weights[part] += weight
    return (total / weights)[:, : -(-height // cell), : -(-width // cell)], cell


def windows_of(
    image: Num[np.ndarray, "H W C"], window: tuple[int, int], stride: tuple[int, int]
) -> tuple[Float32[np.ndarray, "C h w"], list[tuple[int, int]]]:
    """The image filled up with 0 until windows fit, and their top left corners."""
    height, width, channels = image.shape
    step = 1 if any(s % LOGIT_STRIDE for s in stride) else LOGIT_STRIDE
    covered = [-(-side // step) * step for side in (height, width)]
    padded = np.zeros((channels, *map(max, covered, window)), np.float32)
    padded[:, :height, :width] = image.transpose(2, 0, 1)
    tops, lefts = map(_starts, covered, window, stride)
    return padded, [(top, left) for top in tops for left in lefts]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin so that they cover `length`."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def _falling(side: int) -> Float32[np.ndarray, " side"]:
    """Weights along a window's side: largest in its middle, never 0."""
    ramp = np.arange(side, dtype=np.float32)
    return np.minimum(ramp, ramp[::-1]) + 1
