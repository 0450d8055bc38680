"""Labels in JSON: LabelMe's file for each image, and COCO's for many."""

import base64
import binascii
import importlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ccsnet.data.foreign_source import (
    BACKGROUND,
    Annotated,
    ImageFinder,
    Item,
    Source,
    flat_name,
    split_name,
)
from ccsnet.data.regions import (
    Bitmap,
    Outline,
    Region,
    check_size,
    ellipse,
    from_runs,
    outline,
    rectangle,
)
from ccsnet.datasets._split import repeated
from ccsnet.errors import InputError, unknown_name

LABELME_KEYS = ("shapes", "imagePath")
COCO_KEYS = ("images", "annotations", "categories")

# Words of LabelMe's own lists of labels that are no classes.
LABELME_NAMES = {"__ignore__": None, "_background_": BACKGROUND}


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: It is none.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON text: {error}") from error


def json_kind(content: Any) -> str | None:
    """The format that JSON has; None: neither."""
    keys = content if isinstance(content, dict) else {}
    if isinstance(keys.get("shapes"), list):
        return "labelme"
    if all(isinstance(keys.get(key), list) for key in COCO_KEYS):
        return "coco"
    return None


def described(content: Any) -> str:
    """What JSON holds instead, in short."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = [str(key) for key in content]
    return f"the keys {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}" if keys else "no keys"


# LabelMe


def read_labelme(root: Path, files: Sequence[Path], images: ImageFinder) -> Source:
    """The images of LabelMe's files, and the classes of its labels.txt if it lies there.

    Raises:
        InputError: The list cannot be read.
    """
    items = [
        Item(
            str(file),
            flat_name(file.relative_to(root).as_posix()),
            None,
            partial(_labelme_image, file, images),
        )
        for file in files
    ]
    listed = root / "labels.txt"
    if not listed.is_file():
        return Source(items)
    try:
        lines = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{listed} is no text: {error}. Write it again as UTF-8.") from error
    names = [LABELME_NAMES.get(line, line) for line in lines if line]
    return Source(items, [name for name in names if name is not None])


def _labelme_image(file: Path, images: ImageFinder) -> Annotated:
    content = load_json(file)
    if json_kind(content) != "labelme":
        raise InputError(
            f"this is no LabelMe file: it holds {described(content)}, not {', '.join(LABELME_KEYS)}"
        )
    regions = []
    for number, shape in enumerate(content["shapes"], start=1):
        try:
            regions.append(_labelme_region(shape))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"shape {number} is not as LabelMe writes it ({error!r})") from error
        except (InputError, ValueError) as error:
            raise InputError(f"shape {number}: {error}") from error
    size = (content.get("imageHeight"), content.get("imageWidth"))
    known = (size[0], size[1]) if all(isinstance(side, int) for side in size) else None
    return Annotated(_labelme_pixels(content, file, images), known, regions)


def _labelme_pixels(content: Mapping[str, Any], file: Path, images: ImageFinder) -> Path | bytes:
    """The image's file, or where that is not there the copy that LabelMe keeps of it."""
    try:
        return images.find(str(content.get("imagePath") or ""), file.parent)
    except InputError:
        if not isinstance(content.get("imageData"), str):
            raise
    try:
        return base64.b64decode(content["imageData"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"its imageData cannot be decoded ({error})") from error


def _labelme_region(shape: Any) -> Region:
    label = str(shape["label"]).strip()
    kind = shape.get("shape_type") or "polygon"
    points = shape["points"]
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        made: Outline | Bitmap = rectangle(float(x0), float(y0), float(x1), float(y1))
    elif kind in ("polygon", "rectangle", "oriented_rectangle"):
        made = outline(points)
    elif kind == "circle":
        (x, y), (x_edge, y_edge) = points
        radius = float(np.hypot(float(x_edge) - float(x), float(y_edge) - float(y)))
        made = ellipse(float(x), float(y), radius, radius)
    elif kind == "mask":
        (x0, y0), _ = points
        made = Bitmap(_bitmap(shape["mask"]), top=int(y0), left=int(x0))
    else:
        raise InputError(
            f"{label!r} is a {kind}, which has no area. Polygons, rectangles, circles and masks "
            "can be read: draw it as one of them, or delete it"
        )
    return Region(LABELME_NAMES.get(label, label), [made])


def _bitmap(text: str) -> Bool[np.ndarray, "h w"]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            return np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"its mask cannot be decoded ({error})") from error


# COCO


