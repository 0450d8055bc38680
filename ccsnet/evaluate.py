"""Measure a model on a labelled set: batches by equal size, one streaming confusion matrix."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ccsnet.boundary import BoundaryCounts
from ccsnet.calibration import CalibrationCounts
from ccsnet.checkpoint import Checkpoint
from ccsnet.counts import ConfusionMatrix, ImageCounts
from ccsnet.data.loading import EvaluationSamples, Sample, batches_of_equal_size, evaluation_samples
from ccsnet.data.opening import DataConfig
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.depth import depth_warning
from ccsnet.errors import InputError
from ccsnet.grid import ScoreGrid
from ccsnet.inference import Pipeline
from ccsnet.metrics import Metrics
from ccsnet.parallel import Processes
from ccsnet.predict_config import PredictConfig
from ccsnet.run_folder import BEST_FILE


class Evaluation(NamedTuple):
    """What `evaluate` measured."""

    metrics: Metrics
    per_image: Sequence[tuple[str, float]]
    """Name and mIoU of every image, worst first; empty unless asked for."""


@torch.inference_mode()
def evaluate(
    model: nn.Module | Pipeline,
    samples: Iterable[Sample],
    classes: Sequence[str],
    *,
    ignore_index: int = 255,
    batch_size: int = 8,
    window: tuple[int, int] | None = None,
    per_image: bool = False,
    boundary: bool = False,
    calibration: bool = False,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Sample, Tensor], None] | None = None,
    processes: Processes | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Compare predictions with labels, each at its label's own size.

    Args:
        model: A `Segmenter`, or a pipeline that says how images are seen; its models are put in
            evaluation mode here, and back afterwards.
        samples: Images with labels at their own size, as `pipeline_samples` gives them; for a
            `Segmenter` the images are at test size (`evaluation_samples`).
        classes: Names of the classes.
        ignore_index: The label that counts nowhere.
        batch_size: Images of equal size, or windows, per forward pass; a pipeline has its own.
        window: Side and stride in pixels of windows that each image is seen in. None: as a whole.
            A pipeline has its own.
        per_image: Also rank the images, and keep what intervals over them need.
        boundary: Also measure boundary IoU.
        calibration: Also measure how far confidence is from accuracy.
        progress: Called with the number of images just done.
        watch: Shown every image with its label map.
        processes: Those that share the set: each measures its samples, all return the whole.
        stop: Asked after every batch; once it says yes, the rest is left out.

    Raises:
        InputError: A sample cannot be read, its label has what is no class, or it does not fit into
            the pipeline's `max_memory`.
    """
    if isinstance(model, Pipeline):
        pipeline = model
    else:
        config = PredictConfig(batch_size=batch_size)
        pipeline = Pipeline(
            models=(model,), num_classes=len(classes), config=config, tested_in=window
        )
    device = pipeline.device
    were_training = [one.training for one in pipeline.models]
    for one in pipeline.models:
        one.eval()
    total = ConfusionMatrix(len(classes), ignore_index)
    contours = BoundaryCounts(len(classes), ignore_index) if boundary else None
    bins = CalibrationCounts(len(classes), ignore_index) if calibration else None
    kept = ImageCounts() if per_image else None
    count = 0
    for batch in _batches(_told_of_depth(samples, pipeline), pipeline):
        grid = _scores(pipeline, batch)
        for index, sample in enumerate(batch):
            size = (sample.label.shape[0], sample.label.shape[1])
            prediction, label = grid.label(index, size).to(device), sample.label.to(device)
            alone = ConfusionMatrix(len(classes), ignore_index)
            alone.update(label, prediction)
            total.add(alone)
            if kept is not None:
                kept.update(sample.name, alone)
            if contours is not None:
                contours.update(label, prediction)
            if bins is not None:
                bins.update(label, prediction, grid.confidence(index, size).to(device))
            if watch is not None:
                watch(sample, prediction)
        count += len(batch)
        if progress is not None:
            progress(len(batch))
        if stop is not None and stop():
            break
    for one, was_training in zip(pipeline.models, were_training, strict=True):
        one.train(was_training)
    if processes is not None and processes.num > 1:
        # One that had no image has counted on no device yet.
        for counter in (total, contours, bins):
            if counter is not None:
                counter.counts = processes.sum(counter.counts.to(device))
        count = int(processes.sum(torch.tensor(count)))
        if kept is not None:
            kept.rows = processes.gather(kept.rows)
    metrics = Metrics(
        classes=classes,
        confusion=total.matrix(),
        images=count,
        per_image=kept.table() if kept is not None and kept.rows else None,
        boundary=None if contours is None else contours.table(),
        calibration=None if bins is None else bins.table(),
    )
    return Evaluation(metrics, [] if kept is None else kept.worst_first())


