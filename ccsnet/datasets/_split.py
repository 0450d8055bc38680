"""Where the files of a split lie: patterns, lists and rules, from which pairs are found."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from ccsnet.errors import InputError
from ccsnet.files import read_utf8

Item = TypeVar("Item")


class Pair(NamedTuple):
    """One image and its label file."""

    name: str
    """The image's path below its split's folder, without the suffix; unique within the split."""
    image: Path
    label: Path | None


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the files of one split, or of one part of it, lie.

    Of the images that match, sorted by name, those are taken that `names` lists, that fall into
    `share`, and from these the ones from `start` to `stop`.
    """

    images: str
    """Pattern of the image files relative to the root; `*` matches within one folder level, and
    `{jpg,png}` either. Files that match `labels` are no images."""

    labels: str | None = None
    """Pattern of the label files: its first `*` stands for what the first `*` of `images` matched,
    the second for the second. None: published without labels."""

    count: int | None = None
    """How many images the published split has; another number gets a warning."""

    names: str | None = None
    """A text file relative to the root that lists the images, one a line, by name or path; what
    follows behind a blank does not matter. None: all."""

    share: tuple[float, float] = (0.0, 1.0)
    """Images whose name's hash, a number from 0 to below 1, is between these: it stays in its
    split whatever files are added."""

    start: int = 0
    """The first of the sorted images."""

    stop: int | None = None
    """The one after the last."""

    def __post_init__(self) -> None:
        """Refuse patterns that cannot name one label per image.

        Raises:
            InputError: A pattern has no `*`, `**`, or more `*` in `labels` than in `images`, or
                the share is none.
        """
        for pattern in (self.images, *([] if self.labels is None else [self.labels])):
            if "*" not in pattern or "**" in pattern or Path(pattern).is_absolute():
                raise InputError(
                    f"The pattern {pattern!r} does not say which files to take. It must be "
                    "relative to the data set's folder and hold `*` (not `**`), such as "
                    "images/train/*.jpg."
                )
        if (self.labels or "").count("*") > self.images.count("*"):
            raise InputError(
                f"The label pattern {self.labels!r} has more `*` than the image pattern "
                f"{self.images!r}. Each `*` of the labels repeats one of the images, in order."
            )
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise InputError(f"The share {self.share} of a split must lie between 0 and 1.")

    @property
    def folder(self) -> str:
        """The folders of the image pattern that come before its first `*`."""
        return re.split(r"[*{]", self.images)[0].rpartition("/")[0]

    def find(self, root: Path) -> list[Pair]:
        """The images with their label files, sorted by name; the label None where there is none.

        Raises:
            FileNotFoundError: The list of names is missing.
            InputError: The list names images that are not there.
        """
        match, is_label = _expression(self.images), _expression(self.labels or "")
        pairs = []
        # Only `*` and braces mean something; glob would also take `[` and `?` for patterns.
        globs = [re.sub(r"[\[?]", r"[\g<0>]", pattern) for pattern in _choices(self.images)]
        for image in (path for pattern in globs for path in root.glob(pattern)):
            if image.name.startswith(".") or not image.is_file():
                continue
            relative = image.relative_to(root).as_posix()
            found = match.fullmatch(relative)
            if found is None or is_label.fullmatch(relative):
                continue
            name = image.relative_to(root / self.folder).with_suffix("").as_posix()
            pairs.append(Pair(name, image, self._label(root, found.groups())))
        pairs.sort(key=lambda pair: pair.name)
        if self.names is not None:
            pairs = self._listed(root, pairs)
        if self.share != (0.0, 1.0):
            low, high = self.share
            pairs = [pair for pair in pairs if low <= name_hash(pair.name) < high]
        return pairs[self.start : self.stop]

    def _label(self, root: Path, stars: Sequence[str]) -> Path | None:
        if self.labels is None:
            return None
        for pattern in _choices(self.labels):
            words = iter(stars)
            label = root / re.sub(r"\*", lambda _, words=words: next(words), pattern)
            if label.is_file():
                return label
        return None

    def _listed(self, root: Path, pairs: list[Pair]) -> list[Pair]:
        """The pairs that the list names, in its order."""
        assert self.names is not None, "the caller has checked"
        path = root / self.names
        if not path.is_file():
            raise FileNotFoundError(f"No {path}, the list of the images of this split.")
        by_name = {pair.name: pair for pair in pairs}
        lines = filter(str.strip, read_utf8(path).splitlines())
        wanted = [self._named(line, by_name) for line in lines]
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise InputError(
                f"{path} lists {len(wanted)} images, of which {len(missing)} are not there, such "
                f"as {missing[0]!r}: nothing among {self.images} in {root} has that name. Add the "
                "images, or take them off the list."
            )
        twice = repeated(wanted)
        if twice:
            raise InputError(f"{path} lists {twice[0]!r} more than once. Leave one line of it.")
        return [by_name[name] for name in wanted]

    def _named(self, line: str, known: Collection[str]) -> str:
        """The image that a line of a list names, by its name or its path, whatever follows."""
        first = line.split()[0].removeprefix("/").removeprefix(f"{self.folder}/")
        for name in (line.strip(), line.split()[0], first):
            for shorter in (name, name.rpartition(".")[0]):
                if shorter in known:
                    return shorter
        return line.split()[0]


def _choices(pattern: str) -> list[str]:
    """The patterns without braces that one with braces stands for."""
    before, brace, rest = pattern.partition("{")
    inside, end, after = rest.partition("}")
    if not brace or not end:
        return [pattern]
    return [before + one + more for one in inside.split(",") for more in _choices(after)]


def _expression(pattern: str) -> re.Pattern[str]:
    """What a path must look like to match, with a group for each `*`."""
    text = ""
    for part in re.split(r"(\*|{[^{}]*})", pattern):
        if part == "*":
            text += "([^/]*)"
        elif part.startswith("{"):
            text += f"(?:{'|'.join(map(re.escape, part[1:-1].split(',')))})"
        else:
            text += re.escape(part)
    return re.compile(text)


def name_hash(name: str) -> float:
    """A number from 0 to below 1 that depends on nothing but the name."""
    return (
        int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64
    )


def repeated(items: Iterable[Item]) -> list[Item]:
    """The items that occur more than once."""
    seen, twice = set(), []
    for item in items:
        if item in seen and item not in twice:
            twice.append(item)
        seen.add(item)
    return twice
