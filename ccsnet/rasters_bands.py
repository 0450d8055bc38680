"""The label map of an image that is larger than memory, row by row from the top.

It is what `ccsnet.sliding.sliding_label` makes of the same image, but only the blended logits of
one row of windows are held.

Letters: C bands, H W a size in pixels, N classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Num
from torch import Tensor, nn

from ccsnet.sliding import DEVICE_BYTES, LOGIT_STRIDE, _check_window, _falling, _starts
from ccsnet.upsample import upsample_argmax

COLUMNS = 1024
"""Places of the logits' grid that become labels at once, so that full-size logits stay small."""

Read = Callable[[int, int, int, int], tuple[Num[Tensor, "C H W"], Bool[np.ndarray, "H W"]]]
"""Pixels from a top and left on, so many rows and columns, and where they hold data."""


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


def labelled_rows(
    model: nn.Module,
    read: Read,
    windows: Windows,
    *,
    channels: int,
    num_classes: int,
    ignore_index: int,
    batch_size: int = 4,
    first_row: int = 0,
    advance: Callable[[], None] | None = None,
) -> Iterator[Integer[np.ndarray, "rows W"]]:
    """Finished rows of the label map, from `first_row` down, some at a time.

    Windows without any data are not shown to the model.

    Args:
        model: A `Segmenter` in evaluation mode.
        read: Gives the pixels of a window, the part of it that lies in the image.
        windows: Where the windows lie.
        channels: C.
        num_classes: N.
        ignore_index: The label of pixels without data.
        batch_size: Windows in each forward pass, of one row of windows.
        first_row: Where to begin, a multiple of 4: the rows above it are done.
        advance: Called after each window.
    """
    window = windows.window
    probe = torch.zeros(1, channels, window, window, dtype=torch.uint8)
    cell = math.gcd(windows.step, max(1, window // _logits(model, probe).shape[-1]))
    band = _Band(windows, cell, num_classes, ignore_index, next(model.parameters()).device)
    last = len(windows.tops) - 1
    done = first_row // cell  # Rows of the grid whose labels are given away.
    begin = first_window_row(windows, first_row)
    band.base = windows.tops[begin] // cell
    for i in range(begin, last + 1):
        top, waiting = windows.tops[i], []
        for left in windows.lefts:
            rows, columns = windows.size[0] - top, windows.size[1] - left
            pixels, valid = read(top, left, min(rows, window), min(columns, window))
            band.mark(top, left, valid)
            if valid.any():
                below, beside = window - pixels.shape[1], window - pixels.shape[2]
                waiting.append((left, F.pad(pixels, (0, beside, 0, below))))
            if waiting and (len(waiting) == batch_size or left == windows.lefts[-1]):
                logits = _logits(model, torch.stack([crop for _, crop in waiting]))
                for (start, _), one in zip(waiting, logits, strict=True):
                    band.add(top, start, one)
                waiting = []
            if advance is not None:
                advance()
        # A label needs the logits below it as well, which the next row of windows may change.
        final = band.grid_rows if i == last else windows.tops[i + 1] // cell
        until = final if i == last else final - 1
        if until > done:
            yield band.labels(done, until)
            done = until
        if i < last:
            band.move(max(band.base, min(final, done - 1)))


def first_window_row(windows: Windows, first_row: int) -> int:
    """The first row of windows that the labels from `first_row` on depend on."""
    needed = max(0, first_row - windows.step)  # A label depends on the logits above it as well.
    return next(i for i, top in enumerate(windows.tops) if top + windows.window > needed)


@torch.inference_mode()
def _logits(model: nn.Module, crops: Num[Tensor, "B C S S"]) -> Float[Tensor, "B N h w"]:
    device = next(model.parameters()).device
    return model(crops.to(device)).logits.float()


class _Band:
    """Sums of logits below row `base` of the grid, as far as a row of windows reaches."""

    def __init__(
        self,
        windows: Windows,
        cell: int,
        num_classes: int,
        ignore_index: int,
        device: torch.device,
    ) -> None:
        height, width = windows.size
        self.size, self.cell, self.window = windows.size, cell, windows.window
        self.ignore_index = ignore_index
        self.grid_rows, self.grid_columns = -(-height // cell), -(-width // cell)
        # The two rows above the windows that labels still need, and room for the last window.
        rows = windows.window // cell + 2
        columns = (windows.lefts[-1] + windows.window) // cell
        self.base = 0
        fits = 4 * num_classes * rows * columns <= DEVICE_BYTES
        self.home = device if fits else torch.device("cpu")
        self.total = torch.zeros(num_classes, rows, columns, device=self.home)
        self.weights = torch.zeros(rows, columns, device=self.home)
        self.weight = _falling(windows.window // cell).to(self.home)
        self.valid = np.zeros((rows * cell, width), bool)

    def mark(self, top: int, left: int, valid: Bool[np.ndarray, "rows columns"]) -> None:
        """Remember where there are data."""
        row = top - self.base * self.cell
        self.valid[row : row + valid.shape[0], left : left + valid.shape[1]] = valid

    def add(self, top: int, left: int, logits: Float[Tensor, "N h w"]) -> None:
        """Add a window's logits, its middle with the most weight."""
        side, logits = self.window // self.cell, logits.to(self.home)
        if logits.shape[-2:] != self.weight.shape:
            logits = F.interpolate(
                logits[None], size=self.weight.shape, mode="bilinear", align_corners=False
            )[0]
        row, column = top // self.cell - self.base, left // self.cell
        part = (slice(row, row + side), slice(column, column + side))
        self.total[:, *part] += logits * self.weight
        self.weights[part] += self.weight

    def move(self, base: int) -> None:
        """Forget the rows above `base`."""
        shift = min(base - self.base, self.weights.shape[0])
        self.base = base
        if shift == 0:
            return
        keep = self.weights.shape[0] - shift
        for plane in (*self.total, self.weights):  # One after the other, for the memory.
            plane[:keep] = plane[shift:].clone()
            plane[keep:] = 0
        self.valid[: keep * self.cell] = self.valid[shift * self.cell :].copy()
        self.valid[keep * self.cell :] = False

    def labels(self, first: int, end: int) -> Integer[np.ndarray, "rows W"]:
        """The labels of the pixels in these rows of the grid."""
        cell, width = self.cell, self.size[1]
        rows = slice(max(0, first - 1), min(end + 1, self.grid_rows))  # With their neighbours.
        height = min(end * cell, self.size[0]) - first * cell
        kind = np.uint8 if self.ignore_index == 255 else np.uint16
        found = np.full((height, width), self.ignore_index, kind)
        start = (first - self.base) * cell
        valid = self.valid[start : start + height]
        above = (first - rows.start) * cell
        for begin in range(0, self.grid_columns, COLUMNS):
            inside = slice(begin * cell, min((begin + COLUMNS) * cell, width))
            if not valid[:, inside].any():
                continue
            columns = slice(max(0, begin - 1), min(begin + COLUMNS + 1, self.grid_columns))
            part = (slice(rows.start - self.base, rows.stop - self.base), columns)
            # Where no window had data the weights are 0, and so are the logits.
            logits = self.total[:, *part] / self.weights[part].clamp(min=1)
            size = (logits.shape[1] * cell, logits.shape[2] * cell)
            label = upsample_argmax(logits[None], size)[0].cpu().numpy().astype(kind)
            beside = inside.start - columns.start * cell
            label = label[above : above + height, beside : beside + inside.stop - inside.start]
            found[:, inside] = np.where(valid[:, inside], label, found[:, inside])
        return found
