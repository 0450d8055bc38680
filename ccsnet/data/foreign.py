"""Make a data set of another program's labels. docs/import.md tells what is understood and how."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import yaml
from jaxtyping import UInt16
from PIL import Image

from ccsnet.data.foreign_cvat import LABELMAP, MASKS, is_cvat, read_cvat, read_masks, read_xml
from ccsnet.data.foreign_json import described, json_kind, load_json, read_coco, read_labelme
from ccsnet.data.foreign_source import BACKGROUND, ImageFinder, Item, Source, visible_files
from ccsnet.data.images import image_size, write_index_png, write_palette_png
from ccsnet.data.regions import UNLABELLED, paint
from ccsnet.datasets._folder import FILE_NAME, distinct_colours, read_spec
from ccsnet.datasets._spec import Colour, distinct, ignore_index_of
from ccsnet.datasets._split import name_hash, repeated
from ccsnet.errors import InputError, unknown_name
from ccsnet.progress import Reporter, Silent

Kind = Literal["labelme", "coco", "cvat", "voc"]
KINDS: dict[str, str] = {
    "labelme": "LabelMe: a .json file with `shapes` for each image",
    "coco": "COCO: a .json file with `images`, `annotations` and `categories`",
    "cvat": "CVAT for images 1.1: an .xml file of <annotations>",
    "voc": f"CVAT's segmentation masks, Pascal VOC: {LABELMAP} and the folder {MASKS}",
}


class Imported(NamedTuple):
    """What was made."""

    folder: Path
    kind: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    """Of each class."""
    ignored: int
    """Pixels without a class."""
    splits: Mapping[str, int]
    """How many images each split has."""


class _Draft(NamedTuple):
    """An image whose label map is painted, in numbers that are not final yet."""

    item: Item
    image: Path
    label: Path


def import_labels(
    source: Path,
    out: Path,
    *,
    kind: str = "auto",
    images: Path | None = None,
    classes: Sequence[str] = (),
    unlabelled: Literal["background", "ignore"] = "background",
    val_share: float = 0.2,
    reporter: Reporter | None = None,
) -> Imported:
    """Make a folder with a dataset.yaml, label maps and links to the images.

    Args:
        source: A file or folder that an annotation program wrote.
        out: The folder to make; it must not exist or be empty.
        kind: One of `KINDS`, or "auto": by what the files hold.
        images: Where the images are looked for. None: in the source and beside its files.
        classes: Names in the order of the class numbers. None: as the source lists them, else by
            the alphabet.
        unlabelled: Pixels that nobody has drawn on are the class `background`, or of no class.
        val_share: How much of the images is for validation, where the source has no splits.
        reporter: Who is told how it goes.

    Raises:
        FileNotFoundError: The source is not there.
        InputError: It is none of the formats, or labels or images cannot be used: all of them at
            once. Nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already. Give another --out; nothing is replaced.")
    if not 0 <= val_share < 1:
        raise InputError(f"val is {val_share}; it must be a share of the images from 0 to below 1.")
    kind, read = recognise(source, kind, images)
    found = read()
    if not found.items:
        raise InputError(f"{source} ({KINDS[kind].partition(':')[0]}) holds no image.")
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    try:
        made = _write(aside, found, tuple(classes), unlabelled, val_share, reporter or Silent())
        _describe(aside, made, f"Imported from {source.absolute()} ({kind}).")
        aside.chmod(0o755)  # Temporary folders are closed to others.
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Imported(out, kind, made.classes, made.pixels, made.ignored, made.splits)


def recognise(source: Path, kind: str, images: Path | None) -> tuple[str, Callable[[], Source]]:
    """The format of a source, by what its files hold, and its reader.

    Raises:
        FileNotFoundError: It is not there.
        InputError: It is none of the formats.
    """
    if kind != "auto" and kind not in KINDS:
        raise unknown_name("format", kind, ("auto", *KINDS))
    if not source.exists():
        raise FileNotFoundError(f"No file or folder {source} to import from.")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"No folder {images} to look for the images in.")
    root = source if source.is_dir() else source.parent
    files = list(visible_files(source)) if source.is_dir() else [source]
    by_suffix = {
        suffix: [file for file in files if file.suffix.lower() == suffix]
        for suffix in (".json", ".xml", ".txt")
    }
    needed = {"labelme": ".json", "coco": ".json", "cvat": ".xml"}
    if kind == "auto":
        kind = _kind_of(source, by_suffix)
    elif kind in needed and not by_suffix[needed[kind]]:
        raise InputError(f"{source} holds no {needed[kind]} file. Looked for {KINDS[kind]}.")
    finder = ImageFinder(images or root, named=images is not None)
    readers: dict[str, Callable[[], Source]] = {
        "labelme": lambda: read_labelme(root, by_suffix[".json"], finder),
        "coco": lambda: read_coco(by_suffix[".json"], finder),
        "cvat": lambda: read_cvat(by_suffix[".xml"], finder),
        "voc": lambda: read_masks(root, finder),
    }
    return kind, readers[kind]


