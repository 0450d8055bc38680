"""Label maps from low-resolution logits, without the full-size logits.

A bilinear weight is never negative. So where the four grid places around a pixel prefer the same
class, that class wins at the pixel too, and nothing need be interpolated. The other pixels, a small
part of a real prediction, are interpolated in chunks.

The result equals the plain form, interpolation of everything followed by argmax, at every pixel,
ties and rounding included. Other orders of the same sums round differently; so a class only counts
as the winner where it leads by more than rounding can turn. The few pixels left over are decided by
`F.interpolate` itself, for the classes in question.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ccsnet.errors import NotFiniteError

CHUNK_BYTES = 2**20
"""Interpolated logits held at once: they stay in the processor's cache."""

FEW_CLASSES = 8
"""Up to here, comparing full-size maps class by class is faster."""

PLAIN_CLASSES = 24
"""Up to here, the plain form is faster where the classes of a place lie side by side."""

PLAIN_BYTES = 32 * 2**20
"""Full-size logits of an image are no larger than this even so."""

SMALL = 128
"""Outputs up to this height + width are interpolated by F.interpolate in another order of sums."""

EXACT_GROUP = 4
"""Classes interpolated together where every bit counts: three would be rounded differently."""

ROUNDING = 2.0**-21
"""Rounding errors of one interpolated float32, in parts of the sum of its terms' absolute values:
at most 5 in a row in any order of the sums, of 2**-24 each, and 3 to spare."""

SLACK = 2.0**-19
"""A lead above this part of the largest values is no rounding error: twice `ROUNDING`, for two
classes, and twice that, since here both sides are rounded."""

TINY = 2.0**-126
"""Added to every bound: below this, float32 rounds in fixed steps."""

UNKNOWN = -1


class Axis(NamedTuple):
    """For every output row (or column): its two rows of the grid, and their weights."""

    places: Int64[Tensor, "n 2"]
    weights: Float[Tensor, "n 2"]


def upsample_argmax(
    logits: Float[Tensor, "B N h w"], size: tuple[int, int]
) -> Int64[Tensor, "B H W"]:
    """The most likely class of every pixel: bilinear resize to `size`, then argmax over classes.

    Equal at every pixel to `F.interpolate` (bilinear, corners not aligned) of the contiguous
    float32 logits followed by `argmax(1)`: of tied classes the first. Channels-last logits of few
    classes are interpolated in that order, which rounds differently. A grid of one place is not
    interpolated: its best class fills the map. Beside the labels, memory grows with the grid and
    with the number of undecided pixels, not with N x H x W.

    Args:
        logits: Class logits on any grid, in any memory order; channels-last float32 saves a copy.
        size: (height, width) of the label map.

    Raises:
        InputError: If a logit is NaN or infinite. While a graph is recorded (export, compilation),
            the plain form is taken and nothing is checked.
    """
    logits = logits.detach()
    if _is_recorded():
        full = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        return full.argmax(1)
    # The sum of finite numbers may be infinite; only then every number is looked at.
    if not logits.sum(dtype=torch.float32).isfinite() and not logits.float().isfinite().all():
        raise NotFiniteError(
            "The logits hold NaN or infinite values; a label map needs finite ones. "
            "Look for the first such value in the weights or the image, or use a wider precision."
        )
    labels = torch.empty((len(logits), *size), dtype=torch.int64, device=logits.device)
    for image, label in zip(logits, labels, strict=True):
        _fill(label, image)
    return labels


def _is_recorded() -> bool:
    """True while a graph is recorded: what is done may not depend on values there."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _interpolated(
    logits: Float32[Tensor, "B N h w"], size: tuple[int, int]
) -> Float32[Tensor, "B N H W"]:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _fill(label: Int64[Tensor, "H W"], logits: Float[Tensor, "N h w"]) -> None:
    """Write one image's label map."""
    num_classes, height, width = logits.shape
    size = (label.shape[0], label.shape[1])
    last = logits[None].is_contiguous(memory_format=torch.channels_last)
    if height == width == 1:
        label.copy_(logits.argmax(0))
    elif last and num_classes <= PLAIN_CLASSES and 4 * num_classes * label.numel() <= PLAIN_BYTES:
        # As a batch of one in that order: the result follows the strides, and argmax its order.
        batch = logits.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        label.copy_(_interpolated(batch.float(), size).argmax(1)[0])
    elif sum(size) <= SMALL:
        label.copy_(_interpolated(logits.float().contiguous()[None], size).argmax(1)[0])
    elif num_classes <= FEW_CLASSES:
        classes = torch.arange(num_classes, device=logits.device)
        label.copy_(_class_by_class(logits, size, classes).view(size))
    else:
        _fill_where_undecided(label, logits)


