"""What the readers of other programs' labels have in common: images, items and their errors."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ccsnet.data.files import IMAGE_SUFFIXES
from ccsnet.data.layout import SPLITS
from ccsnet.data.regions import Region
from ccsnet.datasets._spec import Colour
from ccsnet.errors import InputError

BACKGROUND = "background"
"""The class of pixels that nobody has drawn on."""


class Annotated(NamedTuple):
    """An image and what is drawn on it."""

    image: Path | bytes
    """A file, or the content of one."""
    size: tuple[int, int] | None
    """Height and width that the labels were drawn for, where the source tells."""
    regions: Sequence[Region]


class Item(NamedTuple):
    """One image of a source, not yet read."""

    where: str
    """The file, and where it holds many images the image, for error texts."""
    name: str
    """What the image and its label will be called, without suffix."""
    split: str | None
    """Where the source has splits."""
    read: Callable[[], Annotated]
    """Raises InputError or OSError when it cannot be used."""


class Source(NamedTuple):
    """All that is to be imported."""

    items: Sequence[Item]
    classes: Sequence[str] = ()
    """In their order; none: those that occur, by the alphabet."""
    colours: Mapping[str, Colour] = {}


class ImageFinder:
    """Finds the images that label files name.

    Args:
        root: The folder that is searched.
        named: Whether the user has named it: then it comes before a label file's own folder.
    """

    def __init__(self, root: Path, named: bool = False) -> None:
        self.root, self.named = root, named

    def find(self, name: str, beside: Path) -> Path:
        """The image of a name: at its path from the label file or the root, else by its last part.

        Raises:
            InputError: There is none, or more than one.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        for folder in (self.root, beside) if self.named else (beside, self.root):
            for place in (folder / path, folder / "images" / path):
                if path.name and place.is_file():
                    return place
        return self._only(name, self._by_name.get(path.name, ()))

    def find_stem(self, stem: str) -> Path:
        """The image of a name without suffix, wherever it lies below the root.

        Raises:
            InputError: There is none, or more than one.
        """
        key = PurePosixPath(stem)
        found = self._by_stem.get(key.name, ())
        exact = [path for path in found if path.with_suffix("").as_posix().endswith(f"/{key}")]
        return self._only(stem, exact or found)

    def _only(self, name: str, found: Sequence[Path]) -> Path:
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"the image {name!r} could be {found[0]} or {found[1]}. Name the right folder by "
                "--images."
            )
        raise InputError(
            f"the image {name!r} is not in {self.root}. Name the folder of the images by --images."
        )

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in visible_files(self.root):
            found.setdefault(path.name, []).append(path)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in visible_files(self.root):
            folders = path.relative_to(self.root).parts[:-1]
            is_mask = any(folder.startswith("Segmentation") for folder in folders)
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_mask:
                found.setdefault(path.stem, []).append(path)
        return found


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder by name, hidden ones and hidden folders left out."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def flat_name(path: str) -> str:
    """One name for a path without its suffix: its folders' names in front, joined by `_`."""
    plain = PurePosixPath(path.replace("\\", "/"))
    parts = [part for part in plain.with_suffix("").parts if part not in ("/", "..")]
    return "_".join(parts).lstrip(".")


def split_name(name: str) -> str:
    """How a split is called here."""
    plain = re.sub(r"[^\w.-]", "_", name.lower())
    undated = re.sub(r"[_-]?(19|20)\d\d$", "", plain)  # As in COCO's train2017.
    return SPLITS.get(undated, plain)