def read_coco(files: Sequence[Path], images: ImageFinder) -> Source:
    """The images of COCO's files; of several files, each is a split.

    Raises:
        InputError: A file is not as COCO's, or two differ in their classes.
    """
    splits = _split_names(files)
    items: list[Item] = []
    classes: dict[Path, list[str]] = {}
    for file, split in zip(files, splits, strict=True):
        content = load_json(file)
        if json_kind(content) != "coco":
            raise InputError(
                f"{file} is no COCO file: it holds {described(content)}, not "
                f"{', '.join(COCO_KEYS)}. Give the files with masks alone, such as "
                "instances_train2017.json."
            )
        try:
            names = {c["id"]: str(c["name"]).strip() for c in content["categories"]}
            by_image: dict[Any, list[Mapping[str, Any]]] = {
                image["id"]: [] for image in content["images"]
            }
            for annotation in content["annotations"]:
                by_image[annotation["image_id"]].append(annotation)
            items += [
                Item(
                    f"{file}, image {image['file_name']}",
                    flat_name(str(image["file_name"])),
                    split,
                    partial(
                        _coco_image,
                        image,
                        by_image[image["id"]],
                        names,
                        images,
                        file.parent,
                    ),
                )
                for image in content["images"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} is not as COCO's files are: an image, annotation or category lacks "
                f"something or names what is not there ({error!r})."
            ) from error
        classes[file] = [names[key] for key in sorted(names)]
        twice = repeated(classes[file])
        if twice:
            raise InputError(f"{file}: two categories are called {twice[0]!r}. Rename one.")
    first, *others = classes
    for other in others:
        if classes[other] != classes[first]:
            raise InputError(f"{first} and {other} have different categories. Import them apart.")
    return Source(items, classes[first])


def _split_names(files: Sequence[Path]) -> list[str | None]:
    """The split of each file: by its own name (instances_val.json), or by its folder's."""
    if len(files) == 1:
        return [None]
    names = [file.stem.removeprefix("instances_") for file in files]
    if len(set(names)) < len(names):
        names = [file.parent.name for file in files]
    if len(set(names)) < len(names):
        raise InputError(
            f"{files[0].parent} holds several COCO files whose splits cannot be told from their "
            "names. Import one at a time."
        )
    return [split_name(name) for name in names]


def _coco_image(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    images: ImageFinder,
    beside: Path,
) -> Annotated:
    path = images.find(str(image["file_name"]), beside)
    try:
        size = (int(image["height"]), int(image["width"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"its height and width are missing ({error!r})") from error
    regions = []
    for annotation in annotations:
        where = f"annotation {annotation.get('id')}"
        try:
            regions.append(_coco_region(annotation, names, size))
        except (KeyError, TypeError) as error:
            raise InputError(f"{where} is not as COCO's are ({error!r})") from error
        except (InputError, ValueError) as error:
            raise InputError(f"{where}: {error}") from error
    return Annotated(path, size, regions)


def _coco_region(
    annotation: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int]
) -> Region:
    category = annotation["category_id"]
    if category not in names:
        known = [str(key) for key in names]
        raise unknown_name("category id", str(category), known)
    # A crowd is drawn roughly round many objects and what lies between them.
    name = None if annotation.get("iscrowd") else names[category]
    masks = annotation.get("segmentation")
    if not masks:
        raise InputError("it has no segmentation, only a box. Import a file with masks")
    if isinstance(masks, Mapping):
        return Region(name, [Bitmap(_coco_runs(masks, size))])
    shapes = []
    for corners in masks:
        if len(corners) % 2:
            raise InputError(f"a polygon has {len(corners)} numbers, which are no pairs of x and y")
        shapes.append(outline(list(zip(corners[::2], corners[1::2], strict=True))))
    return Region(name, shapes)


def _coco_runs(masks: Mapping[str, Any], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The bitmap of run lengths, which go down the columns: numbers, or a compressed text."""
    height, width = size
    if list(masks["size"]) != [height, width]:
        raise InputError(
            f"its mask is for {masks['size']} pixels, but the image has {height} x {width}"
        )
    check_size(height, width)
    counts = masks["counts"]
    if not isinstance(counts, str):
        return from_runs([int(count) for count in counts], width, height).T
    try:
        coder = importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise InputError(
            "its mask is compressed, and needs another package: pip install 'ccsnet[import]'"
        ) from error
    mask = {"size": [height, width], "counts": counts.encode("ascii", "replace")}
    with warnings.catch_warnings():
        # It has not learnt numpy 2's way of making arrays, which changes nothing here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = coder.decode(mask)
        # Of runs that end early, pycocotools leaves the rest of the pixels to chance.
        if pixels.max(initial=0) > 1 or coder.encode(pixels)["counts"] != mask["counts"]:
            raise InputError(f"its compressed mask does not make up {height} x {width} pixels")
    return pixels.astype(bool)
