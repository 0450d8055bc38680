"""What the variants of CCSNet's head cost in weights and multiplications, as docs/variants.md says.

    python -m benchmarks.variants

MiT-B1's channels, one image of 512x512, evaluation; nothing is computed, the tensors have shapes
and no values. The first table's head has 150 classes, the second's 11.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import CHANNELS
from ccsnet.heads._base import STRIDES, CCSVariant, HeadConfig
from ccsnet.heads.ccs import build

VARIANTS = {
    "the paper's": CCSVariant(),
    "`--projections separate`": CCSVariant(projections="separate"),
    "`--centres c3+c4`": CCSVariant(centres="c3+c4"),
    "`--centres own --projections separate`": CCSVariant(centres="own", projections="separate"),
    "`--attending 4 8`": CCSVariant(attending=(4, 8)),
    "`--attending 16 32`": CCSVariant(attending=(16, 32)),
    "`--attending` (none)": CCSVariant(attending=()),
    "`--coarse-gradient stopped`": CCSVariant(coarse_gradient="stopped"),
    "`--coarse-bias learned`": CCSVariant(coarse_bias="learned"),
    "`--coarse-bias fixed`": CCSVariant(coarse_bias="fixed"),
    "`--attention-heads 4`": CCSVariant(attention_heads=4),
    "`--centre-temperature learned`": CCSVariant(centre_temperature="learned"),
    "`--centres-per-class 2`": CCSVariant(centres_per_class=2),
    "`--attention-rounds 2`": CCSVariant(attention_rounds=2),
    "`--centre-loss-weight 0.1`": CCSVariant(centre_loss_weight=0.1),
}
CLASSES = (150, 11)
SIZE = 512


def cost(variant: CCSVariant, num_classes: int) -> tuple[int, float]:
    """Parameters of the head, and its billions of multiplications with additions."""
    with torch.device("meta"):
        head = build(CHANNELS, num_classes, HeadConfig(variant=variant)).eval()
        features = [
            torch.empty(1, c, SIZE // s, SIZE // s) for c, s in zip(CHANNELS, STRIDES, strict=True)
        ]
        # Attention as plain products, for the counter does not know every kernel of it.
        with (
            torch.inference_mode(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            head(features)
    parameters = sum(parameter.numel() for parameter in head.parameters())
    return parameters, counter.get_total_flops() / 2e9


def table() -> str:
    """All variants, in Markdown."""
    lines = [
        "| variant | parameters, 150 classes | GMACs | more | 11 classes | GMACs | more |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    first = [cost(CCSVariant(), number) for number in CLASSES]
    for name, variant in VARIANTS.items():
        cells = []
        for number, paper in zip(CLASSES, first, strict=True):
            parameters, gmacs = cost(variant, number)
            cells += [f"{parameters:,}", f"{gmacs:.2f}", f"{100 * (gmacs / paper[1] - 1):+.1f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
