"""Where images and labels lie in a folder that nobody has described."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccsnet.data.images import read_image
from ccsnet.errors import InputError

SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm"),
}
JPEG = (".jpg", ".jpeg")

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IMAGE_WORDS = {
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics"),
    *("rgb", "input", "inputs", "frame", "frames", "sat", "ortho", "raw"),
}
LABEL_WORDS = {
    *("label", "labels", "lbl", "mask", "masks", "annotation", "annotations", "annot", "anno"),
    *("ann", "gt", "gts", "truth", "groundtruth", "seg", "segs", "segmentation", "segmentations"),
    *("segmap", "target", "targets", "manual", "matte"),
}
LESS_LIKELY = {
    *("instance", "instances", "inst", "color", "colour", "edge", "edges", "depth"),
    *("overlay", "preview", "object"),
}
"""Words in names of files that show labels in another way beside the labels themselves."""

MAX_VARIANTS = 6
SAMPLE = 1000
"""Of so many files of a group it is asked whether another group has their counterparts."""

_SPLIT = re.compile(
    rf"(.*[^a-z]|)({'|'.join(sorted(SPLITS, key=len, reverse=True))})"
    r"([^a-z].*|annot|images?|imgs?|labels?|masks?|gt|)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Patterns for `images` and `labels` of a dataset.yaml."""

    images: str
    labels: str
    splits: dict[str, str]
    """Name of the split -> how its folder is spelt, where the patterns hold {split}."""


class _File(NamedTuple):
    dirs: tuple[str, ...]
    """The folders on the way, {split} in place of the split's name."""
    split: str
    stem: str
    suffix: str


class _Group(NamedTuple):
    """Files that one pattern stands for."""

    dirs: tuple[str, ...]
    before: str
    after: str
    suffix: str
    files: list[_File]

    @property
    def pattern(self) -> str:
        star = "" if self._whole else "*"
        return "/".join((*self.dirs, f"{self.before}{star}{self.after}{self.suffix}"))

    @property
    def _whole(self) -> bool:
        """Whether all files have one name, each in its own folder."""
        return all(f.stem in (self.before, self.after) for f in self.files[:SAMPLE])

    @property
    def parts(self) -> set[str]:
        return {*self.dirs, self.before, self.after} - {""}

    def keys(self, files: Iterable[_File]) -> Iterator[str]:
        """What an image and its label have in common."""
        stars = [i for i, part in enumerate(self.dirs) if part == "*"]
        for file in files:
            folders = "/".join(file.dirs[i] for i in stars)
            core = file.stem[len(self.before) : len(file.stem) - len(self.after)]
            yield f"{file.split}/{folders}/{core}"


