"""CCSNet's head as the paper tells it: gather the keys of every window, concatenate, then fuse.

Slow and obvious. It takes its weights from a `CCSHead` and shares none of its code, so that the
two can be held against each other, in tests and in `benchmarks/roofline.py`. Like the release it
repeats the centres at every place of stride 16 before it gathers k of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccsnet.heads.ccs import CCSHead


def literal_forward(head: CCSHead, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Final and coarse logits of `head` on four features, by the method's own steps."""
    c1, c2, c3, c4 = features
    coarse = head.coarse(c3)
    batch, num_classes, height, width = coarse.shape

    # One centre per class: softmax over space of the coarse logits on the grid of c4.
    on_c4 = F.interpolate(coarse, size=c4.shape[2:], mode="bilinear", align_corners=False)
    weights = torch.softmax(on_c4.reshape(batch, num_classes, -1), dim=2)
    pixels = c4.reshape(batch, c4.shape[1], -1).permute(0, 2, 1)
    centres = torch.matmul(weights, pixels)
    keys, values = head.key(centres), head.value(centres)

    # Each place of stride 16 has its own k keys and values, gathered from its own copy of all N.
    k = min(head.top_k, num_classes)
    best = coarse.topk(k, dim=1).indices.permute(0, 2, 3, 1).reshape(batch, height * width, k)
    dim = keys.shape[2]
    index = best[..., None].expand(-1, -1, -1, dim)
    repeated = (batch, height * width, num_classes, dim)
    keys = torch.gather(keys[:, None].expand(repeated).contiguous(), 2, index)
    values = torch.gather(values[:, None].expand(repeated).contiguous(), 2, index)

    attended = []
    for stage, feature, grid in zip(head.stages, (c1, c2, c3, c4), (c1, c2, c3, c3), strict=True):
        query = stage.query(feature)
        size = grid.shape[2:]
        if query.shape[2:] != size:
            query = F.interpolate(query, size=size, mode="bilinear", align_corners=False)
        if size[0] % height == 0 and size[1] % width == 0:
            read = _read_windows(query, keys, values, (height, width))
        else:
            read = _read_place_by_place(query, keys, values, (height, width))
        attended.append(query + torch.relu(stage.norm(stage.conv(read))))

    resized = [
        F.interpolate(a, size=c1.shape[2:], mode="bilinear", align_corners=False)
        for a in reversed(attended)
    ]
    fused = head.fusion.conv(torch.cat(resized, dim=1))
    fused = torch.relu(head.fusion.norm(fused))
    return head.classifier(head.dropout(fused)), coarse


def _read_windows(query: Tensor, keys: Tensor, values: Tensor, cells: tuple[int, int]) -> Tensor:
    """Square windows of queries, one for each cell of stride 16."""
    batch, dim, rows, columns = query.shape
    height, width = cells
    r, s = rows // height, columns // width
    windows = query.reshape(batch, dim, height, r, width, s)
    windows = windows.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * width, r * s, dim)
    attention = torch.softmax(windows @ keys.transpose(2, 3) * dim**-0.5, dim=3)
    read = (attention @ values).reshape(batch, height, width, r, s, dim)
    return read.permute(0, 5, 1, 3, 2, 4).reshape(batch, dim, rows, columns)


def _read_place_by_place(
    query: Tensor, keys: Tensor, values: Tensor, cells: tuple[int, int]
) -> Tensor:
    """Sizes that do not divide: a place reads with the cell over its top left corner."""
    batch, dim, rows, columns = query.shape
    height, width = cells
    read = torch.zeros_like(query)
    for y in range(rows):
        for x in range(columns):
            cell = (y * height // rows) * width + x * width // columns
            for b in range(batch):
                scores = keys[b, cell] @ query[b, :, y, x] * dim**-0.5
                read[b, :, y, x] = torch.softmax(scores, dim=0) @ values[b, cell]
    return read