def _kind_of(source: Path, by_suffix: Mapping[str, Sequence[Path]]) -> str:
    """The format of the first file that has one."""
    if any(file.name == LABELMAP for file in by_suffix[".txt"]):
        return "voc"
    seen = []
    for file in by_suffix[".json"]:
        try:
            content = load_json(file)
        except InputError as error:
            seen.append(str(error))
            continue
        kind = json_kind(content)
        if kind is not None:
            return kind
        seen.append(f"{file} holds {described(content)}")
    for file in by_suffix[".xml"]:
        root = read_xml(file)
        if is_cvat(root):
            return "cvat"
        seen.append(f"{file} begins with <{root.tag}>")
    looked_for = "\n".join(f"- {what}" for what in KINDS.values())
    found = "\n".join(f"- {what}" for what in seen[:5]) or "- no .json, .xml or labelmap.txt"
    zipped = " Unpack it first." if source.suffix.lower() in (".zip", ".tar", ".gz") else ""
    raise InputError(
        f"{source} is none of the formats that can be imported.{zipped} Looked for:\n{looked_for}\n"
        f"Found:\n{found}"
    )


class _Made(NamedTuple):
    """What was written, for the description."""

    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    pixels: tuple[int, ...]
    ignored: int
    splits: dict[str, int]


def _write(
    aside: Path,
    source: Source,
    classes: tuple[str, ...],
    unlabelled: str,
    val_share: float,
    reporter: Reporter,
) -> _Made:
    """Paint all labels and link all images, below `aside`."""
    listed = [_plain(name) for name in classes or source.classes]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(listed))}
    drafts, counts = _paint_all(aside / "drafts", source, numbers, bool(listed), reporter)
    names = list(numbers) if listed else sorted(numbers, key=lambda name: (name.lower(), name))
    covered = {name: counts[number] for name, number in numbers.items()}
    if unlabelled == "ignore":
        # Masks in colours list a background that in them, too, is what nobody has painted.
        names = [name for name in names if name != BACKGROUND or covered[name]]
    elif counts[UNLABELLED] and BACKGROUND not in names:
        names.insert(0, BACKGROUND)
    if not 2 <= len(names) <= 1000:
        raise InputError(
            f"The labels have {len(names)} classes ({', '.join(names[:5]) or 'none'}); 2 to 1000 "
            "are possible. With --unlabelled background, pixels without label are a class too."
        )
    ignore = ignore_index_of(len(names))
    table = np.full(65536, ignore, np.uint8 if ignore == 255 else np.uint16)
    for name, number in numbers.items():
        if name in names:
            table[number] = names.index(name)
    if unlabelled == "background" and BACKGROUND in names:
        table[UNLABELLED] = names.index(BACKGROUND)
    colours = _colours(names, source.colours)
    splits = _splits([draft.item for draft in drafts], val_share)
    for draft, split in zip(drafts, splits, strict=True):
        _finish(aside, draft, split, table, colours)
    shutil.rmtree(aside / "drafts")
    pixels = np.zeros(len(names) + 1, np.int64)
    for number, count in counts.items():
        pixels[min(table[number], len(names))] += count
    order = sorted(Counter(splits).items(), key=lambda item: (item[0] != "train", item[0]))
    return _Made(tuple(names), colours, tuple(pixels[:-1].tolist()), int(pixels[-1]), dict(order))


def _plain(name: str) -> str:
    """A class's name; all ways to write background are one."""
    name = name.strip()
    return BACKGROUND if name.lower() == BACKGROUND else name


def _paint_all(
    folder: Path, source: Source, numbers: dict[str, int], closed: bool, reporter: Reporter
) -> tuple[list[_Draft], Counter[int]]:
    """Paint each image's label map; classes that are met for the first time get the next number.

    Args:
        folder: Where to.
        source: What to paint.
        numbers: Of the classes that are known; more are added unless it is `closed`.
        closed: Whether a class that has no number is a mistake.
        reporter: Who is told how it goes.

    Returns:
        The images, and how many pixels have each number.

    Raises:
        InputError: All that cannot be used.
    """
    drafts: list[_Draft] = []
    counts: Counter[int] = Counter()
    twice = set(repeated(item.name for item in source.items))
    problems = [
        f"{item.where}: several images are called {item.name!r}" + " here; import them apart"
        for item in source.items
        if item.name in twice
    ]
    reporter.start("painting", len(source.items))
    for item in source.items:
        target = folder / f"{len(drafts)}.png"
        try:
            image, label = _painted(item, target, numbers, closed)
        except (InputError, OSError) as error:
            problems.append(f"{item.where}: {error}")
            continue
        finally:
            reporter.advance()
        write_index_png(target, label)
        for number, count in zip(*np.unique(label, return_counts=True), strict=True):
            counts[int(number)] += int(count)
        drafts.append(_Draft(item, image, target))
    reporter.end()
    if problems:
        shown = "\n".join(f"- {problem}" for problem in problems[:10])
        more = f"\nand {len(problems) - 10} more." if len(problems) > 10 else ""
        raise InputError(
            f"Nothing was imported, because of {len(problems)} "
            f"problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}"
        )
    return drafts, counts


