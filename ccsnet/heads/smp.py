"""Decoders of segmentation_models_pytorch as heads: `smp.FPN`, `smp.Unet` and so on.

Needs the extra `ccsnet[smp]`. The decoders are the package's own classes, with its widths at the
default `dim` of 256 and in proportion to `dim` otherwise; the classifier is ours, and logits stay
at the decoder's stride.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.errors import InputError
from ccsnet.heads._base import HeadConfig, Output, classifier, resize

PACKAGE = "segmentation_models_pytorch"
INSTALL = "pip install 'ccsnet[smp]'"

# Source: the defaults of the package's models.
ATROUS_RATES = (12, 24, 36)
GROUPS = 32  # Of FPN's group norms; not a setting.
PAN_SIDE = 8  # PAN halves the coarsest map three times.

Maps = Sequence[Float[Tensor, "B _ _ _"]]


def _as_they_are(features: Maps) -> list[Tensor]:
    """The maps, for a decoder that asks every map for its size."""
    return list(features)


def _halving(features: Maps) -> list[Tensor]:
    """The maps on grids that halve exactly, for a decoder that doubles sizes.

    Maps at strides 4, 8, 16, 32 are padded below and on the right with their edge. A map that a
    dilated backbone gives at another stride is resized to the one that the decoder counts on.
    """
    height, width = features[0].shape[-2:]
    rows, columns = -(-height // 8), -(-width // 8)
    maps = []
    for level, feature in enumerate(features):
        times = 2**level
        on_stride = resize(feature, (-(-height // times), -(-width // times)))
        maps.append(_pad(on_stride, (rows * 8 // times, columns * 8 // times)))
    return maps


def _at_least_8(features: Maps) -> list[Tensor]:
    """The maps as they are, but the coarsest, if it is smaller, at 8 places a side."""
    *finer, coarsest = features
    height, width = coarsest.shape[-2:]
    return [*finer, resize(coarsest, (max(height, PAN_SIDE), max(width, PAN_SIDE)))]


def _dilated(features: Maps) -> list[Tensor]:
    """The coarsest map at stride 16 or finer: one at stride 32 is resized to stride 16."""
    *finer, coarsest = features
    height, width = features[0].shape[-2:]
    stride_16 = (-(-height // 4), -(-width // 4))
    if coarsest.shape[-2] > stride_16[0] or coarsest.shape[-1] > stride_16[1]:
        return list(features)
    return [*finer, resize(coarsest, stride_16)]


def _dilated_and_dividing(features: Maps) -> list[Tensor]:
    """As `_dilated`, and the finest map padded to four (stride 8: two) times the coarsest."""
    finest, *middle, coarsest = _dilated(features)
    height, width = finest.shape[-2:]
    times = _times(finest, coarsest)
    coarsest = resize(coarsest, (-(-height // times), -(-width // times)))
    size = (coarsest.shape[-2] * times, coarsest.shape[-1] * times)
    return [_pad(finest, size), *middle, coarsest]


def _times(finest: Tensor, coarsest: Tensor) -> int:
    """By what DeepLabV3+ enlarges the coarsest map: 4 from stride 16, 2 from stride 8."""
    sides = zip(finest.shape[-2:], coarsest.shape[-2:], strict=True)
    return 4 if all(coarse <= -(-fine // 4) for fine, coarse in sides) else 2


def _pad(feature: Tensor, size: tuple[int, int]) -> Tensor:
    below, right = size[0] - feature.shape[-2], size[1] - feature.shape[-1]
    if below == right == 0:
        return feature
    return F.pad(feature, (0, right, 0, below), mode="replicate")


def _halves(dim: int) -> tuple[int, ...]:
    """Widths of the five steps of a U-Net: 256, 128, 64, 32, 16 of the default."""
    return tuple(max(1, dim >> step) for step in range(5))


def _aspp(config: HeadConfig, separable: bool) -> dict[str, Any]:
    return {
        "out_channels": config.dim,
        "atrous_rates": ATROUS_RATES,
        "aspp_separable": separable,
        "aspp_dropout": config.dropout,
    }


class Decoder(NamedTuple):
    """How a head is made of one of the package's decoders."""

    path: str
    """Module and class below `segmentation_models_pytorch.decoders`."""
    note: str
    """One line for the user."""
    settings: Callable[[tuple[int, ...], HeadConfig], dict[str, Any]]
    """What it is built with, from the channels at strides 1, 2, 4, 8, 16, 32."""
    width: str
    """The setting that is the width of its output, or the last of whose values is."""
    fit: Callable[[Maps], list[Tensor]] = _as_they_are
    """Brings the maps to the sizes that it needs."""
    initialised: bool = True
    """Whether the package's model draws the decoder's weights anew (`initialize_decoder`)."""