def pipeline_samples(
    pipeline: Pipeline,
    spec: DatasetSpec,
    root: Path,
    config: DataConfig,
    split: str,
    rank: int = 0,
    world_size: int = 1,
) -> EvaluationSamples:
    """This process's share of a split, as the pipeline wants it; see `evaluation_samples`.

    Images that are seen in one way are brought to their size by the workers that read them; the
    pipeline itself resizes the others, from the size of their files.

    Args:
        pipeline: How images are seen.
        spec: The data set.
        root: Its folder.
        config: How it is read.
        split: Which of its splits.
        rank: Number of this process among those that share the split.
        world_size: How many they are.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The split is unknown or empty, or an image has no label.
    """
    if pipeline.takes_resized:
        multiple = 32 if pipeline.window is None else 1
    else:
        multiple = 1
        spec = replace(spec, short_side=None, long_side=None)
        config = replace(config, short_side=None, long_side=None)
    return evaluation_samples(spec, root, config, split, rank, world_size, multiple)


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
        ranking = [(name, miou) for name, miou in values["per_image"]]
        return Evaluation(Metrics.from_dict(values), ranking)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source} does not hold the figures of a validation ({error!r}): it was not written "
            "by `ccsnet train`, or it was cut short."
        ) from error


def stored_evaluation(checkpoint: Checkpoint) -> Evaluation | None:
    """What training measured of these weights; None where the run's folder does not tell.

    Raises:
        InputError: The file of figures is damaged.
    """
    file = checkpoint.path.parent / BEST_FILE
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    evaluation = evaluation_from_json(text, str(file))
    # The checkpoint is written first; a run killed between the two has another's figures here.
    return evaluation if json.loads(text).get("step") == checkpoint.step else None


def _told_of_depth(samples: Iterable[Sample], pipeline: Pipeline) -> Iterator[Sample]:
    """The samples; warns of the first with values beyond those that the models were made for."""
    text = None
    for sample in samples:
        if text is None:
            text = depth_warning(pipeline.models, sample.image.cpu().numpy(), sample.name)
            if text is not None:
                warnings.warn(text, stacklevel=2)
        yield sample


def _batches(samples: Iterable[Sample], pipeline: Pipeline) -> Iterator[list[Sample]]:
    """Images of one size that are seen together.

    Whole images wait for others of their size. In windows an image fills a forward pass mostly by
    itself and may be large, so only neighbours are put together.
    """
    if pipeline.window is None and pipeline.config.max_memory is None:
        yield from batches_of_equal_size(samples, pipeline.config.batch_size)
        return
    yield from pipeline.together(samples, lambda one: (*one.image.shape[1:], one.image.shape[0]))


def _scores(pipeline: Pipeline, batch: Sequence[Sample]) -> ScoreGrid:
    images = torch.stack([sample.image for sample in batch])
    if pipeline.takes_resized:
        return pipeline.scores_of_resized(images)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    if arrays.dtype == np.int32:  # Tensors keep 16 bits in 32, which OpenCV does not resize.
        arrays = arrays.astype(np.uint16)
    return pipeline.scores(list(arrays))


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
