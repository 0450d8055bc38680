"""Fusing maps of several scales without ever making their concatenation."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import conv_and_norm, norm_as_affine, resize


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
        self.num_maps = num_maps
        self.conv, self.norm = conv_and_norm(num_maps * dim, dim)

    def forward(self, maps: Iterable[Float[Tensor, "B D _ _"]]) -> Float[Tensor, "B D H W"]:
        """The fused map on the grid of the first of the maps.

        Args:
            maps: Fine to coarse. Of a generator only one map is alive at a time.
        """
        weight, bias = self.conv.weight, None
        if not self.training:  # Batch norm is then one more linear map: fold it in.
            scale, bias = norm_as_affine(self.norm)
            weight = weight * scale.view(-1, 1, 1, 1)
        weights = weight.chunk(self.num_maps, dim=1)[::-1]
        products = list(map(F.conv2d, maps, weights, [bias] + [None] * (self.num_maps - 1)))
        fused = products.pop(0)
        size = (fused.shape[-2], fused.shape[-1])
        # Maps of one grid are summed before their resize: it is linear, too. To go from grid to
        # grid instead would be fewer operations, but two bilinear steps are not one.
        while products:
            product = products.pop()
            while products and products[-1].shape == product.shape:
                product = product + products.pop()
            product = resize(product, size)
            fused = fused + product if torch.is_grad_enabled() else fused.add_(product)
        return F.relu_(fused if bias is not None else self.norm(fused))
