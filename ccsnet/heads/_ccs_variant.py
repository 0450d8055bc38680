"""CCSNet with one or several departures from the paper (docs/variants.md).

What is learned in addition starts where the paper's method is, or close to it where all zeros would
never be left: two centres of a class that are equal learn the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ccsnet.heads._base import (
    STRIDES,
    CCSVariant,
    HeadConfig,
    Output,
    channels_last,
    classifier,
    conv_and_norm,
    norm_as_affine,
    resize,
)
from ccsnet.heads._classes import STRIDE_16, class_centres, relevant_classes, window_of
from ccsnet.heads._fusion import Fusion
from ccsnet.heads.fcn import FCN

# B images, N classes, K centres (N times those of a class), C channels of a map, D width of the
# head, P its parts; (h, w) the grid of stride 16, (H, W) any other.

_COARSEST = 3  # Position among the four maps.
_CONTRAST = 0.1
"""Temperature of the centre loss: cosines are at most 1 apart. Customary; not tuned."""


class ClassCentres(nn.Module):
    """The classes' centres on one map."""

    def __init__(self, channels: int, variant: CCSVariant) -> None:
        super().__init__()
        learned = variant.centre_temperature == "learned"
        self.log_sharpness = nn.Parameter(torch.zeros(1)) if learned else None
        self.parts = None
        if variant.centres_per_class > 1:
            # No bias: it would be the same at every place, which a softmax over space ignores.
            self.parts = nn.Conv2d(channels, variant.centres_per_class - 1, 1, bias=False)
            nn.init.normal_(self.parts.weight, std=0.01)

    def forward(
        self, coarse: Float[Tensor, "B N h w"], features: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K C"]:
        """The centres, those of a class side by side.

        A class's first centre weighs places by its coarse logits alone, the others by these plus a
        learned score each, the same for all classes.
        """
        if self.log_sharpness is not None:
            coarse = coarse * self.log_sharpness.exp()  # Over the temperature.
        if self.parts is not None:
            coarse = resize(coarse, (features.shape[-2], features.shape[-1]))
            others = coarse.unsqueeze(2) + self.parts(features).unsqueeze(1)
            coarse = torch.cat([coarse.unsqueeze(2), others], dim=2).flatten(1, 2)
        return class_centres(coarse, features)


class Query(nn.Module):
    """A stage that does not attend."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(in_channels, dim, 1)

    def forward(self, feature: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B D H W"]:
        """The queries, on the stage's own grid."""
        return self.query(feature)


class VariantAttention(nn.Module):
    """Every place of one stage reads from the centres of the classes relevant there.

    Args:
        in_channels: Width of the stage's map.
        widths: Of each of the maps whose centres it reads from.
        dim: D.
        variant: What it is a variant of `ccs.ClassAttention` in.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], dim: int, variant: CCSVariant
    ) -> None:
        super().__init__()
        self.num_heads = variant.attention_heads
        self.query = nn.Conv2d(in_channels, dim, 1)
        self.conv, self.norm = conv_and_norm(dim, dim)
        separate = variant.projections == "separate"
        self.key = projection(widths, dim, bias=True) if separate else None
        self.value = projection(widths, dim, bias=False) if separate else None
        learned = variant.coarse_bias == "learned"
        self.bias_scale = nn.Parameter(torch.zeros(1)) if learned else None

    def forward(
        self,
        feature: Float[Tensor, "B _ _ _"],
        keys: Float[Tensor, "B K D"],
        values: Float[Tensor, "B K D"],
        bias: Float[Tensor, "B h w K"],
        size: tuple[int, int],
    ) -> Float[Tensor, "B D H W"]:
        """The queries plus what they read; on a grid of `size`, the stage's own or a finer one.

        The 1x1 convolution of what was read, and in evaluation its batch norm, is applied to the
        values before they are read, as in `ccs.ClassAttention`. Each of P heads then reads D
        channels instead of D/P. Where that is more work than a convolution of every place, the
        values are read as they are.
        """
        query = resize(self.query(feature), size)
        weight, shift = self.conv.weight.flatten(1), None
        if not self.training:
            scale, shift = norm_as_affine(self.norm)
            weight = weight * scale.unsqueeze(1)
        mask = window_of(bias, size).flatten(1, 2).unsqueeze(1)
        heads, (number, dim) = self.num_heads, keys.shape[1:]
        if (heads - 1) * number < dim:
            parts = values.unflatten(2, (heads, -1)).transpose(1, 2)
            folded = parts @ weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
            if shift is not None:  # Each head's weights add up to 1.
                folded = folded + shift / heads
            if heads == 1:
                read = self._attend(query, keys, folded, mask).squeeze(1)
            else:  # The sum over heads is one over all their centres: no map for each head.
                weights = self.weights(query, keys, mask)
                read = weights.transpose(1, 2).flatten(2) @ folded.flatten(1, 2)
        else:
            parts = values.unflatten(2, (heads, -1)).transpose(1, 2)
            read = self._attend(query, keys, parts, mask).transpose(1, 2).flatten(2)
            read = F.linear(read, weight, shift)
        read = read.unflatten(1, size).permute(0, 3, 1, 2)
        if self.training:
            read = self.norm(read)
        if torch.is_grad_enabled():
            return query + F.relu(read)
        return F.relu_(read).add_(query)  # Two maps fewer at the peak.

    def _heads(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of all places, and keys, in P parts."""
        split = (self.num_heads, -1)
        queries = query.flatten(2).transpose(1, 2).unflatten(2, split).transpose(1, 2)
        return queries, keys.unflatten(2, split).transpose(1, 2)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        # Contiguous: torch's CPU kernel returns wrong gradients for values that are not (2.13).
        parts = [x.contiguous() for x in (*self._heads(query, keys), values)]
        return F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)

    def weights(
        self,
        query: Float[Tensor, "B D H W"],
        keys: Float[Tensor, "B K D"],
        mask: Float[Tensor, "B _ _ K"],
    ) -> Float[Tensor, "B P _ K"]:
        """How much every place reads from each centre; each place of each head adds up to 1.

        Args:
            query: The queries.
            keys: Of the centres.
            mask: Added to the attention logits; places in one dimension.
        """
        queries, keys = self._heads(query, keys)
        scores = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
        return (scores + mask).softmax(-1)


