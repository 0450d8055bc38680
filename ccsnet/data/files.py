"""Which files are images."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ccsnet.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".gif")


def find_images(inputs: Iterable[Path | str]) -> list[Path]:
    """Image files from files, folders (searched to the bottom) and glob patterns, once each.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: A folder or a pattern has no image in it.
    """
    found: dict[str, Path] = {}

    def add(images: Iterable[Path]) -> None:
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100

    for item in inputs:
        path = Path(item)
        if path.is_file():
            add([path])
            continue
        if path.is_dir():
            candidates = sorted(p for p in path.rglob("*") if p.is_file())
        elif glob.has_magic(str(item)):
            candidates = sorted(Path(p) for p in glob.glob(str(item), recursive=True))  # noqa: PTH207
        else:
            raise FileNotFoundError(
                f"No file, folder or pattern {item}. Give images, folders of images, or patterns "
                "such as 'photos/*.jpg'."
            )
        images = [p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(
                f"No image in {item}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}."
            )
        add(images)
    return list(found.values())
