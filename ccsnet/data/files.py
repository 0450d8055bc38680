"""Which files are images: the one search for them, in files, folders and patterns."""

import glob
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ccsnet.errors import InputError, similar_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".gif")


def images_of(item: Path | str, without: Collection[Path] = ()) -> Iterator[Path]:
    """Images that a file, a folder (searched to the bottom) or a glob pattern names.

    They are found while they are asked for: of a folder, only one level's names are held at a time.
    A file that is named is an image whatever it is called.

    Args:
        item: Where to look.
        without: Folders inside that are not searched.

    Raises:
        FileNotFoundError: The item names nothing.
        InputError: The folder or the pattern has no image in it.
    """
    num = 0
    for path in _candidates(item, without):
        num += 1
        yield path
    if not num:
        raise InputError(
            f"No image in {item}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}."
        )


def _candidates(item: Path | str, without: Collection[Path]) -> Iterator[Path]:
    path = Path(item)
    if path.is_file():
        yield path
    elif path.is_dir():
        left_out = {os.path.abspath(folder) for folder in without}  # noqa: PTH100
        for folder, inner, files in os.walk(path):
            inner[:] = sorted(
                d
                for d in inner
                if os.path.abspath(os.path.join(folder, d)) not in left_out  # noqa: PTH100, PTH118
            )
            yield from _images_among(os.path.join(folder, f) for f in sorted(files))  # noqa: PTH118
    elif glob.has_magic(str(item)):
        yield from _images_among(sorted(glob.iglob(str(item), recursive=True)))  # noqa: PTH207
    else:
        raise FileNotFoundError(
            f"No file, folder or pattern {item}.{similar_path(Path(item))} Give images, folders "
            "of images, or patterns such as 'photos/*.jpg'."
        )


def _images_among(names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = Path(name)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():  # No pipes, no devices.
            yield path


def find_images(inputs: Iterable[Path | str], without: Collection[Path] = ()) -> list[Path]:
    """Images of files, folders and patterns, once each, sorted within an input.

    Args:
        inputs: Where to look.
        without: As for `images_of`.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: A folder or a pattern has no image in it.
    """
    found: dict[str, Path] = {}
    for item in inputs:
        for image in sorted(images_of(item, without)):
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100
    return list(found.values())
