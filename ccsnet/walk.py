"""Find images in files, folders and patterns, and say where their results go."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ccsnet.errors import InputError
from ccsnet.outputs import KINDS
from ccsnet.predict import IMAGE_SUFFIXES


class Found(NamedTuple):
    """An image among those to label."""

    path: Path
    name: str
    """Its path below the folder that all inputs share, with slashes; results are called so."""


def walk_images(inputs: Sequence[Path | str], without: Path | None = None) -> Iterator[Found]:
    """Images in files, folders (searched to the bottom) and glob patterns, once each.

    They are found while they are asked for: only one folder's names are held at a time, and of
    several inputs a number for each image.

    Args:
        inputs: Where to look.
        without: A folder that is not searched, as that of the results.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: A folder or a pattern has no image in it.
    """
    base = _shared_folder(inputs)
    seen: set[int] = set()
    for item in inputs:
        num = 0
        for path in _images_of(item, without):
            num += 1
            absolute = os.path.abspath(path)  # noqa: PTH100
            if len(inputs) > 1:
                if hash(absolute) in seen:
                    continue
                seen.add(hash(absolute))
            yield Found(path, Path(os.path.relpath(absolute, base)).as_posix())
        if not num:
            raise InputError(
                f"No image in {item}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}."
            )


def _shared_folder(inputs: Sequence[Path | str]) -> str:
    folders = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            folders.append(path)
        elif not path.is_file() and glob.has_magic(str(item)):
            parts = path.parts
            magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
            folders.append(Path(*parts[:magic]))
        else:
            folders.append(path.parent)
    return os.path.commonpath([os.path.abspath(f) for f in folders])  # noqa: PTH100


def _images_of(item: Path | str, without: Path | None) -> Iterator[Path]:
    path = Path(item)
    if path.is_file():  # A file that was named is read, whatever it is called.
        yield path
    elif path.is_dir():
        left_out = None if without is None else os.path.abspath(without)  # noqa: PTH100
        for folder, inner, files in os.walk(path):
            inner[:] = sorted(
                d
                for d in inner
                if os.path.abspath(os.path.join(folder, d)) != left_out  # noqa: PTH100, PTH118
            )
            images = (Path(folder, f) for f in sorted(files) if _is_image(f))
            yield from (image for image in images if image.is_file())  # No pipes, no devices.
    elif glob.has_magic(str(item)):
        matches = sorted(glob.iglob(str(item), recursive=True))  # noqa: PTH207
        yield from (Path(f) for f in matches if _is_image(f) and Path(f).is_file())
    else:
        raise FileNotFoundError(
            f"No file, folder or pattern {item}. Give images, folders of images, or patterns such "
            "as 'photos/*.jpg'."
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Targets:
    """Where the results of an image go."""

    out: Path
    save: tuple[str, ...]
    server: str | None = None
    at: tuple[int, int] | None = None

    @property
    def looks(self) -> bool:
        """Whether anything is wanted of what the network looked at."""
        return "relevant" in self.save or self.at is not None

    def files(self, name: str) -> dict[str, str]:
        """The file or folder of each kind, below `out`."""
        made = {
            kind: f"{kind}/{PurePosixPath(name).with_suffix(KINDS[kind].suffix)}"
            for kind in self.save
            if KINDS[kind].write is not None or kind == "relevant"
        }
        if self.at is not None:
            made["at"] = f"at/{PurePosixPath(name).with_suffix('.png')}"
        if self.server is not None:
            made[self.server] = f"{self.server}/{PurePosixPath(name).stem}.png"
        return made


def survey(inputs: Sequence[Path | str], plan: Targets, *, keep: bool) -> int:
    """How many images there are; their results are checked to have places of their own."""
    num, owners = 0, set()
    for found in walk_images(inputs, plan.out):
        num += 1
        for file in plan.files(found.name).values() or [found.name]:
            if hash(file) in owners:
                other = next(
                    o for o in walk_images(inputs, plan.out) if file in plan.files(o.name).values()
                )
                raise InputError(
                    f"{other.path} and {found.path} would both be written to {plan.out / file}. "
                    "Predict them in two calls with different --out folders."
                )
            owners.add(hash(file))
            if not keep and (plan.out / file).exists():
                raise InputError(
                    f"{plan.out / file} is there already. Give another --out folder, --resume to "
                    "skip what is finished, or --overwrite."
                )
    return num
