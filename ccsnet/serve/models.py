"""The model inside a worker: which images it takes together, and their label maps or failures."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, Num

from ccsnet.datasets._spec import Colour
from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig
from ccsnet.serve.settings import Source
from ccsnet.serve.uploads import TOO_LARGE, UNUSABLE

if TYPE_CHECKING:
    from ccsnet.checkpoint import ClassInfo
    from ccsnet.runtime import ExportInfo

LOG = logging.getLogger("ccsnet.serve")
FAILED = 500


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the server knows of its model."""

    name: str
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    channels: int
    dataset: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an image has no label map."""

    status: int
    """HTTP's number for it."""
    text: str


Label = Integer[np.ndarray, "H W"]


@runtime_checkable
class Model(Protocol):
    """What a worker computes with."""

    facts: Facts

    def key(self, image: Num[np.ndarray, "H W C"]) -> Hashable:
        """Images with equal keys can be labelled together."""
        ...

    def at_once(self, image: Num[np.ndarray, "H W C"]) -> int:
        """How many images like this one are labelled together."""
        ...

    def label(self, images: Sequence[Num[np.ndarray, "_ _ C"]]) -> list[Label]:
        """The class of every pixel of images with equal keys."""
        ...


def open_model(source: Source) -> Model:
    """The model that a source names.

    Raises:
        InputError: It cannot be used.
        FileNotFoundError: It is not there.
    """
    return Exported(source) if source.is_exported else Trained(source)


def _facts(name: str, info: "ClassInfo | ExportInfo") -> Facts:
    return Facts(
        name=name,
        classes=info.classes,
        colours=info.colours,
        channels=info.channels,
        dataset=info.dataset,
    )


class Trained:
    """A run or a checkpoint: torch computes."""

    def __init__(self, source: Source) -> None:
        from ccsnet.predict import load

        self.predictor = load(source.run, "cpu" if source.cpu else None, also=source.also)
        self.predictor.note = LOG.info
        self.config = source.config
        self.pipeline = self.predictor.pipeline(source.config)
        self.facts = _facts(source.name, self.predictor.info)
        _ = self.pipeline.mode  # Where the precision is found by trial, now and not for a stranger.

    def key(self, image: Num[np.ndarray, "H W C"]) -> Hashable:
        """The size at which the network sees it, where that is all that counts."""
        pipeline, (height, width, bands) = self.pipeline, image.shape
        if not pipeline.takes_resized:
            return image.shape, image.dtype
        return pipeline.seen_size((height, width), 1.0, pipeline.window), bands, image.dtype

    def at_once(self, image: Num[np.ndarray, "H W C"]) -> int:
        """As many as `ccsnet predict` takes together."""
        try:
            return self.pipeline.images_at_once(image.shape[:2], image.shape[2])
        except Exception:  # As where it does not fit into the memory: labelling it says why.
            return 1

    def label(self, images: Sequence[Num[np.ndarray, "_ _ C"]]) -> list[Label]:
        """As `Predictor.predict` does, also for images that only the network sees at one size."""
        if len({image.shape for image in images}) == 1:
            return [one.label for one in self.predictor.predict_batch(images, self.config)]
        import torch

        from ccsnet.data.loading import image_tensor
        from ccsnet.data.transforms import resize_image

        arrays = [self.predictor.read(image) for image in images]
        size = self.pipeline.seen_size(arrays[0].shape[:2], 1.0, self.pipeline.window)
        seen = torch.stack([image_tensor(resize_image(image, size)) for image in arrays])
        grid = self.pipeline.scores_of_resized(seen)
        dtype = np.uint8 if self.predictor.info.ignore_index == 255 else np.uint16
        sizes = [(image.shape[0], image.shape[1]) for image in arrays]
        return [grid.label(i, size).cpu().numpy().astype(dtype) for i, size in enumerate(sizes)]


class Exported:
    """A file of `ccsnet export`: onnxruntime or OpenVINO computes, one image at a time."""

    def __init__(self, source: Source) -> None:
        from pathlib import Path

        from ccsnet.runtime import load

        if source.also:
            raise InputError(
                f"{source.run} is an exported file, which is served alone; --also takes the mean "
                "of runs and checkpoints. Leave it out, or serve the run that was exported."
            )
        self.batch_size = source.config.batch_size
        if source.config != PredictConfig(batch_size=self.batch_size):
            raise InputError(
                f"{source.run} is an exported file, which sees images as it was exported; of the "
                "options on how they are seen it takes --batch-size alone. Leave the others "
                "out, or serve the run that was exported."
            )
        self.model = load(Path(source.run))
        self.facts = _facts(source.name, self.model.info)

    def key(self, image: Num[np.ndarray, "H W C"]) -> Hashable:
        """No two are taken together."""
        return image.shape, image.dtype

    def at_once(self, image: Num[np.ndarray, "H W C"]) -> int:
        """Only it."""
        return 1

    def label(self, images: Sequence[Num[np.ndarray, "_ _ C"]]) -> list[Label]:
        """As `ExportedModel.predict` does."""
        return [self.model.predict(image, self.batch_size) for image in images]


def label_each(model: Model, images: Sequence[Num[np.ndarray, "_ _ C"]]) -> list[Label | Failure]:
    """The label map of every image, or why it has none; one that fails takes no other with it."""
    try:
        return [*model.label(images)]
    except InputError as error:
        failure = Failure(status=UNUSABLE, text=str(error))
    except MemoryError:
        failure = _too_large()
    except Exception as error:  # Whatever it is, the worker goes on, and no stranger sees it.
        if _is_memory(error):
            failure = _too_large()
        else:
            LOG.exception("The model failed.")
            text = "The model failed on this image; the server's log says why."
            failure = Failure(status=FAILED, text=text)
    if len(images) == 1:
        return [failure]
    return [result for image in images for result in label_each(model, [image])]


def _too_large() -> Failure:
    text = "The image is too large for the memory of the server. Send it smaller."
    return Failure(status=TOO_LARGE, text=text)


def _is_memory(error: Exception) -> bool:
    """Torch has no type of its own for a processor's memory."""
    name = type(error).__name__
    return name == "OutOfMemoryError" or "can't allocate memory" in str(error)
