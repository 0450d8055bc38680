"""The figures of a study, from the files that its cells have left."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from ccsnet.errors import InputError
from ccsnet.run_folder import BEST_FILE
from ccsnet.runs import summary
from ccsnet.study import Study
from ccsnet.study_cells import Cell
from ccsnet.study_cost import Cost
from ccsnet.study_stats import mean_interval, paired_bootstrap


class Measured(NamedTuple):
    """A finished cell."""

    cell: Cell
    miou: float
    """Of the report split."""
    pixel_accuracy: float
    iou: Mapping[str, float]
    """Of every class; NaN where it is absent."""
    images: tuple[str, ...]
    counts: Int64[np.ndarray, "I 3 N"]
    """Pixels of every image and class: right, labelled, predicted."""
    val_miou: float
    """Of the split that the checkpoint was chosen on."""
    step: int
    """Of the checkpoint."""
    minutes: float
    """Of training, validation left out."""


def measured(cell: Cell) -> Measured | None:
    """What a cell has reached; None while it is not finished.

    Raises:
        InputError: A file is not what `ccsnet` has written.
    """
    if cell.state != "done":
        return None
    path = cell.figures
    try:
        values = json.loads(path.read_text("utf-8"))
        classes = list(values["iou"])
        rows = sorted(values["per_image"], key=lambda row: row["image"])
        counts = np.array(
            [[row["counts"].get(name, (0, 0, 0)) for name in classes] for row in rows], np.int64
        )
        path = cell.out / BEST_FILE
        best = json.loads(path.read_text("utf-8"))
        path = cell.out
        hours = summary(cell.out, time.time()).hours
        return Measured(
            cell=cell,
            miou=_number(values["miou"]),
            pixel_accuracy=_number(values["pixel_accuracy"]),
            iou={name: _number(value) for name, value in values["iou"].items()},
            images=tuple(row["image"] for row in rows),
            counts=counts.reshape(len(rows), len(classes), 3).swapaxes(1, 2),
            val_miou=_number(best["miou"]),
            step=int(best["step"]),
            minutes=60 * hours,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} of the finished cell {cell.name} cannot be read ({error!r}). Remove the "
            f"folder {cell.out} to train it again."
        ) from error


def results(
    study: Study,
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    timing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that tables show, ready for JSON: fractions, and null for what is not known.

    Args:
        study: With its heads matched.
        cells: All of its cells.
        costs: Of the rows' models; empty where the data are not at hand.
        timing: What `study_timing` has measured.
    """
    found = {(cell.row, cell.seed): measured(cell) for cell in cells}
    by_row = {
        name: {seed: one for seed in study.seeds if (one := found.get((name, seed))) is not None}
        for name in study.rows
    }
    base = by_row[study.baseline]
    first = {cell.row: cell for cell in reversed(cells)}
    rows = {
        name: _row(study, first[name], ours, {} if name == study.baseline else base)
        | {
            "parameters": costs[name].parameters if name in costs else None,
            "gmacs": round(costs[name].gmacs, 6) if name in costs else None,
            "milliseconds": (timing or {}).get("milliseconds", {}).get(name),
            "origins": _origins(cells, name),
        }
        for name, ours in by_row.items()
    }
    return _plain(
        {
            "study": study.name,
            "title": study.title,
            "data": study.data,
            "seeds": list(study.seeds),
            "baseline": study.baseline,
            "select": study.select,
            "report": study.report,
            "match": None if study.match is None else {"by": study.match.by, "to": study.match.to},
            "timing": timing,
            "rows": rows,
            "cells": {cell.name: _cell(cell, found[cell.row, cell.seed]) for cell in cells},
        }
    )


def _row(
    study: Study, cell: Cell, ours: Mapping[int, Measured], base: Mapping[int, Measured]
) -> dict[str, Any]:
    mious = [one.miou for one in ours.values()]
    classes = list(next(iter(ours.values())).iou) if ours else []
    return {
        "seeds": list(ours),
        "miou": _mean(mious),
        "least": min(mious, default=None),
        "greatest": max(mious, default=None),
        "deviation": statistics.stdev(mious) if len(mious) > 1 else None,
        "pixel_accuracy": _mean([one.pixel_accuracy for one in ours.values()]),
        "val_miou": _mean([one.val_miou for one in ours.values()]),
        "minutes": _mean([one.minutes for one in ours.values()]),
        "iou": {name: _mean([one.iou[name] for one in ours.values()]) for name in classes},
        "difference": _difference(ours, base),
        "dim": cell.config.model.head_config.dim,
        "commands": list(cell.shown),
    }


def _difference(
    ours: Mapping[int, Measured], base: Mapping[int, Measured]
) -> dict[str, Any] | None:
    """A row against the baseline, over the seeds that both have; None where there is none."""
    seeds = [seed for seed in ours if seed in base]
    if not seeds:
        return None
    pairs = [(ours[seed], base[seed]) for seed in seeds]
    differences = [one.miou - other.miou for one, other in pairs]
    images = {one.images for pair in pairs for one in pair}
    over_seeds, over_images = mean_interval(differences), None
    # Two images of one name cannot be told apart.
    if len(images) == 1 and len(set(*images)) == len(next(iter(images))) > 0:
        ours_counts, base_counts = zip(*((a.counts, b.counts) for a, b in pairs), strict=True)
        over_images = paired_bootstrap(ours_counts, base_counts)
    return {
        "seeds": seeds,
        "mean": _mean(differences),
        "each": [round(value, 6) for value in differences],
        "over_seeds": _ends(over_seeds),
        "over_images": _ends(over_images),
        "iou": {
            name: _mean([one.iou[name] - other.iou[name] for one, other in pairs])
            for name in pairs[0][0].iou
        },
    }


def _cell(cell: Cell, one: Measured | None) -> dict[str, Any]:
    values: dict[str, Any] = {"row": cell.row, "seed": cell.seed, "state": cell.state}
    values["origins"] = cell.record().get("origins", [])
    if one is not None:
        values |= {
            "miou": one.miou,
            "pixel_accuracy": one.pixel_accuracy,
            "val_miou": one.val_miou,
            "step": one.step,
            "minutes": round(one.minutes, 2),
            "iou": dict(one.iou),
        }
    return values


def _origins(cells: Sequence[Cell], row: str) -> list[dict[str, str]]:
    """The commits and machines that a row's runs were made by, each once."""
    found: list[dict[str, str]] = []
    for cell in cells:
        if cell.row == row:
            found += [o for o in cell.record().get("origins", []) if o not in found]
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float]) -> float | None:
    """Of those that exist."""
    known = [value for value in values if not math.isnan(value)]
    return round(math.fsum(known) / len(known), 6) if known else None


def _ends(interval: tuple[Any, Any] | None) -> list[float] | None:
    if interval is None or any(math.isnan(float(end)) for end in interval):
        return None
    return [round(float(end), 6) for end in interval]


def _plain(values: Any) -> Any:
    """The same without NaN, which JSON does not have."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
