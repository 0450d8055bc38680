"""Label maps of images: one or many, from files, folders and globs."""

import glob
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float16, Integer, Num, UInt8
from torch import nn

from ccsnet.checkpoint import Checkpoint, ClassInfo, load_model
from ccsnet.data.images import read_image, write_index_png, write_palette_png, write_png
from ccsnet.draw import overlay
from ccsnet.errors import InputError
from ccsnet.formats import server_values
from ccsnet.hub import HubModel, open_run
from ccsnet.inference import Pipeline
from ccsnet.predict_config import PredictConfig
from ccsnet.progress import Silent
from ccsnet.segmenter import Segmenter

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".gif")
Save = Literal["index", "color", "overlay"]


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
        counts = np.bincount(self.label.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        total = self.label.size
        return {self.classes[i]: float(counts[i] / total) for i in order if counts[i]}

    @cached_property
    def _rgb(self) -> UInt8[np.ndarray, "H W 3"]:
        if self.image.dtype == np.uint8 and self.image.shape[2] == 3:
            return self.image
        bands = self.image[..., :3] if self.image.shape[2] >= 3 else self.image[..., [0, 0, 0]]
        low, high = np.percentile(bands, (1, 99))
        return np.clip((bands - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)

    def overlay(self, opacity: float = 0.5) -> UInt8[np.ndarray, "H W 3"]:
        """The image with the classes painted over it."""
        return overlay(self._rgb, self.label, self.colours, opacity)

    def save(self, path: Path | str, kind: Save = "color") -> None:
        """Write a PNG.

        Args:
            path: Where to; replaced when it is there.
            kind: "index" (grey values are class indices), "color" (the same indices with a
                palette, so that any viewer shows colours) or "overlay".
        """
        path = Path(path)
        if kind == "index":
            write_index_png(path, self.label)
        elif kind == "color":
            write_palette_png(path, self.label, self.colours)
        else:
            write_png(path, self.overlay())


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

    def __init__(self, model: Segmenter, info: ClassInfo, others: Sequence[Segmenter] = ()) -> None:
        self.model = model
        self.info = info
        self.others = tuple(others)
        self.classes = info.classes
        self.colours = info.colours
        self.note: Callable[[str], None] = Silent().note
        self._pipelines: dict[tuple[PredictConfig, int], Pipeline] = {}

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, device: str | None = None) -> "Predictor":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The predictor that an opened checkpoint describes."""
        return predictor_of(checkpoint, device)

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
        """
        pipeline = self.pipeline(config)
        group: list[np.ndarray] = []

        def labelled() -> Iterator[Prediction]:
            yield from self.predict_batch(group, config, progress, keep_probs=keep_probs)
            group.clear()

        for image in images:
            try:
                array = self.read(image)
            except (InputError, OSError):
                yield from labelled()
                raise
            if group and array.shape[:2] != group[0].shape[:2]:
                yield from labelled()
            group.append(array)
            if len(group) >= pipeline.images_at_once(array.shape[:2], array.shape[2]):
                yield from labelled()
        yield from labelled()

    def read(self, image: Path | str | Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
        """An image's pixel values, as the model takes them.

        Raises:
            InputError: The image cannot be read, or has another number of channels.
            FileNotFoundError: It is not there.
        """
        if not isinstance(image, np.ndarray):
            image = read_image(Path(image), self.info.channels)
        if image.ndim != 3 or image.shape[2] != self.info.channels:
            raise InputError(
                f"The image has the shape {image.shape}; this model takes height x width x "
                f"{self.info.channels} channels."
            )
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
    model, *others = (load_model(one).to(device) for one in (checkpoint, *also))
    predictor = Predictor(model, first, others)
    predictor.checkpoint = None if also else checkpoint
    return predictor


def _tested(info: ClassInfo) -> tuple[object, ...]:
    return info.short_side, info.long_side, info.window


def best_device() -> str:
    """Cuda where there is one, else Apple's mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def find_images(inputs: Iterable[Path | str]) -> list[Path]:
    """Image files from files, folders (searched to the bottom) and glob patterns, once each.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: A folder or a pattern has no image in it.
    """
    found: dict[str, Path] = {}

    def add(images: Iterable[Path]) -> None:
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100

    for item in inputs:
        path = Path(item)
        if path.is_file():
            add([path])
            continue
        if path.is_dir():
            candidates = sorted(p for p in path.rglob("*") if p.is_file())
        elif glob.has_magic(str(item)):
            candidates = sorted(Path(p) for p in glob.glob(str(item), recursive=True))  # noqa: PTH207
        else:
            raise FileNotFoundError(
                f"No file, folder or pattern {item}. Give images, folders of images, or patterns "
                "such as 'photos/*.jpg'."
            )
        images = [p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(
                f"No image in {item}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}."
            )
        add(images)
    return list(found.values())


@dataclass(frozen=True)
class SavedPrediction:
    """One image's prediction and the files written of it."""

    image: Path
    prediction: Prediction
    files: tuple[Path, ...]


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    out: Path,
    *,
    save: Sequence[Save] = ("color",),
    server: str | None = None,
    config: PredictConfig | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[SavedPrediction]:
    """Label files and write what is asked for to `out`/index, `out`/color, `out`/overlay.

    A file keeps its path below the folder that all the images share, so that equal names in two
    folders do not meet. For a server, all files lie in the one folder `out`/NAME.

    Args:
        predictor: The model.
        images: Files, as from `find_images`.
        out: Folder, made if missing.
        save: What to write of each.
        server: Also write what the server of this name wants, one of `ccsnet.formats.FORMATS`.
        config: How to predict.
        overwrite: Replace files that are there.
        progress: Called with windows done and windows in all, for each image.

    Yields:
        Each image's prediction, after its files are written.

    Raises:
        InputError: Two images would be written to one file, a file is there already, or the
            model does not have the server's classes.
    """
    values = None if server is None else server_values(server, predictor.classes)
    # Absolute, because "." and "/" have no folder in common; links stay what they are called.
    absolute = {image: Path(os.path.abspath(image)) for image in images}  # noqa: PTH100
    folder = os.path.commonpath([path.parent for path in absolute.values()])
    targets = {
        image: [out / kind / path.relative_to(folder).with_suffix(".png") for kind in save]
        for image, path in absolute.items()
    }
    if server is not None:
        for image, files in targets.items():
            files.append(out / server / f"{image.stem}.png")
    owner: dict[Path, Path] = {}
    for image, files in targets.items():
        for file in files:
            other = owner.setdefault(file, image)
            if other != image:
                raise InputError(
                    f"{other} and {image} would both be written to {file}. "
                    "Predict them in two calls with different --out folders."
                )
            if file.exists() and not overwrite:
                raise InputError(
                    f"{file} is there already. Give another --out folder, or --overwrite."
                )
    predictions = predictor.predict_many(targets, config, progress)
    for (image, files), prediction in zip(targets.items(), predictions, strict=True):
        for kind, file in zip(save, files, strict=False):  # The server's file comes after these.
            prediction.save(file, kind)
        if values is not None:
            write_index_png(files[-1], values[prediction.label])
        yield SavedPrediction(image, prediction, tuple(files))
