"""A data set as one HTML page: samples, classes and their shares, what training sees of them."""

import base64
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np
from jaxtyping import Integer, UInt8, UInt16

from ccsnet.data.images import read_image, read_label
from ccsnet.data.opening import DataConfig, augmentation, read_pair
from ccsnet.data.sampling import class_counts, spread
from ccsnet.data.transforms import augment
from ccsnet.data.workers import in_processes
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.draw import colourise, overlay
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.progress import Reporter, Silent

LABELS_COUNTED = 2000
"""So many labels, spread over the splits, tell the classes' shares and where each is large."""

SAMPLE_WIDTH, EXAMPLE_WIDTH, VIEW_WIDTH = 460, 280, 220
"""Pixels in the page."""

AUGMENTED, VIEWS = 3, 6
"""Images that are shown as training sees them, and how often each."""


class SplitRow(NamedTuple):
    """A line of the table of splits."""

    name: str
    images: str
    published: str
    labels: str


class ClassRow(NamedTuple):
    """A line of the table of classes."""

    index: int
    name: str
    colour: str
    share: str
    width: float
    """Of the bar, in rem."""
    images: str


class Shown(NamedTuple):
    """Pictures beside each other."""

    pictures: list[str]
    """Data URLs."""
    caption: str


class Example(NamedTuple):
    """A class and an image that shows much of it."""

    name: str
    colour: str
    source: str
    caption: str


