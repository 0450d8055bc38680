"""Two models on the same labelled images: where one has right what the other has wrong.

Of the two, the first is the run that is asked about, the second the baseline.

Letters: I images, N classes, H W a size in pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, Num
from torch import Tensor, nn

from ccsnet.compare_causes import CauseCounts, CauseRow, Choice, cause_masks
from ccsnet.counts import ConfusionMatrix
from ccsnet.data.loading import Sample, batches_of_equal_size
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.grid import ScoreGrid
from ccsnet.heads._base import Output
from ccsnet.heads._ccs_variant import CCSVariantHead
from ccsnet.heads.ccs import CCSHead
from ccsnet.inference import Pipeline
from ccsnet.metrics import Metrics
from ccsnet.scores import Interval, Sums, middle, resampled, score, sums_of


class ClassRow(NamedTuple):
    """One class under both models."""

    name: str
    share: float
    """Of all pixels that count, those that are labelled so."""
    run: float
    """IoU; NaN where the class is neither labelled nor predicted."""
    baseline: float
    difference: float
    low: float
    """Within this and `high` lie 95 % of the differences, were the images drawn anew."""
    high: float
    lost: int
    """Pixels of the class that only the baseline has right."""
    gained: int
    """Pixels of the class that only the run has right."""
    given_to: Mapping[str, int]
    """What the run took the lost pixels for, most pixels first."""
    claimed_from: Mapping[str, int]
    """Whose pixels the run took for this class where the baseline has them right."""


class ImageRow(NamedTuple):
    """One image under both models; what does not exist is NaN."""

    name: str
    cost: float
    """What the run's mIoU over the set would gain, had the baseline predicted this image."""
    run_miou: float
    baseline_miou: float
    run_accuracy: float
    """Share of the image's pixels that are right."""
    baseline_accuracy: float
    lost: float
    """Share of the image's pixels that only the baseline has right."""
    gained: float
    """Share that only the run has right."""


class Difference(NamedTuple):
    """One figure under both models."""

    run: float
    baseline: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was counted; all figures are read off it."""

    classes: tuple[str, ...]
    images: tuple[str, ...]
    """Names."""
    confusions: Int64[np.ndarray, "2 N N"]
    """Of the run and the baseline."""
    per_image: Int64[np.ndarray, "I 2 3 N"]
    """Of each image and model: pixels of each class right, labelled, predicted."""
    taken: Int64[np.ndarray, "N N"]
    """Pixels that only the baseline has right, by their class and the run's."""
    causes: CauseCounts

    def metrics(self) -> tuple[Metrics, Metrics]:
        """Those of the run and of the baseline."""
        run, baseline = (
            Metrics(
                classes=self.classes,
                confusion=self.confusions[one],
                images=len(self.images),
                per_image=self.per_image[:, one],
            )
            for one in (0, 1)
        )
        return run, baseline

    def overall(self) -> dict[str, Difference]:
        """MIoU and pixel accuracy, by their names."""
        found = {}
        for name in ("miou", "pixel_accuracy"):
            run, baseline = (float(score(name, _sums(one))) for one in self._totals())
            low, high = (float(end) for end in self._intervals[name])
            found[name] = Difference(run, baseline, run - baseline, low, high)
        return found

    def class_rows(self) -> list[ClassRow]:
        """The classes, those first that lose most IoU; those without a difference last."""
        run, baseline = (score("iou", _sums(one)) for one in self._totals())
        low, high = map(np.atleast_1d, self._intervals["iou"])
        labelled = self._totals()[0, 1]
        lost, gained = self.causes.by_class[0, :2]
        rows = [
            ClassRow(
                name=name,
                share=float(labelled[i] / max(int(labelled.sum()), 1)),
                run=float(run[i]),
                baseline=float(baseline[i]),
                difference=float(run[i] - baseline[i]),
                low=float(low[i]),
                high=float(high[i]),
                lost=int(lost[i]),
                gained=int(gained[i]),
                given_to=self._most(self.taken[i]),
                claimed_from=self._most(self.taken[:, i]),
            )
            for i, name in enumerate(self.classes)
        ]
        # Of rows, not by an index: a NaN is neither more nor less than a number.
        return sorted(rows, key=lambda row: (np.isnan(row.difference), row.difference))

    def image_rows(self) -> list[ImageRow]:
        """The images with a pixel that counts, those first that cost the run most."""
        costs = self._costs()
        rows = []
        for i, counts in enumerate(self.per_image):
            pixels = int(counts[0, 1].sum())
            if not pixels:
                continue
            run, baseline = map(_sums, counts)
            lost, gained, _ = self.causes.per_image[i][0].tolist()
            rows.append(
                ImageRow(
                    name=self.images[i],
                    cost=float(costs[i]),
                    run_miou=float(score("miou", run)),
                    baseline_miou=float(score("miou", baseline)),
                    run_accuracy=float(score("pixel_accuracy", run)),
                    baseline_accuracy=float(score("pixel_accuracy", baseline)),
                    lost=lost / pixels,
                    gained=gained / pixels,
                )
            )
        return sorted(rows, key=lambda row: (-row.cost, row.name))

    def cause_rows(self) -> list[CauseRow]:
        """How frequent each cause is among the lost pixels, and elsewhere."""
        return self.causes.rows(self.classes)

    def _totals(self) -> Int64[np.ndarray, "2 3 N"]:
        return self.per_image.sum(0)

    @cached_property
    def _intervals(self) -> dict[str, Interval]:
        """Of the differences: both models are measured on the same draws of the images."""
        values: dict[str, list[np.ndarray]] = {"miou": [], "pixel_accuracy": [], "iou": []}
        for drawn in resampled(self.per_image):
            run, baseline = (Sums(*drawn[:, one].swapaxes(0, 1)) for one in (0, 1))
            for name, blocks in values.items():
                blocks.append(score(name, run) - score(name, baseline))
        return {name: middle(np.concatenate(blocks), 0.95) for name, blocks in values.items()}

    def _costs(self) -> Float64[np.ndarray, " I"]:
        total = self._totals()[0]
        swapped = (total - self.per_image[:, 0] + self.per_image[:, 1]).astype(np.float64)
        hit, label, predicted = swapped.swapaxes(0, 1)
        return score("miou", Sums(hit, label, predicted)) - score("miou", _sums(total))

    def _most(self, pixels: Int64[np.ndarray, " N"]) -> dict[str, int]:
        order = np.argsort(-pixels, kind="stable").tolist()
        return {self.classes[i]: int(pixels[i]) for i in order if pixels[i]}


