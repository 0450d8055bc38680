"""CVAT's two exports: XML with outlines, and masks in colours as Pascal VOC keeps them."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from jaxtyping import UInt8

from ccsnet.data.foreign_source import (
    BACKGROUND,
    Annotated,
    ImageFinder,
    Item,
    Source,
    flat_name,
    split_name,
)
from ccsnet.data.images import read_image
from ccsnet.data.regions import Bitmap, Outline, Region, ellipse, from_runs, outline, rectangle
from ccsnet.datasets._spec import Colour
from ccsnet.datasets._split import repeated
from ccsnet.errors import InputError
from ccsnet.files import read_utf8

LABELMAP, MASKS, LISTS = "labelmap.txt", "SegmentationClass", "ImageSets/Segmentation"

VOC_BORDER: Colour = (224, 224, 192)
"""Pascal VOC paints the pixels between an object and what is around it so: they are left out."""


# CVAT for images 1.1


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        InputError: It is none, or it defines a document type: entities could make any amount of
            text of a small file.
    """

    def refuse(*_: object) -> None:
        raise InputError(
            f"{path} has a DOCTYPE, which CVAT never writes and which can fill the memory. "
            "Export the labels again."
        )

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise InputError(f"{path} is no XML: {error}") from error
    return builder.close()


def is_cvat(root: ElementTree.Element) -> bool:
    """Whether XML is CVAT's."""
    return root.tag == "annotations"


def read_cvat(files: Sequence[Path], images: ImageFinder) -> Source:
    """The images of CVAT's files; their subsets are the splits.

    Raises:
        InputError: A file is not CVAT's, or labels a video.
    """
    items: list[Item] = []
    colours: dict[str, Colour | None] = {}
    for file in files:
        root = read_xml(file)
        if not is_cvat(root):
            raise InputError(
                f"{file} is not CVAT's: it begins with <{root.tag}>, not <annotations>."
            )
        if root.find("track") is not None:
            raise InputError(
                f"{file} labels a video. Export the task as 'CVAT for images 1.1', which has the "
                "labels of each frame."
            )
        for label in root.iterfind("meta//labels/label"):
            name = (label.findtext("name") or "").strip()
            colours.setdefault(name, _hex_colour(label.findtext("color") or ""))
        items += [
            Item(
                f"{file}, image {image.get('name')}",
                flat_name(image.get("name", "")),
                split_name(image.get("subset", "")) or None,
                partial(_cvat_image, image, images, file.parent),
            )
            for image in root.iterfind("image")
        ]
    return Source(items, list(colours), {n: colour for n, colour in colours.items() if colour})


def _hex_colour(text: str) -> Colour | None:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _cvat_image(image: ElementTree.Element, images: ImageFinder, beside: Path) -> Annotated:
    regions = []
    for number, shape in enumerate(image, start=1):
        if shape.tag == "tag":  # Said of the image as a whole.
            continue
        try:
            made = _cvat_shape(shape)
            level = int(shape.get("z_order", 0))
        except KeyError as error:
            raise InputError(f"shape {number}: <{shape.tag}> has no {error}") from error
        except (InputError, ValueError) as error:
            raise InputError(f"shape {number}: {error}") from error
        regions.append(Region(shape.get("label", "").strip(), [made], level))
    path = images.find(image.get("name", ""), beside)
    try:
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
    except (KeyError, ValueError) as error:
        raise InputError(f"its height and width are missing ({error!r})") from error
    return Annotated(path, size, regions)