@dataclass
class Page:
    """What the template shows."""

    name: str
    lead: str
    licence: str
    source: str
    splits: list[SplitRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counted: str = ""
    classes: list[ClassRow] = field(default_factory=list)
    samples: list[Shown] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    augmentation: str = ""
    views: list[Shown] = field(default_factory=list)


def write_page(
    path: Path,
    spec: DatasetSpec,
    root: Path,
    *,
    num_images: int = 12,
    workers: int = -1,
    reporter: Reporter | None = None,
) -> Page:
    """Write the page, one file without links to others; returns what it shows.

    What cannot be read is told in the page.

    Args:
        path: Where to.
        spec: The data set.
        root: Its folder.
        num_images: Samples over all splits.
        workers: Processes that read labels; -1 takes as many as there are processors.
        reporter: Who is told how it goes.

    Raises:
        FileNotFoundError: No split is there.
        InputError: No split can be used.
    """
    if num_images < 1:
        raise InputError(f"The number of images is {num_images}; at least 1 is needed.")
    page = Page(
        spec.name,
        f"{spec.num_classes} classes, {_plural(spec.channels, 'band')}. In {root}.",
        spec.licence,
        spec.source,
    )
    pairs = _pairs(page, spec, root)
    labelled = [pair for pair in pairs if pair[1].label is not None]
    reporter = reporter or Silent()
    _show_classes(page, spec, spread(labelled, LABELS_COUNTED), workers, reporter)
    samples = _spread_over_splits(pairs, num_images)
    reporter.start("drawing", len(samples))
    for split, pair in samples:
        _show_sample(page, spec, split, pair)
        reporter.advance()
    reporter.end()
    training = [p for s, p in labelled if s == DataConfig.train_split] or [p for _, p in labelled]
    _show_views(page, spec, spread(training, AUGMENTED))
    page.problems = list(dict.fromkeys(page.problems))
    template = importlib.resources.files("ccsnet.data").joinpath("browse.html").read_text("utf-8")
    text = jinja2.Environment(autoescape=True).from_string(template).render(page=page)
    with atomic_path(path) as aside:
        aside.write_text(text, "utf-8")
    return page


def displayable(
    image: UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"],
) -> UInt8[np.ndarray, "H W 3"]:
    """An image of any bands and depth as RGB: its first three bands, or its first as grey.

    What is not RGB of 8 bits is stretched from its 1st to its 99th percentile.
    """
    bands = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return np.ascontiguousarray(bands)
    low, high = np.percentile(bands[::4, ::4], (1, 99), axis=(0, 1))
    stretched = 255 * (bands - low) / np.maximum(high - low, 1)
    return stretched.clip(0, 255).astype(np.uint8)


def _pairs(page: Page, spec: DatasetSpec, root: Path) -> list[tuple[str, Pair]]:
    """The pairs of all splits that are there, each with its split's name."""
    found: list[tuple[str, Pair]] = []
    errors: list[Exception] = []
    for split in spec.splits:
        published = spec.published_count(split)
        pairs: list[Pair] = []
        try:
            pairs = spec.pairs(root, split, require_labels=False)
        except (InputError, FileNotFoundError) as error:
            errors.append(error)
        labels = sum(pair.label is not None for pair in pairs)
        row = SplitRow(
            split, str(len(pairs)), "-" if published is None else str(published), str(labels)
        )
        page.splits.append(row)
        found += [(split, pair) for pair in pairs]
    if not found:
        raise errors[0]
    page.problems += [str(error) for error in errors]
    return found


class _Counts(NamedTuple):
    counts: np.ndarray | None
    problem: str | None = None


def _count(item: tuple[str, Pair], spec: DatasetSpec) -> _Counts:
    """Pixels of each class, or what is wrong."""
    label = item[1].label
    assert label is not None, "the caller takes those with labels"
    try:
        return _Counts(class_counts(read_label(label, spec), spec.num_classes))
    except (InputError, OSError) as error:
        return _Counts(None, str(error))


def _show_classes(
    page: Page,
    spec: DatasetSpec,
    labelled: Sequence[tuple[str, Pair]],
    workers: int,
    reporter: Reporter,
) -> None:
    pixels = np.zeros(spec.num_classes, np.int64)
    images = np.zeros(spec.num_classes, np.int64)
    largest = np.zeros(spec.num_classes)
    where: list[Pair | None] = [None] * spec.num_classes
    num = 0
    reporter.start("counting", len(labelled))
    found = in_processes(partial(_count, spec=spec), labelled, workers)
    for (_, pair), (counts, problem) in zip(labelled, found, strict=True):
        reporter.advance()
        if counts is None:
            page.problems.append(problem or "")
            continue
        num += 1
        pixels += counts
        images += counts > 0
        shares = counts / max(int(counts.sum()), 1)
        for index in np.flatnonzero(shares > largest):
            where[index] = pair
        largest = np.maximum(largest, shares)
    reporter.end()
    total = max(int(pixels.sum()), 1)
    page.counted = f"Counted in {_plural(num, 'label')}, spread evenly over the splits."
    for index, name in enumerate(spec.classes):
        share = pixels[index] / total
        colour = f"rgb{tuple(spec.colours[index])}"
        row = ClassRow(
            index,
            name,
            colour,
            f"{100 * share:.2f}" if pixels[index] else "-",
            round(float(8 * pixels[index] / max(int(pixels.max()), 1)), 2),
            f"{100 * images[index] / max(num, 1):.1f}" if pixels[index] else "-",
        )
        page.classes.append(row)
        pair = where[index]
        if pair is not None:
            source = _class_picture(pair, spec, index)
            caption = f"{100 * largest[index]:.1f} % of {pair.name}"
            if source is not None:
                page.examples.append(Example(name, colour, source, caption))


def _class_picture(pair: Pair, spec: DatasetSpec, index: int) -> str | None:
    """The image, all but one class of it dimmed; None where it cannot be read."""
    try:
        image, label = read_pair(pair, spec)
    except (InputError, OSError):
        return None  # The sample or `data check` tells why.
    image, label = _shrunk(displayable(image), label, EXAMPLE_WIDTH)
    dim = cv2.addWeighted(image, 0.35, np.full_like(image, 128), 0.25, 0)
    return _jpeg(np.where((label == index)[..., None], image, dim))


def _show_sample(page: Page, spec: DatasetSpec, split: str, pair: Pair) -> None:
    """One image with its label, if it has one."""
    try:
        image = label = None
        if pair.label is None:
            image = read_image(pair.image, spec.channels)
        else:
            image, label = read_pair(pair, spec)
    except (InputError, OSError) as error:
        page.problems.append(str(error))
        return
    caption = f"{split}: {pair.name}, {image.shape[0]} x {image.shape[1]}"
    image, label = _shrunk(displayable(image), label, SAMPLE_WIDTH)
    pictures = [_jpeg(image)]
    if label is not None:
        pictures += [
            _png(colourise(label, spec.colours)),
            _jpeg(overlay(image, label, spec.colours)),
        ]
    page.samples.append(Shown(pictures, caption))


def _show_views(page: Page, spec: DatasetSpec, pairs: Sequence[Pair]) -> None:
    """Random samples of a few images, made by the settings that training starts from."""
    how = augmentation(spec, DataConfig(dataset=spec.name))
    low, high = how.scale
    page.augmentation = (
        f"Scaled by {low:g} to {high:g}, cropped to {how.crop[0]} x {how.crop[1]}, mirrored, "
        "recoloured; black is padding. Below each the label over it."
    )
    for number, pair in enumerate(pairs):
        try:
            image, label = read_pair(pair, spec)
        except (InputError, OSError):
            continue
        pictures = []
        for view in range(VIEWS):
            made, truth = augment(image, label, np.random.default_rng((number, view)), how)
            small = _shrunk(displayable(made), truth, VIEW_WIDTH)
            assert small[1] is not None, "a label was given"
            painted = overlay(small[0], small[1], spec.colours)
            pictures.append(_jpeg(np.concatenate([small[0], painted])))
        page.views.append(Shown(pictures, pair.name))


def _shrunk(
    image: UInt8[np.ndarray, "H W 3"], label: Integer[np.ndarray, "H W"] | None, width: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Integer[np.ndarray, "h w"] | None]:
    """An image and its label no wider and no higher than the page shows them."""
    factor = min(1.0, width / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if label is not None:
        label = np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT))
    return image, label


def _spread_over_splits(pairs: Sequence[tuple[str, Pair]], num: int) -> list[tuple[str, Pair]]:
    """So many pairs, as many of each split as can be."""
    splits: dict[str, list[tuple[str, Pair]]] = {}
    for item in pairs:
        splits.setdefault(item[0], []).append(item)
    shares = dict.fromkeys(splits, 0)
    # One for each split in turn, so that small splits leave theirs to the others.
    while sum(shares.values()) < min(num, len(pairs)):
        for split in splits:
            if sum(shares.values()) < num and shares[split] < len(splits[split]):
                shares[split] += 1
    return [item for split in splits for item in spread(splits[split], shares[split])]


def _jpeg(rgb: np.ndarray) -> str:
    return _data_url(".jpg", "image/jpeg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 85])


def _png(rgb: np.ndarray) -> str:
    return _data_url(".png", "image/png", rgb, [])


def _data_url(suffix: str, kind: str, rgb: np.ndarray, options: list[int]) -> str:
    done, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    assert done, "OpenCV encodes any 8-bit image"
    return f"data:{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _plural(num: int, what: str) -> str:
    return f"{num} {what}" + "s" * (num != 1)
