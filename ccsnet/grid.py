"""Class scores on a coarse grid over an image, and what is read off them at its pixels.

Letters: B images, N classes, H W a size in pixels, h w places of the grid.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from ccsnet.sliding import grid_size
from ccsnet.upsample import upsample_argmax

BAND_BYTES = 64 * 2**20
"""Full-size probabilities held at once in float32."""


class ScoreGrid(NamedTuple):
    """How likely every class is, on a coarse grid over images of one size."""

    values: Float[Tensor, "B N h w"]
    averaged: bool
    """Whether the values are probabilities, of several passes, rather than logits."""
    cell: int
    """Pixels of the image as seen from one place to the next; 1: the grid ends with the image."""
    image: tuple[int, int]
    """Height and width of the image as seen, in such pixels."""

    def label(self, index: int, size: tuple[int, int]) -> Int64[Tensor, "H W"]:
        """The most likely class of every pixel of one of the images."""
        whole = grid_size(size, self.values.shape[2:], self.cell, self.image)
        found = upsample_argmax(self.values[index : index + 1], whole)
        return found[0, : size[0], : size[1]]

    def probs(self, index: int, size: tuple[int, int]) -> Float16[np.ndarray, "N H W"]:
        """Probabilities at every pixel of one of the images."""
        made = np.empty((self.values.shape[1], *size), np.float16)
        for rows, probs in self._bands(index, size):
            made[:, rows] = probs.half().cpu().numpy()
        return made

    def confidence(self, index: int, size: tuple[int, int]) -> Float[Tensor, "H W"]:
        """Probability of the most likely class at every pixel of one of the images."""
        return torch.cat([probs.amax(0) for _, probs in self._bands(index, size)])

    def _bands(
        self, index: int, size: tuple[int, int]
    ) -> Iterator[tuple[slice, Float[Tensor, "N rows W"]]]:
        """Probabilities at the pixels of some rows after the other, in bounded memory."""
        values = self.values[index : index + 1].float()
        num_classes, rows = values.shape[1:3]
        height, width = grid_size(size, values.shape[2:], self.cell, self.image)
        # Rows as F.interpolate places them (corners not aligned).
        centres = (torch.arange(size[0], device=values.device) + 0.5) * rows / height - 0.5
        source = centres.clamp(0, rows - 1)
        above = source.long()
        below = (above + 1).clamp(max=rows - 1)
        weight = (source - above).view(1, 1, -1, 1)
        band = max(1, BAND_BYTES // (4 * num_classes * width))
        for start in range(0, size[0], band):
            part = slice(start, start + band)
            upper, lower = values[:, :, above[part]], values[:, :, below[part]]
            mixed = torch.lerp(upper, lower, weight[:, :, part])
            wide = F.interpolate(
                mixed, size=(mixed.shape[2], width), mode="bilinear", align_corners=False
            )[0, ..., : size[1]]
            yield part, wide if self.averaged else wide.softmax(0)
