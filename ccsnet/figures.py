"""What an evaluation leaves in a folder: figures as JSON and CSV, a picture, and a page."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError
from ccsnet.evaluate import Evaluation
from ccsnet.files import atomic_path
from ccsnet.metrics import IMAGE_MEANS, Metrics, confusion_csv, image_scores, percent
from ccsnet.progress import Reporter
from ccsnet.report import Section, write_report
from ccsnet.run_report import (
    calibration_sections,
    confusion_section,
    facts_table,
    images_section,
    origin_text,
    result_section,
)
from ccsnet.scores import CLASS_SCORES
from ccsnet.trackers import flat_settings

JSON_FILE, PAGE, CONFUSION_PLOT = "evaluation.json", "evaluation.html", "confusion.png"
TABLES: Mapping[str, Callable[[Evaluation], str]] = {
    "classes.csv": lambda measured: classes_csv(measured.metrics),
    "images.csv": lambda measured: images_csv(measured),
    "confusion.csv": lambda measured: confusion_csv(measured.metrics),
}
FILES = (JSON_FILE, *TABLES, CONFUSION_PLOT, PAGE)
"""What `write_evaluation` writes."""


def free_folder(out: Path, *, overwrite: bool = False) -> None:
    """Make the folder of an evaluation, before the work is done.

    Raises:
        InputError: A file would be replaced.
        OSError: The folder cannot be made.
    """
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"{out} holds {', '.join(there)} already. Choose another --out, or replace what is "
            "there with --overwrite."
        )
    out.mkdir(parents=True, exist_ok=True)


def figures_json(measured: Evaluation) -> str:
    """All figures as JSON text, those of every image too where they were kept."""
    values = dict(measured.metrics.to_dict())
    if measured.metrics.per_image is not None:
        rows = image_scores(measured.metrics, measured.per_image)
        values["per_image"] = [row.to_dict(measured.metrics.classes) for row in rows]
    return json.dumps(values, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole; one that is there is replaced."""
    with atomic_path(path) as aside:
        aside.write_text(text, "utf-8", "surrogateescape")  # Names of files as their bytes.


def classes_csv(metrics: Metrics) -> str:
    """A row for each class: pixels, figures, the interval of its IoU. What is absent is empty."""
    label, predicted = metrics.confusion.sum(1).tolist(), metrics.confusion.sum(0).tolist()
    columns = {"class": metrics.classes, "labelled_pixels": label, "predicted_pixels": predicted}
    columns |= {name: _cells(getattr(metrics, name)) for name in CLASS_SCORES}
    if metrics.boundary is not None:
        columns["boundary_iou"] = _cells(metrics.boundary_iou)
    if metrics.intervals:
        low, high = map(np.atleast_1d, metrics.intervals["iou"])
        columns |= {"iou_low": _cells(low), "iou_high": _cells(high)}
    return _csv([list(columns), *zip(*columns.values(), strict=True)])


def images_csv(measured: Evaluation) -> str:
    """A row for each image with a pixel that counts, worst mIoU first; each class's IoU.

    Raises:
        InputError: The counts of the images were not kept.
    """
    head = ["image", "pixels", *IMAGE_MEANS, *(f"iou {c}" for c in measured.metrics.classes)]
    rows = [
        [row.image, row.pixels, *_cells([*(getattr(row, n) for n in IMAGE_MEANS), *row.iou])]
        for row in image_scores(measured.metrics, measured.per_image)
    ]
    return _csv([head, *rows])


def write_evaluation(
    out: Path,
    measured: Evaluation,
    spec: DatasetSpec,
    *,
    pairs: list[Pair],
    predict: Callable[[np.ndarray], np.ndarray],
    facts: Mapping[str, object],
    reporter: Reporter | None = None,
) -> None:
    """Write all of `FILES`; those that are there are replaced (see `free_folder`).

    Args:
        out: The folder.
        measured: With the counts of every image.
        spec: What was measured on.
        pairs: Its images, of which the best and the worst are shown.
        predict: The label map of an image as its file holds it.
        facts: What was measured, and how.
        reporter: Told of every picture that is drawn.

    Raises:
        InputError: The counts of the images were not kept.
        OSError: A file cannot be written.
    """
    metrics = measured.metrics
    write_text(out / JSON_FILE, figures_json(measured))
    for name, text in TABLES.items():
        write_text(out / name, text(measured))
    sections = [
        result_section(metrics, []),
        *calibration_sections(metrics),
        confusion_section(metrics, beside=out / CONFUSION_PLOT),
        images_section(measured, predict, spec, pairs, reporter=reporter),
        Section("How this was made", [origin_text()], [facts_table(flat_settings(facts))]),
    ]
    write_report(
        out / PAGE,
        title=f"An evaluation on {spec.name}",
        lead=(
            f"On {metrics.images} image{'s' * (metrics.images != 1)}, the model reaches a mean IoU "
            f"of {percent(metrics.miou)} %."
        ),
        classes=spec.classes,
        colours=spec.colours,
        sections=sections,
    )


def _cells(values: Sequence[float] | np.ndarray) -> list[float | str]:
    """Numbers of six digits; what does not exist is empty."""
    return ["" if math.isnan(value) else round(float(value), 6) for value in values]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
