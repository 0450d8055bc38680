"""Finished rows of a scene's labels, kept on the disk until all are there."""

import contextlib
import dataclasses
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import nn

from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.predict import Predictor
from ccsnet.progress import Reporter
from ccsnet.rasters_passes import Plan

PART_ROWS = 512
"""Rows that are kept together when they are done; also the side of the result's tiles."""


def state_of(
    scene: Path | str, source: Any, bands: tuple[int, ...], plan: Plan, predictor: Predictor
) -> dict[str, Any]:
    """All that the labels depend on: where it is the same, finished rows are still right."""
    file = Path(scene)
    facts = file.stat() if file.exists() else None
    how = dataclasses.asdict(plan.pipeline.config)
    for known in ("batch_size", "max_memory", "window", "overlap", "precision", "compile"):
        del how[known]  # They change nothing, or what they led to is told below.
    state = {
        "scene": str(file.resolve()) if facts else str(scene),
        "bytes": facts and facts.st_size,
        "changed": facts and facts.st_mtime_ns,
        "types": source.dtypes,
        "bands": bands,
        "size": plan.size,
        "window": plan.window,
        "how": how,
        "precision": plan.pipeline.mode.precision,
        "rows": PART_ROWS,
        "classes": predictor.classes,
        "models": [_fingerprint(model) for model in predictor.models],
    }
    return json.loads(json.dumps(state))  # As it is read again.


def _fingerprint(model: nn.Module) -> int:
    """A number that changes with the weights."""
    number = 0
    for value in model.state_dict().values():
        flat = value.detach().cpu().contiguous().reshape(-1)
        number = zlib.crc32(flat.view(torch.uint8).numpy(), number)
    return number


def has_state(parts: Path, state: dict[str, Any]) -> bool:
    """Whether rows are kept that were made alike."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((parts / "state.json").read_text()) == state
    return False


def begin_parts(parts: Path, state: dict[str, Any], going_on: bool, reporter: Reporter) -> None:
    """Make the folder, or clear it of rows that were made otherwise."""
    if parts.exists() and not going_on:
        reporter.note("Rows of an earlier run are dropped: it had other settings or another scene.")
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    if not going_on:
        with atomic_path(parts / "state.json") as aside:
            aside.write_text(json.dumps(state))


def asked_before(parts: Path) -> set[Path]:
    """The results that the call which left these rows was to write: they may be replaced."""
    with contextlib.suppress(OSError, ValueError):
        return {Path(name) for name in json.loads((parts / "results.json").read_text())}
    return set()


def note_results(parts: Path, results: Sequence[Path]) -> None:
    """Keep what is to be written."""
    names = {str(path.resolve()) for path in results} | {str(path) for path in asked_before(parts)}
    with atomic_path(parts / "results.json") as aside:
        aside.write_text(json.dumps(sorted(names)))


def finished_rows(parts: Path, height: int) -> int:
    """How many rows are there, from the top without a gap."""
    num_parts = -(-height // PART_ROWS)
    done = next((i for i in range(num_parts) if not _part(parts, i).exists()), num_parts)
    return min(done * PART_ROWS, height)


def write_parts(
    parts: Path, first_row: int, rows: Iterable[Integer[np.ndarray, "_ W"]], height: int
) -> None:
    """Keep rows as they come, from one on that begins a part."""
    index, waiting = first_row // PART_ROWS, []
    for some in rows:
        waiting.append(some)
        while sum(map(len, waiting)) >= min(PART_ROWS, height - index * PART_ROWS) > 0:
            there = np.concatenate(waiting)
            with atomic_path(_part(parts, index)) as aside:
                aside.write_bytes(zlib.compress(there[:PART_ROWS].tobytes(), 1))
            index, waiting = index + 1, [there[PART_ROWS:]]


def read_parts(
    parts: Path, height: int, width: int, kind: type
) -> Iterator[tuple[Integer[np.ndarray, "H W"], Any]]:
    """The finished rows from the top, and where they belong.

    Raises:
        InputError: A part is damaged.
    """
    from rasterio.windows import Window

    for index, top in enumerate(range(0, height, PART_ROWS)):
        rows = min(PART_ROWS, height - top)
        window = Window(0, top, width, rows)  # pyright: ignore[reportCallIssue]
        yield _read_part(parts, index, (rows, width), kind), window


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06}.labels"


def _read_part(parts: Path, index: int, shape: tuple[int, int], kind: type) -> np.ndarray:
    path = _part(parts, index)
    try:
        return np.frombuffer(zlib.decompress(path.read_bytes()), kind).reshape(shape)
    except (zlib.error, ValueError) as error:
        raise InputError(
            f"The finished rows in {path} are damaged ({error}). Delete the folder {parts} and "
            "start again."
        ) from error
