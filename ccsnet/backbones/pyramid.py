"""A feature pyramid: maps of any strides become maps at strides 4, 8, 16 and 32."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

# B images, C channels, (h, w) a grid.


class FeaturePyramid(nn.Module):
    """Turns four maps, most often four layers of a plain transformer, into a pyramid.

    Every map is normed, then enlarged by transposed convolutions, each of which doubles the grid
    and halves the channels, or reduced by pooling. What is left between a power of two and the
    stride that is wanted (a patch of 14 pixels to a stride of 16) is resampled.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV
    2022, section 3; four layers instead of the last one as in Bao et al., "BEiT", ICLR 2022.

    Args:
        channels: Of the four maps.
        strides: Of the four maps, in pixels.
        targets: Strides that are wanted.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], targets: Sequence[int]):
        super().__init__()
        self.levels = nn.ModuleList(
            _level(width, stride / target)
            for width, stride, target in zip(channels, strides, targets, strict=True)
        )
        self.scales = tuple(
            stride / target / 2.0 ** _doublings(stride / target)
            for stride, target in zip(strides, targets, strict=True)
        )
        self.channels = tuple(
            width // 2 ** max(0, _doublings(stride / target))
            for width, stride, target in zip(channels, strides, targets, strict=True)
        )

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B _ _ _"]]:
        """The four maps at the wanted strides; a size is that of the image, divided and floored."""
        return [
            _rescale(level(features), scale)
            for level, features, scale in zip(self.levels, maps, self.scales, strict=True)
        ]


def _doublings(ratio: float) -> int:
    """How often a grid is doubled (or halved, if negative) to come nearest to `ratio` times it."""
    return round(math.log2(ratio))


def _level(channels: int, ratio: float) -> nn.Sequential:
    """Norm, and what brings a map to the power of two nearest to `ratio` times its grid."""
    layers: list[nn.Module] = [LayerNorm2d(channels)]
    doublings = _doublings(ratio)
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
    for step in range(doublings):
        if step:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return nn.Sequential(*layers)


def _rescale(features: Float[Tensor, "B C _ _"], scale: float) -> Float[Tensor, "B C _ _"]:
    """Bilinear resampling by exactly `scale`, so that places stay where they are."""
    if scale == 1:
        return features
    return F.interpolate(
        features, scale_factor=scale, mode="bilinear", recompute_scale_factor=False
    )
