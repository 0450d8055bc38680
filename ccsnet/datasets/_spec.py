"""What a data set is: its classes, what its label files hold, and where its files lie.

A data set is one file in this folder that exports `SPEC`, a `DatasetSpec`. Nothing here reads an
image; `ccsnet.data` does.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from ccsnet.errors import InputError, unknown_name

Colour = tuple[int, int, int]
"""Red, green and blue, 0-255."""

NUM_RAW_VALUES = 65536
"""Label files hold values of 16 bits at most."""


class Pair(NamedTuple):
    """One image and its label file."""

    name: str
    """The image's path below its split's folder, without the suffix; unique within the split."""
    image: Path
    label: Path | None


class Lookup(NamedTuple):
    """What every possible value of a label file means."""

    table: UInt8[np.ndarray, "65536"] | UInt16[np.ndarray, "65536"]
    """Raw value -> class index, or the ignore index."""
    known: Bool[np.ndarray, "65536"]
    """False for the raw values that a label file must not hold."""


def ignore_index_of(num_classes: int) -> int:
    """The label of unlabelled pixels: the largest value of the smallest type that holds it too."""
    return 255 if num_classes <= 255 else 65535


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the files of one split lie."""

    images: str
    """Pattern of the image files relative to the root; `*` matches within one folder level."""

    labels: str
    """Pattern of the label files: its first `*` stands for what the first `*` of `images` matched,
    the second for the second."""

    count: int | None = None
    """How many images the published split has; another number gets a warning."""

    def __post_init__(self) -> None:
        """Refuse patterns that cannot name one label per image.

        Raises:
            InputError: A pattern has no `*`, `**`, or more `*` in `labels` than in `images`.
        """
        for pattern in (self.images, self.labels):
            if "*" not in pattern or "**" in pattern or Path(pattern).is_absolute():
                raise InputError(
                    f"The pattern {pattern!r} does not say which files to take. It must be "
                    "relative to the data set's folder and hold `*` (not `**`), such as "
                    "images/train/*.jpg."
                )
        if self.labels.count("*") > self.images.count("*"):
            raise InputError(
                f"The label pattern {self.labels!r} has more `*` than the image pattern "
                f"{self.images!r}. Each `*` of the labels repeats one of the images, in order."
            )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set, told once for training, evaluation, prediction and reports."""

    name: str
    """What users call it."""

    classes: tuple[str, ...]
    """Names, in the order of the class indices."""

    colours: tuple[Colour, ...]
    """How each class is painted."""

    raw_to_class: Mapping[int, int]
    """Value in a label file -> class index."""

    ignore_raw: frozenset[int] | None
    """Values in a label file that count as unlabelled. None: every value that `raw_to_class` does
    not list; otherwise a value in neither is an error."""

    splits: Mapping[str, Split]
    """Name of the split, such as "train", -> its files."""

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
            for item in _repeated(items):
                where = [i for i, other in enumerate(items) if other == item]
                yield f"the {kind} {item!r} stands for the classes {where}; make them differ."
        for colour in self.colours:
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                yield f"{colour!r} is no colour; give red, green and blue from 0 to 255."

    def _value_problems(self) -> Iterable[str]:
        for raw, index in self.raw_to_class.items():
            if not 0 <= index < len(self.classes):
                yield f"raw value {raw} means class {index}; the last is {len(self.classes) - 1}."
        for raw in [*self.raw_to_class, *(self.ignore_raw or ())]:
            if not 0 <= raw < NUM_RAW_VALUES:
                yield f"raw value {raw} is not between 0 and {NUM_RAW_VALUES - 1}."
        without = set(range(len(self.classes))) - set(self.raw_to_class.values())
        for index in sorted(without):
            yield f"no raw value means the class {self.classes[index]!r}."
        for raw in sorted((self.ignore_raw or frozenset()) & set(self.raw_to_class)):
            name = self.classes[self.raw_to_class[raw]]
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
        return Lookup(table, known)

    def lookup(self) -> Lookup:
        """The tables that turn a label file's values into classes; made once."""
        return self._lookup

    def layout(self, split: str | None = None) -> str:
        """The file patterns of one split or of all, one a line, for error texts."""
        chosen = self.splits.values() if split is None else [self.splits[split]]
        return "\n".join(f"  {s.images}  with labels  {s.labels}" for s in chosen)

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            InputError: There is none.
        """
        if name not in self.splits:
            raise unknown_name(f"split of {self.name}", name, self.splits)
        return self.splits[name]

    def pairs(self, root: Path, split: str, require_labels: bool = True) -> list[Pair]:
        """The images of a split with their label files, sorted by name.

        Args:
            root: The data set's folder.
            split: One of `splits`.
            require_labels: Refuse images without a label; otherwise their label is None.

        Raises:
            FileNotFoundError: The root or the split's folder does not exist.
            InputError: The split is unknown or empty, or an image has no label.
        """
        patterns = self.split(split)
        folder = root / _fixed_folder(patterns.images)
        for path in (root, folder):
            if not path.is_dir():
                raise FileNotFoundError(self._missing_folder(path, split))
        match = re.compile("([^/]*)".join(map(re.escape, patterns.images.split("*"))))
        pairs = []
        for image in root.glob(patterns.images):
            if image.name.startswith(".") or not image.is_file():
                continue
            found = match.fullmatch(image.relative_to(root).as_posix())
            if found is None:
                continue
            stars = iter(found.groups())
            label = root / re.sub(r"\*", lambda _, stars=stars: next(stars), patterns.labels)
            name = image.relative_to(folder).with_suffix("").as_posix()
            pairs.append(Pair(name, image, label if label.is_file() else None))
        pairs.sort(key=lambda pair: pair.name)
        if not pairs:
            raise InputError(self._empty_split(root, split, folder))
        twice = _repeated([pair.name for pair in pairs])
        if twice:
            raise InputError(
                f"Data set {self.name!r}, split {split!r}: {len(twice)} names stand for several "
                f"images in {folder}, such as {twice[0]!r}. Images differ by more than the suffix."
            )
        without = [pair for pair in pairs if pair.label is None]
        if require_labels and without:
            raise InputError(self._missing_labels(root, split, without, len(pairs)))
        return pairs

    def _missing_folder(self, path: Path, split: str) -> str:
        make = "`ccsnet train` makes it by itself when the whole folder is missing. "
        return (
            f"No folder {path}, where the split {split!r} of {self.name!r} is looked for. "
            f"Expected there, relative to the data set's folder:\n{self.layout(split)}\n"
            f"{make if self.prepare else ''}{self.source}"
        )

    def _empty_split(self, root: Path, split: str, folder: Path) -> str:
        suffixes = sorted({p.suffix for p in folder.rglob("*") if p.is_file()})
        found = f"files ending in {', '.join(suffixes)}" if suffixes else "no files"
        return (
            f"The split {split!r} of {self.name!r} has no image: nothing in {root} matches "
            f"{self.splits[split].images}. Found in {folder}: {found}. "
            "Put the images there, or mend the pattern (it tells capitals from small letters)."
        )

    def _missing_labels(self, root: Path, split: str, without: list[Pair], num: int) -> str:
        shown = "\n".join(f"  {pair.image}" for pair in without[:5])
        more = f"\n  and {len(without) - 5} more" if len(without) > 5 else ""
        return (
            f"{len(without)} of {num} images in the split {split!r} of {self.name!r} have no label:"
            f"\n{shown}{more}\nLabels are looked for as {root / self.splits[split].labels}, where "
            "`*` is the image's own. Add the labels, or take these images out."
        )


def _repeated(items: Iterable) -> list:
    """The items that occur more than once."""
    seen, twice = set(), []
    for item in items:
        if item in seen and item not in twice:
            twice.append(item)
        seen.add(item)
    return twice


def _fixed_folder(pattern: str) -> str:
    """The folders of a pattern that come before its first `*`."""
    return pattern.partition("*")[0].rpartition("/")[0]
