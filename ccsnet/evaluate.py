"""Measure a model on a labelled set: batches by equal size, one streaming confusion matrix."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ccsnet.data.loading import Sample, batches_of_equal_size
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.metrics import ConfusionMatrix, Metrics
from ccsnet.parallel import Processes
from ccsnet.sliding import sliding_label
from ccsnet.upsample import upsample_argmax


class Evaluation(NamedTuple):
    """What `evaluate` measured."""

    metrics: Metrics
    per_image: Sequence[tuple[str, float]]
    """Name and mIoU of every image, worst first; empty unless asked for."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    samples: Iterable[Sample],
    classes: Sequence[str],
    *,
    ignore_index: int = 255,
    batch_size: int = 8,
    window: tuple[int, int] | None = None,
    per_image: bool = False,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Sample, Tensor], None] | None = None,
    processes: Processes | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Compare predictions with labels, each at its label's own size.

    Args:
        model: A `Segmenter`; put in evaluation mode here, and back afterwards.
        samples: Images at test size with labels at their own (`evaluation_samples`).
        classes: Names of the classes.
        ignore_index: The label that counts nowhere.
        batch_size: Images of equal size, or windows of one image, per forward pass.
        window: Side and stride in pixels of windows that each image is seen in. None: as a whole.
        per_image: Also rank the images.
        progress: Called with the number of images just done.
        watch: Shown every image with its label map.
        processes: Those that share the set: each measures its samples, all return the whole.
        stop: Asked after every batch; once it says yes, the rest is left out.
    """
    device = next(model.parameters()).device
    # Images that are seen in windows need not have one size.
    images_at_once = batch_size if window is None else 1
    was_training = model.training
    model.eval()
    total = ConfusionMatrix(len(classes), ignore_index)
    ranking: list[tuple[str, float]] = []
    count = 0
    for batch in batches_of_equal_size(samples, images_at_once):
        if window is None:
            predictions = _whole(model, batch, device)
        else:
            predictions = _in_windows(model, batch, len(classes), window, batch_size)
        for sample, prediction in zip(batch, predictions, strict=True):
            alone = ConfusionMatrix(len(classes), ignore_index)
            alone.update(sample.label.to(device), prediction.to(device))
            total.add(alone)
            if watch is not None:
                watch(sample, prediction)
            if per_image:
                metrics = Metrics(classes=classes, confusion=alone.matrix())
                ranking.append((sample.name, metrics.miou))
        count += len(batch)
        if progress is not None:
            progress(len(batch))
        if stop is not None and stop():
            break
    model.train(was_training)
    if processes is not None and processes.num > 1:
        counts = total.counts
        if counts is None:
            counts = torch.zeros(len(classes) ** 2, dtype=torch.long, device=device)
        total.counts = processes.sum(counts)
        count = int(processes.sum(torch.tensor(count)))
        ranking = processes.gather(ranking)
    metrics = Metrics(classes=classes, confusion=total.matrix(), images=count)
    counted = [row for row in ranking if not math.isnan(row[1])]  # NaN: not one valid pixel.
    # By name where equal, so that the order does not tell how many processes there were.
    return Evaluation(metrics, sorted(counted, key=lambda row: (row[1], row[0])))


def evaluation_to_json(evaluation: Evaluation, step: int) -> str:
    """What was measured at a step of a run, as `evaluation_from_json` reads it."""
    values = {"step": step, **evaluation.metrics.to_dict(), "per_image": evaluation.per_image}
    return json.dumps(values, indent=1)


def evaluation_from_json(text: str, source: str) -> Evaluation:
    """What `evaluation_to_json` wrote.

    Raises:
        InputError: The text is something else.
    """
    try:
        values = json.loads(text)
        metrics = Metrics(
            classes=tuple(values["iou"]),
            confusion=np.array(values["confusion"], np.int64),
            images=values["images"],
        )
        return Evaluation(metrics, [(name, miou) for name, miou in values["per_image"]])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source} does not hold the figures of a validation ({error!r}): it was not written "
            "by `ccsnet train`, or it was cut short."
        ) from error


def _whole(model: nn.Module, batch: Sequence[Sample], device: torch.device) -> Iterator[Tensor]:
    """Label maps of images of one size, each at its label's own."""
    logits = model(torch.stack([sample.image for sample in batch]).to(device)).logits
    for sample, one in zip(batch, logits, strict=True):
        height, width = sample.label.shape
        yield upsample_argmax(one[None], (height, width))[0]


def _in_windows(
    model: nn.Module,
    batch: Sequence[Sample],
    num_classes: int,
    window: tuple[int, int],
    batch_size: int,
) -> Iterator[Tensor]:
    """The same from overlapping windows, so many at once."""
    side, stride = window
    for sample in batch:
        height, width = sample.label.shape
        yield sliding_label(
            model,
            sample.image,
            num_classes,
            (height, width),
            window=side,
            stride=stride,
            batch_size=batch_size,
        )


def labelled_split(spec: DatasetSpec, wanted: str) -> str:
    """The split to measure on: `wanted`, or the only one with labels where it has none.

    So a data set that is published for testing alone needs no word on its split.

    Raises:
        InputError: `wanted` does not do, and the data set has several splits with labels or none.
    """
    labelled = [name for name in spec.splits if all(part.labels for part in spec.parts(name))]
    if wanted in labelled:
        return wanted
    if len(labelled) == 1:
        return labelled[0]
    what = "is published without labels" if wanted in spec.splits else "does not exist"
    raise InputError(
        f"The split {wanted!r} of {spec.name!r} {what}. Name one of those with labels by --split: "
        f"{', '.join(labelled) or 'there is none'}."
    )
