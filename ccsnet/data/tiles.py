"""Large images cut into square tiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from ccsnet.data.disk import disk_errors
from ccsnet.data.images import (
    image_size,
    read_image,
    read_label_colours,
    read_label_values,
    write_index_png,
    write_png,
)
from ccsnet.datasets._archives import Tiles
from ccsnet.errors import InputError


class Box(NamedTuple):
    """Where a tile lies; beyond the image's border if that is smaller."""

    y0: int
    x0: int
    y1: int
    x1: int


def boxes(size: tuple[int, int], side: int, overlap: int) -> Iterator[Box]:
    """The tiles of an image, row by row; the last of a row or column ends with the image."""
    for y in _starts(size[0], side, side - overlap):
        for x in _starts(size[1], side, side - overlap):
            yield Box(y, x, y + side, x + side)


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(length - side, 0)
    return [*range(0, last, stride), last]


def tile_paths(step: Tiles, root: Path, image: Path, name: str) -> Iterator[Path]:
    """The files that an image is cut into."""
    for box in boxes(image_size(image), step.size, step.overlap):
        for pattern in (step.tile_images, step.tile_labels):
            if pattern is not None:
                yield _tile_path(step, root, pattern, name, box)


def _tile_path(step: Tiles, root: Path, pattern: str, name: str, box: Box) -> Path:
    return root / pattern.replace("*", f"{name}_{step.position.format(**box._asdict())}")


def cut(
    step: Tiles,
    root: Path,
    image: Path,
    label: Path | None,
    name: str,
    channels: int,
    coloured: bool,
    fill_is_class: bool,
) -> None:
    """Write all tiles of one image and its label.

    Args:
        step: The tiles' size, names and so on.
        root: The data set's folder.
        image: The large image.
        label: Its label file.
        name: What the image is called in the tiles' names.
        channels: Bands of the image, 1 or 3.
        coloured: Whether labels hold colours, which they keep, or class numbers.
        fill_is_class: Whether the fill of labels stands for a class, so that it must not be used.

    Raises:
        InputError: A file cannot be read, the sizes differ, or the disk is full.
    """
    pixels = _open(image, channels)
    height, width = pixels.shape[:2]
    if fill_is_class and min(height, width) < step.size:
        raise InputError(
            f"{image} has {height} x {width} pixels, fewer than a tile of {step.size}; what fills "
            f"the rest of its label, {step.fill}, is a class. Set another `fill` in the data set's "
            "SPEC."
        )
    _write_tiles(step, root, step.tile_images, name, pixels, 0)
    if label is None or step.tile_labels is None:
        return
    truth = read_label_colours(label) if coloured else read_label_values(label)[..., None]
    if truth.shape[:2] != (height, width):
        raise InputError(
            f"The image {image} has {height} x {width} pixels, but its label {label} has "
            f"{truth.shape[0]} x {truth.shape[1]}. Unpack their archives again."
        )
    _write_tiles(step, root, step.tile_labels, name, truth, step.fill)


def _open(path: Path, channels: int) -> np.ndarray:
    """The image; of a TIFF that lies in the file as in memory only what is used is read."""
    if path.suffix.lower() in (".tif", ".tiff"):
        try:
            pixels = tifffile.memmap(path, mode="r")
        except (ValueError, OSError, tifffile.TiffFileError):
            pass  # Compressed, or damaged, which reading it as a whole will tell.
        else:
            if pixels.ndim == 3 and pixels.shape[2] == channels and pixels.dtype == np.uint8:
                return pixels
    return read_image(path, channels)


def _write_tiles(
    step: Tiles, root: Path, pattern: str, name: str, pixels: np.ndarray, fill: int
) -> None:
    for box in boxes((pixels.shape[0], pixels.shape[1]), step.size, step.overlap):
        tile = np.ascontiguousarray(pixels[box.y0 : box.y1, box.x0 : box.x1])
        missing = [(0, step.size - tile.shape[0]), (0, step.size - tile.shape[1]), (0, 0)]
        if any(after for _, after in missing):
            tile = np.pad(tile, missing, constant_values=fill)
        path = _tile_path(step, root, pattern, name, box)
        with disk_errors(path):
            if tile.shape[2] == 1:
                write_index_png(path, tile[..., 0])
            else:
                write_png(path, tile)