class Refinement(nn.Module):
    """A round of attention at stride 16 that corrects the coarse prediction."""

    def __init__(self, attention: VariantAttention, dim: int, num_classes: int) -> None:
        super().__init__()
        self.attention = attention
        self.classifier = classifier(dim, num_classes)


class Readable(NamedTuple):
    """What the attention reads from, and where it may."""

    centres: Mapping[int, Float[Tensor, "B K _"]]
    """Of each map that gives some."""
    relevant: Bool[Tensor, "B h w K"]
    log_probs: Float[Tensor, "B h w K"] | None
    """Of the coarse prediction, where they are a bias of the attention."""
    shared: tuple[Float[Tensor, "B K D"], Float[Tensor, "B K D"]] | None
    """Keys and values, where all stages have the same."""


class CCSVariantHead(nn.Module):
    """`ccs.CCSHead` with the departures from the paper that `config.variant` names.

    Args:
        channels: Widths of the four feature maps, strides 4, 8, 16, 32.
        num_classes: N, at least 2.
        config: Settings; all are used. Where no stage attends, `top_k` has no effect.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        variant = config.variant
        self.top_k, self.variant = config.top_k, variant
        self.coarse = FCN(channels[STRIDE_16], config.coarse_dim, num_classes, config.dropout)

        def attention(stage: int) -> VariantAttention:
            widths = [channels[i] for i in self._sources(stage)]
            return VariantAttention(channels[stage], widths, config.dim, variant)

        attending = [i for i, stride in enumerate(STRIDES) if stride in variant.attending]
        self.stages = nn.ModuleList(
            attention(i) if i in attending else Query(c, config.dim) for i, c in enumerate(channels)
        )
        self.refinements = nn.ModuleList(
            Refinement(attention(STRIDE_16), config.dim, num_classes)
            for _ in range(variant.attention_rounds - 1)
        )
        readers = attending + [STRIDE_16] * len(self.refinements)
        self.maps = sorted({i for reader in readers for i in self._sources(reader)})
        self.centres = nn.ModuleList(ClassCentres(channels[i], variant) for i in self.maps)
        self.key = self.value = None
        if attending and variant.projections == "shared":
            widths = [channels[i] for i in self._sources(attending[0])]
            self.key = projection(widths, config.dim, bias=True)
            self.value = projection(widths, config.dim, bias=False)
        self.fusion = Fusion(config.dim, len(channels))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(config.dim, num_classes)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Output:
        """Logits at stride 4 and coarse logits at stride 16, those after all refinements.

        In training there are auxiliary logits where the centre loss has a weight.

        Args:
            features: Four maps, fine to coarse. Sizes need not divide each other.
        """
        features = channels_last(features)
        coarse = self.coarse(features[STRIDE_16])
        for refinement in self.refinements:
            readable = self._readable(coarse, features)
            read = self._read(refinement.attention, STRIDE_16, features, readable)  # pyright: ignore[reportArgumentType]
            coarse = coarse + refinement.classifier(read)  # pyright: ignore[reportCallIssue]
        readable = self._readable(coarse, features) if self.maps else None
        fused = self.fusion(
            self._read(stage, i, features, readable)
            if isinstance(stage, VariantAttention)
            else stage(features[i])
            for i, stage in enumerate(self.stages)
        )
        auxiliary = None
        if self.training and self.variant.centre_loss_weight > 0:
            assert readable is not None, "settings with a centre loss have centres"
            last = self.maps[-1]
            auxiliary = centre_logits(readable.centres[last], features[last], coarse.shape[1])
        return Output(self.classifier(self.dropout(fused)), coarse, auxiliary)

    def sharpness(self) -> Float[Tensor, ""]:
        """What coarse logits are multiplied by before they weigh the places of the last map."""
        log = self.centres[-1].log_sharpness
        return torch.ones(()) if log is None else log.detach().exp().squeeze()  # pyright: ignore

    def _sources(self, stage: int) -> tuple[int, ...]:
        """The maps whose centres a stage reads from."""
        return {"c4": (_COARSEST,), "c3+c4": (_COARSEST, STRIDE_16), "own": (stage,)}[
            self.variant.centres
        ]

    def _readable(self, coarse: Tensor, features: Sequence[Tensor]) -> Readable:
        if self.variant.coarse_gradient == "stopped":
            coarse = coarse.detach()
        centres = {
            i: of(coarse, features[i]) for i, of in zip(self.maps, self.centres, strict=True)
        }
        number = self.variant.centres_per_class
        biased = self.variant.coarse_bias != "none"
        return Readable(
            centres,
            _for_centres(relevant_classes(coarse, self.top_k), number),
            _for_centres(coarse.log_softmax(1), number) if biased else None,
            self._keys_values(self, centres, _COARSEST) if self.key is not None else None,
        )

    def _keys_values(
        self, owner: nn.Module, centres: Mapping[int, Tensor], stage: int
    ) -> tuple[Tensor, Tensor]:
        centre = torch.cat([centres[i] for i in self._sources(stage)], dim=2)
        return owner.key(centre), owner.value(centre)  # pyright: ignore[reportCallIssue]

    def _read(
        self,
        attention: VariantAttention,
        stage: int,
        features: Sequence[Tensor],
        readable: Readable | None,
    ) -> Tensor:
        assert readable is not None, "where a stage attends there are centres"
        keys, values = readable.shared or self._keys_values(attention, readable.centres, stage)
        relevant, bias = readable.relevant, readable.log_probs
        if bias is None:
            bias = torch.zeros_like(relevant, dtype=keys.dtype)
        elif attention.bias_scale is not None:
            bias = bias * attention.bias_scale
        bias = bias.to(keys.dtype).masked_fill(~relevant, -torch.inf)
        # The coarsest stage attends on the grid of stride 16, where the choice was made.
        grid = features[min(stage, STRIDE_16)].shape[-2:]
        return attention(features[stage], keys, values, bias, (grid[0], grid[1]))


def projection(widths: Sequence[int], dim: int, bias: bool) -> nn.Linear:
    """From the centres of several maps, side by side, to D; it starts with the first map alone."""
    first = nn.Linear(widths[0], dim, bias=bias)
    layer = nn.Linear(sum(widths), dim, bias=bias)
    layer.load_state_dict(
        first.state_dict() | {"weight": F.pad(first.weight.detach(), (0, sum(widths[1:])))}
    )
    return layer


def centre_logits(
    centres: Float[Tensor, "B K C"], features: Float[Tensor, "B C H W"], num_classes: int
) -> Float[Tensor, "B N H W"]:
    """Cosines between places and centres over a temperature: logits of the place's class.

    The logits of a class's several centres become one as their probabilities add up.

    Source: InfoNCE, van den Oord et al., 2018, equation 4, the classes' centres being the samples.
    """
    cosines = _unit(centres, 2) @ _unit(features.flatten(2), 1)
    logits = (cosines / _CONTRAST).unflatten(1, (num_classes, -1)).logsumexp(2)
    return logits.unflatten(2, features.shape[2:])


def _unit(x: Tensor, dim: int) -> Tensor:
    """Vectors of length 1; those near 0 are less, for a gradient without bound is of no use."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (x.square().sum(dim, keepdim=True) + 1e-6).rsqrt()


def _for_centres(classes: Tensor, number: int) -> Tensor:
    """Of each class, B N h w, to of each of its centres, B h w K."""
    classes = classes.permute(0, 2, 3, 1)
    if number == 1:
        return classes
    return classes.unsqueeze(4).expand(*classes.shape, number).flatten(3)
