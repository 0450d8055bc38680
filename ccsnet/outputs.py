"""What can be written of a prediction: label maps, pictures, probabilities, segments, areas.

Letters: N classes, H W a size in pixels.
"""

import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float16, Integer, Num, UInt8
from numpy.lib import format as npy

from ccsnet.data.images import write_index_png, write_palette_png, write_png
from ccsnet.datasets._spec import Colour
from ccsnet.draw import colourise, overlay, rgb_of
from ccsnet.errors import InputError, unknown_name
from ccsnet.files import atomic_path


@runtime_checkable
class Labelled(Protocol):
    """What the writers need to know of a prediction; `ccsnet.predict.Prediction` is one."""

    @property
    def label(self) -> Integer[np.ndarray, "H W"]:
        """Class index of every pixel."""
        ...

    @property
    def image(self) -> Num[np.ndarray, "H W C"]:
        """The image as read."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by class index."""
        ...

    @property
    def colours(self) -> tuple[Colour, ...]:
        """RGB, by class index."""
        ...


@runtime_checkable
class WithProbs(Labelled, Protocol):
    """A prediction that kept its probabilities, or None where it was not asked to."""

    @property
    def probs(self) -> Float16[np.ndarray, "N H W"] | None:
        """Probabilities, where they were kept."""
        ...


Segment = dict[str, Any]
"""What COCO's format says of a segment: its id, category_id, area, bbox and iscrowd."""


class Kind(NamedTuple):
    """A kind of output."""

    note: str
    suffix: str = ".png"
    """How its files end; "" is a folder of files."""
    write: Callable[[Path, Any], list[Segment] | None] | None = None
    """Writes the file of one image; none: it is written otherwise (see `ccsnet.folders`)."""
    probs: bool = False
    """Whether it needs the probabilities."""
    joined: str | None = None
    """The file, in the folder of all results, that says something of every image."""


def class_borders(label: Integer[np.ndarray, "H W"], width: int = 1) -> Bool[np.ndarray, "H W"]:
    """True for pixels with another class within `width` pixels beside, above or below them."""
    small = label.astype(np.uint8 if label.max(initial=0) < 256 else np.uint16)
    side = np.arange(-width, width + 1)
    cross = (np.abs(side)[:, None] + np.abs(side) <= width).astype(np.uint8)
    # Where the largest and the smallest class nearby are one, all of them are.
    return cv2.dilate(small, cross) != cv2.erode(small, cross)


def contours(
    image: UInt8[np.ndarray, "H W 3"],
    label: Integer[np.ndarray, "H W"],
    colours: Sequence[Colour],
    width: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with the borders of its classes drawn, each side in its class's colour.

    Args:
        image: RGB.
        label: Class indices, at the image's size.
        colours: One for each class.
        width: Pixels on each side of a border; none: more for larger images.
    """
    width = width or max(1, round(min(label.shape) / 500))
    return np.where(class_borders(label, width)[..., None], colourise(label, colours), image)


def segments_of(
    label: Integer[np.ndarray, "H W"], num_classes: int
) -> tuple[Integer[np.ndarray, "H W"], list[Segment]]:
    """Ids of the segments, 0 where there is none, and what COCO's panoptic format says of each.

    A segment is a connected piece of one class; corners connect. Ids count from 1 in every image.
    A category's id is its class index + 1, because COCO keeps 0 for what has no category.
    """
    ids = np.zeros(label.shape, np.int32)
    found: list[Segment] = []
    for index in np.unique(label):
        if index >= num_classes:
            continue
        mask = (label == index).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        part = (slice(top, top + height), slice(left, left + width))
        num, pieces, stats, _ = cv2.connectedComponentsWithStats(mask[part], connectivity=8)
        inside = pieces > 0
        ids[part][inside] = pieces[inside] + len(found)
        for x, y, w, h, area in stats[1:num].tolist():  # The first is the background.
            found.append(
                {
                    "id": len(found) + 1,
                    "category_id": int(index) + 1,
                    "area": area,
                    "bbox": [left + x, top + y, w, h],
                    "iscrowd": 0,
                }
            )
    return ids, found


def areas_of(label: Integer[np.ndarray, "H W"], num_classes: int) -> dict[int, int]:
    """Pixels of each class that is there, by class index."""
    counts = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise if one is not known.

    Raises:
        InputError: With the nearest names.
    """
    for name in kinds:
        if name not in KINDS:
            raise unknown_name("output", name, KINDS)


def write_segments(path: Path, prediction: Labelled) -> list[Segment]:
    """Write the segments' ids as a PNG: id = red + 256 green + 65536 blue; returns the rest."""
    ids, found = segments_of(prediction.label, len(prediction.classes))
    if len(found) >= 2**24:
        raise InputError(
            f"The label map has {len(found)} segments; the format has room for {2**24 - 1}. "
            "Cut the image into parts."
        )
    write_png(path, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8))
    return found


