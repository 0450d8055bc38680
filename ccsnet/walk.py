"""Find images in files, folders and patterns, and say where their results go."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ccsnet.data.files import images_of
from ccsnet.errors import InputError
from ccsnet.files import NAME_BYTES, SOME, fits
from ccsnet.formats import FORMATS
from ccsnet.outputs import KINDS

RESULT_FOLDERS = (*KINDS, *FORMATS, "at")
"""What results lie in, below the folder of all."""


class Found(NamedTuple):
    """An image among those to label."""

    path: Path
    name: str
    """Its path below the folder that all inputs share, with slashes; results are called so."""
    source: str | None = None
    """What tells it from another image of this name, once its file has been opened."""


def walk_images(inputs: Sequence[Path | str], without: Path | None = None) -> Iterator[Found]:
    """Images in files, folders (searched to the bottom) and glob patterns, once each.

    They are found while they are asked for: only one folder's names are held at a time, and of
    several inputs a number for each image.

    Args:
        inputs: Where to look.
        without: A folder of results: it is not searched. Where it is itself an input, what is not
            searched are those of its folders that results lie in.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: A folder or a pattern has no image in it.
    """
    base = _shared_folder(inputs)
    seen: set[int] = set()
    left_out = () if without is None else (without, *(without / name for name in RESULT_FOLDERS))
    for item in inputs:
        for path in images_of(item, left_out):
            absolute = os.path.abspath(path)  # noqa: PTH100
            if len(inputs) > 1:
                if hash(absolute) in seen:
                    continue
                seen.add(hash(absolute))
            yield Found(path, Path(os.path.relpath(absolute, base)).as_posix())


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


@dataclass(frozen=True)
class Targets:
    """Where the results of an image go."""

    out: Path
    """The folder of all results."""
    save: tuple[str, ...]
    """What is written, names of `ccsnet.outputs.KINDS`."""
    server: str | None = None
    """Whose format is also written, a name of `ccsnet.formats.FORMATS`."""
    at: tuple[int, int] | None = None
    """Row and column of the pixel of which is drawn what it read."""

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

    def check_names(self, name: str) -> None:
        """Whether the results of an image can be called as they should be.

        Raises:
            InputError: A name would be too long for a file.
        """
        for file in self.files(name).values():
            called = PurePosixPath(file).name
            if not fits(called):
                raise InputError(
                    f"Its result would be called {called[:SOME]}...{called[-SOME:]}, "
                    f"{len(os.fsencode(called))} bytes, and a file's name has {NAME_BYTES} at "
                    "most. Give the image a shorter name."
                )


def survey(inputs: Sequence[Path | str], plan: Targets, *, keep: bool) -> int:
    """How many images there are; their results are checked to have places of their own.

    Args:
        inputs: As for `walk_images`.
        plan: Where the results go.
        keep: Whether results may be there already.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: There is no image, two would be written to one file, or a file is there.
    """
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
            too_long = not fits(PurePosixPath(file).name)  # It is told of when its turn comes.
            if not keep and not too_long and (plan.out / file).exists():
                raise InputError(
                    f"{plan.out / file} is there already. Give another --out folder, --resume to "
                    "skip what is finished, or --overwrite."
                )
    return num
