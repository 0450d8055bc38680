"""Label maps from low-resolution logits, without the full-size logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

BAND_BYTES = 64 * 2**20
"""Full-size logits held at once. Larger bands were no faster on 2 cores."""


def upsample_argmax(
    logits: Float[Tensor, "B N h w"], size: tuple[int, int]
) -> Int64[Tensor, "B H W"]:
    """The most likely class of every pixel: bilinear resize to `size`, then argmax over classes.

    Works down the image in bands of rows, so that memory does not grow with N x H x W.

    Args:
        logits: Class logits on any grid.
        size: (height, width) of the label map.
    """
    height, width = size
    batch, num_classes, rows, _ = logits.shape
    logits = logits.float()
    per_row = 4 * batch * num_classes * width
    band = max(1, BAND_BYTES // per_row)
    if band >= height:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

    # Rows as F.interpolate places them (corners not aligned), a band at a time.
    source = ((torch.arange(height, device=logits.device) + 0.5) * rows / height - 0.5).clamp(min=0)
    above = source.long()
    below = (above + 1).clamp(max=rows - 1)
    weight = (source - above).view(1, 1, -1, 1)
    labels = []
    for start in range(0, height, band):
        part = slice(start, start + band)
        mixed = torch.lerp(
            logits.index_select(2, above[part]),
            logits.index_select(2, below[part]),
            weight[:, :, part],
        )
        wide = F.interpolate(
            mixed, size=(mixed.shape[2], width), mode="bilinear", align_corners=False
        )
        labels.append(wide.argmax(1))
    return torch.cat(labels, dim=1)