def write_probs_npz(path: Path, prediction: WithProbs) -> None:
    """Write `probs`, float16 N x H x W, and `classes`, their names: for `numpy.load`."""
    probs = _probs(prediction)
    # Not savez_compressed: its level takes longer and gains next to nothing.
    with (
        atomic_path(path, durable=False) as aside,
        zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in (("probs", probs), ("classes", np.array(prediction.classes))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def write_probs_png(path: Path, prediction: WithProbs) -> None:
    """Write a grey PNG per class into the folder `path`: 0 impossible, 255 certain."""
    digits = len(str(len(prediction.classes) - 1))
    for index, (name, part) in enumerate(zip(prediction.classes, _probs(prediction), strict=True)):
        plain = re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_")[:64]
        grey = np.rint(part.astype(np.float32) * 255).astype(np.uint8)
        write_index_png(path / f"{index:0{digits}}_{plain}.png", grey)


def _probs(prediction: WithProbs) -> Float16[np.ndarray, "N H W"]:
    assert prediction.probs is not None, "the caller asks for them where a kind says `probs`"
    return prediction.probs


def _write_overlay(path: Path, prediction: Labelled) -> None:
    image = rgb_of(prediction.image)
    write_png(path, overlay(image, prediction.label, prediction.colours))


def _write_contours(path: Path, prediction: Labelled) -> None:
    write_png(path, contours(rgb_of(prediction.image), prediction.label, prediction.colours))


KINDS: dict[str, Kind] = {
    "index": Kind("class numbers as grey values", write=lambda p, x: write_index_png(p, x.label)),
    "color": Kind(
        "the same as a palette PNG",
        write=lambda p, x: write_palette_png(p, x.label, x.colours),
    ),
    "overlay": Kind("the classes painted over the image", write=_write_overlay),
    "contours": Kind("the classes' borders drawn over the image", write=_write_contours),
    "prob": Kind("probabilities as .npz, float16", ".npz", write_probs_npz, probs=True),
    "prob_png": Kind("probabilities, a grey PNG per class", "", write_probs_png, probs=True),
    "segments": Kind(
        "connected pieces, COCO's panoptic format", write=write_segments, joined="segments.json"
    ),
    "area": Kind("a table of the classes' areas", joined="area.csv"),
    "relevant": Kind("what the network looked at"),
}


Record = Mapping[str, Any]
"""Of one image: `image` (its name), `size`, `pixels` (pairs of class and count), `segments`."""


def write_area_csv(path: Path, records: Iterable[Record], classes: Sequence[str]) -> None:
    """Write a row per image and class: image, class, pixels, share of the image."""
    # Names of files need not be text: they are written as the bytes that they are.
    with (
        atomic_path(path, durable=False) as aside,
        aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("image", "class", "pixels", "share"))
        for record in records:
            pixels, total = dict(record["pixels"]), record["size"][0] * record["size"][1]
            for index, name in enumerate(classes):
                count = pixels.get(index, 0)
                rows.writerow((record["image"], name, count, f"{count / total:.6g}"))


def write_segments_json(
    path: Path, records: Iterable[Record], classes: Sequence[str], colours: Sequence[Colour]
) -> None:
    """Write COCO's panoptic JSON of all images, one at a time: memory does not grow with them."""
    categories = [
        # Its pieces are told apart, which is what COCO calls a thing.
        {"id": i + 1, "name": name, "supercategory": name, "isthing": 1, "color": list(colour)}
        for i, (name, colour) in enumerate(zip(classes, colours, strict=True))
    ]
    with atomic_path(path, durable=False) as aside:
        images = aside.with_name(f"{aside.name}.images")
        try:
            with aside.open("w") as file, images.open("w+") as second:
                file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
                number = 0
                for record in records:
                    if record.get("segments") is None:
                        continue
                    number += 1
                    comma = ",\n" if number > 1 else "\n"
                    file.write(comma + json.dumps(_annotation(number, record)))
                    second.write(comma + json.dumps(_image(number, record)))
                file.write('\n],\n"images": [')
                second.seek(0)
                while text := second.read(1 << 16):
                    file.write(text)
                file.write("\n]}\n")
        finally:
            images.unlink(missing_ok=True)


def _annotation(number: int, record: Record) -> dict[str, Any]:
    name = Path(record["image"]).with_suffix(".png").as_posix()
    return {"image_id": number, "file_name": name, "segments_info": record["segments"]}


def _image(number: int, record: Record) -> dict[str, Any]:
    height, width = record["size"]
    return {"id": number, "file_name": record["image"], "height": height, "width": width}


def write_summary(
    path: Path, facts: Mapping[str, Any], records: Iterable[Record], classes: Sequence[str]
) -> None:
    """Write facts of a call as JSON, and under `images` the files and areas of every image."""
    with atomic_path(path, durable=False) as aside, aside.open("w") as file:
        file.write(json.dumps(facts, indent=2).removesuffix("\n}") + ',\n  "images": [')
        for number, record in enumerate(records):
            pixels = record["size"][0] * record["size"][1]
            image = {
                "image": record["image"],
                "size": record["size"],
                "files": record["files"],
                "areas": {classes[i]: num / pixels for i, num in record["pixels"]},
            }
            file.write((",\n    " if number else "\n    ") + json.dumps(image))
        file.write("\n  ]\n}\n")
