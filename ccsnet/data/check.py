"""Find what is wrong with a split, and what its images are like, before training."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ccsnet.data.images import image_size, read_image, read_label
from ccsnet.data.loading import sizes_differ
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError


def check_labels(
    spec: DatasetSpec,
    root: Path,
    split: str,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Int64[np.ndarray, " num_classes"]:
    """Find what is wrong with a split before training does, all of it at once.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of its splits.
        limit: Look at so many pairs, spread evenly. None: all.
        progress: Called with the number of pairs done and their total.

    Returns:
        How many pixels of each class the labels that were looked at hold.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: Labels are missing, unreadable, of another size than their image or hold values
            that the data set does not name, or hold no class at all.
    """
    pairs = spec.pairs(root, split, require_labels=False)
    published = spec.split(split).count
    if published not in (None, len(pairs)):
        warnings.warn(
            f"The split {split!r} of {spec.name!r} has {published} images as published, but {root} "
            f"holds {len(pairs)}. Is the data complete?",
            stacklevel=2,
        )
    problems = [
        f"{pair.image} has no label; looked for {root / spec.split(split).labels}."
        for pair in pairs
        if pair.label is None
    ]
    chosen = _spread([pair for pair in pairs if pair.label is not None], limit)
    counts = np.zeros(spec.num_classes, np.int64)
    for done, pair in enumerate(chosen, start=1):
        try:
            counts += _checked_counts(pair, spec)
        except (InputError, OSError) as error:
            problems.append(str(error))
        if progress is not None:
            progress(done, len(chosen))
    if not problems and not counts.any():
        problems.append(
            f"No pixel of the {len(chosen)} labels has a class: all are unlabelled. Check "
            "`raw_values` and `ignore_raw`."
        )
    if problems:
        shown = "\n".join(f"- {problem}" for problem in problems[:10])
        more = f"\nand {len(problems) - 10} more." if len(problems) > 10 else ""
        raise InputError(
            f"The split {split!r} of {spec.name!r} in {root} has {len(problems)} "
            f"problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}"
        )
    return counts


def _checked_counts(pair: Pair, spec: DatasetSpec) -> Int64[np.ndarray, " num_classes"]:
    assert pair.label is not None, "the caller leaves out pairs without label"
    size = image_size(pair.image)
    label = read_label(pair.label, spec)
    if label.shape != size:
        raise InputError(sizes_differ(pair, size, label.shape))
    return np.bincount(label.ravel(), minlength=spec.num_classes)[: spec.num_classes]


def channel_statistics(
    spec: DatasetSpec, root: Path, split: str, limit: int = 200
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band, in the files' own units.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of its splits.
        limit: Read so many images, spread evenly.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: An image cannot be used.
    """
    total, squares, num = np.zeros(spec.channels), np.zeros(spec.channels), 0
    for pair in _spread(spec.pairs(root, split, require_labels=False), limit):
        values = read_image(pair.image, spec.channels).reshape(-1, spec.channels)
        values = values.astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        num += len(values)
    mean = total / num
    deviation = np.sqrt(np.maximum(squares / num - mean**2, 0))
    # A band that never changes would be divided by nothing.
    deviation[deviation == 0] = 1
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _spread(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """So many pairs, evenly spread over all."""
    if limit is None or len(pairs) <= limit:
        return pairs
    return [pairs[math.floor(i * len(pairs) / limit)] for i in range(limit)]
