"""Any timm model as a backbone: differences of arguments, layout and stride end here."""

import inspect
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import group_parameters
from torch import nn

import ccsnet.backbones.mit  # registers mit_b0 to mit_b5 with timm  # noqa: F401
from ccsnet.backbones._base import STRIDES, Backbone
from ccsnet.backbones._sizes import take_any_size
from ccsnet.backbones.weights import load_backbone_weights
from ccsnet.errors import InputError, unknown_name

# Arguments that make a model take any size. Swin without the second is silently wrong at any other
# size than its own: its last stages would leave out windows.
_ANY_SIZE = {"dynamic_img_size": True, "always_partition": True}

# HRNet without its classification head's widened maps: the four branches as the paper has them.
_NAMED_ARGUMENTS = {"hrnet": {"feature_location": ""}}

# Models whose maps are sums that no norm follows: the segmentation recipes published with them
# (UPerNet, Semantic FPN) add one for each map.
_NORMS: tuple[tuple[str, Callable[[int], nn.Module]], ...] = (
    ("swin|twins|convnext|hiera|focalnet|davit|convformer|caformer", LayerNorm2d),
    ("poolformer", partial(nn.GroupNorm, 1)),
)

# Parameters that tell places apart or stand for tokens; weight decay would pull them to zero.
_UNDECAYED = re.compile(
    r"pos_embed|pos_block|relative_position_bias_table|(cls|reg|mask|dist)_token"
)

# What timm's models raise when they are asked for what they cannot do.
_FAILURES = (RuntimeError, AssertionError, TypeError, AttributeError, ValueError, LookupError)


def backbone_names() -> list[str]:
    """Names that `create_backbone` knows."""
    return timm.list_models()


def create_backbone(
    name: str,
    *,
    weights: str = "none",
    in_channels: int = 3,
    drop_path: float = 0.0,
    output_stride: int = 32,
) -> Backbone:
    """Make a backbone from a timm name.

    Args:
        name: A timm model, such as "resnet18", "vit_small_patch14_dinov2" or "mit_b1"; a tag of its
            pretrained weights may follow, as in "convnext_atto.d2_in1k".
        weights: "none", "pretrained", a file, or "package:MODULE"; see `load_backbone_weights`.
        in_channels: Channels of the image. A loaded stem is inflated when they are not three.
        drop_path: Stochastic depth, the rate of the last block; the rates rise linearly. A
            backbone that has none warns.
        output_stride: 32, or 16 or 8 for a convolutional network whose last stages are dilated
            instead of strided: then the coarsest maps have that stride.

    Raises:
        InputError: The name is unknown, the model does not give maps for any image size, a number
            is out of range, or the weights cannot be loaded.
    """
    if in_channels < 1:
        raise InputError(f"A backbone takes 1 or more input channels, not {in_channels}.")
    if not 0 <= drop_path < 1:
        raise InputError(f"drop_path is a rate from 0 to below 1, not {drop_path}.")
    if output_stride not in (8, 16, 32):
        raise InputError(f"output_stride is {output_stride}; allowed: 32, 16, 8.")
    _check_name(name)
    whole = _on_no_device(name)
    indices, strides = _four_levels(name, whole)
    arguments: dict[str, Any] = {"out_indices": tuple(sorted(set(indices)))}
    if in_channels != 3:
        arguments["in_chans"] = in_channels
    if output_stride != 32:
        arguments["output_stride"] = output_stride

    features = _features_model(name, whole, arguments, drop_path)
    take_any_size(getattr(features, "model", features))
    levels = [arguments["out_indices"].index(index) for index in indices]
    channels: list[int] = features.feature_info.channels()  # pyright: ignore
    strides = [min(stride, output_stride) for stride in strides]
    targets = [min(stride, output_stride) for stride in STRIDES]
    backbone = Backbone(
        name,
        features,
        in_channels=in_channels,
        levels=levels,
        channels=[channels[level] for level in levels],
        strides=strides,
        targets=targets,
        multiple=strides[0] if len(set(strides)) == 1 else 1,  # The patches of one-scale models.
        channels_first=getattr(features, "output_fmt", "NCHW") == "NCHW",
        norm=_norm(name) if strides == targets else None,
        layer_of=_layers(whole, features),
        undecayed=_undecayed(whole, features),
    )
    _check_maps(backbone, 64, 96)
    if "img_size" in inspect.signature(type(whole).__init__).parameters:
        _check_maps(backbone, 288, 256)  # Larger than what most of these are built for.
    backbone.loaded_weights = load_backbone_weights(
        name, features, weights, in_channels, backbone.norms
    )
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


