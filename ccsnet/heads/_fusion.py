"""Fusing maps of several scales without ever making their concatenation."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import conv_norm_relu, resize


class Fusion(nn.Module):
    """Resize all maps to the finest, concatenate, 1x1 convolution, batch norm, ReLU.

    A 1x1 convolution and a bilinear resize commute: the one mixes channels, the other places. So
    every map is multiplied with its columns of the weight on its own small grid and only the
    products are resized and summed. The 4xD concatenation at stride 4 is never made.

    The weight is that of the convolution over the concatenation, coarsest map first, as in
    checkpoints of SegFormer and of CCSNet's release.
    """

    def __init__(self, dim: int, num_maps: int) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv_norm_relu(num_maps * dim, dim)

    def forward(
        self, maps: Sequence[Float[Tensor, "B D _ _"]]
    ) -> Float[Tensor, "B D H W"]:
        """The fused map on the grid of `maps[0]`, the finest of the maps."""
        weights = self.conv.weight.chunk(len(maps), dim=1)[::-1]
        # Coarse to fine, each sum resized to the next grid, would be fewer operations, but two
        # bilinear steps are not one: only resizing each product straight to the end is exact.
        size = (maps[0].shape[-2], maps[0].shape[-1])
        fused = F.conv2d(maps[0], weights[0])
        for coarser, weight in zip(maps[1:], weights[1:], strict=True):
            fused = fused + resize(F.conv2d(coarser, weight), size)
        return self.activation(self.norm(fused))
