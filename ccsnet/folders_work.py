"""What is done with one image of many: whose it is, what is made of it, and its record."""

import collections
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ccsnet.attention import attention_of, pixel_picture, relevant_picture
from ccsnet.claims import Answer, Claims, source_of
from ccsnet.data.images import write_index_png, write_png
from ccsnet.errors import InputError
from ccsnet.outputs import KINDS, areas_of
from ccsnet.predict import PredictConfig, Prediction, Predictor
from ccsnet.walk import Found, Targets


class Made(NamedTuple):
    """What the network says of an image."""

    prediction: Prediction
    looked: dict[str, np.ndarray]
    """Pictures of what it looked at, by kind, where they are wanted."""


@dataclass(kw_only=True)
class Work:
    """What the steps of labelling share, and what came of them so far."""

    predictor: Predictor
    plan: Targets
    config: PredictConfig
    values: np.ndarray | None
    claims: Claims
    progress: Callable[[int, int], None] | None
    labelled: int = 0
    done_before: int = 0
    elsewhere: int = 0
    shares: collections.Counter[int] = field(default_factory=collections.Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def read(self, found: Found) -> tuple[Found, Answer, np.ndarray | Exception | None]:
        """Whose an image is, and its pixels if it is ours; runs in a thread."""
        with contextlib.suppress(OSError):  # One that cannot be read fails when its turn comes.
            found = found._replace(source=source_of(found.path))
        answer = self.claims.ask(found.name, self.kinds, self.plan.out, found.source)
        if answer.whose != "ours":
            return found, answer, None
        try:
            self.plan.check_names(found.name)
            return found, answer, self.predictor.read(found.path)
        except (InputError, OSError, MemoryError) as error:
            return found, answer, error

    @property
    def kinds(self) -> tuple[str, ...]:
        """All that is made of an image."""
        at = "" if self.plan.at is None else "at {} {}".format(*self.plan.at)
        return (*self.plan.save, *filter(None, [self.plan.server, at]))

    def at_once(self, image: np.ndarray) -> int:
        """How many images of this one's size to label together."""
        try:
            pipeline = self.predictor.pipeline(self.config)
            return pipeline.images_at_once(image.shape[:2], image.shape[2])
        except InputError:  # It does not fit into the memory: labelling it says so.
            return 1

    def label(self, images: list[np.ndarray]) -> list[Made]:
        """The predictions of images of one size."""
        keep_probs = any(KINDS[kind].probs for kind in self.plan.save)
        predictions = self.predictor.predict_batch(
            images, self.config, self.progress, keep_probs=keep_probs
        )
        return [Made(one, self._looked(one)) for one in predictions]

    def _looked(self, prediction: Prediction) -> dict[str, np.ndarray]:
        pictures: dict[str, np.ndarray] = {}
        if not self.plan.looks:
            return pictures
        image, names = prediction.image, (self.predictor.classes, self.predictor.colours)
        attention = attention_of(self.predictor, image)
        if "relevant" in self.plan.save:
            pictures["relevant"] = relevant_picture(image, attention, *names)
        if self.plan.at is not None:
            pictures["at"] = pixel_picture(image, attention, *names, *self.plan.at)
        return pictures

    def write(self, found: Found, made: Made) -> None:
        """Write an image's files and then its record; runs in a thread."""
        prediction, looked = made
        files, segments = self.plan.files(found.name), None
        for kind, file in files.items():
            path = self.plan.out / file
            if kind == self.plan.server:
                assert self.values is not None, "a server has values"
                write_index_png(path, self.values[prediction.label])
            elif kind in looked:
                write_png(path, looked[kind])
            else:
                write = KINDS[kind].write
                assert write is not None, "only such kinds have files"
                segments = write(path, prediction) or segments
        areas = areas_of(prediction.label, len(self.predictor.classes))
        record = {
            "image": found.name,
            "source": found.source,
            "kinds": self.kinds,
            "files": list(files.values()),
            "size": prediction.label.shape,
            "pixels": list(areas.items()),
        }
        self.claims.finish(found.name, record | ({"segments": segments} if segments else {}))
        self.labelled += 1
        self.count(record)

    def fail(self, found: Found, error: Exception) -> None:
        """Note why an image has no result, and leave it to a later call."""
        self.failures.append((str(found.path), str(error) or type(error).__name__))
        self.claims.drop(found.name)

    def found(self, record: Mapping[str, Any]) -> None:
        """Add an image that is finished."""
        self.done_before += not self.claims.is_own(record)
        self.count(record)

    def forget(self) -> None:
        """Count anew what is finished; what this call has labelled is among it."""
        self.done_before = self.elsewhere = 0
        self.shares.clear()

    def count(self, record: Mapping[str, Any]) -> None:
        """Add an image's areas."""
        pixels = record["size"][0] * record["size"][1]
        self.shares.update({index: num / pixels for index, num in record["pixels"]})
