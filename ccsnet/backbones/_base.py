"""What every backbone is to the rest: four maps, their channels and strides, and its layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.backbones.pyramid import FeaturePyramid
from ccsnet.backbones.weights import LoadedWeights
from ccsnet.errors import InputError

# B images, C channels, H height, W width.

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Turns an image of any size into four maps, from fine to coarse.

    Args:
        name: The model's name.
        features: A model that returns a list of maps, channels first or last.
        in_channels: Channels of the images.
        levels: Which of its maps are taken.
        channels: The channels of those four maps.
        strides: Their strides in pixels.
        targets: The strides that are wanted; where they differ, a `FeaturePyramid` follows.
        multiple: Sides of the images that `features` takes are multiples of this and of 32.
        channels_first: Whether the maps of `features` are.
        norm: What norms each map, where they come out of the model without a norm.
        layer_of: Depth of each parameter of `features`, 0 for the stem; None where it has no order.
        undecayed: Parameters of `features` that weight decay must spare.

    Attributes:
        channels: The channels of the four maps.
        strides: Their strides in pixels.
        loaded_weights: What was loaded from where; None for random weights.
        frozen_stages: See `freeze`.
    """

    def __init__(
        self,
        name: str,
        features: nn.Module,
        *,
        in_channels: int,
        levels: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        targets: Sequence[int] = STRIDES,
        multiple: int = 1,
        channels_first: bool = True,
        norm: Callable[[int], nn.Module] | None = None,
        layer_of: dict[str, int] | None = None,
        undecayed: frozenset[str] = frozenset(),
    ):
        super().__init__()
        self.name = name
        self.features = features
        self.in_channels = in_channels
        self.levels = tuple(levels)
        self.multiple = multiple
        self.channels_first = channels_first
        self.layer_of = layer_of
        self.undecayed = undecayed
        self.norms = None if norm is None else nn.ModuleList(map(norm, channels))
        if tuple(strides) == tuple(targets):
            self.pyramid = None
            self.channels = tuple(channels)
        else:
            self.pyramid = FeaturePyramid(channels, strides, targets)
            self.channels = self.pyramid.channels
        self.strides = tuple(targets)
        self.loaded_weights: LoadedWeights | None = None
        self.frozen_stages = 0

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute the four maps of a normalised image.

        The image is padded with zeros, its mean colour, at the bottom and the right to a multiple
        of 32 (and of the patches), and the maps are cropped to ceil(H / stride) x ceil(W / stride).
        """
        height, width = image.shape[-2:]
        bottom, right = self._padding(height), self._padding(width)
        # Always padded when compiled, and cropped by a negative padding, which makes a new map,
        # not by a slice: so nothing about the size is baked into an exported model.
        fits = not (torch.compiler.is_compiling() or bottom or right)
        maps = self.features(image if fits else F.pad(image, (0, right, 0, bottom)))
        maps = [maps[level] for level in self.levels]
        if not self.channels_first:
            maps = [features.movedim(-1, 1) for features in maps]
        if self.norms is not None:
            maps = [norm(features) for norm, features in zip(self.norms, maps, strict=True)]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        if fits:
            return maps
        return [
            F.pad(
                features,
                (
                    *(0, -(-width // stride) - features.shape[-1]),
                    *(0, -(-height // stride) - features.shape[-2]),
                ),
            )
            for features, stride in zip(maps, self.strides, strict=True)
        ]

    def _padding(self, side: Any) -> Any:
        """Pixels that a side lacks to a multiple of 32, and then of the patches.

        An int; in an export for all sizes, a symbol of one.
        """
        padded = side + -side % STRIDES[-1]
        return padded + -padded % self.multiple - side

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training by computing the blocks again in the backward pass.

        Raises:
            InputError: The model has no such thing.
        """
        for model in (self.features, getattr(self.features, "model", None)):
            switch = getattr(model, "set_grad_checkpointing", None)
            if switch is not None:
                try:
                    return switch(enable)
                except AssertionError:  # How timm's models say that they have none.
                    break
        raise InputError(
            f"The backbone {self.name!r} has no gradient checkpointing. "
            "Leave out --grad-checkpointing, and use --accumulate to save memory."
        )

    def stage_of(self) -> dict[str, int]:
        """For each parameter of `features`, the first of the four maps, 1 to 4, that needs it."""
        parameters = dict(self.features.named_parameters())
        wanted = {name: p.requires_grad for name, p in parameters.items()}
        training = self.training
        self.eval()
        self.features.requires_grad_(True)
        device = next(iter(parameters.values())).device
        side = self._padding(1) + 1
        with torch.enable_grad():
            maps = self.features(torch.zeros(1, self.in_channels, side, side, device=device))
            stages: dict[str, int] = {}
            for stage, level in enumerate(self.levels, start=1):
                gradients = torch.autograd.grad(
                    maps[level].sum(),
                    list(parameters.values()),
                    retain_graph=True,
                    allow_unused=True,
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        stages.setdefault(name, stage)
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])
        self.train(training)
        return stages

    def freeze(self, stages: int) -> None:
        """Keep what the first of the four maps are computed from as it is.

        Frozen parts get no gradient, and are in evaluation mode even in training: their batch norms
        keep their statistics, and nothing is dropped. HRNet's maps all come out of its last stage,
        so that the first needs most of the model.

        Args:
            stages: How many, 0 (none) to 4 (all of the model; a pyramid or norms of ours learn).

        Raises:
            InputError: Out of range.
        """
        if not 0 <= stages <= len(STRIDES):
            raise InputError(f"frozen_stages is {stages}; it must be 0 (none) to 4 (all).")
        self.frozen_stages = stages
        self.features.requires_grad_(True)
        if stages == len(STRIDES):
            self.features.requires_grad_(False)
        elif stages:
            stage_of = self.stage_of()
            for name, parameter in self.features.named_parameters():
                parameter.requires_grad_(stage_of[name] > stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Training mode for what is not frozen."""
        super().train(mode)
        if self.frozen_stages:
            _rest(self.features)
        return self


def _rest(module: nn.Module) -> None:
    """Evaluation mode for the parts of which no parameter learns."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _rest(child)
