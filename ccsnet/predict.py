"""Label maps of images, one or many; `ccsnet.folders` writes those of files."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float16, Integer, Num, UInt8
from torch import nn

from ccsnet.checkpoint import Checkpoint, ClassInfo, load_model
from ccsnet.data.images import read_image
from ccsnet.depth import depth_warning
from ccsnet.draw import overlay, rgb_of
from ccsnet.errors import InputError
from ccsnet.hub import HubModel, open_run
from ccsnet.inference import Pipeline
from ccsnet.outputs import KINDS, areas_of, check_kinds
from ccsnet.predict_config import PredictConfig
from ccsnet.progress import Silent
from ccsnet.segmenter import Segmenter

Save = Literal["index", "color", "overlay"]
Made = TypeVar("Made", bound="Predictor")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A label map with its meaning."""

    label: Integer[np.ndarray, "H W"]
    """Class index of every pixel."""
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    image: Num[np.ndarray, "H W C"] = field(repr=False)
    probs: Float16[np.ndarray, "N H W"] | None = field(default=None, repr=False)
    """Probability of every class at every pixel, where it was asked for."""

    @property
    def area(self) -> dict[str, float]:
        """Share of the pixels that each class takes, largest first; absent ones left out."""
        counts = areas_of(self.label, len(self.classes))
        order = sorted(counts, key=lambda index: -counts[index])
        return {self.classes[index]: counts[index] / self.label.size for index in order}

    def overlay(self, opacity: float = 0.5) -> UInt8[np.ndarray, "H W 3"]:
        """The image, as `ccsnet.draw.rgb_of` shows it, with the classes painted over it.

        Args:
            opacity: Of the paint, 0 to 1.
        """
        return overlay(rgb_of(self.image), self.label, self.colours, opacity)

    def save(self, path: Path | str, kind: Save = "color") -> None:
        """Write a PNG.

        Args:
            path: Where to; replaced when it is there.
            kind: "index" (grey values are class indices), "color" (the same indices with a
                palette, so that any viewer shows colours) or "overlay".

        Raises:
            InputError: There is no such kind.
            OSError: The file cannot be written.
        """
        check_kinds([kind])
        write = KINDS[kind].write
        assert write is not None, "each of these is one file"
        write(Path(path), self)