def _sums(counts: Int64[np.ndarray, "3 N"]) -> Sums:
    return sums_of(counts)


@torch.inference_mode()
def compare(
    run: Pipeline,
    baseline: Pipeline,
    samples: Iterable[Sample],
    spec: DatasetSpec,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Predict every image with both models as `ccsnet evaluate` does, and count.

    Args:
        run: How the model that is asked about sees images.
        baseline: How the other one does: at the same size.
        samples: Images and labels, as `pipeline_samples` gives them for both.
        spec: Classes, and what is ignored.
        progress: Called with the number of images just done.

    Raises:
        InputError: A sample cannot be read, or its label has what is no class.
    """
    num, ignored = spec.num_classes, spec.ignore_index
    totals = [ConfusionMatrix(num, ignored) for _ in range(2)]
    taken = np.zeros((num, num), np.int64)
    causes = CauseCounts(num, ignored)
    names: list[str] = []
    per_image: list[np.ndarray] = []
    for batch in _batches(run, samples):
        images = torch.stack([sample.image for sample in batch])
        grid, choices = _scores_and_choices(run, images)
        other = baseline.scores_of_resized(images)
        for i, sample in enumerate(batch):
            size = (sample.label.shape[0], sample.label.shape[1])
            found = [one.label(i, size).cpu() for one in (grid, other)]
            alone = []
            for total, prediction in zip(totals, found, strict=True):
                counted = ConfusionMatrix(num, ignored)
                counted.update(sample.label, prediction)
                total.add(counted)
                alone.append(counted.sums())
            names.append(sample.name)
            per_image.append(np.stack(alone))
            seen = (images.shape[2], images.shape[3])
            masks = cause_masks(sample.label, num, seen, choices[i])
            label, ours, theirs = (part.numpy() for part in (sample.label, *found))
            causes.update(label, ours, theirs, masks)
            lost = (theirs == label) & (ours != label)  # What is ignored is never predicted.
            codes = label[lost] * num + ours[lost]
            taken += np.bincount(codes, minlength=num * num).reshape(num, num)
        if progress is not None:
            progress(len(batch))
    return Comparison(
        classes=tuple(spec.classes),
        images=tuple(names),
        confusions=np.stack([total.matrix() for total in totals]),
        per_image=np.stack(per_image),
        taken=taken,
        causes=causes,
    )


def _batches(pipeline: Pipeline, samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Images of one size that are seen together, as `ccsnet.evaluate` puts them together."""
    if pipeline.window is None:
        return batches_of_equal_size(samples, pipeline.config.batch_size)
    return pipeline.together(samples, lambda one: (*one.image.shape[1:], one.image.shape[0]))


def choosing_head(pipeline: Pipeline) -> CCSHead | CCSVariantHead | None:
    """The head whose choice of classes can be told, that of a CCSNet which sees images as a whole.

    In windows a place is in several of them, each with a coarse prediction of its own.
    """
    (model,) = pipeline.models
    head = model.get_submodule("head")
    if pipeline.window is not None or not isinstance(head, CCSHead | CCSVariantHead):
        return None
    attends = isinstance(head, CCSHead) or bool(head.variant.attending)
    return head if attends else None


def _scores_and_choices(
    pipeline: Pipeline, images: Num[Tensor, "B C _ _"]
) -> tuple[ScoreGrid, list[Choice | None]]:
    """Scores of a batch, and what the head chose from in each image."""
    head = choosing_head(pipeline)
    if head is None:
        return pipeline.scores_of_resized(images), [None] * len(images)
    choices: list[Choice | None] = []

    def keep(_module: nn.Module, _inputs: object, output: Output) -> None:
        assert output.coarse is not None, "a CCSNet makes a coarse prediction"
        finest = (output.logits.shape[2], output.logits.shape[3])
        choices.extend(Choice(one.float(), finest, head.top_k) for one in output.coarse)

    handle = head.register_forward_hook(keep)
    try:
        return pipeline.scores_of_resized(images), choices
    finally:
        handle.remove()
