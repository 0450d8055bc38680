"""Rare classes: how common each is, and what is done for those that are not.

Three settings, all off by default: `class_weights` in the loss, `repeat_threshold` for how often an
image is shown, `rare_crop` for what a crop shows of it. They share one scan of the labels.
"""

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ccsnet.data.images import read_label
from ccsnet.data.workers import in_processes
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError
from ccsnet.files import atomic_path, cache_folder
from ccsnet.progress import Reporter, Silent

Item = TypeVar("Item")

ClassWeights = Literal["none", "auto"] | tuple[float, ...]
"""How much a pixel of each class counts in the loss."""

WEIGHT_LIMITS = (0.1, 10.0)
"""Suggested weights stay between these: a class of a few pixels would drown all others."""

TEMPERATURE = 0.01
"""Of the odds of rare classes. Source: DAFormer (Hoyer et al., CVPR 2022)."""

FORMAT = 1  # Of the files in the cache; another number makes them be written anew.


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """So many items, evenly spread over all; None: all."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


class LabelScan(NamedTuple):
    """Which classes the labels of a split hold; N classes, `images` in the order of the pairs."""

    pixels: Int64[np.ndarray, " N"]
    """Of each class."""
    pixels_where: Int64[np.ndarray, " N"]
    """Labelled pixels of the images that hold the class."""
    present: Bool[np.ndarray, "images N"]
    """Whether an image holds a class."""


def class_counts(label: np.ndarray, num_classes: int) -> Int64[np.ndarray, " N"]:
    """How many pixels each class has; unlabelled ones are not counted."""
    return np.bincount(label.ravel(), minlength=num_classes)[:num_classes]


def suggested_weights(
    pixels: Int64[np.ndarray, " N"], pixels_where: Int64[np.ndarray, " N"]
) -> tuple[float, ...]:
    """Median-frequency balancing, within `WEIGHT_LIMITS`; 1 for classes that never occur.

    A class's frequency is its share of the labelled pixels in the images that hold it; its weight
    the median of all frequencies divided by its own.

    Source: Eigen and Fergus, ICCV 2015 (arXiv 1411.4734). The limits are ours.
    """
    occurs = pixels > 0
    if not occurs.any():
        return (1.0,) * len(pixels)
    frequency = pixels[occurs] / pixels_where[occurs]
    weights = np.ones(len(pixels))
    weights[occurs] = np.clip(np.median(frequency) / frequency, *WEIGHT_LIMITS)
    return tuple(round(float(weight), 4) for weight in weights)


def settle_class_weights(
    setting: ClassWeights, spec: DatasetSpec, root: Path, split: str, workers: int = -1
) -> ClassWeights:
    """Class weights with `auto` replaced by numbers.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The weights cannot be used, or a label cannot.
    """
    if setting == "none":
        return setting
    if setting == "auto":
        scan = scan_labels(spec, root, split, workers=workers)
        return suggested_weights(scan.pixels, scan.pixels_where)
    if len(setting) != spec.num_classes:
        raise InputError(
            f"class_weights has {len(setting)} numbers, the data set {spec.name!r} has "
            f"{spec.num_classes} classes. Give one for each in their order, or auto."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in setting) or not any(setting):
        raise InputError(
            f"class_weights is {setting}; weights must be 0 or more, and not all of them 0."
        )
    return setting


def repeat_factors(
    present: Bool[np.ndarray, "images N"], threshold: float
) -> Float64[np.ndarray, " images"]:
    """How often each image is shown in an epoch: at least once, more often with rare classes.

    A class that is in a share f of the images asks for max(1, sqrt(threshold / f)); an image
    follows the rarest of its classes.

    Source: repeat-factor sampling of LVIS (Gupta et al., CVPR 2019).
    """
    share = present.mean(axis=0)
    wanted = np.sqrt(threshold / np.maximum(share, 1 / max(len(present), 1)))
    return np.where(present, np.maximum(wanted, 1), 1).max(axis=1, initial=1)


def epoch_length(factors: Float64[np.ndarray, " images"]) -> int:
    """Samples in an epoch of repeated images; the same in every epoch."""
    return math.ceil(factors.sum() - 1e-9)


def repeated_order(
    seed: int, epoch: int, factors: Float64[np.ndarray, " images"]
) -> Int64[np.ndarray, " samples"]:
    """The order in which an epoch shows its images, each about as often as its factor.

    An image is shown its factor's whole part or once more, at random and right on average.
    """
    length = epoch_length(factors)
    # Another stream than that of `sample_order` and those of the samples.
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))
    shuffled = rng.permutation(len(factors))
    # Systematic sampling: images lie on a line, each as long as its factor, and a comb with teeth
    # one apart is laid over it. So counts add up to the same number in every epoch, without which
    # sample n of a run could not be told from n alone.
    ends = np.cumsum(factors[shuffled])
    ends *= length / ends[-1]
    ends[-1] = length
    teeth = np.floor(ends + rng.random()).astype(np.int64)
    counts = np.diff(teeth, prepend=0)
    return rng.permutation(np.repeat(shuffled, counts))


def rare_class_odds(pixels: Int64[np.ndarray, " N"]) -> tuple[float, ...]:
    """How likely a crop is to look for each class: the rarer, the likelier.

    Proportional to exp((1 - share of the pixels) / TEMPERATURE), 0 for classes that never occur.

    Source: rare-class sampling of DAFormer (Hoyer et al., CVPR 2022), which draws images so.
    """
    share = pixels / max(int(pixels.sum()), 1)
    occurs = pixels > 0
    least = share[occurs].min() if occurs.any() else 0.0
    # Taken from the rarest, because exp(1 / 0.01) would leave the others no digits.
    odds = np.where(occurs, np.exp((least - share) / TEMPERATURE), 0.0)
    # A class that is everywhere stays possible: it may be all that an image holds.
    odds = np.where(occurs, np.maximum(odds, 1e-12), 0.0)
    return tuple((odds / max(odds.sum(), 1e-300)).tolist())


_last: tuple[str, LabelScan] | None = None


def scan_labels(
    spec: DatasetSpec,
    root: Path,
    split: str,
    *,
    workers: int = -1,
    reporter: Reporter | None = None,
) -> LabelScan:
    """Look through all labels of a split, once: the result is kept in the user's cache folder.

    It is looked through again when a label's size or time or the meaning of its values changes.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: A label is missing or cannot be used.
    """
    global _last
    pairs = spec.pairs(root, split)
    key = _fingerprint(spec, pairs)
    if _last is not None and _last[0] == key:
        return _last[1]
    path = _cache_path(root, split)
    scan = _read_kept(path, key, (len(pairs), spec.num_classes))
    if scan is None:
        scan = _scan(spec, pairs, split, workers, reporter or Silent())
        _keep(path, key, scan)
    _last = key, scan
    return scan


def _scan(
    spec: DatasetSpec, pairs: Sequence[Pair], split: str, workers: int, reporter: Reporter
) -> LabelScan:
    pixels = np.zeros(spec.num_classes, np.int64)
    pixels_where = np.zeros(spec.num_classes, np.int64)
    present = np.zeros((len(pairs), spec.num_classes), bool)
    reporter.start(f"classes of {split}", len(pairs))
    found = in_processes(partial(_pair_counts, spec=spec), pairs, workers)
    for index, counts in enumerate(found):
        pixels += counts
        present[index] = counts > 0
        pixels_where[present[index]] += counts.sum()
        reporter.advance()
    reporter.end()
    return LabelScan(pixels, pixels_where, present)


def _pair_counts(pair: Pair, spec: DatasetSpec) -> Int64[np.ndarray, " N"]:
    assert pair.label is not None, "pairs without label are refused before"
    return class_counts(read_label(pair.label, spec), spec.num_classes)


def _fingerprint(spec: DatasetSpec, pairs: Sequence[Pair]) -> str:
    """What the labels are and mean, as far as it can be told without reading them."""
    lookup = spec.lookup()
    digest = hashlib.sha256(lookup.table.tobytes() + lookup.known.tobytes())
    digest.update(repr((spec.num_classes, spec.colour_to_class, spec.ignore_colours)).encode())
    for pair in pairs:
        assert pair.label is not None, "pairs without label are refused before"
        status = pair.label.stat()
        digest.update(f"{pair.label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _cache_path(root: Path, split: str) -> Path:
    """One file per folder and split, so that old ones do not pile up."""
    name = hashlib.sha256(f"{root.resolve()}\0{split}".encode()).hexdigest()[:24]
    return cache_folder() / "labels" / f"{name}.npz"


def _read_kept(path: Path, key: str, shape: tuple[int, int]) -> LabelScan | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) != key or int(kept["format"]) != FORMAT:
                return None
            present = np.unpackbits(kept["present"], axis=1, count=shape[1]).astype(bool)
            scan = LabelScan(kept["pixels"], kept["pixels_where"], present)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # None kept, or damaged: it is made again.
    return scan if scan.present.shape == shape else None


def _keep(path: Path, key: str, scan: LabelScan) -> None:
    """Where the folder cannot be written to, nothing is kept."""
    # A file object, because np.savez would add a suffix to another name.
    with (
        contextlib.suppress(OSError),
        atomic_path(path, durable=False) as aside,
        aside.open("wb") as file,
    ):
        np.savez(
            file,
            key=np.array(key),
            format=np.array(FORMAT),
            pixels=scan.pixels,
            pixels_where=scan.pixels_where,
            present=np.packbits(scan.present, axis=1),
        )
