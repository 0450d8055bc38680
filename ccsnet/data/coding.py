"""What label files that nobody has described hold, numbers or colours, and how much of each.

Letters: H W height and width.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from ccsnet.data.images import (
    image_size,
    label_palette,
    read_label_colours,
    read_label_values,
)
from ccsnet.data.label_values import STRIP, colour_codes, colour_of, hex_colour
from ccsnet.datasets._spec import Colour
from ccsnet.errors import InputError

MAX_CLASSES = 1000
MAX_COLOURS = 20_000
MAX_PIXELS = 300_000_000
"""About so many pixels of labels are looked at."""

RARE = 0.0005
"""Values with a smaller share may be blends of others, as a smoothed edge has them."""

VOC_BORDER = (224, 224, 192)
"""What Pascal VOC paints around objects, and others after it; it means unlabelled."""


_Palette = tuple[tuple[int, Colour], ...]
"""Values with their colours."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One class, or something unlabelled, as found in label files."""

    raw: int | str | Colour
    """The value, a range of values, or the colour."""
    share: float
    """Of all pixels that were looked at."""
    labels: int
    """In how many label files it occurs."""
    colour: Colour | None = None
    """How a palette shows it."""

    @property
    def shown(self) -> str:
        """As tables and dataset.yaml name it."""
        return hex_colour(self.raw) if isinstance(self.raw, tuple) else str(self.raw)


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What label files hold."""

    kind: str
    """"values", "ranges" or "colours"."""
    classes: tuple[Entry, ...]
    ignored: tuple[Entry, ...] = ()
    rest: bool = False
    """Whether there are blends besides, that count as unlabelled."""
    looked_at: int
    """Number of label files."""
    notes: tuple[str, ...] = ()


@dataclass
class _Survey:
    """Pixels and files of each value or colour, added up file by file."""

    pixels: Counter[int] = field(default_factory=Counter)
    files: Counter[int] = field(default_factory=Counter)

    def add(self, counts: dict[int, int]) -> None:
        self.pixels.update(counts)
        self.files.update(counts.keys())

    def shares(self) -> dict[int, float]:
        total = sum(self.pixels.values())
        return {value: self.pixels[value] / total for value in sorted(self.pixels)}


def find_coding(
    labels: Sequence[Path], complete: bool = True, progress: Callable[[], None] | None = None
) -> Coding:
    """What the label files hold, going by all of those that are given.

    Args:
        labels: The files.
        complete: Whether there are no others, which may hold more.
        progress: Called after each file.

    Raises:
        FileNotFoundError: A file has gone.
        InputError: A file cannot be read, or what the files hold cannot be classes.
    """
    labels = _affordable(labels)
    palettes: list[_Palette] = []
    values, thin, num_top = _Survey(), 0, 0
    for path in labels:
        try:
            raw = read_label_values(path)
        except InputError as error:
            if not _holds_colours(path):
                raise error from None
            return _by_colours(labels, progress)
        counts = _count_values(raw)
        values.add(counts)
        palettes.append(_used_palette(path, counts))
        if 255 in counts and len(counts) > 1:
            num_top += counts[255]
            thin += counts[255] - _inner(raw, 255)
        if progress is not None:
            progress()
    colours = _common_palette(palettes, values)
    if colours is None:
        return _by_colours(labels, progress)
    return _by_values(
        values,
        colours,
        len(labels),
        edge_like=num_top > 0 and thin >= 0.9 * num_top,
        complete=complete,
    )


def _holds_colours(path: Path) -> bool:
    try:
        read_label_colours(path)
    except InputError:
        return False
    return True


def _affordable(labels: Sequence[Path]) -> Sequence[Path]:
    """So many of the files as can be looked at quickly, evenly spread."""
    height, width = image_size(labels[0])
    num = min(len(labels), max(5, MAX_PIXELS // (height * width)))
    return [labels[i * len(labels) // num] for i in range(num)]


def _strips(pixels: np.ndarray) -> list[np.ndarray]:
    rows = max(1, STRIP // max(1, pixels.shape[1]))
    return [pixels[top : top + rows] for top in range(0, len(pixels), rows)]


def _count_values(raw: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]) -> dict[int, int]:
    counts = np.zeros(int(np.iinfo(raw.dtype).max) + 1, np.int64)
    for strip in _strips(raw):
        counts += np.bincount(strip.ravel(), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _inner(raw: np.ndarray, value: int) -> int:
    """Pixels of a value that are not near another: none of a border a few pixels wide."""
    mask = (raw == value).astype(np.uint8)
    return int(np.count_nonzero(cv2.erode(mask, np.ones((9, 9), np.uint8))))


def _used_palette(path: Path, counts: dict[int, int]) -> _Palette:
    """The colours of the values that occur."""
    palette = label_palette(path) if path.suffix.lower() not in (".tif", ".tiff") else None
    if palette is None:
        return ()
    return tuple((value, palette[value]) for value in counts if value < len(palette))


def _common_palette(palettes: list[_Palette], values: _Survey) -> dict[int, Colour] | None:
    """Value -> colour; None if files show one value in several colours: then the colour counts."""
    colours: dict[int, Colour] = {}
    for palette in palettes:
        for value, colour in palette:
            if colours.setdefault(value, colour) != colour:
                return None
    shown = [colours[value] for value in values.pixels if value in colours]
    return colours if len(set(shown)) == len(shown) == len(values.pixels) else {}


def _by_values(
    survey: _Survey,
    colours: dict[int, Colour],
    looked_at: int,
    *,
    edge_like: bool,
    complete: bool,
) -> Coding:
    shares = survey.shares()
    _check_number(len(shares), "value", next(iter(shares)))

    def entry(value: int) -> Entry:
        return Entry(
            raw=value,
            share=shares.get(value, 0.0),
            labels=survey.files[value],
            colour=colours.get(value),
        )

    main = [value for value in shares if shares[value] >= RARE]
    blends = [value for value in shares if shares[value] < RARE]
    between = all(min(main) < value < max(main) for value in blends)
    if len(blends) >= 8 and len(blends) > 2 * len(main) >= 4 and between:
        if len(main) == 2:
            return _mask(survey, main, looked_at)
        note = f"{len(blends)} rare values between the classes' look like smoothed edges"
        classes = tuple(map(entry, main))
        return Coding(kind="values", classes=classes, rest=True, looked_at=looked_at, notes=(note,))
    top = max(shares)
    others = sorted(set(shares) - {top})
    close = len(others) > 1 and min(np.diff(others)) < 16 and top - others[-1] > 1
    ignored = [top] if top in (255, 65535) and len(others) > 1 and (close or edge_like) else []
    kept = [value for value in shares if value not in ignored]
    notes = []
    if not complete and kept[-1] < min(MAX_CLASSES, 2 * len(kept)):
        # Values that are missing among these may well be in the files that were not looked at.
        missing = sorted(set(range(kept[0], kept[-1])) - set(kept))
        kept = sorted({*kept, *missing})
        if missing:
            notes.append(f"values {missing} were not seen in the labels that were looked at")
    _check_number(len(kept), "value", kept[0])
    return Coding(
        kind="values",
        classes=tuple(map(entry, kept)),
        ignored=tuple(map(entry, ignored)),
        looked_at=looked_at,
        notes=tuple(notes),
    )


def _mask(survey: _Survey, main: list[int], looked_at: int) -> Coding:
    """Two classes, parted half way between the two values that most pixels have."""
    middle = (main[0] + main[1] + 1) // 2
    total = sum(survey.pixels.values())
    low = sum(num for value, num in survey.pixels.items() if value < middle) / total
    highest = max(survey.pixels)
    return Coding(
        kind="ranges",
        classes=(
            Entry(raw=f"0-{middle - 1}", share=low, labels=survey.files[main[0]]),
            Entry(
                raw=f"{middle}-{255 if highest < 256 else 65535}",
                share=1 - low,
                labels=survey.files[main[1]],
            ),
        ),
        looked_at=looked_at,
        notes=(f"{len(survey.pixels) - 2} rare values between the two look like smoothed edges",),
    )


def _by_colours(labels: Sequence[Path], progress: Callable[[], None] | None) -> Coding:
    survey = _Survey()
    place = np.zeros(1 << 24, np.uint16)  # Of each colour seen, 0 for the others.
    seen: list[int] = []
    for path in labels:
        counts: Counter[int] = Counter()
        for strip in _strips(read_label_colours(path)):
            codes = colour_codes(strip)
            for code in np.unique(codes[place[codes] == 0]):
                seen.append(int(code))
                if len(seen) > MAX_COLOURS:
                    raise InputError(_too_many(path, len(seen), "colours"))
                place[code] = len(seen)
            numbers = np.bincount(place[codes].ravel())
            counts.update({seen[i - 1]: int(numbers[i]) for i in np.flatnonzero(numbers)})
        survey.add(counts)
        if progress is not None:
            progress()
    shares = survey.shares()
    blends = {code for code in shares if shares[code] < RARE}
    main = [code for code in shares if code not in blends]
    blended = len(blends) >= 8 and len(blends) > len(main) >= 2
    kept = main if blended else list(shares)
    if len(kept) > MAX_CLASSES:
        raise InputError(_too_many(labels[0], len(kept), "colours"))
    entries = [
        Entry(raw=colour_of(code), share=shares[code], labels=survey.files[code]) for code in kept
    ]
    ignored = [e for e in entries if e.raw == VOC_BORDER and len(entries) > 2]
    classes = [e for e in entries if e not in ignored]
    _check_number(len(classes), "colour", classes[0].shown)
    note = (
        f"{len(blends):,} more colours, {sum(shares[code] for code in blends):.2%} of the pixels, "
        "look like smoothed edges or JPEG"
    )
    return Coding(
        kind="colours",
        classes=tuple(classes),
        ignored=tuple(ignored),
        rest=blended,
        looked_at=len(labels),
        notes=(note,) if blended else (),
    )


def _check_number(num: int, kind: str, one: object) -> None:
    if num > MAX_CLASSES:
        raise InputError(
            f"The labels hold {num:,} different {kind}s, but {MAX_CLASSES} classes are possible. "
            "Numbers of instances, heights or photographs are no labels: each pixel needs the "
            "number or the colour of its class."
        )
    if num < 2:
        raise InputError(
            f"All labels that were looked at hold the one {kind} {one}: there is nothing to tell "
            "apart. Are these the right files? A class of its own is needed for what is not meant."
        )


def _too_many(path: Path, num: int, kind: str) -> str:
    return (
        f"The labels hold {num:,} {kind} or more (last looked at: {path}). These are photographs, "
        "or masks that were saved as JPEG or smoothed; each class needs one colour. Export them "
        "again as PNG, and scale them by nearest neighbour only."
    )
