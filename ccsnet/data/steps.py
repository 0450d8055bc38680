"""The steps that make label files, lists and tiles of what was unpacked.

Each kind of step has a function that lists its tasks, without those that are done, and one that
does a task; a task's result is written whole or not at all. Tasks know nothing of each other, so
processes share them.
"""

import gzip
import importlib.util
import json
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from ccsnet.data.disk import disk_errors
from ccsnet.data.images import write_bytes, write_index_png
from ccsnet.data.tiles import cut, tile_paths
from ccsnet.datasets._archives import ContextToPng, Gunzip, MatToPng, NameList, Step, Tiles
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.files import atomic_path


class Work(NamedTuple):
    """What a step has to do."""

    do: Callable[[Any], int]
    """Does one of the tasks, in any process; returns 1."""
    tasks: Sequence[Any]
    """What is not done yet."""
    done: int = 0
    """How many tasks were done before."""


class Place(NamedTuple):
    """Where a step works."""

    root: Path
    """The data set's folder."""
    since: float
    """Results that are older, in seconds since 1970, are made again."""

    def has(self, path: Path) -> bool:
        """Whether a result is there."""
        if not path.is_file():
            return False
        status = path.stat()
        return status.st_size > 0 and status.st_mtime >= self.since


def inputs(step: Step) -> list[str]:
    """Patterns of the files that a step cannot do without."""
    match step:
        case MatToPng() | Gunzip():
            return [step.sources]
        case ContextToPng():
            return [step.json]
        case NameList():
            return [*step.add, *step.less]
        case Tiles():
            return [step.images, *([step.labels] if step.labels else [])]


def outputs(step: Step) -> list[str]:
    """Patterns of the files that a step makes."""
    match step:
        case MatToPng():
            return [step.targets]
        case Gunzip():
            return [step.sources.removesuffix(".gz")]
        case ContextToPng():
            return [step.labels, step.lists]
        case NameList():
            return [step.target]
        case Tiles():
            return [step.tile_images, *([step.tile_labels] if step.tile_labels else [])]


def check_tools(spec: DatasetSpec) -> None:
    """Refuse to begin what a missing package would stop half-way.

    Raises:
        InputError: scipy is needed and not installed.
    """
    reads_mat = any(isinstance(step, MatToPng) for step in spec.steps)
    if reads_mat and importlib.util.find_spec("scipy") is None:
        raise InputError(
            f"{spec.name} comes as .mat files, and scipy, which reads them, is not installed: "
            "`pip install 'ccsnet[prepare]'`."
        )


def plan(step: Step, spec: DatasetSpec, place: Place) -> Work:
    """What a step has to do.

    Raises:
        FileNotFoundError: A file is not there that it cannot do without.
        InputError: Such a file is damaged or not what it should be.
    """
    match step:
        case MatToPng():
            return _plan_mat(step, place)
        case Gunzip():
            return _plan_gunzip(step, place)
        case ContextToPng():
            return _plan_context(step, place)
        case NameList():
            return _plan_names(step, place)
        case Tiles():
            return _plan_tiles(step, spec, place)


def matches(root: Path, pattern: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The files that match, sorted, each with what the pattern's `*` stand for."""
    stars = re.compile("([^/]*)".join(map(re.escape, pattern.split("*"))))
    for path in sorted(root.glob(pattern)):
        found = stars.fullmatch(path.relative_to(root).as_posix())
        if found and path.is_file() and not path.name.startswith("."):
            yield path, found.groups()


def fill(pattern: str, stars: Sequence[str]) -> str:
    """The pattern with its `*` replaced in order."""
    words = iter(stars)
    return re.sub(r"\*", lambda _: next(words), pattern)


def _found(place: Place, pattern: str) -> list[tuple[Path, tuple[str, ...]]]:
    found = list(matches(place.root, pattern))
    if not found:
        raise FileNotFoundError(f"No {place.root / pattern}, of which files are to be made.")
    return found


def _split_done(place: Place, tasks: Sequence[tuple[Any, ...]]) -> tuple[list[Any], int]:
    """The tasks whose second part, the file to make, is not there; how many others there are."""
    left = [task for task in tasks if not place.has(task[1])]
    return left, len(tasks) - len(left)


def _plan_mat(step: MatToPng, place: Place) -> Work:
    tasks = [
        (source, place.root / fill(step.targets, stars), step.path)
        for source, stars in _found(place, step.sources)
    ]
    return Work(_mat_to_png, *_split_done(place, tasks))


def _mat_to_png(task: tuple[Path, Path, tuple[str, ...]]) -> int:
    source, target, path = task
    from scipy.io import loadmat

    try:
        value = loadmat(str(source), variable_names=[path[0]])[path[0]]
        for name in path[1:]:
            value = value[name]
            while value.dtype == object:
                value = value.item()
        if value.ndim != 2 or not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"{'.'.join(path)} is {value.ndim}-dimensional {value.dtype}")
        if value.min() < 0 or value.max() > 255:
            raise ValueError(f"{'.'.join(path)} holds {value.min()} to {value.max()}")
    except FileNotFoundError:
        raise
    except Exception as error:  # Damaged files fail anywhere inside the parser.
        raise InputError(
            f"Cannot read {source}: {error!r}. It should be a .mat file whose {'.'.join(path)} is "
            "a matrix of whole numbers from 0 to 255. Unpack its archive again."
        ) from error
    with disk_errors(target):
        write_index_png(target, value.astype(np.uint8))
    return 1


