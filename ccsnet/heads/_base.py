"""What every head shares: its settings, what it returns, and the usual layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# B images, N classes, C channels, (H, W) a fine grid, (h, w) a coarse one.


class Output(NamedTuple):
    """What a head returns."""

    logits: Float[Tensor, "B N H W"]
    """Final class logits, at the stride of the finest map that the head used."""
    coarse: Float[Tensor, "B N h w"] | None = None
    """First-pass class logits at stride 16, where the head makes them."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Settings of the heads; one that a head does not know of is named in its own docstring."""

    dim: int = 256
    """Width D of the head's inner layers."""
    top_k: int = 20
    """ccs: how many classes a place may attend to; more than there are classes means all."""
    coarse_dim: int = 256
    """ccs: width of the coarse head's 3x3 convolution."""
    dropout: float = 0.1
    """Share of channels dropped before each classifier in training."""

    def __post_init__(self) -> None:
        for name in ("dim", "top_k", "coarse_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1).")


def conv_and_norm(
    in_channels: int, out_channels: int, kernel_size: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Convolution without bias and its batch norm, for a ReLU to follow; the map keeps its size."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(out_channels)


def norm_as_affine(norm: _BatchNorm) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Scale and shift that a batch norm amounts to in evaluation."""
    assert norm.running_mean is not None, "batch norms here keep statistics"
    assert norm.running_var is not None, "batch norms here keep statistics"
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def classifier(in_channels: int, num_classes: int) -> nn.Conv2d:
    """The 1x1 convolution to class logits, started near zero so that all classes are equal."""
    conv = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv


def channels_last(features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B _ _ _"]]:
    """The maps with the channels of a place side by side in memory; values and shapes unchanged.

    Heads mix channels at places and move places as wholes. Measured on 2 cores at stride 4, D=256:
    a resize takes a tenth of the time in this order and a 1x1 convolution half.
    """
    return [feature.contiguous(memory_format=torch.channels_last) for feature in features]


def resize(x: Float[Tensor, "B C _ _"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Bilinear resize to (height, width), corners not aligned; nothing is done at that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
