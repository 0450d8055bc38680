"""Measure a model on a labelled set: batches by equal size, one streaming confusion matrix."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ccsnet.data.loading import Sample, batches_of_equal_size
from ccsnet.metrics import ConfusionMatrix, Metrics
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
    per_image: bool = False,
    progress: Callable[[int], None] | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Evaluation:
    """Compare predictions with labels, each at its label's own size.

    Args:
        model: A `Segmenter`; put in evaluation mode here, and back afterwards.
        samples: Images at test size with labels at their own (`evaluation_samples`).
        classes: Names of the classes.
        ignore_index: The label that counts nowhere.
        batch_size: Images of equal size per forward pass.
        per_image: Also rank the images.
        progress: Called with the number of images just done.
        reduce: Sums a tensor over the processes that share the set.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = ConfusionMatrix(len(classes), ignore_index)
    ranking: list[tuple[str, float]] = []
    count = 0
    for batch in batches_of_equal_size(samples, batch_size):
        images = torch.stack([sample.image for sample in batch]).to(device)
        logits = model(images).logits
        for sample, one in zip(batch, logits, strict=True):
            label = sample.label.to(device)
            prediction = upsample_argmax(one[None], (label.shape[0], label.shape[1]))[0]
            total.update(label, prediction)
            if per_image:
                alone = ConfusionMatrix(len(classes), ignore_index)
                alone.update(label, prediction)
                metrics = Metrics(classes=classes, confusion=alone.matrix())
                ranking.append((sample.name, metrics.miou))
        count += len(batch)
        if progress is not None:
            progress(len(batch))
    model.train(was_training)
    if reduce is not None:
        counts = total.counts
        if counts is None:
            counts = torch.zeros(len(classes) ** 2, dtype=torch.long, device=device)
        total.counts = reduce(counts)
        count = int(reduce(torch.tensor(count, device=device)))
    metrics = Metrics(classes=classes, confusion=total.matrix(), images=count)
    counted = [row for row in ranking if not math.isnan(row[1])]  # NaN: not one valid pixel.
    return Evaluation(metrics, sorted(counted, key=lambda row: row[1]))