def _cvat_shape(shape: ElementTree.Element) -> Outline | Bitmap:
    values: Mapping[str, str] = shape.attrib
    turn = float(values.get("rotation", 0))
    if shape.tag == "polygon":
        return outline([[float(n) for n in p.split(",")] for p in values["points"].split(";")])
    if shape.tag == "box":
        x0, y0, x1, y1 = (float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return rectangle(x0, y0, x1, y1, turn)
    if shape.tag == "ellipse":
        x, y, x_radius, y_radius = (float(values[key]) for key in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, x_radius, y_radius, turn)
    if shape.tag == "mask":
        top, left, height, width = (int(values[key]) for key in ("top", "left", "height", "width"))
        runs = [int(run) for run in values["rle"].split(",")]
        return Bitmap(from_runs(runs, height, width), top, left)
    raise InputError(
        f"{values.get('label')!r} is a <{shape.tag}>, which has no area. Polygons, boxes, ellipses "
        "and masks can be read: draw it as one of them, or delete it"
    )


# Segmentation mask 1.1, Pascal VOC 1.1


def read_masks(root: Path, images: ImageFinder) -> Source:
    """The images of a folder of colour masks; its lists are the splits.

    Raises:
        FileNotFoundError: The list of colours or the masks are missing.
        InputError: The list of colours or the lists of images are wrong.
    """
    colours = _labelmap(root / LABELMAP)
    masks = root / MASKS
    if not masks.is_dir():
        raise FileNotFoundError(f"No folder {masks}, where the masks of {root / LABELMAP} are.")
    # Black is what nobody has painted, unless the list gives it another name.
    table = {colour: name for name, colour in colours.items()}
    if table.get((0, 0, 0)) == BACKGROUND:
        del table[0, 0, 0]
    splits = _listed(root / LISTS)
    listed = len(splits)
    splits = {stem: split for stem, split in splits.items() if (masks / f"{stem}.png").is_file()}
    if len(splits) < listed:
        # CVAT also lists the images that nobody has drawn on, and writes no masks of them.
        warnings.warn(
            f"{listed - len(splits)} of the {listed} images that {root / LISTS} names have no mask "
            f"in {masks}. They are left out.",
            stacklevel=2,
        )
    if not listed:
        splits = {
            m.relative_to(masks).with_suffix("").as_posix(): None for m in masks.rglob("*.png")
        }
    items = [
        Item(
            f"{masks / stem}.png",
            flat_name(f"{stem}.png"),
            split,
            partial(_mask_image, stem, masks, images, table),
        )
        for stem, split in sorted(splits.items())
    ]
    return Source(items, list(colours), colours)


def _labelmap(path: Path) -> dict[str, Colour]:
    """Class and colour of each line `name:red,green,blue:parts:actions`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path}, which says what the masks' colours mean: lines such as `road:128,64,128::`"
        )
    colours: dict[str, Colour] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(part) for part in rest.partition(":")[0].split(","))
            if not all(0 <= part <= 255 for part in (red, green, blue)):
                raise ValueError("a colour's parts go from 0 to 255")
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {line!r} is not like `road:128,64,128::` ({error})."
            ) from error
        if name.strip() in colours:
            raise InputError(f"{path}, line {number}: {name!r} is there twice. Leave one of them.")
        colours[name.strip()] = (red, green, blue)
    twice = repeated(colours.values())
    if twice:
        raise InputError(f"{path}: the colour {twice[0]} stands for two classes. Make them differ.")
    return colours


def _listed(folder: Path) -> dict[str, str | None]:
    """The split of each image that a list names."""
    lists = {path.stem: read_utf8(path).split("\n") for path in sorted(folder.glob("*.txt"))}
    if {"train", "val", "trainval"} <= set(lists):
        del lists["trainval"]
    splits: dict[str, str | None] = {}
    for name, lines in lists.items():
        for stem in filter(None, (line.strip() for line in lines)):
            if splits.setdefault(stem, split_name(name)) != split_name(name):
                raise InputError(
                    f"{folder} lists {stem!r} in {splits[stem]} and in {name}. An image must be in "
                    "one split: take it off one list."
                )
    return splits


def _mask_image(
    stem: str, masks: Path, images: ImageFinder, table: Mapping[Colour, str]
) -> Annotated:
    pixels = read_image(masks / f"{stem}.png")
    if pixels.dtype != np.uint8:
        raise InputError("the mask has 16 bits; colours of 8 bits were expected")
    codes = _codes(pixels)
    regions, unknown = [], []
    for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
        colour = (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255)
        if colour in table:
            regions.append(Region(table[colour], [Bitmap(codes == code)]))
        elif colour == VOC_BORDER:
            regions.append(Region(None, [Bitmap(codes == code)]))
        elif colour != (0, 0, 0):
            unknown.append(f"{colour} ({count:,} pixels)")
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"the mask holds colours that {LABELMAP} does not list: {', '.join(unknown[:5])}{more}"
        )
    height, width = codes.shape
    return Annotated(images.find_stem(stem), (height, width), regions)


def _codes(pixels: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
    """One number for each pixel's colour."""
    return pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
