"""Milliseconds of the models of a study: each labels the same images, and they take turns."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ccsnet.data.images import read_image
from ccsnet.data.opening import open_dataset
from ccsnet.hub import open_run
from ccsnet.machine import machine
from ccsnet.predict import Predictor
from ccsnet.progress import Reporter
from ccsnet.study_cells import Cell, commit

IMAGES, WARM_UP, ROUNDS = 4, 2, 9


def measure(cells: Mapping[str, Cell], reporter: Reporter) -> dict[str, Any]:
    """Time one image at a time, from memory to its label map: the median of the rounds.

    Run nothing else meanwhile.

    Args:
        cells: A finished one for each row.
        reporter: Who is told how it goes.

    Raises:
        InputError: A checkpoint or an image cannot be read.
    """
    config = next(iter(cells.values())).config
    spec, root = open_dataset(config.data)
    pairs = spec.pairs(root, next(iter(cells.values())).report)[:IMAGES]
    images = [read_image(pair.image, spec.channels) for pair in pairs]
    device = "cpu" if config.train.cpu else None
    predictors = {
        name: Predictor.of_checkpoint(open_run(str(cell.out)), device)
        for name, cell in cells.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    reporter.start("timing", WARM_UP + ROUNDS)
    for _ in range(WARM_UP + ROUNDS):
        for name, predictor in predictors.items():
            seconds[name].append(_seconds(predictor, images))
        reporter.advance()
    reporter.end()
    on = torch.cuda.get_device_name() if device is None and torch.cuda.is_available() else machine()
    return {
        "milliseconds": {
            name: round(1e3 * statistics.median(times[WARM_UP:]), 3)
            for name, times in seconds.items()
        },
        "images": len(images),
        "rounds": ROUNDS,
        "machine": on,
        "commit": commit(),
    }


def _seconds(predictor: Predictor, images: Sequence[Any]) -> float:
    """Of one image, the mean over all; the label maps are back in memory then."""
    start = time.perf_counter()
    for image in images:
        predictor.predict_batch([image])
    return (time.perf_counter() - start) / len(images)