def _fill_where_undecided(label: Int64[Tensor, "H W"], logits: Float[Tensor, "N h w"]) -> None:
    """Write one image's label map, interpolating only what the grid leaves undecided."""
    num_classes, height, width = logits.shape
    size = (label.shape[0], label.shape[1])
    table = logits.permute(1, 2, 0).reshape(height * width, num_classes).float().contiguous()
    rows, columns = _axis(height, size[0], logits.device), _axis(width, size[1], logits.device)
    winners, scale = _grid_winners(table)
    agreed = _agreed(winners.view(height, width))
    torch.index_select(agreed[rows.places[:, 0]], 1, columns.places[:, 0], out=label)
    labels = label.view(-1)
    # From here on, places are counted through the whole grid.
    rows = rows._replace(places=rows.places * width)

    ranks = _ranks(table)
    left, classes = [], torch.zeros(num_classes, dtype=torch.bool, device=table.device)
    for pixels in (labels == UNKNOWN).nonzero()[:, 0].split(_chunk(table)):
        places, weights = _corners(rows, columns, pixels)
        values = F.embedding_bag(places, table, per_sample_weights=weights, mode="sum")
        best = values.amax(1)
        # The parts of a class that comes near the best one are together no larger than this.
        slack = SLACK * (2 * scale + best.abs()) + TINY
        near = values.ge_((best - slack)[:, None])
        found = _only(near, ranks)
        labels[pixels] = found
        undecided = found == UNKNOWN
        left.append(pixels[undecided])
        classes |= near[undecided].any(0)
    undecided = torch.cat([*left, labels.new_empty(0)])

    # Where a large part is undecided, all values being the same, bounds would not help either.
    if 0 < 64 * len(undecided) <= len(labels):
        labels[undecided], classes = _within_bounds(table, rows, columns, undecided)
        undecided = undecided[labels[undecided] == UNKNOWN]
    if len(undecided):
        labels[undecided] = _class_by_class(logits, size, classes.nonzero()[:, 0], undecided)