def find_layout(folder: Path) -> Layout:
    """The patterns by which most labels have their image.

    Raises:
        InputError: There are no images, no labels, or no names that fit.
    """
    files = [file for path in image_files(folder) if (file := _parsed(path))]
    if not files:
        raise InputError(
            f"{folder} holds no image: looked in it and all folders below for files that end in "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    # By pattern, so that of two equals the first in the alphabet is taken.
    groups = sorted(_groups(files), key=lambda group: group.pattern)
    image, label = _best_pair(folder, files, groups)
    found = set(image.keys(image.files)) & set(label.keys(label.files))
    spelt = {key.partition("/")[0] for key in found} - {""}
    patterns = _with_suffixes(image, label, groups), _with_suffixes(label, image, groups)
    splits = {SPLITS[word.lower()]: word for word in sorted(spelt)}
    if len(splits) < 2:
        one = next(iter(splits.values()), "")
        patterns = tuple(pattern.replace("{split}", one) for pattern in patterns)
        splits = {}
    return Layout(images=patterns[0], labels=patterns[1], splits=splits)


def image_files(folder: Path) -> Iterator[str]:
    """Paths below the folder, sorted, of what may be images or labels.

    Links to folders are followed, for data often lies on another disk; not in circles.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        inside = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield name if inside == "." else f"{inside}/{name}"


def _parsed(path: str) -> _File | None:
    inside, _, name = path.rpartition("/")
    dirs, split = _template(inside)
    if "{" in path or "}" in path or "*" in path:
        return None  # A pattern could not name it.
    suffix = Path(name).suffix
    return _File(dirs, split, name.removesuffix(suffix), suffix)


@cache
def _template(inside: str) -> tuple[tuple[str, ...], str]:
    dirs, split = [], ""
    for part in inside.split("/") if inside else ():
        found = _SPLIT.fullmatch(part)
        if found and split in ("", found[2]):
            split = found[2]
            part = f"{found[1]}{{split}}{found[3]}"
        dirs.append(part)
    return tuple(dirs), split


@cache
def _words(text: str) -> frozenset[str]:
    """The words of a name, small: leftImg8bit is left, img and bit."""
    return frozenset(word.lower() for word in _WORD.findall(text.replace("{split}", " ")))


def _groups(files: list[_File]) -> Iterator[_Group]:
    """All ways of reading the files as patterns; a file is in several."""
    buckets: dict[tuple, list[_File]] = {}
    for file in files:
        anchors = tuple(
            part if "{" in part or _words(part) & (IMAGE_WORDS | LABEL_WORDS) else None
            for part in file.dirs
        )
        buckets.setdefault((anchors, file.suffix), []).append(file)
    for (_, suffix), together in buckets.items():
        folders: dict[tuple[str, ...], list[_File]] = {}
        for file in together:
            folders.setdefault(file.dirs, []).append(file)
        columns = zip(*folders, strict=True)
        starred = tuple(parts[0] if len(set(parts)) == 1 else "*" for parts in map(list, columns))
        choices = {starred: together}
        if len(folders) <= MAX_VARIANTS:
            choices |= folders
        for dirs, inside in choices.items():
            for before, after, part in _variants(inside):
                yield _Group(dirs, before, after, suffix, part)


def _variants(files: list[_File]) -> Iterator[tuple[str, str, list[_File]]]:
    """The files as they are, and those whose names begin or end with one and the same word."""
    yield "", "", files
    yield from _endings(files, "")
    first: dict[str, list[_File]] = {}
    for file in files:
        found = re.match(r"[^_\-. ]+[_\-. ](?=.)", file.stem)
        first.setdefault(found[0] if found else "", []).append(file)
    for word, part in _frequent(first, len(files)):
        yield word, "", part


def _endings(files: list[_File], known: str) -> Iterator[tuple[str, str, list[_File]]]:
    last: dict[str, list[_File]] = {}
    for file in files:
        core = file.stem.removesuffix(known)
        found = re.search(r"[_\-. ][^_\-. ]+$", core)
        last.setdefault(found[0] if found else core, []).append(file)
    for word, part in _frequent(last, len(files)):
        yield "", word + known, part
        if (word + known).count("_") < 3 and any(f.stem != word + known for f in part):
            yield from _endings(part, word + known)


def _frequent(words: dict[str, list[_File]], num: int) -> list[tuple[str, list[_File]]]:
    """The words that many names share; numbers are no words."""
    many = [
        (word, part)
        for word, part in words.items()
        if len(part) >= max(2, num // 20) and re.search("[A-Za-z]", word)
    ]
    return sorted(many, key=lambda item: -len(item[1]))[:MAX_VARIANTS]


def _best_pair(folder: Path, files: list[_File], groups: list[_Group]) -> tuple[_Group, _Group]:
    samples = [set(g.keys(g.files[:: max(1, len(g.files) // SAMPLE)])) for g in groups]
    fits: list[tuple[int, tuple, _Group, _Group]] = []
    for image in groups:
        keys = set(image.keys(image.files))
        for label, sample in zip(groups, samples, strict=True):
            if (
                image.dirs.count("*") != label.dirs.count("*")
                or image.pattern == label.pattern
                or not image.pattern.count("*") == label.pattern.count("*") > 0
            ):
                continue
            hits = len(keys & sample) * len(label.files) // len(sample)
            fit = _fit(image, label)
            if hits == 0 or fit < 0:
                continue
            doubt = len(LESS_LIKELY & set().union(*map(_words, label.parts - image.parts)))
            train = SPLITS.get(image.files[0].split.lower()) == "train"
            long = len(image.pattern) + len(label.pattern)
            fits.append((hits, (fit, -doubt, hits, train, -long), image, label))
    most = max((hits for hits, *_ in fits), default=0)
    # What names say counts most, but a few strays with telling names must not outweigh the rest.
    likely = [found for found in fits if found[0] >= most / 5]
    chosen = max(likely, key=lambda found: found[1])[2:] if likely else None
    if chosen is None:
        raise InputError(_no_pairs(folder, files, groups))
    if chosen[1].suffix.lower() in JPEG:
        raise InputError(
            f"The labels of {folder} seem to be {chosen[1].pattern}, but JPEG does not keep values "
            "as they were. Export them again as PNG; of a mask with two classes, the nearer of the "
            "two values of every pixel can be saved."
        )
    image, label = chosen
    if _fit(image, label) < 1 and _fewer_colours(folder, image, label):
        return label, image
    return image, label


def _fewer_colours(folder: Path, image: _Group, label: _Group) -> bool:
    """Whether the names have it the wrong way round, going by one pair of files."""
    both = {key: file for key, file in zip(image.keys(image.files), image.files, strict=True)}
    pair = next(
        (both[key], file)
        for key, file in zip(label.keys(label.files), label.files, strict=True)
        if key in both
    )
    counts = []
    for file in pair:
        dirs = (part.replace("{split}", file.split) for part in file.dirs)
        try:
            pixels = read_image(folder.joinpath(*dirs, file.stem + file.suffix))
        except InputError:
            return False
        counts.append(len(np.unique(pixels.reshape(-1, 3), axis=0)))
    return counts[0] < counts[1]


def _fit(image: _Group, label: _Group) -> float:
    """How much the names say that the one are images and the other labels; below 0: the reverse."""
    image_words = set().union(*map(_words, image.parts - label.parts))
    label_words = set().union(*map(_words, label.parts - image.parts))
    fit = bool(label_words & LABEL_WORDS) + bool(image_words & IMAGE_WORDS - LABEL_WORDS)
    fit -= bool(image_words & LABEL_WORDS) + bool(label_words and label_words <= IMAGE_WORDS)
    fit += (image.suffix.lower() in JPEG) / 2 - (label.suffix.lower() in JPEG)
    return fit


def _with_suffixes(group: _Group, other: _Group, groups: list[_Group]) -> str:
    """The pattern, with the other suffixes under which more of the same files lie."""
    taken, wanted = set(group.keys(group.files)), set(other.keys(other.files))
    suffixes = [group.suffix]
    for more in groups:
        if more[:3] != group[:3] or more.suffix in suffixes or more.pattern == other.pattern:
            continue
        keys = set(more.keys(more.files))
        if keys & wanted and not keys & taken:
            suffixes.append(more.suffix)
            taken |= keys
    if len(suffixes) == 1:
        return group.pattern
    names = ",".join(sorted(suffix[1:] for suffix in suffixes))
    return f"{group.pattern.removesuffix(group.suffix)}.{{{names}}}"


def _no_pairs(folder: Path, files: list[_File], groups: list[_Group]) -> str:
    counts = Counter("/".join((*file.dirs, f"*{file.suffix}")) for file in files)
    shown = "\n".join(f"  {pattern}  ({num} files)" for pattern, num in counts.most_common(10))
    more = f"\n  and {len(counts) - 10} more patterns" if len(counts) > 10 else ""
    labelled = any(set().union(*map(_words, g.parts), ()) & LABEL_WORDS for g in groups)
    what = (
        "holds images and what may be labels, but no two files have names that fit"
        if labelled
        else f"holds {len(files)} images, but no labels were found"
    )
    return (
        f"{folder} {what}. Found:\n{shown}{more}\nLooked for a label to each image: a file of the "
        "same name in another folder (images/a.jpg and labels/a.png), or one whose name differs "
        "by a word (a.jpg and a_mask.png). Rename the files so, or write dataset.yaml by hand "
        "(docs/own-data.md)."
    )
