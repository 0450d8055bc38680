"""Mix Transformer, the backbone of SegFormer, registered with timm as mit_b0 to mit_b5.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", NeurIPS 2021, section 3.1 and table 6.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# B images, C channels, H x W the image, h x w a stage's grid. Inside a stage the channels are last,
# where linear layers and norms want them.

_NORM_EPS = 1e-6  # Source: the authors' release, which the published weights were trained with.


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values come from a grid that is `reduction` times coarser.

    Source: section 3.1, equation 2; the reduction is a strided convolution and a norm.

    Args:
        channels: Channels of the positions.
        num_heads: Attention heads.
        reduction: How many times coarser the keys' grid is, along each side.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduce = (
            nn.Conv2d(channels, channels, reduction, stride=reduction) if reduction > 1 else None
        )
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS) if reduction > 1 else None

    def forward(self, features: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        """Let every position read from the coarser grid."""
        coarse = features
        if self.reduce is not None and self.norm is not None:
            coarse = self.norm(_channels_last(self.reduce(_channels_first(features))))
        keys, values = self.kv(coarse).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.q(features)), self._split_heads(keys), self._split_heads(values)
        )
        return self.proj(attended.transpose(1, 2).reshape(features.shape))

    def _split_heads(self, features: Tensor) -> Tensor:
        """B h w C -> B heads (h w) C/heads."""
        return features.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MixFeedForward(nn.Module):
    """Feed-forward layer with a 3x3 depthwise convolution, which tells positions apart.

    Source: section 3.1, equation 3.

    Args:
        channels: Channels of the positions.
        expansion: How many times wider the hidden layer is.
    """

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, features: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        """Mix the channels, and neighbouring positions."""
        hidden = self.depthwise(_channels_first(self.expand(features)))
        return self.project(F.gelu(_channels_last(hidden)))


class Block(nn.Module):
    """Attention and feed-forward layer, each normed before and added after.

    Args:
        channels: Channels of the positions.
        num_heads: Attention heads.
        reduction: See `EfficientSelfAttention`.
        expansion: See `MixFeedForward`.
        drop_path: Rate at which a training image skips each of the two.
    """

    def __init__(
        self, channels: int, num_heads: int, reduction: int, expansion: int, drop_path: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.attention = EfficientSelfAttention(channels, num_heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.feed_forward = MixFeedForward(channels, expansion)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, features: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        """Refine the positions."""
        features = features + self.drop_path(self.attention(self.norm1(features)))
        return features + self.drop_path(self.feed_forward(self.norm2(features)))


class Stage(nn.Module):
    """Overlapping patch embedding, blocks, and a norm.

    Args:
        in_channels: Channels of the map that comes in.
        channels: Channels of the map that goes out.
        patch_size: Side of the patches; they overlap, since they are wider than the stride.
        stride: How many times coarser the map becomes.
        num_heads: Attention heads.
        reduction: See `EfficientSelfAttention`.
        expansion: See `MixFeedForward`.
        drop_path: One rate per block.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        patch_size: int,
        stride: int,
        num_heads: int,
        reduction: int,
        expansion: int,
        drop_path: list[float],
    ):
        super().__init__()
        self.embed = nn.Conv2d(
            in_channels, channels, patch_size, stride=stride, padding=patch_size // 2
        )
        self.embed_norm = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, reduction, expansion, rate) for rate in drop_path
        )
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.grad_checkpointing = False

    def forward(self, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B C h w"]:
        """Turn one stage's map into the next one's."""
        features = self.embed_norm(_channels_last(self.embed(features)))
        for block in self.blocks:
            if self.grad_checkpointing:
                features = checkpoint(block, features, use_reentrant=False)
            else:
                features = block(features)
        return _channels_first(self.norm(features))


class MixTransformer(nn.Module):
    """Hierarchical transformer for images whose sides are at least 32 pixels.

    Its arguments and methods are those that timm calls.

    Args:
        channels: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        reductions: How many times coarser each stage's keys are, along each side.
        expansion: How many times wider the feed-forward layers are.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: "avg" to average the last map, "" for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        reductions: tuple[int, ...] = (8, 4, 2, 1),
        expansion: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(channels)
        ]
        self.stages = nn.ModuleList(
            Stage(
                channels[index - 1] if index else in_chans,
                channels[index],
                # Source: section 3.1, "overlapped patch merging": 7x7 every 4, then 3x3 every 2.
                patch_size=3 if index else 7,
                stride=2 if index else 4,
                num_heads=num_heads[index],
                reduction=reductions[index],
                expansion=expansion,
                drop_path=rates[index].tolist(),
            )
            for index in range(len(channels))
        )
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters by depth: stem, then every block.

        A stage's embedding belongs to its first block, its norm to its last one.
        """
        if coarse:
            return {"stem": r"^stages\.0\.embed", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stages\.0\.embed",
            "blocks": [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.embed", (0,)),
                (r"^stages\.(\d+)\.norm", (99999,)),  # timm's mark for "as the group before"
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training by computing each block twice."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # pyright: ignore[reportArgumentType]

    def get_classifier(self) -> nn.Module:
        """Give the last layer of the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the present one."""
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | tuple[int, ...] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the maps of these stages do not need; the norms belong to the stages."""
        taken, last = feature_take_indices(len(self.stages), indices)  # pyright: ignore
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C H W"],
        indices: int | list[int] | tuple[int, ...] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the given stages, and the last map too unless `intermediates_only`.

        Raises:
            ValueError: `output_fmt` is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"A Mix Transformer gives maps as 'NCHW', not {output_fmt!r}.")
        taken, last = feature_take_indices(len(self.stages), indices)  # pyright: ignore
        maps = []
        for index, stage in enumerate(self.stages):
            if stop_early and index > last:
                break
            x = stage(x)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ h w"]:
        """The last stage's map."""
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, x: Float[Tensor, "B _ h w"], pre_logits: bool = False) -> Tensor:
        """Classify the last stage's map."""
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Classify an image."""
        return self.forward_head(self.forward_features(x))


def _channels_last(features: Tensor) -> Tensor:
    """B C h w -> B h w C."""
    return features.movedim(1, -1)


def _channels_first(features: Tensor) -> Tensor:
    """B h w C -> B C h w."""
    return features.movedim(-1, 1)


def _init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of 0.02; convolutions: normal by their fan-out.

    Source: the authors' release; the paper does not say.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg() -> dict[str, Any]:
    """What timm wants to know of a model; no weights are published in its format."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        # Source: the usual statistics of ImageNet.
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stages.0.embed",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({f"mit_b{size}": _cfg() for size in range(6)})


def _create_mit(
    variant: str,
    pretrained: bool,
    options: dict[str, Any],
    *,
    channels: tuple[int, ...] = (64, 128, 320, 512),
    depths: tuple[int, ...],
) -> nn.Module:
    """Build a variant the way timm builds its own models; with `features_only` it is wrapped."""
    options = {"channels": channels, "depths": depths, **options}
    out_indices = options.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        MixTransformer,
        variant,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **options,
    )


# timm hands its own options to these functions by keyword, hence `**options`.


@register_model
def mit_b0(pretrained: bool = False, **options: Any) -> nn.Module:
    """The smallest: 3.3 M parameters without the classifier."""
    return _create_mit(
        "mit_b0", pretrained, options, channels=(32, 64, 160, 256), depths=(2, 2, 2, 2)
    )


@register_model
def mit_b1(pretrained: bool = False, **options: Any) -> nn.Module:
    """The one of the CCSNet release: 13 M parameters without the classifier."""
    return _create_mit("mit_b1", pretrained, options, depths=(2, 2, 2, 2))


@register_model
def mit_b2(pretrained: bool = False, **options: Any) -> nn.Module:
    """24 M parameters without the classifier."""
    return _create_mit("mit_b2", pretrained, options, depths=(3, 4, 6, 3))


@register_model
def mit_b3(pretrained: bool = False, **options: Any) -> nn.Module:
    """44 M parameters without the classifier."""
    return _create_mit("mit_b3", pretrained, options, depths=(3, 4, 18, 3))


@register_model
def mit_b4(pretrained: bool = False, **options: Any) -> nn.Module:
    """61 M parameters without the classifier."""
    return _create_mit("mit_b4", pretrained, options, depths=(3, 8, 27, 3))


@register_model
def mit_b5(pretrained: bool = False, **options: Any) -> nn.Module:
    """81 M parameters without the classifier."""
    return _create_mit("mit_b5", pretrained, options, depths=(3, 6, 40, 3))
