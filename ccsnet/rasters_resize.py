"""Parts of a resized image, without the whole of it.

`resize_image` turns a whole image at once. A scene is read in windows; what a window of the resized
scene shows must not depend on where the windows lie, or labels would differ from those of the same
image seen whole. So places and weights are worked out from the whole's sizes, as OpenCV does.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int32, Int64, Num


class Taps(NamedTuple):
    """The two rows (or columns) behind each row of the resized image, and the second's weight."""

    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]


def taps(length: int, made: int, start: int, end: int, *, columns: bool) -> Taps:
    """The taps of some rows or columns of a side that is resized.

    Args:
        length: Of the side as read.
        made: Of the side as resized.
        start: The first of the resized ones.
        end: The one after the last.
        columns: Whether they are columns: at the image's edges these get one tap, rows the same
            row twice, which OpenCV rounds otherwise.
    """
    step = 1.0 / (made / length)
    places = ((np.arange(start, end) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int64)
    weight = places - first.astype(np.float32)
    if columns:
        weight[(first < 0) | (first >= length - 1)] = 0
    return Taps(first.clip(0, length - 1), (first + 1).clip(0, length - 1), weight)


def under(
    size: tuple[int, int], made: tuple[int, int], part: tuple[slice, slice]
) -> tuple[slice, slice]:
    """The rows and columns as read that lie under a part of the resized image, taps included.

    Parts that leave nothing out have nothing between them here either.
    """
    if size == made:
        return part
    rows, columns = (
        slice(
            max(math.floor(side.start * length / new) - 2, 0),
            min(math.ceil(side.stop * length / new) + 2, length),
        )
        for length, new, side in zip(size, made, part, strict=True)
    )
    return rows, columns


def resized_part(
    pixels: Num[np.ndarray, "rows columns C"],
    at: tuple[int, int],
    size: tuple[int, int],
    made: tuple[int, int],
    part: tuple[slice, slice],
) -> Num[np.ndarray, "h w C"]:
    """A part of what `resize_image` makes of a whole image.

    Args:
        pixels: The image under the part, as `under` says.
        at: Its first row and column in the whole image.
        size: Height and width of the whole image.
        made: The same of the resized one.
        part: Rows and columns of the resized one.
    """
    (rows, columns), (top, left) = part, at
    factor = 2 if (made[0] * 2, made[1] * 2) == size else 1
    if size == made or factor == 2:
        kept = pixels[
            rows.start * factor - top : rows.stop * factor - top,
            columns.start * factor - left : columns.stop * factor - left,
        ]
        if size == made:
            return kept
        # OpenCV takes the mean of four pixels, rounded as suits the number of bands.
        half = (kept.shape[1] // 2, kept.shape[0] // 2)
        mean = cv2.resize(np.ascontiguousarray(kept), half, interpolation=cv2.INTER_LINEAR)
        return mean if mean.ndim == 3 else mean[..., None]
    y = taps(size[0], made[0], rows.start, rows.stop, columns=False)
    x = taps(size[1], made[1], columns.start, columns.stop, columns=True)
    if pixels.dtype == np.uint8:
        mixed = _of_bytes(pixels.astype(np.int32), y, x, at)
        return mixed.clip(0, 255).astype(np.uint8)
    after, below = x.weight[:, None], y.weight[:, None, None]
    kept = pixels.astype(np.float32)
    wide = kept[:, x.first - left] * (1 - after) + kept[:, x.second - left] * after
    mixed = wide[y.first - top] * (1 - below) + wide[y.second - top] * below
    return np.rint(mixed).astype(pixels.dtype) if pixels.dtype.kind in "iu" else mixed


def _of_bytes(
    pixels: Int32[np.ndarray, "rows columns C"], y: Taps, x: Taps, at: tuple[int, int]
) -> Int32[np.ndarray, "h w C"]:
    """In whole numbers: weights of 11 bits, of whose products 4, 16 and 2 bits are cut."""
    before, after = (part[:, None] for part in _bits(x.weight))
    above, below = (part[:, None, None] for part in _bits(y.weight))
    wide = pixels[:, x.first - at[1]] * before + pixels[:, x.second - at[1]] * after
    upper, lower = wide[y.first - at[0]] >> 4, wide[y.second - at[0]] >> 4
    return ((upper * above >> 16) + (lower * below >> 16) + 2) >> 2


def _bits(second: Float32[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the first and the second tap. Source: OpenCV's bilinear resize of 8 bits."""
    first = np.float32(1) - second
    return np.rint(first * 2048).astype(np.int32), np.rint(second * 2048).astype(np.int32)
