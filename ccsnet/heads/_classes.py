"""Classes of an image: their centres, and where each is relevant."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ccsnet.heads._base import resize

# B images, N classes, C channels; (h, w) the grid of stride 16, (H, W) any other.

STRIDE_16 = 2  # Position among the four maps of the one that the coarse head sees.


def class_centres(
    coarse: Float[Tensor, "B N h w"], features: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B N C"]:
    """One feature vector per class: the mean of `features`, weighted by where the class is likely.

    The weights are a softmax over space, not over classes, of the coarse logits on the features'
    grid.
    """
    weights = resize(coarse, (features.shape[-2], features.shape[-1])).flatten(2).softmax(-1)
    return weights @ features.flatten(2).transpose(1, 2)


def relevant_classes(coarse: Float[Tensor, "B N h w"], top_k: int) -> Bool[Tensor, "B N h w"]:
    """True for the `top_k` best-scored classes of each location; for all of them if N is less."""
    best = coarse.topk(min(top_k, coarse.shape[1]), dim=1).indices
    # 1 for True: torch.jit takes numbers alone there.
    return torch.zeros_like(coarse, dtype=torch.bool).scatter(1, best, 1)


def window_of(cells: Float[Tensor, "B h w N"], size: tuple[int, int]) -> Float[Tensor, "B H W N"]:
    """Give every place of a finer grid what belongs to the stride-16 cell that holds it.

    Where the sizes divide evenly each cell serves a square window, as in the paper. Elsewhere a
    place belongs to the cell over its top left corner. Integer arithmetic: no rounding.
    """
    for dim, length in ((1, size[0]), (2, size[1])):
        number = cells.shape[dim]
        if number != length:
            index = torch.arange(length, device=cells.device) * number // length
            cells = cells.index_select(dim, index)
    return cells
