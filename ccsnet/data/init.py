"""Look at a folder of images and labels, and write the `dataset.yaml` that describes it."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccsnet.data.coding import Coding, Entry, find_coding
from ccsnet.data.images import image_bands, image_size
from ccsnet.data.label_values import hex_colour
from ccsnet.data.layout import SPLITS, Layout, find_layout
from ccsnet.data.opening import read_pair
from ccsnet.datasets._folder import FILE_NAME, read_spec
from ccsnet.datasets._spec import DatasetSpec, Pair, Split
from ccsnet.datasets._split import name_hash
from ccsnet.errors import InputError, similar_path
from ccsnet.files import atomic_path
from ccsnet.progress import Reporter, Silent

LOOKED_AT = 200
"""Labels, and images, evenly spread over all, by which a folder is judged."""

TRAIN_SHARE = 0.8
LISTS = "splits"
"""Folder for lists of names, written where some images have no label."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """A folder that has a dataset.yaml now."""

    file: Path
    spec: DatasetSpec
    coding: Coding
    names: tuple[str, ...]
    """Of `coding.classes`."""
    counts: dict[str, int]
    """Images of each split."""
    notes: tuple[str, ...]
    """What somebody should know or decide."""


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Lines of the dataset.yaml on files and splits."""

    images: str
    labels: str
    lines: tuple[str, ...]
    lists: dict[str, list[str]]
    """List files still to be written."""
    notes: tuple[str, ...] = ()


def describe(folder: Path, out: Path | None = None, reporter: Reporter | None = None) -> Described:
    """Write the dataset.yaml of a folder, after a look at its files' names and 200 of its labels.

    Args:
        folder: What holds images and labels.
        out: The file to write. None: dataset.yaml in the folder.
        reporter: Told how it goes.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: The file is there already, or the folder cannot be made sense of.
    """
    reporter = reporter or Silent()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}.{similar_path(folder)} Name the folder that holds images and "
            "labels."
        )
    file = out or folder / FILE_NAME
    if file.is_dir() or file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{file} is no name for a description; it must end in .yaml.")
    if file.exists():
        raise InputError(
            f"{file} is there already and is not replaced. Move it away, or name another file with "
            "--out."
        )
    layout = find_layout(folder)
    split, pairs = _splits(folder, layout)
    chosen = _spread(pairs, LOOKED_AT)
    labels = [pair.label for pair in chosen if pair.label is not None]
    reporter.start("looking", len(labels))
    coding = find_coding(labels, complete=len(chosen) == len(pairs), progress=reporter.advance)
    reporter.end()
    names = _class_names(coding)
    bands, crop, notes = _images(chosen)
    notes = (*split.notes, *coding.notes, *notes)
    parts = (
        _head(folder, file, pairs, coding, notes),
        _class_lines(coding, names),
        [f"images: {_quoted(split.images)}", f"labels: {_quoted(split.labels)}", *split.lines, ""],
        [f"channels: {bands}"] if bands != 3 else [],
        [f"crop: [{crop[0]}, {crop[1]}]  # height and width of a training sample"],
    )
    with atomic_path(file) as aside:
        aside.write_text("\n".join(line for part in parts for line in part) + "\n", "utf-8")
        written = [_write_list(folder / name, lines) for name, lines in split.lists.items()]
        try:
            spec, root = read_spec(aside)
            counts = {name: len(spec.pairs(root, name)) for name in spec.splits}
            for name in spec.splits:
                read_pair(spec.pairs(root, name)[0], spec)
        except Exception:
            for path in written:
                path.unlink()
                with contextlib.suppress(OSError):  # Other files are in it.
                    path.parent.rmdir()
            raise
    return Described(
        file=file,
        spec=read_spec(file)[0],
        coding=coding,
        names=names,
        counts=counts,
        notes=notes,
    )


