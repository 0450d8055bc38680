"""Any image size, for the timm models that are built for one.

Most of timm's models take any size, or do with an argument (see `timm.py`). Two kinds do not: BEiT,
whose attention holds one number for every offset between two patches of its own grid, and Hiera,
which orders its tokens for its own grid. Both get their grid from the image here.
"""

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Attention, Beit, gen_relative_position_index
from timm.models.hiera import Hiera, Reroll, Unroll
from torch import Tensor, nn


def take_any_size(model: nn.Module) -> None:
    """Let a model take images of any size that its patches divide; others are left as they are."""
    if isinstance(model, Beit) and model.pos_embed is None and model.rel_pos_bias is None:
        model.__class__ = _AnySizeBeit
        model.patch_embed.strict_img_size = False
        block: Any
        for block in model.blocks:
            block.attn.__class__ = _AnyGridAttention
    elif isinstance(model, Hiera) and model.pos_embed is not None:
        model.__class__ = _AnySizeHiera


class _AnySizeBeit(Beit):
    """BEiT that tells its attention the grid of the image."""

    def forward_intermediates(self, x: Float[Tensor, "B C H W"], *args: Any, **options: Any) -> Any:
        """As timm's."""
        grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        block: Any
        for block in self.blocks:
            block.attn.grid = grid
        return super().forward_intermediates(x, *args, **options)


class _AnyGridAttention(Attention):
    """BEiT's attention with its table of offsets resampled to the image's grid."""

    grid: tuple[int, int] | None = None

    def _get_rel_pos_bias(self) -> Tensor:
        table, window, grid = self.relative_position_bias_table, self.window_size, self.grid
        assert table is not None, "timm asks only where there is a table"
        assert window is not None, "timm gives a table a window"
        if grid is None or tuple(grid) == tuple(window):
            return super()._get_rel_pos_bias()
        table = resample_offsets(table, window, grid)
        index = _offset_index(tuple(grid)).to(table.device)
        return table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1).unsqueeze(0)


def resample_offsets(
    table: Float[Tensor, "offsets heads"], window: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "new_offsets heads"]:
    """A table of relative positions, from the offsets of one grid to those of another.

    Near offsets keep their values, far ones are stretched: the old offsets are placed at
    geometrically growing distances, of which the farthest is the new grid's farthest. The three
    entries of the class token at the end are kept.

    Source: the fine-tuning code of Bao et al., "BEiT", ICLR 2022; linear between two offsets.
    """
    heads = table.shape[-1]
    rows, columns = (
        torch.from_numpy(_offset_weights(old, new)).to(table)
        for old, new in zip(window, grid, strict=True)
    )
    spatial = table[:-3].view(rows.shape[1], columns.shape[1], heads)
    spatial = torch.einsum("yh,xw,hwn->yxn", rows, columns, spatial)
    return torch.cat((spatial.reshape(-1, heads), table[-3:]))


@functools.lru_cache(maxsize=32)
def _offset_weights(old: int, new: int) -> np.ndarray:
    """Weights that turn values at the offsets of `old` patches into those of `new` patches."""
    wanted = np.arange(1 - new, new)
    positive = np.cumsum(_growth(old, new) ** np.arange(old - 1)) if old > 1 else np.zeros(0)
    held = np.concatenate([-positive[::-1], [0.0], positive])
    columns = [np.interp(wanted, held, unit) for unit in np.eye(len(held))]
    return np.stack(columns, axis=1).astype(np.float32)


def _growth(old: int, new: int) -> float:
    """The ratio q with 1 + q + ... + q^(old - 2) = new - 1; 1 where the new grid is not larger."""
    if new <= old or old < 3:
        return 1.0
    low, high = 1.0, float(new)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (middle ** np.arange(old - 1)).sum() < new - 1 else (low, middle)
        )
    return high


@functools.lru_cache(maxsize=8)
def _offset_index(grid: tuple[int, int]) -> Tensor:
    """For each pair of tokens, class token first, its row in the table."""
    # Named, so that a model built on no device does not leave an index without values here.
    return gen_relative_position_index(grid, device=torch.device("cpu"))


class _AnySizeHiera(Hiera):
    """Hiera that orders its tokens for the grid of the image."""

    def forward_intermediates(self, x: Float[Tensor, "B C H W"], *args: Any, **options: Any) -> Any:
        """As timm's."""
        size = list(x.shape[-2:])
        grid = [side // stride for side, stride in zip(size, self.patch_stride, strict=True)]
        if grid != self.tokens_spatial_shape:
            self._order_for(size, grid)
        return super().forward_intermediates(x, *args, **options)

    def _order_for(self, size: list[int], grid: list[int]) -> None:
        if not hasattr(self, "own_grid"):
            self.own_grid = list(self.tokens_spatial_shape)
        schedule = [self.q_stride] * len(self.stage_ends[:-1])
        stride = tuple(self.patch_stride)
        self.unroll = Unroll(tuple(size), stride, schedule)
        self.reroll = Reroll(tuple(size), stride, schedule, self.stage_ends, self.q_pool)
        self.tokens_spatial_shape = grid
        self.mask_spatial_shape = [
            side // unit for side, unit in zip(grid, self.mask_unit_size, strict=True)
        ]

    def _pos_embed(self, x: Float[Tensor, "B P C"]) -> Float[Tensor, "B P C"]:
        own = getattr(self, "own_grid", self.tokens_spatial_shape)
        if self.pos_embed_win is not None or own == self.tokens_spatial_shape:
            return super()._pos_embed(x)
        assert self.pos_embed is not None, "checked where the class is chosen"
        return x + resample_abs_pos_embed(self.pos_embed, self.tokens_spatial_shape, own, 0)
