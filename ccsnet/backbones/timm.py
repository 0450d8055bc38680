"""Any hierarchical timm model as a backbone: layout and stride differences end here."""

import warnings
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

import ccsnet.backbones.mit  # registers mit_b0 to mit_b5 with timm  # noqa: F401
from ccsnet.backbones.weights import LoadedWeights, load_backbone_weights
from ccsnet.errors import InputError, unknown_name

# B images, C channels, H height, W width.

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Turns an image of any size into four maps, from fine to coarse.

    Args:
        features: A timm model made with `features_only=True`.
        levels: Which of its maps are those at strides 4, 8, 16 and 32.
        channels: The channels of those four maps.

    Attributes:
        channels: The channels of the four maps.
        strides: Their strides in pixels.
        loaded_weights: What was loaded from where; None for random weights.
    """

    strides: tuple[int, int, int, int] = STRIDES

    def __init__(
        self,
        features: nn.Module,
        levels: tuple[int, int, int, int],
        channels: tuple[int, int, int, int],
    ):
        super().__init__()
        self.features = features
        self.levels = levels
        self.channels = channels
        self.loaded_weights: LoadedWeights | None = None

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute the four maps of a normalised image.

        The image is padded with zeros, its mean colour, at the bottom and the right to a multiple
        of 32, and the maps are cropped to ceil(H / stride) x ceil(W / stride).
        """
        height, width = image.shape[-2:]
        bottom, right = -height % STRIDES[-1], -width % STRIDES[-1]
        # Always padded when compiled, and cropped by a negative padding, which makes a new map,
        # not by a slice: so nothing about the size is baked into an exported model.
        fits = not (torch.compiler.is_compiling() or bottom or right)
        maps = self.features(image if fits else F.pad(image, (0, right, 0, bottom)))
        maps = [maps[level] for level in self.levels]
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
            for features, stride in zip(maps, STRIDES, strict=True)
        ]


def backbone_names() -> list[str]:
    """Names that `create_backbone` knows; not all of them are hierarchical."""
    return timm.list_models()


def create_backbone(
    name: str, *, weights: str = "none", in_channels: int = 3, drop_path: float = 0.0
) -> Backbone:
    """Make a backbone from a timm name.

    Args:
        name: A timm model, such as "resnet18", "tf_efficientnet_lite0" or "mit_b1"; a tag of its
            pretrained weights may follow, as in "convnext_atto.d2_in1k".
        weights: "none", "pretrained", a .safetensors, .pth or .pt file, or "package:MODULE"; see
            `load_backbone_weights`.
        in_channels: Channels of the image. A loaded stem is inflated when they are not three.
        drop_path: Stochastic depth, the rate of the last block; the rates rise linearly. A
            backbone that has none warns.

    Raises:
        InputError: The name is unknown, the model does not give maps at strides 4, 8, 16 and 32,
            a number is out of range, or the weights cannot be loaded.
    """
    if in_channels < 1:
        raise InputError(f"A backbone takes 1 or more input channels, not {in_channels}.")
    if not 0 <= drop_path < 1:
        raise InputError(f"drop_path is a rate from 0 to below 1, not {drop_path}.")
    _check_name(name)
    features = _features_model(name, in_channels, drop_path)
    levels, channels = _four_levels(name, features)
    if levels[-1] + 1 < len(features.feature_info.reduction()):  # pyright: ignore
        # Without the layers after stride 32: they would be trained by nothing.
        features = _features_model(name, in_channels, drop_path, levels)
        levels = (0, 1, 2, 3)
    backbone = Backbone(features, levels, channels)
    _check_maps(name, backbone, in_channels)
    backbone.loaded_weights = load_backbone_weights(name, features, weights, in_channels)
    return backbone


def _check_name(name: str) -> None:
    """Refuse a name, or a tag of pretrained weights, that timm does not know."""
    model_name, dot, _ = name.partition(".")
    if not timm.is_model(model_name):
        raise unknown_name("backbone", model_name, backbone_names(), "Any timm name is allowed.")
    if dot:
        tagged = timm.list_pretrained(f"{model_name}.*")
        if name not in tagged:
            raise unknown_name(
                "backbone", name, [model_name, *tagged], f"Without a tag it is {model_name!r}."
            )


def _features_model(
    name: str, in_channels: int, drop_path: float, levels: tuple[int, ...] | None = None
) -> nn.Module:
    """The timm model that returns its maps, with random weights."""
    arguments: dict[str, Any] = {}
    if levels is not None:
        arguments["out_indices"] = levels
    if in_channels != 3:
        arguments["in_chans"] = in_channels
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    try:
        features = timm.create_model(name, features_only=True, **arguments)
    except TypeError as error:
        if drop_path and "drop_path_rate" in str(error):
            _warn_no_drop_path(name, drop_path)
            return _features_model(name, in_channels, 0.0, levels)
        raise _not_hierarchical(name, f"timm says: {_first_line(error)}.") from error
    except (RuntimeError, AssertionError, AttributeError, ValueError) as error:
        raise _not_hierarchical(name, f"timm says: {_first_line(error)}.") from error
    if drop_path and not any(isinstance(module, DropPath) for module in features.modules()):
        _warn_no_drop_path(name, drop_path)
    return features


def _warn_no_drop_path(name: str, drop_path: float) -> None:
    warnings.warn(
        f"The backbone {name!r} has no stochastic depth: drop_path={drop_path} is skipped.",
        stacklevel=4,  # the caller of create_backbone
    )


def _four_levels(
    name: str, features: nn.Module
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Which maps are at strides 4, 8, 16 and 32, and their channels."""
    strides: list[int] = features.feature_info.reduction()  # pyright: ignore
    channels: list[int] = features.feature_info.channels()  # pyright: ignore
    # A later level of the same stride replaces an earlier one: it has seen more.
    level_of = {stride: level for level, stride in enumerate(strides)}
    if not set(STRIDES) <= set(level_of):
        raise _not_hierarchical(name, f"It has maps at strides {strides}.")
    fine, low, middle, coarse = (level_of[stride] for stride in STRIDES)
    return (
        (fine, low, middle, coarse),
        (channels[fine], channels[low], channels[middle], channels[coarse]),
    )


def _check_maps(name: str, backbone: Backbone, in_channels: int) -> None:
    """Try a small image: what timm says of a model does not always hold away from its own size."""
    height, width = 64, 96
    expected = [
        (1, channels, height // stride, width // stride)
        for channels, stride in zip(backbone.channels, STRIDES, strict=True)
    ]
    backbone.eval()
    try:
        with torch.no_grad():
            maps = backbone(torch.zeros(1, in_channels, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        finding = f"It fails on a {height}x{width} image: {_first_line(error)}."
        raise _not_hierarchical(name, finding) from error
    finally:
        backbone.train()
    found = [tuple(feature.shape) for feature in maps]
    if found != expected:
        raise _not_hierarchical(name, f"It gives maps of {found}, expected {expected}.")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _not_hierarchical(name: str, finding: str) -> InputError:
    return InputError(
        f"The backbone {name!r} cannot be used. {finding} This version takes hierarchical "
        "backbones, with maps at strides 4, 8, 16 and 32 for any image size: resnet, convnext, "
        "efficientnet, mobilenet, pvt_v2, poolformer, mit and the like."
    )
