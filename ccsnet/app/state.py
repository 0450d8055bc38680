"""What the page's server has at hand: models, pictures to choose from, what has been labelled."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from ccsnet.app.examples import examples_of
from ccsnet.app.jobs import Job, Jobs
from ccsnet.app.results import (
    THUMBNAIL,
    Result,
    Shelf,
    View,
    brief_of,
    config_for,
    facts_of,
    jpeg,
    view_of,
)
from ccsnet.app.settings import AppSettings
from ccsnet.app.why import why_not
from ccsnet.draw import rgb_of
from ccsnet.errors import InputError
from ccsnet.predict import Predictor
from ccsnet.predict_config import PredictConfig
from ccsnet.serve.uploads import TOO_LARGE, Limits, UploadError

Load = Callable[[], Num[np.ndarray, "_ _ _"]]


class NotThereError(InputError):
    """What was asked for is not there, or no longer."""


class App:
    """The models, the pictures to choose from, and what has been labelled.

    Args:
        predictors: One model, or two to compare.
        names: What the page calls them.
        config: How they see images.
        settings: Limits.
        folder: Images that the page may label by their number.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        names: Sequence[str],
        config: PredictConfig,
        settings: AppSettings,
        folder: Sequence[Path] = (),
    ) -> None:
        self.predictors, self.names = tuple(predictors), tuple(names)
        self.config, self.settings, self.folder = config, settings, tuple(folder)
        self.limits = Limits(
            max_bytes=int(settings.max_megabytes * 2**20),
            max_pixels=int(settings.max_megapixels * 1e6),
        )
        self.examples = examples_of(self.predictors[0])
        self.shelf = Shelf(settings.keep_megabytes * 2**20)
        self.jobs = Jobs()
        self.thumbnail = lru_cache(len(self.examples) or 1)(self._thumbnail)

    def about(self) -> dict[str, Any]:
        """What the page must know before anything is labelled."""
        info = self.predictors[0].info
        return {
            "classes": info.classes,
            "colours": info.colours,
            "dataset": info.dataset,
            "models": [
                {"name": name, "what": _what(predictor), "silent": why_not(predictor)}
                for name, predictor in zip(self.names, self.predictors, strict=True)
            ],
            "examples": [{"name": e.name, "seen": e.seen} for e in self.examples],
            "folder": [path.name for path in self.folder],
            "windows": config_for(self.config, "windows") != self.config,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
        }

    def label(self, name: str, load: Load, seen: str, brief: bool) -> Job:
        """Begin to label an image.

        Args:
            name: Shown for it.
            load: Gives its pixels; called in the models' thread.
            seen: How it is seen, as in `config_for`.
            brief: Only the first model, and only what the gallery shows; nothing is kept.

        Raises:
            BusyError: Too many wait.
        """
        config = config_for(self.config, seen)

        def work(job: Job) -> dict[str, Any]:
            job.progress(0, 0)
            image = load()
            self._check(image)
            predictors = self.predictors[:1] if brief else self.predictors
            views: list[View] = []
            for predictor in predictors:
                views.append(view_of(predictor, image, config, _shared(job, predictors, views)))
            job.progress(job.total, job.total)
            if brief:
                return brief_of(name, image, views[0], predictors[0].colours)
            result = Result(number=job.number, name=name, image=image, views=tuple(views))
            self.shelf.put(result)
            return facts_of(result)

        return self.jobs.submit(work)

    def _check(self, image: Num[np.ndarray, "_ _ _"]) -> None:
        height, width = image.shape[:2]
        if height * width > self.limits.max_pixels:
            raise UploadError(
                TOO_LARGE,
                f"The image has {height} x {width} pixels, more than the "
                f"{self.limits.max_pixels:,} that the page takes (--max-megapixels).",
            )

    def result(self, number: str) -> Result:
        """A result that is still kept.

        Raises:
            NotThereError: It is not.
        """
        found = self.shelf.get(number)
        if found is None:
            raise NotThereError("This result is no longer kept. Open the image again.")
        return found

    def _thumbnail(self, number: int) -> bytes:
        image = self.examples[number].load()
        factor = min(1.0, THUMBNAIL / max(image.shape[:2]))
        size = tuple(max(1, round(side * factor)) for side in image.shape[:2])
        return jpeg(rgb_of(image, size), 85)


def check_models(predictors: Sequence[Predictor]) -> None:
    """Refuse what cannot stand side by side.

    Raises:
        InputError: Not one or two models, or of different classes or bands.
    """
    if not 1 <= len(predictors) <= 2:
        raise InputError(f"The page shows one model or two, not {len(predictors)}.")
    first, other = predictors[0].info, predictors[-1].info
    if first.classes != other.classes or first.channels != other.channels:
        raise InputError(
            f"The models cannot be compared: one knows {len(first.classes)} classes of "
            f"{first.dataset!r} in images of {first.channels} bands, the other "
            f"{len(other.classes)} of {other.dataset!r} in {other.channels}. Compare models of "
            "the same classes in the same order."
        )


def _what(predictor: Predictor) -> str:
    if predictor.checkpoint is None:
        return ""
    model = predictor.checkpoint.config.model
    return f"{model.head} on {model.backbone}"


def _shared(job: Job, predictors: Sequence[Predictor], before: Sequence[View]) -> Callable:
    """The progress of one of several models, as a part of the job's."""

    def progress(done: int, total: int) -> None:
        job.progress(len(before) * total + done, len(predictors) * total)

    return progress
