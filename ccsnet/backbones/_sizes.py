"""Any image size, for the timm models that are built for one.

Most of timm's models take any size, or do with an argument (see `timm.py`). Two kinds do not: BEiT,
whose attention holds one number for every offset between two patches of its own grid, and Hiera,
which orders its tokens for its own grid. Both get their grid from the image here.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from timm.layers import Conv2dSame, resample_abs_pos_embed
from timm.models.beit import Attention, Beit
from timm.models.hiera import Hiera, MaskUnitAttention, Reroll, Unroll
from torch import Tensor, nn

NEWTON_STEPS = 12
"""Of which the last ones change nothing: from 14 patches to 1000, seven suffice."""


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


def make_exportable(model: nn.Module) -> None:
    """Let a model rely on sides that are multiples of 32, and on what every format has.

    For export alone. timm's "same" convolutions pad by what a stride leaves over of a size. Where
    sizes are symbols such terms nest, layer in layer, and a graph takes hours. Hiera's attention
    has a dimension for its windows, which ONNX's has not: it becomes two matrix products.
    """
    for module in model.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = _DividingConv
        elif isinstance(module, MaskUnitAttention):
            module.fused_attn = False


class _DividingConv(Conv2dSame):
    """timm's convolution on a map whose sides its strides divide."""

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """As timm's."""
        own: Any = self  # timm has lost the types of what it holds.
        around: list[int] = []
        for side in (1, 0):  # Columns first, as `pad` wants them.
            reach = (own.kernel_size[side] - 1) * own.dilation[side] + 1
            total = max(reach - own.stride[side], 0)
            around += [total // 2, total - total // 2]
        settings = (own.bias, own.stride, (0, 0), own.dilation, own.groups)
        return F.conv2d(F.pad(x, around), own.weight, *settings)


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
        if not _in_a_graph() and (grid is None or tuple(grid) == tuple(window)):
            return super()._get_rel_pos_bias()
        assert grid is not None, "the model told it"
        table = resample_offsets(table, window, grid)
        index = (_offset_index if _in_a_graph() else _kept_index)((grid[0], grid[1]), table.device)
        return table[index].permute(2, 0, 1).unsqueeze(0)


def _in_a_graph() -> bool:
    """Whether a graph is being made, where sizes are symbols: not to be compared or remembered."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def resample_offsets(
    table: Float[Tensor, "offsets heads"], window: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "new_offsets heads"]:
    """A table of relative positions, from the offsets of one grid to those of another.

    Near offsets keep their values, far ones are stretched: the old offsets are placed at
    geometrically growing distances, of which the farthest is the new grid's farthest. The three
    entries of the class token at the end are kept.

    Source: the fine-tuning code of Bao et al., "BEiT", ICLR 2022; linear between two offsets.
    """
    weights = _offset_weights if _in_a_graph() else _kept_weights
    rows, columns = (
        weights(old, new, table.device).to(table) for old, new in zip(window, grid, strict=True)
    )
    heads = table.shape[-1]
    spatial = table[:-3].view(rows.shape[1], columns.shape[1], heads)
    spatial = torch.einsum("yh,xw,hwn->yxn", rows, columns, spatial)
    return torch.cat((spatial.reshape(-1, heads), table[-3:]))


def _offset_weights(
    old: int, new: int, device: torch.device
) -> Float[Tensor, "new_offsets old_offsets"]:
    """Weights that turn values at the offsets of `old` patches into those of `new` patches.

    In operations on tensors throughout: `new` may be a symbol of a graph.
    """
    exact = {"dtype": torch.float64, "device": device}
    wanted = torch.arange(1 - new, new, **exact)
    if old == 1:
        return torch.ones_like(wanted[:, None], dtype=torch.float32)
    steps = torch.arange(old - 1, **exact)
    positive = torch.exp(_log_growth(steps, wanted[-1:]) * steps).cumsum(0)
    held = torch.cat([-positive.flip(0), torch.zeros(1, **exact), positive])
    # How far each offset lies through the stretch between two held ones: it leaves the first of
    # them by as much as it nears the second.
    through = ((wanted[:, None] - held[:-1]) / (held[1:] - held[:-1])).clamp(0, 1)
    ends = F.pad(F.pad(through, (1, 0), value=1), (0, 1))
    return (ends[:, :-1] - ends[:, 1:]).float()


def _log_growth(steps: Float[Tensor, " steps"], farthest: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """The logarithm of the ratio q with 1 + q + ... + q^(last step) = farthest, at least 0.

    Newton's method on logarithms, where the left side is convex and nearly straight.
    """
    log_sum = farthest.clamp(min=len(steps)).log()
    growth = torch.zeros_like(farthest)
    if len(steps) == 1:
        return growth
    for _ in range(NEWTON_STEPS):
        terms = torch.exp(growth * steps)
        total = terms.sum(0, keepdim=True)
        slope = (terms * steps).sum(0, keepdim=True) / total
        growth = growth + (log_sum - total.log()) / slope
    return growth


def _offset_index(grid: tuple[int, int], device: torch.device) -> Integer[Tensor, "tokens tokens"]:
    """For each pair of tokens, class token first, its row in the table."""
    height, width = grid
    place = torch.arange(height * width, device=device)
    row = place // width
    column = place - row * width
    down = row[:, None] - row + (height - 1)
    across = column[:, None] - column + (width - 1)
    last = (2 * height - 1) * (2 * width - 1)
    index = down * (2 * width - 1) + across
    index = torch.cat([torch.full_like(index[:1], last), index])
    first = torch.full_like(index[:, :1], last + 1)
    first = torch.cat([first[:1] + 1, first[1:]])
    return torch.cat([first, index], 1)


_kept_weights = functools.lru_cache(maxsize=32)(_offset_weights)
_kept_index = functools.lru_cache(maxsize=8)(_offset_index)


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