def _plan_gunzip(step: Gunzip, place: Place) -> Work:
    tasks = [(path, path.with_suffix("")) for path, _ in _found(place, step.sources)]
    return Work(_gunzip, *_split_done(place, tasks))


def _gunzip(task: tuple[Path, Path]) -> int:
    source, target = task
    with disk_errors(target), atomic_path(target, durable=False) as aside:
        try:
            with gzip.open(source) as packed, aside.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{source} is damaged or not whole: {error}. Unpack its archive again."
            ) from error
    return 1


def _plan_names(step: NameList, place: Place) -> Work:
    # Made anew each time: it takes no time, and the lists that it is made of may have come later.
    for name in inputs(step):
        if not (place.root / name).is_file():
            raise FileNotFoundError(f"No {place.root / name}, of which {step.target} is made.")
    return Work(_write_names, [(place.root, step)])


def _write_names(task: tuple[Path, NameList]) -> int:
    root, step = task
    less = {name for file in step.less for name in _read_names(root / file)}
    added = (name for file in step.add for name in _read_names(root / file))
    names = [name for name in dict.fromkeys(added) if name not in less]
    _write_lines(root / step.target, names)
    return 1


def _read_names(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with disk_errors(path):
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _plan_context(step: ContextToPng, place: Place) -> Work:
    """One task per image, and the lists, which are written at once.

    Certain, because several published programs read the file so: `images` with `image_id`,
    `file_name`, `height`, `width` and `phase` (train or val); `annos_segmentation` with `image_id`,
    `category_id` and `segmentation`, a COCO run-length code. A mask begins as 0, and what comes
    later in the file is painted over what came earlier.

    Every image of a phase is listed: 4998 and 5105. That some publish 4996 and 5104 fits a
    reader which takes images out of the list while it walks it; so two and one are lost there.
    """
    path = place.root / step.json
    if not path.is_file():
        raise FileNotFoundError(f"No {path}, of which labels are to be made.")
    try:
        content = json.loads(path.read_bytes())
        phases: dict[str, list[str]] = defaultdict(list)
        tasks = {}
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            phases[image["phase"]].append(stem)
            target = place.root / fill(step.labels, [stem])
            size = (int(image["height"]), int(image["width"]))
            tasks[image["image_id"]] = (path, target, size, step.raw_ids, [])
        for annotation in content["annos_segmentation"]:
            if annotation["image_id"] in tasks:
                painted = (int(annotation["category_id"]), annotation["segmentation"])
                tasks[annotation["image_id"]][4].append(painted)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the annotation file of Pascal Context: {error!r}. Download "
            "trainval_merged.json again."
        ) from error
    for phase, stems in phases.items():
        _write_lines(place.root / fill(step.lists, [phase]), sorted(stems))
    return Work(_context_to_png, *_split_done(place, list(tasks.values())))


def _context_to_png(
    task: tuple[Path, Path, tuple[int, int], tuple[int, ...], list[tuple[int, Any]]],
) -> int:
    source, target, size, raw_ids, painted = task
    raw = np.zeros(size, np.int64)
    try:
        for category, code in painted:
            raw[run_length_mask(code, size)] = category
        unknown = set(np.unique(raw).tolist()) - set(raw_ids)
        if unknown:
            raise ValueError(f"no class has the categories {sorted(unknown)}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source}: the annotation of {target.stem} cannot be used: {error!r}. Download the "
            "file again."
        ) from error
    order = np.argsort(raw_ids)
    label = order[np.searchsorted(np.array(raw_ids)[order], raw)]
    with disk_errors(target):
        write_index_png(target, label.astype(np.uint8))
    return 1


def run_length_mask(code: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask that a COCO run-length code stands for.

    Runs of 0 and 1 in turn, down the columns. As text, each length is written in digits of 5 bits,
    lowest first, 32 added to all but the last and 48 to each; bit 4 of the last is the sign, and
    from the fourth length on the difference to the one two before stands for it.

    Raises:
        ValueError: It is no such code, or of another size.
    """
    if not isinstance(code, dict) or tuple(code["size"]) != size:
        raise ValueError(f"expected a run-length code for {size}, found {str(code)[:60]}")
    counts = code["counts"]
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(f"the runs cover {sum(counts)} of {size[0]} x {size[1]} pixels")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(size[1], size[0]).T


def _run_lengths(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for digit in text.encode("ascii"):
        digit -= 48
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _plan_tiles(step: Tiles, spec: DatasetSpec, place: Place) -> Work:
    tasks, done = [], 0
    coloured = spec.colour_to_class is not None
    means = spec.colour_to_class if spec.colour_to_class is not None else spec.raw_to_class
    fill_is_class = ((step.fill,) * 3 if coloured else step.fill) in means
    how = (spec.channels, coloured, fill_is_class)
    for image, (name, *_) in _found(place, step.images):
        if step.ids is not None and name not in step.ids:
            continue
        label = None
        if step.labels is not None:
            label = place.root / fill(step.labels, [name])
            if not label.is_file():
                raise FileNotFoundError(f"No {label}, the label of {image}.")
        if all(place.has(path) for path in tile_paths(step, place.root, image, name)):
            done += 1
        else:
            tasks.append((step, place.root, image, label, name, *how))
    return Work(_cut, tasks, done)


def _cut(task: tuple[Tiles, Path, Path, Path | None, str, int, bool, bool]) -> int:
    cut(*task)
    return 1