DECODERS = {
    "DPT": Decoder(
        "dpt.decoder.DPTDecoder",
        "DPT: residual fusion from coarse to fine (Ranftl et al. 2021). Logits at stride 2.",
        lambda levels, config: {
            "encoder_out_channels": levels[2:],
            "encoder_output_strides": (4, 8, 16, 32),
            "encoder_has_prefix_tokens": False,
            "readout": "ignore",
            "intermediate_channels": tuple(config.dim * times for times in (1, 2, 4, 4)),
            "fusion_channels": config.dim,
        },
        width="fusion_channels",
        fit=_halving,
    ),
    "DeepLabV3": Decoder(
        "deeplabv3.decoder.DeepLabV3Decoder",
        "DeepLabV3: dilated convolutions on the coarsest map (Chen et al. 2017). Stride 16 or 8.",
        lambda levels, config: {"in_channels": levels[-1], **_aspp(config, separable=False)},
        width="out_channels",
        fit=_dilated,
        initialised=False,
    ),
    "DeepLabV3Plus": Decoder(
        "deeplabv3.decoder.DeepLabV3PlusDecoder",
        "DeepLabV3+: the same, joined with the finest map (Chen et al. 2018). Logits at stride 4.",
        lambda levels, config: {
            "encoder_channels": levels,
            "encoder_depth": 5,
            "output_stride": 16,
            **_aspp(config, separable=True),
        },
        width="out_channels",
        fit=_dilated_and_dividing,
        initialised=False,
    ),
    "FPN": Decoder(
        "fpn.decoder.FPNDecoder",
        "FPN: a feature pyramid, its levels summed (Kirillov et al. 2019). Logits at stride 4.",
        lambda levels, config: {
            "encoder_channels": levels,
            "pyramid_channels": config.dim,
            "segmentation_channels": -(-config.dim // 2 // GROUPS) * GROUPS,
            "dropout": config.dropout,
        },
        width="segmentation_channels",
        fit=_halving,
    ),
    "Linknet": Decoder(
        "linknet.decoder.LinknetDecoder",
        "LinkNet: skips are added (Chaurasia, Culurciello 2017). Logits at stride 1.",
        lambda levels, config: {
            "encoder_channels": levels,
            "prefinal_channels": max(1, config.dim // 8),
        },
        width="prefinal_channels",
        fit=_halving,
    ),
    "MAnet": Decoder(
        "manet.decoder.MAnetDecoder",
        "MA-Net: a U-Net with attention over places and channels (Fan et al. 2020). Stride 1.",
        lambda levels, config: {
            "encoder_channels": levels,
            "decoder_channels": _halves(config.dim),
            "pab_channels": max(1, config.dim // 4),
        },
        width="decoder_channels",
        fit=_halving,
    ),
    "PAN": Decoder(
        "pan.decoder.PANDecoder",
        "PAN: attention from coarse to fine maps (Li et al. 2018). Logits at stride 4.",
        lambda levels, config: {
            "encoder_channels": levels,
            "encoder_depth": 5,
            "decoder_channels": max(1, config.dim // 8),
        },
        width="decoder_channels",
        fit=_at_least_8,
    ),
    "PSPNet": Decoder(
        "pspnet.decoder.PSPDecoder",
        "PSPNet: pooling over regions of the coarsest map (Zhao et al. 2017). At its stride.",
        lambda levels, config: {
            "encoder_channels": levels,
            "out_channels": 2 * config.dim,
            "dropout": config.dropout,
        },
        width="out_channels",
    ),
    "Segformer": Decoder(
        "segformer.decoder.SegformerDecoder",
        "SegFormer's all-MLP decoder (Xie et al. 2021); `segformer` is ours. Logits at stride 4.",
        lambda levels, config: {"encoder_channels": levels, "segmentation_channels": config.dim},
        width="segmentation_channels",
    ),
    "UPerNet": Decoder(
        "upernet.decoder.UPerNetDecoder",
        "UPerNet: PSPNet's pooling and an FPN (Xiao et al. 2018). Logits at stride 4.",
        lambda levels, config: {"encoder_channels": levels, "decoder_channels": config.dim},
        width="decoder_channels",
    ),
    "Unet": Decoder(
        "unet.decoder.UnetDecoder",
        "U-Net (Ronneberger et al. 2015). Logits at stride 1.",
        lambda levels, config: {
            "encoder_channels": levels,
            "decoder_channels": _halves(config.dim),
        },
        width="decoder_channels",
    ),
    "UnetPlusPlus": Decoder(
        "unetplusplus.decoder.UnetPlusPlusDecoder",
        "U-Net++: a U-Net with nested skips (Zhou et al. 2018). Logits at stride 1.",
        lambda levels, config: {
            "encoder_channels": levels,
            "decoder_channels": _halves(config.dim),
        },
        width="decoder_channels",
        fit=_halving,
    ),
}


class SMPHead(nn.Module):
    """One of the package's decoders on our four maps, and a classifier.

    There are no maps at strides 1 and 2: as in the package's own transformer encoders they stand
    there with no channels. DeepLabV3 and DeepLabV3+ work at stride 16 or 8 (a backbone with that
    output stride): a coarsest map at stride 32 is resized to stride 16. The decoders that only
    double sizes (DPT, FPN, Linknet, MAnet, UnetPlusPlus) get maps padded until they divide, and
    their result is cropped; a map of a dilated backbone is resized to stride 32 for them. PAN
    enlarges a coarsest map of less than 8 places a side. PSPNet takes the coarsest map; in the
    package it is that of stride 8, an encoder cut there.

    Settings: all decoders use `dim`. `dropout` is that of FPN, PSPNet and the DeepLabs (in the
    package 0.2, 0.2 and 0.5); the others have none. FPN's output is `dim` / 2 channels, rounded
    up to a multiple of 32, the groups of its norm. `top_k` and `coarse_dim` are not used.

    Args:
        name: Which decoder, a key of `DECODERS`.
        channels: Channels of the maps at strides 4, 8, 16, 32.
        num_classes: N.
        config: Settings.
    """

    def __init__(
        self,
        name: str,
        channels: Sequence[int],
        num_classes: int,
        config: HeadConfig | None = None,
    ) -> None:
        super().__init__()
        entry = DECODERS[name]
        settings = entry.settings((0, 0, *channels), config or HeadConfig())
        module, _, class_name = entry.path.rpartition(".")
        # Here, not above: it takes half a second, and imports timm, for which ccsnet.backbones
        # makes torchvision importable. Backbones come first wherever a whole model is built.
        decoder_class = getattr(importlib.import_module(f"{PACKAGE}.decoders.{module}"), class_name)
        self.name = name
        self.fit = entry.fit
        self.decoder: nn.Module = decoder_class(**settings)
        if entry.initialised:
            init = importlib.import_module(f"{PACKAGE}.base.initialization")
            init.initialize_decoder(self.decoder)
        width = settings[entry.width]
        self.classifier = classifier(width if isinstance(width, int) else width[-1], num_classes)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Output:
        """Logits at the decoder's stride.

        Raises:
            InputError: One image in a training step, of which a batch norm has one value.
        """
        maps = self.fit(features)
        try:
            decoded = self._decode(maps)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"The head 'smp.{self.name}' pools an image to one place, and its batch norm needs "
                "two values to learn from; a pass had one image. Raise --batch-size."
            ) from error
        times = decoded.shape[-2] // maps[0].shape[-2]  # 0: on the coarsest grid, never padded.
        if times:
            height, width = features[0].shape[-2:]
            decoded = decoded[..., : times * height, : times * width]
        return Output(self.classifier(decoded))

    def _decode(self, maps: list[Tensor]) -> Tensor:
        if self.name == "DPT":  # Made for plain transformers: four maps and their class tokens.
            return self.decoder(maps, [None] * len(maps))
        if self.name == "DeepLabV3Plus":  # It is told the stride when built, we see it only here.
            self.decoder.up.scale_factor = float(_times(maps[0], maps[-1]))  # pyright: ignore
        batch, _, height, width = maps[0].shape
        absent = (maps[0].new_empty(batch, 0, n * height, n * width) for n in (4, 2))
        return self.decoder([*absent, *maps])


def parts() -> dict[str, str]:
    """The decoders, each with a line on it."""
    missing = "" if _installed() else f" Needs: {INSTALL}"
    return {name: decoder.note + missing for name, decoder in DECODERS.items()}


def build(part: str) -> Callable[..., nn.Module]:
    """What builds the head `smp.PART` from channels, number of classes and settings.

    Raises:
        InputError: The package is not installed.
    """
    if not _installed():
        raise InputError(
            f"The head 'smp.{part}' needs the package segmentation_models_pytorch, which is not "
            f"installed: {INSTALL}"
        )
    return partial(SMPHead, part)


def _installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None