class Predictor(HubModel):
    """A trained model with all that it needs to label images.

    `push_to_hub` publishes it on the Hugging Face hub, `from_pretrained` gets it from there.

    Args:
        model: The network, in evaluation mode.
        info: What its outputs mean.
        others: More networks of the same classes on the same device; the mean of all is predicted.

    Attributes:
        model: The network.
        models: All of them.
        classes: Names, by class index.
        colours: RGB, by class index.
        note: Told what a setting led to; by default nobody is.
    """

    _told_of_depth = False

    def __init__(self, model: Segmenter, info: ClassInfo, others: Sequence[Segmenter] = ()) -> None:
        self.model = model
        self.info = info
        self.others = tuple(others)
        self.classes = info.classes
        self.colours = info.colours
        self.note: Callable[[str], None] = Silent().note
        self._pipelines: dict[tuple[PredictConfig, int], Pipeline] = {}

    @classmethod
    def of_checkpoint(cls: type[Made], checkpoint: Checkpoint, device: str | None = None) -> Made:
        """The predictor that an opened checkpoint describes.

        Raises:
            InputError: The file lacks weights of the network that it describes.
        """
        made = cls(load_model(checkpoint).to(device or best_device()), checkpoint.info)
        made.checkpoint = checkpoint
        return made

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The networks whose mean is predicted, mostly one."""
        return (self.model, *self.others)

    def pipeline(self, config: PredictConfig | None = None) -> Pipeline:
        """How the models see images under a config."""
        config = config or PredictConfig()
        key = (config, id(self.model))
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(
                models=self.models,
                num_classes=len(self.classes),
                config=config,
                sides=(self.info.short_side, self.info.long_side),
                tested_in=self.info.window,
                note=lambda text: self.note(text),
            )
        return self._pipelines[key]

    def predict(
        self,
        image: Path | str | Num[np.ndarray, "H W C"],
        config: PredictConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep_probs: bool = False,
    ) -> Prediction:
        """Label one image.

        Args:
            image: A file, or pixel values in RGB order, H x W x channels.
            config: How; by default as in evaluation.
            progress: Called with windows done and windows in all, of all passes.
            keep_probs: Also keep the probabilities: 2 bytes for each class and pixel.

        Raises:
            InputError: The image cannot be read, or has another number of channels.
            FileNotFoundError: It is not there.
        """
        return self.predict_batch([image], config, progress, keep_probs=keep_probs)[0]

    def predict_batch(
        self,
        images: Sequence[Path | str | Num[np.ndarray, "_ _ C"]],
        config: PredictConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep_probs: bool = False,
    ) -> list[Prediction]:
        """Label images of one size together; else as `predict`.

        Raises:
            InputError: An image cannot be used, or their sizes differ.
            FileNotFoundError: One is not there.
        """
        arrays = [self.read(image) for image in images]
        if not arrays:
            return []
        size = (arrays[0].shape[0], arrays[0].shape[1])
        for array in arrays:
            if array.shape[:2] != size:
                raise InputError(
                    f"Images of {size[0]} x {size[1]} and {array.shape[0]} x {array.shape[1]} "
                    "pixels cannot be labelled in one batch; use predict_many."
                )
        grid = self.pipeline(config).scores(arrays, progress)
        dtype = np.uint8 if self.info.ignore_index == 255 else np.uint16
        return [
            Prediction(
                label=grid.label(index, size).cpu().numpy().astype(dtype),
                classes=self.classes,
                colours=self.colours,
                image=array,
                probs=grid.probs(index, size) if keep_probs else None,
            )
            for index, array in enumerate(arrays)
        ]

    def predict_many(
        self,
        images: Iterable[Path | str | Num[np.ndarray, "_ _ C"]],
        config: PredictConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep_probs: bool = False,
    ) -> Iterator[Prediction]:
        """Label images in their order, neighbours of one size together; else as `predict`.

        What was read before a file that cannot be used is still labelled.

        Raises:
            InputError: An image cannot be used.
            FileNotFoundError: One is not there.
        """
        for group in self.pipeline(config).together(map(self.read, images), np.shape):
            yield from self.predict_batch(group, config, progress, keep_probs=keep_probs)

    def read(self, image: Path | str | Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
        """An image's pixel values, as the model takes them.

        Warns of the first whose values are beyond those that the model was made for.

        Raises:
            InputError: The image cannot be read, or has another number of channels.
            FileNotFoundError: It is not there.
        """
        name = None
        if not isinstance(image, np.ndarray):
            name, image = str(image), read_image(Path(image), self.info.channels)
        if image.ndim != 3 or image.shape[2] != self.info.channels:
            raise InputError(
                f"The image has the shape {image.shape}; this model takes height x width x "
                f"{self.info.channels} channels."
            )
        text = None if self._told_of_depth else depth_warning(self.models, image, name)
        if text is not None and not self._told_of_depth:  # Asked again: several threads read.
            self._told_of_depth = True
            warnings.warn(text, stacklevel=2)
        return image

    def uses_windows(self, config: PredictConfig) -> bool:
        """Whether images are seen in windows, because the config or the data set says so."""
        return self.pipeline(config).window is not None


def load(
    path: Path | str, device: str | None = None, *, also: Sequence[Path | str] = ()
) -> Predictor:
    """Load a trained model from a run's folder or a checkpoint; nothing else is needed.

    Args:
        path: A folder that `ccsnet train` wrote (its best checkpoint is taken), a file, or a model
            on the Hugging Face hub: "user/model", "user/model@revision".
        device: cpu, cuda, mps; by default the best there is.
        also: More runs or files, whose mean with the first is predicted.

    Raises:
        FileNotFoundError: Nothing is there.
        InputError: The file is damaged, or not a checkpoint of ccsnet, or one that predicts other
            classes than the first.
    """
    return predictor_of(open_run(path), device, also=[open_run(one) for one in also])


def predictor_of(
    checkpoint: Checkpoint, device: str | None = None, *, also: Sequence[Checkpoint] = ()
) -> Predictor:
    """The predictor that an opened checkpoint describes, or the mean of several.

    The first says at what size and in which windows all of them see images.

    Raises:
        InputError: They have other classes or channels than the first.
    """
    first = checkpoint.info
    for other in also:
        if other.info.classes != first.classes or other.info.channels != first.channels:
            what = "classes" if other.info.classes != first.classes else "channels"
            raise InputError(
                f"{other.path} has other {what} than {checkpoint.path}: "
                f"{len(other.info.classes)} classes of {other.info.dataset!r} in images of "
                f"{other.info.channels} channels, not {len(first.classes)} of {first.dataset!r} in "
                f"{first.channels}. Models that are averaged must have the same classes in the "
                "same order."
            )
        if _tested(other.info) != _tested(first):
            warnings.warn(
                f"{other.path} was tested at other sizes or in other windows than "
                f"{checkpoint.path}; both see images as the latter was tested.",
                stacklevel=2,
            )
    device = device or best_device()
    predictor = Predictor.of_checkpoint(checkpoint, device)
    if also:
        predictor.others = tuple(load_model(other).to(device) for other in also)
        predictor.checkpoint = None  # None describes the mean.
    return predictor


def _tested(info: ClassInfo) -> tuple[object, ...]:
    return info.short_side, info.long_side, info.window


def best_device() -> str:
    """Cuda where there is one, else Apple's mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