def _on_no_device(name: str) -> nn.Module:
    """The whole timm model, classifier included, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name)


def _four_levels(name: str, whole: nn.Module) -> tuple[list[int], list[int]]:
    """The maps to take, as timm counts them, and their strides.

    Those at strides 4, 8, 16 and 32, or those that can become them: a model of one scale gives four
    layers spread over its depth, one that lacks a stride the nearest finer map that it has, or else
    its finest.
    """
    info: list[dict[str, Any]] = getattr(whole, "feature_info", None) or []
    strides = [int(entry["reduction"]) for entry in info]
    if not strides:
        raise _not_usable(name, "timm does not say at which strides it has maps.")
    if len(set(strides)) == 1:
        depth = len(strides)
        indices = [(part * depth + 3) // 4 - 1 for part in range(1, 5)]
    else:
        # Of levels with the same stride the last: it has seen most.
        level_of = {stride: level for level, stride in enumerate(strides)}
        finest = min(level_of)
        indices = [
            level_of[max((s for s in level_of if s <= wanted), default=finest)]
            for wanted in STRIDES
        ]
    return indices, [strides[index] for index in indices]


def _norm(name: str) -> Callable[[int], nn.Module] | None:
    """What norms the maps of a model; None for those that need nothing."""
    return next((norm for names, norm in _NORMS if re.search(names, name)), None)


def _features_model(
    name: str, whole: nn.Module, arguments: dict[str, Any], drop_path: float
) -> nn.Module:
    """The timm model that returns its maps, with random weights."""
    known = inspect.signature(type(whole).__init__).parameters
    options: dict[str, Any] = {key: value for key, value in _ANY_SIZE.items() if key in known}
    for start, named in _NAMED_ARGUMENTS.items():
        if name.startswith(start):
            options |= named
    options |= arguments
    if drop_path or "drop_path_rate" in known:  # 0 too: some have a default of their own.
        options["drop_path_rate"] = drop_path
    try:
        features = timm.create_model(name, features_only=True, **options)
    except _FAILURES as error:
        if drop_path and "drop_path_rate" in str(error):
            _warn_no_drop_path(name, drop_path)
            return _features_model(name, whole, arguments, 0.0)
        if "output_stride" in options:
            raise InputError(
                f"The backbone {name!r} cannot be dilated to stride {options['output_stride']} "
                f"(timm says: {_first_line(error)}). Use output_stride 32, or a convolutional "
                "network: resnet, resnext, resnest, mobilenet, efficientnet, convnext."
            ) from error
        raise _not_usable(name, f"timm says: {_first_line(error)}.") from error
    if drop_path and not any(isinstance(module, DropPath) for module in features.modules()):
        _warn_no_drop_path(name, drop_path)
    return features


def _warn_no_drop_path(name: str, drop_path: float) -> None:
    warnings.warn(
        f"The backbone {name!r} has no stochastic depth: drop_path={drop_path} is skipped.",
        stacklevel=4,  # the caller of create_backbone
    )


def _plain(key: str) -> str:
    """A key as the whole model and its `features_only` form both have it.

    timm turns "stages.0" into "stages_0" where it flattens a model, and puts "model." before all
    keys where it wraps one.
    """
    return key.replace(".", "_")


def _own_names(whole: nn.Module, features: nn.Module) -> dict[str, str]:
    """The name in the whole model of each parameter of the features."""
    whole_names = {_plain(name): name for name, _ in whole.named_parameters()}
    found = {}
    for name, _ in features.named_parameters():
        plain = _plain(name)
        found[name] = whole_names.get(plain) or whole_names[plain.removeprefix("model_")]
    return found


def _layers(whole: nn.Module, features: nn.Module) -> dict[str, int] | None:
    """The depth of each parameter as timm orders them; None where timm has no order."""
    if not hasattr(whole, "group_matcher"):
        return None
    matcher: Any = whole.group_matcher(coarse=False)  # pyright: ignore[reportCallIssue]
    depth_of: Any = group_parameters(whole, matcher, reverse=True)
    return {name: depth_of[own] for name, own in _own_names(whole, features).items()}


def _undecayed(whole: nn.Module, features: nn.Module) -> frozenset[str]:
    """Parameters that the model declares, or whose name says, that decay would harm."""
    declared = set(getattr(whole, "no_weight_decay", set)())
    return frozenset(
        name
        for name, own in _own_names(whole, features).items()
        if own in declared or _UNDECAYED.search(own)
    )


def _check_maps(backbone: Backbone, height: int, width: int) -> None:
    """Try a size: what timm says of a model does not always hold away from its own."""
    expected = [
        (1, channels, height // stride, width // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    backbone.eval()
    try:
        with torch.no_grad():
            maps = backbone(torch.zeros(1, backbone.in_channels, height, width))
    except _FAILURES as error:
        finding = f"It fails on a {height}x{width} image: {_first_line(error)}."
        raise _not_usable(backbone.name, finding) from error
    finally:
        backbone.train()
    found = [tuple(feature.shape) for feature in maps]
    if found != expected:
        raise _not_usable(backbone.name, f"It gives maps of {found}, expected {expected}.")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _not_usable(name: str, finding: str) -> InputError:
    return InputError(
        f"The backbone {name!r} cannot be used. {finding} A backbone must give maps for images of "
        "any size; `ccsnet list backbones` shows families that do."
    )