def _spread(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    num = min(limit, len(pairs))
    return [pairs[i * len(pairs) // num] for i in range(num)]


def _splits(folder: Path, layout: Layout) -> tuple[_Split, list[Pair]]:
    """How the files are divided, and all pairs that have a label."""
    spelt = layout.splits
    anywhere = Split(
        images=layout.images.replace("{split}", "*"), labels=layout.labels.replace("{split}", "*")
    )
    if not spelt:
        found = anywhere.find(folder)
    else:
        found = [
            pair
            for word in spelt.values()
            for pair in Split(
                images=layout.images.replace("{split}", word),
                labels=layout.labels.replace("{split}", word),
            ).find(folder)
        ]
    pairs = [pair for pair in found if pair.label is not None]
    bare = len(found) - len(pairs)
    if len(pairs) < 2:
        raise InputError(
            f"{folder} has {len(pairs)} image with a label ({layout.images}, {layout.labels}); one "
            "to learn from and one to validate on are needed. A large one can be cut into tiles."
        )
    notes = [f"{bare} of {len(found)} images have no label and are left out"] if bare else []
    plain = {"images": layout.images, "labels": layout.labels}
    lists = _name_lists(folder, anywhere) if not spelt else {}
    if lists:
        lines = ("splits:", *(f"  {name}: {_quoted(path)}" for name, path in lists.items()))
        return _Split(**plain, lines=lines, lists={}, notes=tuple(notes)), pairs
    if spelt and "val" not in spelt:
        notes.append("no folder to validate on: the test images are used for it")
        spelt = {"train": spelt["train"], "val": spelt["test"]} if "train" in spelt else spelt
    if spelt and "train" not in spelt:
        notes.append("no folder to learn from: the larger of val and test is used for it")
        spelt = {"train": spelt["test"], "val": spelt["val"]}
    if bare:
        names = _listed(folder, anywhere, layout, spelt)
        lines = ("splits:", *(f"  {name}: {LISTS}/{name}.txt" for name in names))
        lists = {f"{LISTS}/{name}.txt": listed for name, listed in names.items()}
        plain = {"images": anywhere.images, "labels": anywhere.labels or ""}
        return _Split(**plain, lines=lines, lists=lists, notes=tuple(notes)), pairs
    if not spelt:
        share = _share([pair.name for pair in pairs])
        line = (
            f"split: {share}  # this share of the images to train on, by their names; the rest: val"
        )
        return _Split(**plain, lines=(line,), lists={}, notes=tuple(notes)), pairs
    ordered = {name: spelt[name] for name in ("train", "val", "test") if name in spelt}
    if all(name == word for name, word in ordered.items()):
        lines = (f"splits: [{', '.join(ordered)}]",)
    else:
        lines = ("splits:", *(f"  {name}: {_quoted(word)}" for name, word in ordered.items()))
    return _Split(**plain, lines=lines, lists={}, notes=tuple(notes)), pairs


def _share(names: Sequence[str]) -> float:
    """The share to write so that about 0.8 of these train and some validate.

    Of a few names' hashes, more or fewer than that may happen to be below 0.8.
    """
    hashes = sorted(map(name_hash, names))
    below = sum(h < TRAIN_SHARE for h in hashes)
    if abs(below / len(hashes) - TRAIN_SHARE) < 0.05 and 0 < below < len(hashes):
        return TRAIN_SHARE
    first = min(len(hashes) - 1, max(1, round(TRAIN_SHARE * len(hashes))))
    low, high = hashes[first - 1], hashes[first]
    for digits in range(1, 18):
        share = round((low + high) / 2, digits)
        if low < share <= high and 0 < share < 1:
            return share
    raise AssertionError("two names never have one hash")


def _listed(
    folder: Path, anywhere: Split, layout: Layout, spelt: dict[str, str]
) -> dict[str, list[str]]:
    """The names of each split that have a label, as the pattern without {split} names them."""
    labelled = [pair for pair in anywhere.find(folder) if pair.label is not None]
    if not spelt:
        share = _share([pair.name for pair in labelled])
        train = [pair.name for pair in labelled if name_hash(pair.name) < share]
        return {"train": train, "val": sorted({p.name for p in labelled} - set(train))}
    images = {
        name: {
            pair.image for pair in Split(images=layout.images.replace("{split}", word)).find(folder)
        }
        for name, word in spelt.items()
    }
    return {
        name: [pair.name for pair in labelled if pair.image in inside]
        for name, inside in images.items()
    }


def _name_lists(folder: Path, anywhere: Split) -> dict[str, str]:
    """Lists of train and val that name nothing but images with a label, such as Pascal VOC's."""
    places: dict[Path, dict[str, str]] = {}
    for depth in ("*.txt", "*/*.txt", "*/*/*.txt"):
        for path in sorted(folder.glob(depth)):
            name = SPLITS.get(path.stem.lower())
            if name is None or path.stat().st_size > 100_000_000:
                continue
            listed = path.relative_to(folder).as_posix()
            try:
                pairs = dataclasses.replace(anywhere, names=listed).find(folder)
            except InputError:
                continue  # A list of something else.
            if pairs and all(pair.label for pair in pairs):
                places.setdefault(path.parent, {})[name] = listed
    both = [found for found in places.values() if {"train", "val"} <= set(found)]
    if not both:
        return {}
    return {name: both[0][name] for name in ("train", "val", "test") if name in both[0]}


def _write_list(path: Path, names: list[str]) -> Path:
    if path.exists():
        raise InputError(f"{path} is there already and is not replaced. Move it away.")
    with atomic_path(path) as aside:
        aside.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return path


def _images(pairs: Sequence[Pair]) -> tuple[int, tuple[int, int], list[str]]:
    """Bands of the images, a crop that fits them, and what is wrong with their sizes."""
    bands: Counter[int] = Counter()
    sizes, differ = [], []
    for pair in pairs:
        bands[image_bands(pair.image)] += 1
        sizes.append(image_size(pair.image))
        if pair.label is not None and image_size(pair.label) != sizes[-1]:
            differ.append(pair.image)
    found = set(bands) - {1} or {1}
    if len(found) > 1:
        shown = ", ".join(f"{num} with {count} bands" for count, num in sorted(bands.items()))
        raise InputError(
            f"The images have different bands: {shown} of {len(pairs)} that were looked at. Write "
            "all of them with the same bands."
        )
    # Grey images are read as RGB, for which there are pre-trained backbones.
    num = 3 if found == {1} else found.pop()
    heights, widths = zip(*sorted(sizes), strict=True)
    middle = heights[len(sizes) // 2], sorted(widths)[len(sizes) // 2]
    crop = tuple(min(512, max(64, 32 * round(side / 32))) for side in middle)
    notes = []
    if differ:
        notes.append(
            f"{len(differ)} of {len(pairs)} labels are of another size than their image, such as "
            f"that of {differ[0]}: training will refuse them"
        )
    return num, (crop[0], crop[1]), notes


def _class_names(coding: Coding) -> tuple[str, ...]:
    if len(coding.classes) == 2 and coding.kind != "colours":
        return "background", "foreground"
    if coding.kind == "values":
        numbers = [entry.raw for entry in coding.classes]
        if numbers[0] in (0, 1) and numbers[-1] == len(numbers) - 1 + int(str(numbers[0])):
            return tuple(f"class_{number}" for number in numbers)
    return tuple(f"class_{number}" for number in range(len(coding.classes)))


def _head(
    folder: Path, file: Path, pairs: Sequence[Pair], coding: Coding, notes: Sequence[str]
) -> Iterator[str]:
    looked_at = f"{coding.looked_at} of {len(pairs)} labels"
    yield f"# Written by `ccsnet data init` after a look at {looked_at}."
    yield "# Rename the classes, and change what is not meant so: docs/own-data.md tells every key."
    if not coding.ignored and not coding.rest:
        yield "# Does one mean unlabelled? Add a line such as `ignore: [class_0]`, by its new name."
    yield from (f"# Note: {note}." for note in notes)
    yield ""
    if file.resolve().parent != folder.resolve():
        yield f"root: {_quoted(str(folder.resolve()))}"


def _class_lines(coding: Coding, names: Sequence[str]) -> Iterator[str]:
    """The keys on classes and on what stands for them."""
    kind = {"values": "value", "ranges": "values", "colours": "colour"}[coding.kind]

    def told(entry: Entry) -> str:
        where = f"in {entry.labels} of {coding.looked_at} labels"
        return f"{kind} {entry.shown}: {_percent(entry.share)} of the pixels, {where}"

    yield "classes:"
    for name, entry in zip(names, coding.classes, strict=True):
        yield f"  - {name}  # {told(entry)}"
    if coding.kind == "colours":
        yield "raw_colours:  # in label files, in the classes' order"
        yield from (f'  - "{entry.shown}"' for entry in coding.classes)
    elif coding.kind == "ranges":
        yield "raw_values:"
        pairs = zip(names, coding.classes, strict=True)
        yield from (f"  {entry.shown}: {name}" for name, entry in pairs)
    elif [entry.raw for entry in coding.classes] != list(range(len(names))):
        shown = ", ".join(entry.shown for entry in coding.classes)
        yield f"raw_values: [{shown}]  # in label files, in the classes' order"
    if all(entry.colour is not None for entry in coding.classes):
        yield "colours:  # of the labels' palette"
        yield from (f'  - "{hex_colour(e.colour)}"' for e in coding.classes if e.colour)
    if coding.rest:
        yield "ignore_raw: rest"
    elif coding.ignored:
        yield "ignore_raw:  # unlabelled: neither learnt from nor counted"
        for entry in coding.ignored:
            raw = f'"{entry.shown}"' if coding.kind == "colours" else entry.shown
            yield f"  - {raw}  # {told(entry)}"
    yield ""


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= 0.0001 or share == 0 else "< 0.01 %"


def _quoted(text: str) -> str:
    """Text as YAML takes it: in quotes where it holds more than letters and slashes."""
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./\-]*", text) and text.lower() not in (
        *("yes", "no", "on", "off", "true", "false", "null", "y", "n"),
    )
    return text if plain else "'" + text.replace("'", "''") + "'"
