"""The label map of a scene, some rows at a time: of one pass, or of the mean of several.

What `ccsnet.inference.Pipeline` does with an image, for one that is larger than memory: the passes
go down the scene together, and each holds the logits of one row of windows.

Letters: C bands, H W a size in pixels, N classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Num
from torch import Tensor

from ccsnet.errors import NotFiniteError
from ccsnet.grid import BAND_BYTES
from ccsnet.inference import Pipeline
from ccsnet.rasters_bands import Crop, Look, Pass, Windows, cell_of, grid_of, held_places
from ccsnet.rasters_resize import resized_part, under
from ccsnet.sliding import DEVICE_BYTES, grid_size
from ccsnet.upsample import Axis, _axis, upsample_argmax

ROWS, COLUMNS = 64, 4096
"""Pixels that are labelled at once, so that full-size scores stay small."""

Read = Callable[
    [slice, slice], tuple[Num[np.ndarray, "rows columns C"], Bool[np.ndarray, "rows columns"]]
]
"""Pixels of some rows and columns of the scene, and where they hold data."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a scene is seen.

    Args:
        pipeline: The models, and in what sizes they see the scene.
        size: Height and width of the scene.
        window: Side and stride of the windows.
        channels: C.
    """

    pipeline: Pipeline
    size: tuple[int, int]
    window: tuple[int, int]
    channels: int

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """The passes, in the order of `Pipeline`; all are brought to the grid of the first."""
        found: list[Look] = []
        config, device = self.pipeline.config, self.pipeline.device
        networks = self.pipeline.networks()
        side, stride = self.window
        cells: dict[int, int] = {}
        for scale in sorted(config.scales, key=lambda scale: abs(math.log(scale))):
            seen = self.pipeline.seen_size(self.size, scale, self.window)
            windows = Windows(size=seen, window=side, stride=stride)
            for network in networks:
                if id(network) not in cells:
                    cells[id(network)] = cell_of(network, windows, self.channels, device)
                for flip in (False, True)[: 1 + config.flip]:
                    found.append(Look(network, windows, cells[id(network)], flip))
        return tuple(found)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the scores."""
        return grid_of(self.looks[0].windows, self.looks[0].cell)

    @cached_property
    def covered(self) -> tuple[int, int]:
        """Height and width of what the grid covers; it may reach a little beyond the scene."""
        if self.pipeline.averages:
            return self.size
        return grid_size(self.size, self.grid, self.looks[0].cell, self.looks[0].windows.size)

    @cached_property
    def places(self) -> tuple[Axis, Axis]:
        """The rows of the grid around each row of the scene, and the same of columns."""
        return _axes(self.grid, self.covered)

    @cached_property
    def resized(self) -> tuple[tuple[Axis, Axis] | None, ...]:
        """For each pass on another grid: its rows around each row of the grid; and columns."""
        grids = [grid_of(look.windows, look.cell) for look in self.looks]
        return tuple(None if grid == self.grid else _axes(grid, self.grid) for grid in grids)

    def rows_needed(self, first: int, end: int) -> list[slice]:
        """The rows of each pass's grid that rows of the scene depend on."""
        rows = _reach(self.places[0], slice(first, end))
        return [rows if axes is None else _reach(axes[0], rows) for axes in self.resized]

    def num_windows(self, first_row: int = 0) -> int:
        """How many windows are seen for the rows of the scene from one on."""
        total = 0
        for look, rows in zip(self.looks, self.rows_needed(first_row, first_row + 1), strict=True):
            begun = look.windows.first_row_over(rows.start * look.cell)
            total += (len(look.windows.tops) - begun) * len(look.windows.lefts)
        return total

    def bytes_held(self) -> int:
        """What the blended logits take."""
        places = 0
        for look, depth in zip(self.looks, self.depths(0), strict=True):
            places += math.prod(held_places(look.windows, look.cell, depth))
        return 4 * (self.pipeline.num_classes + 1) * places

    def depths(self, first_row: int) -> list[int]:
        """The most rows of each pass's grid that are needed at once."""
        depths = [0] * len(self.looks)
        for block in blocks(self.size[0], first_row):
            needed = [rows.stop - rows.start for rows in self.rows_needed(*block)]
            depths = list(map(max, depths, needed))
        return depths


