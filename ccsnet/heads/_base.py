"""What every head shares: its settings, what it returns, and the usual layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccsnet.errors import InputError

# B images, N classes, C channels, (H, W) a fine grid, (h, w) a coarse one.


class Output(NamedTuple):
    """What a head returns."""

    logits: Float[Tensor, "B N H W"]
    """Final class logits, at the stride of the finest map that the head used."""
    coarse: Float[Tensor, "B N h w"] | None = None
    """First-pass class logits at stride 16, where the head makes them."""
    auxiliary: Float[Tensor, "B N _ _"] | None = None
    """Class logits that only the loss looks at: made in training alone, where a head makes them."""


STRIDES = (4, 8, 16, 32)  # Of the four maps.


@dataclass(frozen=True, kw_only=True)
class CCSVariant:
    """How the head ccs departs from the paper; by default it does not (docs/variants.md)."""

    projections: Literal["shared", "separate"] = "shared"
    """ccs: keys and values of the centres: one projection for all stages, or one for each."""
    centres: Literal["c4", "c3+c4", "own"] = "c4"
    """ccs: the maps that give the centres: strides 32, 16 and 32, or each stage its own."""
    attending: tuple[int, ...] = STRIDES
    """ccs: strides of the stages that attend; the others contribute their queries alone."""
    coarse_gradient: Literal["kept", "stopped"] = "kept"
    """ccs: stopped: the coarse head learns from its own loss alone."""
    coarse_bias: Literal["none", "learned", "fixed"] = "none"
    """ccs: add the coarse log-probability to the attention logits, times 1 or a learned scale that
    starts at 0. With a top_k of all classes it stands instead of the choice."""
    attention_heads: int = 1
    """ccs: parts of dim that attend each for itself."""
    centre_temperature: Literal["fixed", "learned"] = "fixed"
    """ccs: of the softmax over space that makes the centres; learned starts at 1."""
    centres_per_class: int = 1
    """ccs: the first is the paper's, the others are drawn to learned parts of the class."""
    attention_rounds: int = 1
    """ccs: each but the last attends at stride 16 and refines the coarse prediction."""
    centre_loss_weight: float = 0.0
    """ccs: of a contrastive loss: pixels of the coarsest map are classified by their centres."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for setting in fields(self):
            value, kind = getattr(self, setting.name), hints[setting.name]
            if get_origin(kind) is Literal and value not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise InputError(f"{setting.name} is {value!r}; it must be one of: {allowed}.")
            if kind is int and value < 1:
                raise InputError(f"{setting.name} is {value}; it must be at least 1.")
        if not 0 <= self.centre_loss_weight < float("inf"):
            raise InputError(
                f"centre_loss_weight is {self.centre_loss_weight}; it must be a number from 0 on."
            )
        if self.attending != tuple(s for s in STRIDES if s in self.attending):
            raise InputError(
                f"attending is {self.attending}; it must be some of the strides "
                f"{', '.join(map(str, STRIDES))}, in this order."
            )
        if self.centres == "own" and self.projections == "shared":
            raise InputError(
                "centres is 'own' and projections is 'shared': the stages' centres have different "
                "widths, so no projection fits all of them. Set projections to separate."
            )
        readers = {*self.attending, *([16] if self.attention_rounds > 1 else [])}
        alone = len(self.attending) == 1 and self.attention_rounds == 1
        if self.centres == "own" and readers == {32}:
            raise InputError(
                "centres is 'own' and only stride 32 attends, whose own map is c4: this is centres "
                "'c4'. Set that, or let other stages attend."
            )
        if self.projections == "separate" and self.centres != "own" and alone:
            raise InputError(
                "projections is 'separate' and a single stage attends: there is nothing to share. "
                "Leave it out, or let other stages attend."
            )
        if not self.attending:
            for setting in fields(self):
                value = getattr(self, setting.name)
                if setting.name != "attending" and value != setting.default:
                    raise InputError(
                        f"attending names no stage and {setting.name} is {value!r}: where nothing "
                        "attends it changes nothing. Leave it out, or name a stage."
                    )


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
    variant: CCSVariant = field(default_factory=CCSVariant)

    def __post_init__(self) -> None:
        for name in ("dim", "top_k", "coarse_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1).")
        if self.dim % self.variant.attention_heads:
            raise InputError(
                f"attention_heads is {self.variant.attention_heads} and dim is {self.dim}, which "
                "does not divide into so many equal parts. Change one of them."
            )


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