def _chunk(table: Float32[Tensor, "G N"]) -> int:
    """How many rows of logits are held at once."""
    return min(max(1, CHUNK_BYTES // (4 * table.shape[1])), 2**14)


def _ranks(table: Float32[Tensor, "G N"]) -> Float32[Tensor, " N"]:
    """One number per class, such that the sum of two is larger than any one."""
    num_classes = table.shape[1]
    return torch.arange(num_classes, 2 * num_classes, dtype=torch.float32, device=table.device)


def _only(near: Float32[Tensor, "P N"], ranks: Float32[Tensor, " N"]) -> Int64[Tensor, " P"]:
    """The class of the only one in each row, `UNKNOWN` where there are several.

    Several times faster than argmax, which looks at one number at a time, and it tells of ties.
    """
    total = (near * ranks).sum(1)
    return torch.where(total < 2 * len(ranks), total - len(ranks), UNKNOWN).long()


def _grid_winners(table: Float32[Tensor, "G N"]) -> tuple[Int64[Tensor, " G"], Float32[Tensor, ""]]:
    """Each place's best class, and the largest absolute value of a best class.

    `UNKNOWN` where an earlier class is so close that rounding may bring it level: of level
    classes the first wins. A later class may be as close as it likes: the same roundings of
    values that are never larger give a result that is never larger.
    """
    best = table.amax(1)
    scale = best.abs().amax()
    least = (best - (SLACK * scale + TINY))[:, None]
    ranks = _ranks(table)
    winners = torch.empty_like(best, dtype=torch.int64)
    for start in range(0, len(table), _chunk(table)):
        part = slice(start, start + _chunk(table))
        near = torch.ge(table[part], least[part], out=torch.empty_like(table[part]))
        found = _only(near, ranks)
        several = (found == UNKNOWN).nonzero()[:, 0]
        if len(several):
            first, first_near = table[part][several].argmax(1), near[several].argmax(1)
            found[several] = torch.where(first == first_near, first, UNKNOWN)
        winners[part] = found
    return winners, scale


def _agreed(winners: Int64[Tensor, "h w"]) -> Int64[Tensor, "h w"]:
    """The class on which a place, its right and lower neighbours and the one between agree."""
    right = torch.cat([winners[:, 1:], winners[:, -1:]], dim=1)
    below = torch.cat([winners[1:], winners[-1:]])
    same = winners == right
    same = same & torch.cat([same[1:], same[-1:]]) & (winners == below)
    return torch.where(same, winners, UNKNOWN)


def _axis(source: int, target: int, device: torch.device) -> Axis:
    """The grid rows and the weights that `F.interpolate` uses for each of `target` rows.

    A formula of our own would differ from it in the last bit on some machines, and so fall
    between other rows now and then. So the weights are what it answers to four combs in which
    every fourth tooth is one: each of a row's two neighbours stands alone in its comb.
    """
    row = torch.arange(target, device=device)
    upper = ((row.double() + 0.5) * source / target - 0.5).clamp(min=0).long()
    teeth = torch.arange(source, device=device) % 4 == torch.arange(4, device=device)[:, None]
    # Lines enough for the order of sums that large maps take. The first takes the first alone.
    size = (max(1, SMALL + 1 - target), target)
    answer = _interpolated(teeth[None, :, None].float(), size)[0, :, 0]

    upper = upper - (answer[(upper - 1) % 4, row] > 0).long()
    upper = upper + (answer[(upper + 2) % 4, row] > 0).long()
    lower = (upper + 1).clamp(max=source - 1)
    lower_weight = torch.where(lower > upper, answer[(upper + 1) % 4, row], 0)
    return Axis(
        torch.stack([upper, lower], dim=1),
        torch.stack([answer[upper % 4, row], lower_weight], dim=1),
    )


def _corners(
    rows: Axis, columns: Axis, pixels: Int64[Tensor, " P"]
) -> tuple[Int64[Tensor, "P 4"], Float[Tensor, "P 4"]]:
    """The four places of the grid around each pixel of the flattened map, and their weights."""
    y = pixels.div(len(columns.places), rounding_mode="floor")
    x = pixels - y * len(columns.places)
    places = rows.places[y][:, :, None] + columns.places[x][:, None]
    weights = rows.weights[y][:, :, None] * columns.weights[x][:, None]
    return places.view(-1, 4), weights.view(-1, 4)


def _within_bounds(
    table: Float32[Tensor, "G N"], rows: Axis, columns: Axis, pixels: Int64[Tensor, " P"]
) -> tuple[Int64[Tensor, " P"], Bool[Tensor, " N"]]:
    """Classes that win at the given pixels however float32 rounds, and all that elsewhere may.

    In double precision, with bounds of each class's own rounding errors: these are much tighter
    than those of the largest values.
    """
    labels = torch.empty_like(pixels)
    classes = torch.zeros(table.shape[1], dtype=torch.bool, device=table.device)
    rows = rows._replace(weights=rows.weights.double())
    columns = columns._replace(weights=columns.weights.double())
    for start in range(0, len(pixels), max(1, _chunk(table) // 8)):
        part = slice(start, start + max(1, _chunk(table) // 8))
        places, weights = _corners(rows, columns, pixels[part])
        values = table[places].double()
        terms = values * weights[..., None]
        value = terms.sum(1)
        bound = ROUNDING * terms.abs().sum(1) + TINY
        bound = torch.where(_is_exact(places, weights, values), 0, bound)
        best = value.argmax(1, keepdim=True)
        may = value + bound > (value - bound).gather(1, best)
        # Level with it and both exact: the first class, which argmax has found.
        may.scatter_(1, best, True)
        found = torch.where(may.sum(1) == 1, best[:, 0], UNKNOWN)
        labels[part] = found
        classes |= may[found == UNKNOWN].any(0)
    return labels, classes


def _is_exact(
    places: Int64[Tensor, "P 4"], weights: Float[Tensor, "P 4"], values: Float[Tensor, "P 4 N"]
) -> Bool[Tensor, "P N"]:
    """Where float32 interpolates without any rounding, so that ties are true ties.

    Half-precision logits on 4 times the grid: few bits times few bits. Every product and sum is a
    multiple of one unit, and no larger than 2**24 of it.
    """
    # On the last row and column torch splits a weight of one in a way not known here.
    inside = (places[:, 1] > places[:, 0]) & (places[:, 2] > places[:, 0])
    short = (weights * 2**20 == (weights * 2**20).round()).all(1) & (weights.sum(1) == 1)
    largest = values.abs().amax(1).clamp(min=2.0**-103)
    power = largest / torch.frexp(largest).mantissa
    units = values * weights[..., None] * (2**23 / power)[:, None]
    return (inside & short)[:, None] & (units == units.round()).all(1)


def _class_by_class(
    logits: Float[Tensor, "N h w"],
    size: tuple[int, int],
    classes: Int64[Tensor, " n"],
    pixels: Int64[Tensor, " P"] | None = None,
) -> Int64[Tensor, " P"]:
    """The plain form's answer among the given classes, for some pixels or all of them.

    Full-size maps of a few classes at a time: each weight depends on the full size.
    """
    if len(logits) > EXACT_GROUP:
        # The last class again, until the last group is full: it can no longer win.
        classes = torch.cat([classes, classes[-1:].expand(-len(classes) % EXACT_GROUP)])
    labels = best = None
    for group in classes.split(EXACT_GROUP):
        full = _interpolated(logits[group].float().contiguous()[None], size)[0].flatten(1)
        for index, value in zip(group, full, strict=True):
            value = value if pixels is None else value[pixels]
            if labels is None or best is None:
                best, labels = value, index.expand(value.shape)
            else:
                labels = torch.where(value > best, index, labels)
                best = torch.maximum(value, best)
    assert labels is not None, "at least one class"
    return labels
