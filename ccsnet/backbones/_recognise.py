"""Which Mix Transformer a checkpoint holds, told by the names and shapes of its tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from ccsnet.errors import InputError

# Channels and blocks of the four stages. Source: SegFormer, table 6.
MIT_SIZES = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
# Where each layout has a stage's width, and how it counts a stage's blocks.
_NAMES = (
    (r"patch_embed(\d)\.proj\.weight", r"block(\d)\.(\d+)\."),  # SegFormer's release
    (r"layers\.(\d)\.0\.projection\.weight", r"layers\.(\d)\.1\.(\d+)\."),  # MMSegmentation
    (r"patch_embeddings\.(\d)\.proj\.weight", r"block\.(\d)\.(\d+)\."),  # Hugging Face
)


def mit_name(tensors: Mapping[str, Tensor]) -> str:
    """Name of the Mix Transformer that has these tensors.

    Args:
        tensors: By name, without what all names of the backbone begin with.

    Raises:
        InputError: It is none, or one of other widths and depths than the paper's.
    """
    for width_name, block_name in _NAMES:
        widths: dict[str, int] = {}
        depths: dict[str, int] = {}
        for name, tensor in tensors.items():
            if (found := re.fullmatch(width_name, name)) and tensor.ndim:
                widths[found[1]] = len(tensor)
            elif found := re.match(block_name, name):
                depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
        if not widths:
            continue
        size = tuple(widths[k] for k in sorted(widths)), tuple(depths[k] for k in sorted(depths))
        for name, known in MIT_SIZES.items():
            if size == known:
                return name
        raise InputError(
            f"The backbone is a Mix Transformer with {size[0]} channels and {size[1]} blocks: none "
            "of mit_b0 to mit_b5. Name its model with --backbone, if there is one."
        )
    raise InputError(
        f"The backbone is no Mix Transformer (found: {', '.join(list(tensors)[:3])}). "
        "Name it with --backbone (`ccsnet list backbones`)."
    )
