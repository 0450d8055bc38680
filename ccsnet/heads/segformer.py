"""SegFormer's all-MLP head: the baseline that CCSNet improves on."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import HeadConfig, Output, channels_last, classifier
from ccsnet.heads._foreign import HeadLayout
from ccsnet.heads._fusion import Fusion


class SegFormerHead(nn.Module):
    """Each map projected to D, all fused at stride 4, classified.

    Source: Xie et al., "SegFormer", NeurIPS 2021, section 3.2.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, config: HeadConfig | None = None
    ) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.projections = nn.ModuleList(self.projection(c, config.dim) for c in channels)
        self.fusion = Fusion(config.dim, len(channels))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(config.dim, num_classes)

    @staticmethod
    def projection(in_channels: int, dim: int) -> nn.Module:
        """What brings a map to D channels."""
        return nn.Conv2d(in_channels, dim, 1)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Output:
        """Logits at stride 4."""
        fused = self.fusion(
            project(feature)
            for project, feature in zip(self.projections, channels_last(features), strict=True)
        )
        return Output(self.classifier(self.dropout(fused)))


build = SegFormerHead

RELEASE = HeadLayout(
    name="SegFormer's release",
    head="segformer",
    modules={
        **{f"decode_head.linear_c{stage + 1}.proj": f"projections.{stage}" for stage in range(4)},
        "decode_head.linear_fuse.conv": "fusion.conv",
        "decode_head.linear_fuse.bn": "fusion.norm",
        "decode_head.linear_pred": "classifier",
    },
    unused=("decode_head.conv_seg",),
)
HUGGING_FACE = HeadLayout(
    name="Hugging Face's SegFormer",
    head="segformer",
    modules={
        **{f"decode_head.linear_c.{stage}.proj": f"projections.{stage}" for stage in range(4)},
        "decode_head.linear_fuse": "fusion.conv",
        "decode_head.batch_norm": "fusion.norm",
        "decode_head.classifier": "classifier",
    },
)
