"""CCSNet: cross-stage class-specific attention. THE method.

Source: Shi, Sun, Li, "Cross-Stage Class-Specific Attention for Image Semantic Segmentation",
PRCV 2022, LNCS 13536 pp. 558-573. Where this form differs from the authors' release, its result
does not: see docs/method.md.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import (
    CCSVariant,
    HeadConfig,
    Output,
    channels_last,
    classifier,
    conv_and_norm,
    norm_as_affine,
    resize,
)
from ccsnet.heads._ccs_variant import CCSVariantHead
from ccsnet.heads._classes import STRIDE_16, class_centres, relevant_classes, window_of
from ccsnet.heads._foreign import HeadLayout, config_of, fill_head, num_classes_of
from ccsnet.heads._fusion import Fusion
from ccsnet.heads.fcn import FCN

# B images, N classes, D width of the head; (h, w) the grid of stride 16, (H, W) of any stage.


class ClassAttention(nn.Module):
    """Every place of one stage reads from the centres of the classes relevant there."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(in_channels, dim, 1)
        self.conv, self.norm = conv_and_norm(dim, dim)

    def forward(
        self,
        feature: Float[Tensor, "B _ _ _"],
        keys: Float[Tensor, "B N D"],
        values: Float[Tensor, "B N D"],
        bias: Float[Tensor, "B h w N"],
        size: tuple[int, int],
    ) -> Float[Tensor, "B D H W"]:
        """The queries plus what they read; on a grid of `size`, the stage's own or a finer one.

        Added to the attention logits, `bias` is 0 for the classes relevant in a cell of stride 16
        and minus infinity for the others.

        The 1x1 convolution of the read values is applied to the N values before they are read
        instead of to every place after: reading is a weighted sum, so the two commute. In
        evaluation batch norm is one more linear map, and as the weights of the sum add up to 1 its
        shift commutes as well.
        """
        query = resize(self.query(feature), size)
        values = F.linear(values, self.conv.weight.flatten(1))
        if not self.training:
            scale, shift = norm_as_affine(self.norm)
            values = torch.addcmul(shift, values, scale)
        # Contiguous, which they nearly always are: torch's CPU kernel returns wrong gradients
        # for values whose last dimension is not (2.13).
        read = F.scaled_dot_product_attention(
            query.flatten(2).transpose(1, 2).unsqueeze(1).contiguous(),
            keys.unsqueeze(1).contiguous(),
            values.unsqueeze(1).contiguous(),
            attn_mask=window_of(bias, size).flatten(1, 2).unsqueeze(1),
        )
        read = read.squeeze(1).unflatten(1, size).permute(0, 3, 1, 2)
        if self.training:
            read = self.norm(read)
        if torch.is_grad_enabled():
            return query + F.relu(read)
        return F.relu_(read).add_(query)  # Two maps fewer at the peak.


class CCSHead(nn.Module):
    """The heads of CCSNet: a coarse prediction, class centres, attention at four stages, fusion.

    Args:
        channels: Widths of the four feature maps, strides 4, 8, 16, 32.
        num_classes: N, at least 2.
        config: Settings; all but `variant` are used, which `build` makes another head of.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, config: HeadConfig | None = None
    ) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.top_k = config.top_k
        self.coarse = FCN(channels[STRIDE_16], config.coarse_dim, num_classes, config.dropout)
        self.key = nn.Linear(channels[-1], config.dim)
        self.value = nn.Linear(channels[-1], config.dim, bias=False)
        self.stages = nn.ModuleList(ClassAttention(c, config.dim) for c in channels)
        self.fusion = Fusion(config.dim, len(channels))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(config.dim, num_classes)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Output:
        """Logits at stride 4 and coarse logits at stride 16.

        Args:
            features: Four maps, fine to coarse. Sizes need not divide each other.
        """
        features = channels_last(features)
        coarse = self.coarse(features[STRIDE_16])
        centres = class_centres(coarse, features[-1])
        keys, values = self.key(centres), self.value(centres)
        relevant = relevant_classes(coarse, self.top_k).permute(0, 2, 3, 1)
        bias = torch.zeros_like(relevant, dtype=keys.dtype).masked_fill(~relevant, -torch.inf)
        # The coarsest stage attends on the grid of stride 16, where the choice was made.
        grids = [features[min(i, STRIDE_16)].shape[-2:] for i in range(len(features))]
        fused = self.fusion(
            stage(feature, keys, values, bias, (grid[0], grid[1]))
            for stage, feature, grid in zip(self.stages, features, grids, strict=True)
        )
        return Output(self.classifier(self.dropout(fused)), coarse)


def build(
    channels: Sequence[int], num_classes: int, config: HeadConfig | None = None
) -> CCSHead | CCSVariantHead:
    """The paper's head, or the variant of it that the settings name."""
    config = config or HeadConfig()
    head = CCSHead if config.variant == CCSVariant() else CCSVariantHead
    return head(channels, num_classes, config)


RELEASE = HeadLayout(
    name="CCSNet's release",
    head="ccs",
    modules={
        "decode_head.0.convs.0.conv": "coarse.0.0",
        "decode_head.0.convs.0.bn": "coarse.0.1",
        "decode_head.0.conv_seg": "coarse.2",
        "decode_head.1.k_proj": "key",
        "decode_head.1.v_proj": "value",
        "decode_head.1.linear_fuse.conv": "fusion.conv",
        "decode_head.1.linear_fuse.bn": "fusion.norm",
        "decode_head.1.linear_pred": "classifier",
        **{
            f"decode_head.1.{theirs.format(stage + 1)}": f"stages.{stage}.{ours}"
            for stage in range(4)
            for theirs, ours in (
                ("c{}_proj", "query"),
                ("object_context_block_c{}.out_proj.conv", "conv"),
                ("object_context_block_c{}.out_proj.bn", "norm"),
            )
        },
    },
    unused=("decode_head.1.conv_seg",),
)


def from_release(state: Mapping[str, Tensor], *, top_k: int = 20) -> CCSHead:
    """The head that a checkpoint of the authors' release holds, in evaluation mode.

    `ccsnet convert` reads a whole checkpoint, backbone included.

    Args:
        state: Tensors under the release's names, `decode_head.0.*` (coarse head) and
            `decode_head.1.*`. All sizes are read from their shapes. Other names, and the
            `decode_head.1.conv_seg.*` that the release holds but never uses, are left out.
        top_k: The release's k, which is written in its code and not in its checkpoints.

    Raises:
        InputError: A tensor is missing, or has a shape that does not fit the others.
    """
    tensors = RELEASE.rename(state).tensors
    head = CCSHead(
        channels=[tensors[f"stages.{stage}.query.weight"].shape[1] for stage in range(4)],
        num_classes=num_classes_of(tensors),
        config=config_of(tensors, top_k),
    )
    fill_head(head, tensors)
    return head.eval()
