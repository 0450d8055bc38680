"""SegFormer's head as MMSegmentation builds it: batch norm and ReLU after each projection."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import conv_and_norm, norm_as_affine
from ccsnet.heads._foreign import HeadLayout
from ccsnet.heads.segformer import SegFormerHead


class NormedProjection(nn.Module):
    """1x1 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv, self.norm = conv_and_norm(in_channels, dim)

    def forward(self, feature: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B D h w"]:
        """The projected map."""
        if self.training:
            return F.relu(self.norm(self.conv(feature)))
        scale, shift = norm_as_affine(self.norm)  # One linear map with the convolution.
        return F.relu(F.conv2d(feature, self.conv.weight * scale.view(-1, 1, 1, 1), shift))


class SegFormerMMSegHead(SegFormerHead):
    """Each map projected to D, normed and rectified, all fused at stride 4, classified.

    The ReLU between projection and fusion makes it another function than the paper's head, the
    `segformer` here: neither's weights can stand for the other's.

    Source: Xie et al., "SegFormer", NeurIPS 2021, section 3.2, in the form of MMSegmentation's
    `SegformerHead`.
    """

    projection = NormedProjection


build = SegFormerMMSegHead

MMSEGMENTATION = HeadLayout(
    name="MMSegmentation's SegFormer",
    head="segformer_mmseg",
    modules={
        **{
            f"decode_head.convs.{stage}.{theirs}": f"projections.{stage}.{ours}"
            for stage in range(4)
            for theirs, ours in (("conv", "conv"), ("bn", "norm"))
        },
        "decode_head.fusion_conv.conv": "fusion.conv",
        "decode_head.fusion_conv.bn": "fusion.norm",
        "decode_head.conv_seg": "classifier",
    },
    finest_first=True,
)
