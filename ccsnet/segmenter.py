"""The whole model: normalise, backbone, head."""

from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from ccsnet.backbones._base import Backbone
from ccsnet.backbones.timm import create_backbone
from ccsnet.errors import InputError
from ccsnet.heads._base import CCSVariant, HeadConfig, Output
from ccsnet.plugins import find_plugin

# ImageNet's channel statistics in 0-255 RGB, as all of the field uses them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the network is. How many classes and channels there are, the data set says."""

    backbone: str = "mit_b1"
    """Name of a timm model, or mit_b0 to mit_b5 (`ccsnet list backbones`)."""
    backbone_weights: str = "none"
    """none | pretrained (timm's hub) | a .safetensors or .pth file | package:MODULE."""
    output_stride: int = 32
    """32, or 16 or 8: a convolutional backbone's last stages dilated instead of strided."""
    frozen_stages: int = 0
    """0 to 4: how many of the backbone's stages keep their weights; 4: all of it."""
    head: str = "ccs"
    """ccs | segformer | fcn | smp.NAME (`ccsnet list heads`), or your_module:NAME."""
    head_config: HeadConfig = field(default_factory=HeadConfig)
    drop_path: float = 0.1
    """Share of residual branches skipped in training, rising with depth."""
    mean: tuple[float, ...] | None = None
    """Channel means of the images, as stored (0-255); none: ImageNet's, or measured if not RGB."""
    std: tuple[float, ...] | None = None
    """Channel deviations, like mean."""


class Segmenter(nn.Module):
    """Images as files hold them in, class logits out.

    Args:
        backbone: Image to four maps, from fine to coarse.
        head: Four maps to an `Output`.
        mean: Channel means, on the images' own scale.
        std: Channel standard deviations, likewise.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image: Num[Tensor, "B C H W"]) -> Output:
        """Logits at the head's stride; `ccsnet.upsample` makes label maps of them.

        Args:
            image: Raw pixel values of any size and number type, RGB order if three channels.
        """
        normalised: Float[Tensor, "B C H W"] = (image.float() - self.mean) / self.std
        return self.head(self.backbone(normalised))


def create_segmenter(
    config: ModelConfig, *, num_classes: int, in_channels: int = 3, load_weights: bool = True
) -> Segmenter:
    """Build a model from its parts.

    Args:
        config: What to build.
        num_classes: N, 2 to 1000.
        in_channels: Bands of the images.
        load_weights: False leaves the backbone as drawn, for a checkpoint to fill.

    Raises:
        InputError: An unknown backbone or head, settings of another head, weights that do not fit,
            or statistics for another number of channels.
    """
    mean, std = config.mean, config.std
    if mean is None or std is None:
        if in_channels != 3:
            raise InputError(
                f"Images of {in_channels} channels need their mean and std; "
                "set --mean and --std, one value for each channel."
            )
        mean, std = mean or IMAGENET_MEAN, std or IMAGENET_STD
    if not len(mean) == len(std) == in_channels:
        raise InputError(
            f"mean has {len(mean)} values and std {len(std)}; the images have {in_channels} "
            "channels. Give one value for each."
        )
    build = find_plugin("ccsnet.heads", config.head, "build")  # Before weights are fetched.
    variant = config.head_config.variant
    if variant != CCSVariant() and config.head != "ccs" and ":" not in config.head:
        named = [f.name for f in fields(variant) if getattr(variant, f.name) != f.default]
        raise InputError(
            f"{', '.join(named)} are settings of the head ccs; {config.head!r} has no use for "
            "them. Leave them out, or set --head ccs."
        )
    backbone = create_backbone(
        config.backbone,
        weights=config.backbone_weights if load_weights else "none",
        in_channels=in_channels,
        drop_path=config.drop_path,
        output_stride=config.output_stride,
    )
    backbone.freeze(config.frozen_stages)
    head = build(backbone.channels, num_classes, config.head_config)
    return Segmenter(backbone, head, mean, std)