def _painted(
    item: Item, target: Path, numbers: dict[str, int], closed: bool
) -> tuple[Path, UInt16[np.ndarray, "H W"]]:
    """The file of an item's image, and its label map."""
    if not item.name:
        raise InputError("it names no image")
    image, drawn_for, regions = item.read()
    if isinstance(image, bytes):
        path = target.with_suffix(".png" if image.startswith(b"\x89PNG") else ".jpg")
        path = path.with_stem(f"{path.stem}-image")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        image = path
    size = image_size(image)
    if drawn_for not in (None, size):
        raise InputError(
            f"the labels were drawn for {drawn_for[0]} x {drawn_for[1]} pixels, but {image} has "
            f"{size[0]} x {size[1]} (height x width)"
        )
    plain = [
        region._replace(name=_plain(region.name)) if region.name is not None else region
        for region in regions
    ]
    for name in dict.fromkeys(region.name for region in plain if region.name is not None):
        if not name:
            raise InputError("a shape has no class")
        if name not in numbers and closed:
            raise unknown_name("class", name, numbers)
        numbers.setdefault(name, len(numbers))
    return image, paint(size, plain, numbers)


def _splits(items: Sequence[Item], val_share: float) -> list[str]:
    """The split of each image: as in the source, or by a number that its name makes."""
    told = [item.split or "train" for item in items]
    if len(set(told)) > 1:
        # As `data init` does: with labels, what is called test serves for validation.
        return ["val" if name == "test" else name for name in told] if "val" not in told else told
    numbers = [name_hash(item.name) for item in items]
    # An image stays in its split when the source grows. Few images may all fall on one side.
    chosen = [number < val_share for number in numbers]
    if len(items) > 1 and val_share and len(set(chosen)) == 1:
        chosen[numbers.index(max(numbers) if chosen[0] else min(numbers))] ^= True
    return ["val" if val else "train" for val in chosen]


def _colours(names: Sequence[str], known: Mapping[str, Colour]) -> tuple[Colour, ...]:
    """The source's colours, which may repeat, or made-up ones; background is black."""
    made = iter(distinct_colours(len(names)))
    named = {_plain(name): colour for name, colour in known.items()}
    if not all(name in named or name == BACKGROUND for name in names):
        named = {}
    return distinct(
        named.get(name, (0, 0, 0)) if named or name == BACKGROUND else next(made) for name in names
    )


def _finish(
    aside: Path, draft: _Draft, split: str, table: np.ndarray, colours: Sequence[Colour]
) -> None:
    """Write a draft's label map in its final numbers, and link its image."""
    with Image.open(draft.label) as picture:
        label = table[np.asarray(picture)]
    target = aside / "labels" / split / f"{draft.item.name}.png"
    if label.dtype == np.uint8:
        write_palette_png(target, label, colours)
    else:
        write_index_png(target, label)  # A palette has no more than 256 entries.
    suffix = draft.image.suffix or ".image"
    link = aside / "images" / split / f"{draft.item.name}{suffix}"
    link.parent.mkdir(parents=True, exist_ok=True)
    if draft.image.parent == draft.label.parent:
        draft.image.rename(link)
        return
    try:
        link.symlink_to(os.path.realpath(draft.image))
    except OSError:  # Some file systems and Windows have no links.
        shutil.copyfile(draft.image, link)


def _describe(aside: Path, made: _Made, source: str) -> None:
    """Write the dataset.yaml, and read it as training will."""
    entries = {
        "classes": list(made.classes),
        "colours": ["#" + bytes(colour).hex() for colour in made.colours],
        "ignore_raw": [ignore_index_of(len(made.classes))],
        "images": "images/{split}/*.*",
        "labels": "labels/{split}/*.png",
        "splits": list(made.splits),
        "source": source,
    }
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    (aside / FILE_NAME).write_text(text, encoding="utf-8")
    spec, root = read_spec(aside)
    for split in made.splits:
        spec.pairs(root, split)
