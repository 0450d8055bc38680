"""What a data set is: its classes, what its label files hold, and where its files lie.

A data set is one file in this folder that exports `SPEC`, a `DatasetSpec`. Nothing here reads an
image; `ccsnet.data` does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from ccsnet.datasets._archives import Archive, Step
from ccsnet.datasets._shards import read_index, sharded_pairs
from ccsnet.datasets._split import Pair, Split, repeated
from ccsnet.errors import InputError, unknown_name

Colour = tuple[int, int, int]
"""Red, green and blue, 0-255."""

NUM_RAW_VALUES = 65536
"""Label files hold values of 16 bits at most."""


class Lookup(NamedTuple):
    """What every possible value of a label file means."""

    table: UInt8[np.ndarray, "65536"] | UInt16[np.ndarray, "65536"]
    """Raw value -> class index, or the ignore index."""
    known: Bool[np.ndarray, "65536"]
    """False for the raw values that a label file must not hold."""
    shift: int | None
    """What to add, in 8 bits, to every known value below 256 to get its class; None if no one
    number does. In many sets one does (0 where values are classes, 255 where 0 is unlabelled and
    classes start at 1), and adding is eight times as fast as looking up."""


def ignore_index_of(num_classes: int) -> int:
    """The label of unlabelled pixels: the largest value of the smallest type that holds it too."""
    return 255 if num_classes <= 255 else 65535


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set, told once for training, evaluation, prediction and reports."""

    name: str
    """What users call it."""

    classes: tuple[str, ...]
    """Names, in the order of the class indices."""

    colours: tuple[Colour, ...]
    """How each class is painted."""

    raw_to_class: Mapping[int, int] = field(default_factory=dict)
    """Value in a label file -> class index."""

    ignore_raw: frozenset[int] | None = frozenset()
    """Values in a label file that count as unlabelled. None: every value that `raw_to_class` does
    not list; otherwise a value in neither is an error."""

    colour_to_class: Mapping[Colour, int] | None = None
    """Where label files hold colours instead: colour -> class index."""

    ignore_colours: frozenset[Colour] | None = None
    """Colours that count as unlabelled; None: all that `colour_to_class` does not list."""

    splits: Mapping[str, Split | Sequence[Split]]
    """Name of the split, such as "train", -> its files, or its parts' files."""

    licence: str
    """What the data may be used for."""

    source: str
    """Where to get the data and how to lay it out."""

    default_root: str
    """The folder that is looked in when the user names none."""

    channels: int = 3
    """Bands of an image."""

    short_side: int | None = None
    """Images are scaled so that their shorter side has this many pixels. None: as they are."""

    long_side: int | None = None
    """The longer side is never scaled beyond this. None: no limit."""

    crop: tuple[int, int] = (512, 512)
    """Height and width of a training sample."""

    window: tuple[int, int] | None = None
    """Side and stride of the windows that an image is tested in. None: the image as a whole."""

    archives: tuple[Archive, ...] = ()
    """What is downloaded."""

    steps: tuple[Step, ...] = ()
    """What is made of it before it can be read; nothing for most."""

    prepare: Callable[[Path], None] | None = None
    """Makes the data at a root that does not exist yet. It works aside and renames at the end."""

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            InputError: They do not; the text names the data set and the part.
        """
        for check in (self._class_problems, self._value_problems, self._size_problems):
            for problem in check():
                raise InputError(f"Data set {self.name!r}: {problem}")

    def _class_problems(self) -> Iterable[str]:
        num = len(self.classes)
        if not 2 <= num <= 1000:
            yield f"it has {num} classes; 2 to 1000 are possible."
        if len(self.colours) != num:
            yield f"{num} classes but {len(self.colours)} colours; give one colour per class."
        for kind, items in (("class name", self.classes), ("colour", self.colours)):
            for item in repeated(items):
                where = [i for i, other in enumerate(items) if other == item]
                yield f"the {kind} {item!r} stands for the classes {where}; make them differ."
        for colour in self.colours:
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                yield f"{colour!r} is no colour; give red, green and blue from 0 to 255."

    def _value_problems(self) -> Iterable[str]:
        if self.colour_to_class is not None and self.raw_to_class:
            yield "label files hold numbers or colours; leave out one of the two maps."
        means: Mapping[int, int] | Mapping[Colour, int] = (
            self.raw_to_class if self.colour_to_class is None else self.colour_to_class
        )
        for raw, index in means.items():
            if not 0 <= index < len(self.classes):
                yield f"raw value {raw} means class {index}; the last is {len(self.classes) - 1}."
        for raw in [*self.raw_to_class, *(self.ignore_raw or ())]:
            if not 0 <= raw < NUM_RAW_VALUES:
                yield f"raw value {raw} is not between 0 and {NUM_RAW_VALUES - 1}."
        without = set(range(len(self.classes))) - set(means.values())
        for index in sorted(without):
            yield f"no raw value means the class {self.classes[index]!r}."
        both = {*(self.ignore_raw or ()), *(self.ignore_colours or ())} & set(means)
        for raw in sorted(both):
            name = self.classes[means[raw]]  # pyright: ignore[reportArgumentType]
            yield f"raw value {raw} is both the class {name!r} and ignored; take it out of one."

    def _size_problems(self) -> Iterable[str]:
        if not self.splits:
            yield "it has no splits; name at least one."
        if self.channels < 1:
            yield f"channels is {self.channels}; at least 1 is needed."
        sizes = {"short_side": self.short_side, "long_side": self.long_side}
        sizes |= {"crop height": self.crop[0], "crop width": self.crop[1]}
        for name, size in sizes.items():
            if size is not None and size < 1:
                yield f"{name} is {size}; at least 1 pixel is needed."

    @property
    def num_classes(self) -> int:
        """How many classes there are; unlabelled is none."""
        return len(self.classes)

    @property
    def ignore_index(self) -> int:
        """The label of unlabelled pixels: the largest value of the label's type."""
        return ignore_index_of(self.num_classes)

    @property
    def label_dtype(self) -> np.dtype:
        """Type of a label map: uint8 where the classes and the ignore index fit, else uint16."""
        return np.dtype(np.uint8 if self.ignore_index == 255 else np.uint16)

    @cached_property
    def _lookup(self) -> Lookup:
        table = np.full(NUM_RAW_VALUES, self.ignore_index, self.label_dtype)
        known = np.full(NUM_RAW_VALUES, self.ignore_raw is None)
        for raw, index in self.raw_to_class.items():
            table[raw] = index
            known[raw] = True
        known[list(self.ignore_raw or ())] = True
        values = np.flatnonzero(known[:256])
        shifts = np.unique((table[values].astype(np.int64) - values) % 256)
        one = len(shifts) == 1 and self.label_dtype == np.uint8
        return Lookup(table, known, int(shifts[0]) if one else None)

    def lookup(self) -> Lookup:
        """The tables that turn a label file's values into classes; made once."""
        return self._lookup

    def parts(self, split: str) -> tuple[Split, ...]:
        """What a split consists of, most often one part.

        Raises:
            InputError: There is no such split.
        """
        if split not in self.splits:
            raise unknown_name(f"split of {self.name}", split, self.splits)
        found = self.splits[split]
        return (found,) if isinstance(found, Split) else tuple(found)

    def published_count(self, split: str) -> int | None:
        """How many images a split has as published; None where that is not known."""
        counts = [part.count for part in self.parts(split)]
        return None if None in counts else sum(count or 0 for count in counts)

    def layout(self, split: str | None = None) -> str:
        """The file patterns of one split or of all, one a line, for error texts."""
        names = self.splits if split is None else [split]
        lines = []
        for part in (part for name in names for part in self.parts(name)):
            labels = f"  with labels  {part.labels}" if part.labels else "  (no labels)"
            listed = f"  listed in  {part.names}" if part.names else ""
            lines.append(f"  {part.images}{labels}{listed}")
        return "\n".join(dict.fromkeys(lines))

    def pairs(self, root: Path, split: str, require_labels: bool = True) -> list[Pair]:
        """The images of a split with their label files, sorted by name within each part.

        Args:
            root: The data set's folder, or one of its shards.
            split: One of `splits`.
            require_labels: Refuse images without a label; otherwise their label is None.

        Raises:
            FileNotFoundError: The root, the split's folder or its list does not exist.
            InputError: The split is unknown or empty, an image has no label, or the shards are not
                whole.
        """
        parts, index = self.parts(split), read_index(root)
        if index is None:
            pairs = self._found(root, split)
        else:
            pairs = sharded_pairs(index, root, split, parts)
        twice = repeated([pair.name for pair in pairs])
        if twice:
            raise InputError(
                f"Data set {self.name!r}, split {split!r}: {len(twice)} names stand for several "
                f"images in {root}, such as {twice[0]!r}. Images differ by more than the suffix."
            )
        without = [pair for pair in pairs if pair.label is None]
        if require_labels and without:
            raise InputError(self._missing_labels(root, split, without, len(pairs)))
        return pairs

    def _found(self, root: Path, split: str) -> list[Pair]:
        """The pairs of a folder's files."""
        pairs: list[Pair] = []
        for part in self.parts(split):
            for path in (root, root / part.folder):
                if not path.is_dir():
                    raise FileNotFoundError(self._missing_folder(path, split))
            try:
                found = part.find(root)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {self.source}") from error
            if not found:
                raise InputError(self._empty_split(root, split, part))
            pairs += found
        return pairs

    def _missing_folder(self, path: Path, split: str) -> str:
        make = "`ccsnet train` makes it by itself when the whole folder is missing. "
        return (
            f"No folder {path}, where the split {split!r} of {self.name!r} is looked for. "
            f"Expected there, relative to the data set's folder:\n{self.layout(split)}\n"
            f"{make if self.prepare else ''}{self.source}"
        )

    def _empty_split(self, root: Path, split: str, part: Split) -> str:
        folder = root / part.folder
        suffixes = sorted({p.suffix for p in folder.rglob("*") if p.is_file()})
        found = f"files ending in {', '.join(suffixes)}" if suffixes else "no files"
        return (
            f"The split {split!r} of {self.name!r} has no image: nothing in {root} matches "
            f"{part.images}. Found in {folder}: {found}. "
            "Put the images there, or mend the pattern (it tells capitals from small letters)."
        )

    def _missing_labels(self, root: Path, split: str, without: list[Pair], num: int) -> str:
        patterns = [part.labels for part in self.parts(split) if part.labels is not None]
        if not patterns:
            return (
                f"The split {split!r} of {self.name!r} is published without labels. Use another "
                f"split to train or to measure: {', '.join(self.splits)}."
            )
        shown = "\n".join(f"  {pair.image}" for pair in without[:5])
        more = f"\n  and {len(without) - 5} more" if len(without) > 5 else ""
        return (
            f"{len(without)} of {num} images in the split {split!r} of {self.name!r} have no label:"
            f"\n{shown}{more}\nLabels are looked for as {root / patterns[0]}, where "
            "`*` is the image's own. Add the labels, or take these images out."
        )


def distinct(colours: Iterable[Colour]) -> tuple[Colour, ...]:
    """Colours of which the published repeats are moved by as little as makes them differ."""
    taken: list[Colour] = []
    for red, green, blue in colours:
        colour = (red, green, blue)
        shift = 0
        while colour in taken:
            shift += 1
            step = shift if blue + shift <= 255 else -shift
            colour = (red, green, blue + step)
        taken.append(colour)
    return tuple(taken)