def blocks(height: int, first_row: int) -> list[tuple[int, int]]:
    """The rows that are labelled at once."""
    return [(row, min(row + ROWS, height)) for row in range(first_row, height, ROWS)]


def _axes(source: tuple[int, int], target: tuple[int, int]) -> tuple[Axis, Axis]:
    here = torch.device("cpu")
    return _axis(source[0], target[0], here), _axis(source[1], target[1], here)


def _reach(axis: Axis, part: slice) -> slice:
    """The places that a part depends on."""
    places = axis.places[part]
    return slice(int(places.min()), int(places.max()) + 1)


def labelled_rows(
    plan: Plan,
    read: Read,
    *,
    ignore_index: int,
    batch_size: int = 4,
    first_row: int = 0,
    advance: Callable[[], None] | None = None,
) -> Iterator[Integer[np.ndarray, "rows W"]]:
    """Finished rows of the label map, from `first_row` down, some at a time.

    Windows without any data are not shown to the models.

    Args:
        plan: How the scene is seen.
        read: Gives the pixels of a part of it.
        ignore_index: The label of pixels without data.
        batch_size: Windows in each forward pass.
        first_row: Where to begin: the rows above it are done.
        advance: Called after each window.
    """
    valid = _Valid(plan.size[1], first_row)
    device = plan.pipeline.device
    home = device if plan.bytes_held() <= DEVICE_BYTES else torch.device("cpu")
    firsts = plan.rows_needed(first_row, first_row + 1)
    depths = plan.depths(first_row)
    passes = [
        Pass(
            look,
            # Each pass reads all of the scene; one of them notes where there are data.
            _crop(read, plan.size, look.windows.size, None if index else valid),
            num_classes=plan.pipeline.num_classes,
            batch_size=batch_size,
            device=device,
            home=home,
            first=firsts[index].start,
            depth=depths[index],
            advance=advance,
        )
        for index, look in enumerate(plan.looks)
    ]
    for first, end in blocks(plan.size[0], first_row):
        for one, rows in zip(passes, plan.rows_needed(first, end), strict=True):
            one.reach(rows.start, rows.stop)
        yield _labels(plan, passes, valid.take(first, end), (first, end), ignore_index)


class _Valid:
    """Where there are data, from a row on."""

    def __init__(self, width: int, first: int) -> None:
        self.first, self.rows = first, np.zeros((0, width), bool)

    def mark(self, rows: slice, columns: slice, valid: Bool[np.ndarray, "rows columns"]) -> None:
        """Remember it of a part of the scene."""
        if rows.stop <= self.first:
            return
        missing = rows.stop - self.first - len(self.rows)
        if missing > 0:
            more = np.zeros((missing, self.rows.shape[1]), bool)
            self.rows = np.concatenate([self.rows, more])
        above = max(0, self.first - rows.start)
        begin = rows.start + above - self.first
        self.rows[begin : rows.stop - self.first, columns] = valid[above:]

    def take(self, first: int, end: int) -> Bool[np.ndarray, "rows W"]:
        """Some rows; they and those above are forgotten."""
        found, self.rows = np.split(self.rows[first - self.first :], [end - first])
        self.first = end
        return found


def _crop(read: Read, size: tuple[int, int], seen: tuple[int, int], valid: _Valid | None) -> Crop:
    """Gives parts of the scene at the size at which it is seen."""

    def crop(rows: slice, columns: slice) -> Num[Tensor, "C rows columns"] | None:
        below = under(size, seen, (rows, columns))
        pixels, there = read(*below)
        if valid is not None:
            valid.mark(*below, there)
        if not there.any():
            return None
        at = (below[0].start, below[1].start)
        part = resized_part(pixels, at, size, seen, (rows, columns)).transpose(2, 0, 1)
        if part.dtype == np.uint16:  # As `image_tensor` gives them.
            part = part.astype(np.int32)
        return torch.from_numpy(np.ascontiguousarray(part))

    return crop


