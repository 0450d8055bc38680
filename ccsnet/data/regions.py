"""Paint a label map from the outlines and runs that annotation programs keep.

Coordinates are theirs: x to the right and y down from the image's corner, so that the first pixel's
centre is at (0.5, 0.5). A pixel belongs to an outline if its centre lies inside.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt16

from ccsnet.data.images import MAX_PIXELS
from ccsnet.errors import InputError

UNLABELLED, IGNORED = 65534, 65535
"""Pixels that no region covers, and pixels that a region tells to leave out."""

FARTHEST = 1e9
"""Coordinates beyond it are moved to it."""

CIRCLE_POINTS = 360
"""Corners that stand for a circle: its radius is off by less than one part in 25,000."""


@dataclass(frozen=True)
class Outline:
    """A closed polygon; where it crosses itself, what is inside twice is outside."""

    points: Float64[np.ndarray, "P 2"]
    """x and y of each corner."""

    @property
    def area(self) -> float:
        """In pixels."""
        x, y = self.points.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@dataclass(frozen=True)
class Bitmap:
    """Pixels one by one, from a place of the image on; it may reach over the image's edges."""

    pixels: Bool[np.ndarray, "h w"]
    top: int = 0
    left: int = 0

    @property
    def area(self) -> float:
        """In pixels."""
        return float(np.count_nonzero(self.pixels))


class Region(NamedTuple):
    """Where one class is."""

    name: str | None
    """The class; None: pixels to leave out."""
    shapes: Sequence[Outline | Bitmap]
    level: int = 0
    """Higher ones lie over lower ones, whatever their size."""

    @property
    def area(self) -> float:
        """In pixels, as if its shapes were apart."""
        return sum(shape.area for shape in self.shapes)


def outline(corners: Any) -> Outline:
    """The polygon of these corners.

    Raises:
        InputError: They are no pairs of numbers, or fewer than 3.
    """
    try:
        points = np.array([(x, y) for x, y in corners], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"its corners are no pairs of numbers ({error})") from error
    if len(points) < 3:
        raise InputError(f"a polygon has {len(points)} corners; at least 3 are needed")
    return _checked(points)


def _checked(points: Float64[np.ndarray, "P 2"]) -> Outline:
    if not np.isfinite(points).all():
        raise InputError("a coordinate is no finite number")
    return Outline(np.clip(points, -FARTHEST, FARTHEST))


def rectangle(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> Outline:
    """The rectangle between two of its corners, then turned clockwise about its centre.

    Raises:
        InputError: A coordinate is no finite number.
    """
    points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)
    return _checked(_turned(points, (x0 + x1) / 2, (y0 + y1) / 2, degrees))


def ellipse(x: float, y: float, x_radius: float, y_radius: float, degrees: float = 0.0) -> Outline:
    """The ellipse about a centre, turned clockwise.

    Raises:
        InputError: A coordinate is no finite number.
    """
    angles = np.arange(CIRCLE_POINTS) * (2 * math.pi / CIRCLE_POINTS)
    points = np.stack([x + x_radius * np.cos(angles), y + y_radius * np.sin(angles)], axis=1)
    return _checked(_turned(points, x, y, degrees))


def _turned(
    points: Float64[np.ndarray, "P 2"], x: float, y: float, degrees: float
) -> Float64[np.ndarray, "P 2"]:
    """Points turned clockwise, as seen with y down, about a centre."""
    if not degrees:
        return points
    turn = math.radians(degrees)
    across, down = points[:, 0] - x, points[:, 1] - y
    return np.stack(
        [
            x + across * math.cos(turn) - down * math.sin(turn),
            y + across * math.sin(turn) + down * math.cos(turn),
        ],
        axis=1,
    )


def check_size(height: int, width: int) -> None:
    """Refuse a bitmap that no image can need, before it is made.

    Raises:
        InputError: It has no pixels or too many.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"a mask of {height} x {width} pixels; 1 to {MAX_PIXELS:,} can be read")


def from_runs(runs: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The bitmap of run lengths along its rows: outside, inside, outside ...

    Raises:
        InputError: They do not add up to its pixels, or these are too many.
    """
    check_size(height, width)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InputError(f"its runs add up to {sum(runs)} pixels, not to {height} x {width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, np.array(runs, np.int64)).reshape(height, width)


def paint(
    size: tuple[int, int], regions: Iterable[Region], numbers: dict[str, int]
) -> UInt16[np.ndarray, "H W"]:
    """The label map of an image: large regions first, so that small ones stay visible on them.

    Args:
        size: Height and width of the image; what lies outside is left out.
        regions: Where classes are.
        numbers: The number of each class.

    Returns:
        Class numbers, `UNLABELLED` and `IGNORED`.
    """
    label = np.full(size, UNLABELLED, np.uint16)
    for region in sorted(regions, key=lambda region: (region.level, -region.area)):
        number = IGNORED if region.name is None else numbers[region.name]
        for shape in region.shapes:
            if isinstance(shape, Outline):
                top, left, inside = _inside(shape.points, size)
            else:
                top, left, inside = _within(shape, size)
            rows, columns = inside.shape
            label[top : top + rows, left : left + columns][inside] = number
    return label


def _within(bitmap: Bitmap, size: tuple[int, int]) -> tuple[int, int, Bool[np.ndarray, "h w"]]:
    """The part of a bitmap that lies in the image, and where."""
    top, left = max(bitmap.top, 0), max(bitmap.left, 0)
    rows = slice(top - bitmap.top, max(top, size[0]) - bitmap.top)
    columns = slice(left - bitmap.left, max(left, size[1]) - bitmap.left)
    return top, left, bitmap.pixels[rows, columns]


def _inside(
    points: Float64[np.ndarray, "P 2"], size: tuple[int, int]
) -> tuple[int, int, Bool[np.ndarray, "h w"]]:
    """The pixels of the image whose centres are inside a polygon, and where their map begins.

    Along a row, inside and outside change at each edge that crosses the row of centres.
    """
    low, high = (
        np.array([_first_centre(bound[axis], size[1 - axis]) for axis in (0, 1)])
        for bound in (points.min(axis=0), points.max(axis=0))
    )
    left, top = low.tolist()
    height, width = int(high[1]) - top, int(high[0]) - left
    start, end = points, np.roll(points, -1, axis=0)
    # Each edge crosses the rows of centres from its upper end to before its lower one.
    upper, lower = (
        _first_centres(ends(start[:, 1], end[:, 1]), top, top + height)
        for ends in (np.minimum, np.maximum)
    )
    num = lower - upper
    edge = np.repeat(np.arange(len(points)), num)
    before = np.cumsum(num) - num
    row = np.arange(num.sum()) - np.repeat(before, num) + upper[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = x0 + (row + 0.5 - y0) / (y1 - y0) * (x1 - x0)
    change = np.zeros((height, width + 1), np.uint8)
    np.add.at(change, (row - top, _first_centres(x, left, left + width) - left), 1)
    return top, left, (np.cumsum(change & 1, axis=1) & 1)[:, :width].astype(bool)


def _first_centre(position: float, length: int) -> int:
    """The first pixel along a side whose centre is not before a position; `length`: none."""
    return int(min(max(math.ceil(position - 0.5), 0), length))


def _first_centres(
    positions: Float64[np.ndarray, " P"], low: int, high: int
) -> Int64[np.ndarray, " P"]:
    """The same for many, held within bounds."""
    return np.clip(np.ceil(positions - 0.5), low, high).astype(np.int64)
