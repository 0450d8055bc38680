"""FCN: one 3x3 convolution and a classifier on one map. CCSNet's coarse head, and a baseline."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ccsnet.heads._base import HeadConfig, Output, classifier, conv_and_norm


class FCN(nn.Sequential):
    """Logits of one feature map: 3x3 convolution, batch norm, ReLU, channel dropout, classifier.

    Source: Long, Shelhamer, Darrell, CVPR 2015, in the form that heads since PSPNet use for their
    auxiliary loss.
    """

    def __init__(self, in_channels: int, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__(
            nn.Sequential(*conv_and_norm(in_channels, dim, kernel_size=3), nn.ReLU(inplace=True)),
            nn.Dropout2d(dropout),
            classifier(dim, num_classes),
        )


class FCNHead(nn.Module):
    """The baseline `fcn`: an FCN on the coarsest map (stride 32)."""

    def __init__(
        self, channels: Sequence[int], num_classes: int, config: HeadConfig | None = None
    ) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.fcn = FCN(channels[-1], config.dim, num_classes, config.dropout)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Output:
        """Logits at stride 32."""
        return Output(self.fcn(features[-1]))


build = FCNHead