def _scores(
    plan: Plan, passes: Sequence[Pass], rows: slice, columns: slice
) -> Float[Tensor, "N h w"]:
    """The only pass's logits, or the mean of the probabilities, at some places of the grid."""
    if not plan.pipeline.averages:
        return passes[0].logits(rows, columns)
    total: Tensor | None = None
    for one, axes in zip(passes, plan.resized, strict=True):
        if axes is None:
            probs = one.logits(rows, columns).softmax(0)
        else:
            near = _reach(axes[0], rows), _reach(axes[1], columns)
            probs = _between(one.logits(*near).softmax(0), axes, (rows, columns), near)
        total = probs if total is None else total.add_(probs)
    assert total is not None, "there is a pass"
    return total / len(passes)


def _between(
    values: Float[Tensor, "N h w"],
    axes: tuple[Axis, Axis],
    part: tuple[slice, slice],
    near: tuple[slice, slice],
) -> Float[Tensor, "N rows columns"]:
    """A part of what bilinear interpolation makes of a grid, from the places near it."""
    mixed = values
    for axis, cut, start, dim in zip(axes, part, (n.start for n in near), (1, 2), strict=True):
        places = (axis.places[cut] - start).to(values.device)
        weights = axis.weights[cut].to(values.device)
        first, second = (weights[:, i, None] if dim == 1 else weights[:, i] for i in (0, 1))
        upper = mixed.index_select(dim, places[:, 0]) * first
        mixed = upper.addcmul_(mixed.index_select(dim, places[:, 1]), second)
    return mixed


def _labels(
    plan: Plan,
    passes: Sequence[Pass],
    valid: Bool[np.ndarray, "rows W"],
    rows: tuple[int, int],
    ignore_index: int,
) -> Integer[np.ndarray, "rows W"]:
    """The labels of some rows of the scene, from passes that have reached them."""
    kind = np.uint8 if ignore_index == 255 else np.uint16
    found = np.full(valid.shape, ignore_index, kind)
    down = _reach(plan.places[0], slice(*rows))
    exact = _exact_ratio(plan)
    room = BAND_BYTES // (4 * plan.pipeline.num_classes * valid.shape[0])
    width = COLUMNS if exact else max(1, min(COLUMNS, room))
    for left in range(0, plan.size[1], width):
        columns = slice(left, min(left + width, plan.size[1]))
        if not valid[:, columns].any():
            continue
        across = _reach(plan.places[1], columns)
        scores = _scores(plan, passes, down, across)
        if exact:
            size = (scores.shape[1] * exact, scores.shape[2] * exact)
            top, beside = rows[0] - down.start * exact, left - across.start * exact
            label = upsample_argmax(scores[None], size)[0]
            label = label[top : top + valid.shape[0], beside : beside + columns.stop - left]
        else:
            if not scores.isfinite().all():
                raise NotFiniteError("The models' scores hold NaN or infinite values.")
            part = (slice(*rows), columns)
            label = _between(scores, plan.places, part, (down, across)).argmax(0)
        here = valid[:, columns]
        found[:, columns][here] = label.cpu().numpy().astype(kind)[here]
    return found


def _exact_ratio(plan: Plan) -> int:
    """Pixels between two places where that is a power of two; else 0.

    Then a part of the grid is interpolated as it is in the whole, rounding included.
    """
    ratio = plan.covered[0] // plan.grid[0]
    fits = plan.covered == (plan.grid[0] * ratio, plan.grid[1] * ratio)
    return ratio if fits and ratio & (ratio - 1) == 0 else 0
