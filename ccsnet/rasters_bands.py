"""One pass of a model over an image that is larger than memory, row by row from the top.

It is what `ccsnet.sliding.sliding_batch` makes of the same image, but only the blended logits of
one row of windows are held.

Letters: C bands, H W a size in pixels, N classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from ccsnet.sliding import LOGIT_STRIDE, _check_window, _falling, _starts

Crop = Callable[[slice, slice], Num[Tensor, "C rows columns"] | None]
"""Pixels of some rows and columns of the image as seen; None where there are no data at all."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How square windows lie over an image.

    Raises:
        InputError: The window or its stride is impossible.
    """

    size: tuple[int, int]
    """Height and width of the image."""
    window: int
    """Side of a window, a multiple of 32."""
    stride: int
    """Pixels from one window to the next."""

    def __post_init__(self) -> None:
        _check_window(self.window, self.stride)

    @property
    def step(self) -> int:
        """The coarsest grid that all windows lie on, in pixels."""
        return 1 if self.stride % LOGIT_STRIDE else LOGIT_STRIDE

    @cached_property
    def tops(self) -> list[int]:
        """First rows of windows."""
        return self._starts(self.size[0])

    @cached_property
    def lefts(self) -> list[int]:
        """First columns of windows."""
        return self._starts(self.size[1])

    def _starts(self, length: int) -> list[int]:
        return _starts(-(-length // self.step) * self.step, self.window, self.stride)

    def first_row_over(self, row: int) -> int:
        """The first row of windows that reaches below a row of the image."""
        return next(i for i, top in enumerate(self.tops) if top + self.window > row)


class Look(NamedTuple):
    """How a pass sees the image."""

    network: nn.Module
    """A model in evaluation mode, or one in another number type."""
    windows: Windows
    cell: int
    """Pixels of the image as seen from one place of the grid to the next."""
    flip: bool


def cell_of(network: nn.Module, windows: Windows, channels: int, device: torch.device) -> int:
    """The stride of the grid that windows are blended on, as `sliding_batch` settles it."""
    side = windows.window
    probe = torch.zeros(1, channels, side, side, dtype=torch.uint8)
    return math.gcd(windows.step, max(1, side // _logits(network, probe, device).shape[-1]))


class Pass:
    """Blended logits of one pass, read off from the top; what lies above is forgotten.

    Args:
        look: How the image is seen.
        crop: Gives the pixels of a window, the part of it that lies in the image.
        num_classes: N.
        batch_size: Windows in each forward pass, of one row of windows.
        device: Where the network computes.
        home: Where the sums of windows are kept.
        first: The first row of the grid that will be asked for.
        depth: The most rows that will be asked for at once.
        advance: Called after each window.
    """

    def __init__(
        self,
        look: Look,
        crop: Crop,
        *,
        num_classes: int,
        batch_size: int,
        device: torch.device,
        home: torch.device,
        first: int,
        depth: int,
        advance: Callable[[], None] | None = None,
    ) -> None:
        self.look, self.crop, self.advance = look, crop, advance
        self.batch_size, self.device, self.home = batch_size, device, home
        self.grid = grid_of(look.windows, look.cell)
        self.base = first
        self.next = look.windows.first_row_over(first * look.cell)
        shape = held_places(look.windows, look.cell, depth)
        self.total = torch.zeros(num_classes, *shape, device=home)
        self.weights = torch.zeros(shape, device=home)
        self.weight = _falling(look.windows.window // look.cell).to(home)

    def reach(self, first: int, end: int) -> None:
        """Make the rows from `first` to before `end` ready, and forget those above."""
        self._forget(first)
        tops = self.look.windows.tops
        while self.next < len(tops) and tops[self.next] // self.look.cell < end:
            self._see(tops[self.next])
            self.next += 1

    def logits(self, rows: slice, columns: slice) -> Float[Tensor, "N rows columns"]:
        """Logits of rows that are ready, of the image as it lies; 0 where no window had data."""
        if self.look.flip:
            columns = slice(self.grid[1] - columns.stop, self.grid[1] - columns.start)
        part = (slice(rows.start - self.base, rows.stop - self.base), columns)
        found = self.total[:, *part] / self.weights[part].clamp(min=1)
        return found.flip(-1) if self.look.flip else found

    def _forget(self, first: int) -> None:
        shift = min(first - self.base, self.weights.shape[0])
        self.base = first
        if shift <= 0:
            return
        keep = self.weights.shape[0] - shift
        for plane in (*self.total, self.weights):  # One after the other, for the memory.
            plane[:keep] = plane[shift:].clone()
            plane[keep:] = 0

    def _see(self, top: int) -> None:
        """Show a row of windows to the network."""
        windows, waiting = self.look.windows, []
        height, width = windows.size
        rows = slice(top, min(top + windows.window, height))
        for left in windows.lefts:
            columns = slice(left, min(left + windows.window, width))
            if self.look.flip:
                mirrored = self.crop(rows, slice(width - columns.stop, width - columns.start))
                pixels = None if mirrored is None else mirrored.flip(-1)
            else:
                pixels = self.crop(rows, columns)
            if pixels is not None:
                below, beside = (windows.window - side for side in pixels.shape[1:])
                waiting.append((left, F.pad(pixels, (0, beside, 0, below))))
            if waiting and (len(waiting) == self.batch_size or left == windows.lefts[-1]):
                crops = torch.stack([crop for _, crop in waiting])
                logits = _logits(self.look.network, crops, self.device)
                for (start, _), one in zip(waiting, logits, strict=True):
                    self._add(top, start, one)
                waiting = []
            if self.advance is not None:
                self.advance()

    def _add(self, top: int, left: int, logits: Float[Tensor, "N h w"]) -> None:
        """Add a window's logits, its middle with the most weight."""
        cell, logits = self.look.cell, logits.to(self.home)
        if logits.shape[-2:] != self.weight.shape:
            logits = F.interpolate(
                logits[None], size=self.weight.shape, mode="bilinear", align_corners=False
            )[0]
        row, column = top // cell - self.base, left // cell
        done = max(0, -row)  # Rows that an earlier call has finished.
        side = self.weight.shape[0]
        part = (slice(row + done, row + side), slice(column, column + side))
        self.total[:, *part] += (logits * self.weight)[:, done:]
        self.weights[part] += self.weight[done:]


def grid_of(windows: Windows, cell: int) -> tuple[int, int]:
    """Rows and columns of the grid over the image."""
    height, width = windows.size
    return -(-height // cell), -(-width // cell)


def held_places(windows: Windows, cell: int, depth: int) -> tuple[int, int]:
    """Rows and columns of the grid that a pass holds to give `depth` rows at once."""
    return depth + windows.window // cell, (windows.lefts[-1] + windows.window) // cell


@torch.inference_mode()
def _logits(
    network: nn.Module, crops: Num[Tensor, "B C S S"], device: torch.device
) -> Float[Tensor, "B N h w"]:
    return network(crops.to(device)).logits.float()
