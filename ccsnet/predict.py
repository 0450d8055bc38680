"""Label maps of images: whole or in overlapping windows; files, folders and globs."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Integer, Num, UInt8
from torch import Tensor

from ccsnet.checkpoint import Checkpoint, ClassInfo, load_model, read_checkpoint
from ccsnet.data.images import read_image, write_index_png, write_palette_png, write_png
from ccsnet.data.loading import image_tensor
from ccsnet.data.transforms import resize_aligned
from ccsnet.draw import overlay
from ccsnet.errors import InputError
from ccsnet.formats import server_values
from ccsnet.segmenter import Segmenter
from ccsnet.sliding import sliding_label, stride_of
from ccsnet.upsample import upsample_argmax

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".gif")
Save = Literal["index", "color", "overlay"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How an image becomes a label map."""

    window: int | None = None
    """Side of square windows over the image at its own size; none: as the model is evaluated, in
    its data set's windows or as a whole."""
    overlap: float = 0.25
    """Share of a window's side that it has in common with its neighbour."""
    batch_size: int = 4
    """Windows in each forward pass."""

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 32 or self.window % 32):
            raise InputError(f"window is {self.window}; it must be a multiple of 32, such as 512.")
        if not 0 <= self.overlap <= 0.75:
            raise InputError(f"overlap is {self.overlap}; it must be from 0 to 0.75.")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A label map with its meaning."""

    label: Integer[np.ndarray, "H W"]
    """Class index of every pixel."""
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    image: Num[np.ndarray, "H W C"] = field(repr=False)

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


class Predictor:
    """A trained model with all that it needs to label images.

    Args:
        model: The network, in evaluation mode.
        info: What its outputs mean.

    Attributes:
        model: The network.
        classes: Names, by class index.
        colours: RGB, by class index.
    """

    def __init__(self, model: Segmenter, info: ClassInfo) -> None:
        self.model = model
        self.info = info
        self.classes = info.classes
        self.colours = info.colours

    def predict(
        self,
        image: Path | str | Num[np.ndarray, "H W C"],
        config: PredictConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Label one image.

        Args:
            image: A file, or pixel values in RGB order, H x W x channels.
            config: How; by default as in evaluation.
            progress: Called with windows done and windows in all.

        Raises:
            InputError: The image cannot be read, or has another number of channels.
            FileNotFoundError: It is not there.
        """
        config = config or PredictConfig()
        if not isinstance(image, np.ndarray):
            image = read_image(Path(image), self.info.channels)
        if image.ndim != 3 or image.shape[2] != self.info.channels:
            raise InputError(
                f"The image has the shape {image.shape}; this model takes height x width x "
                f"{self.info.channels} channels."
            )
        if self.uses_windows(config):
            label = self._in_windows(image, config, progress)
        else:
            label = self._whole(image)
        dtype = np.uint8 if self.info.ignore_index == 255 else np.uint16
        return Prediction(
            label=label.cpu().numpy().astype(dtype),
            classes=self.classes,
            colours=self.colours,
            image=image,
        )

    def uses_windows(self, config: PredictConfig) -> bool:
        """Whether images are seen in windows, because the config or the data set says so."""
        return config.window is not None or self.info.window is not None

    def _in_windows(
        self,
        image: Num[np.ndarray, "H W C"],
        config: PredictConfig,
        progress: Callable[[int, int], None] | None,
    ) -> Integer[Tensor, "H W"]:
        if config.window is None:
            assert self.info.window is not None, "the caller has asked uses_windows"
            window, stride = self.info.window
            seen = resize_aligned(image, self.info.short_side, self.info.long_side, multiple=1)
        else:
            window, stride, seen = config.window, stride_of(config.window, config.overlap), image
        return sliding_label(
            self.model,
            image_tensor(seen),
            len(self.classes),
            (image.shape[0], image.shape[1]),
            window=window,
            stride=stride,
            batch_size=config.batch_size,
            progress=progress,
        )

    @torch.inference_mode()
    def _whole(self, image: Num[np.ndarray, "H W C"]) -> Integer[Tensor, "H W"]:
        aligned = resize_aligned(image, self.info.short_side, self.info.long_side)
        device = next(self.model.parameters()).device
        logits = self.model(image_tensor(aligned)[None].to(device)).logits
        return upsample_argmax(logits, (image.shape[0], image.shape[1]))[0]


def load(path: Path | str, device: str | None = None) -> Predictor:
    """Load a trained model from a run's folder or a checkpoint; nothing else is needed.

    Args:
        path: A folder that `ccsnet train` wrote (its best checkpoint is taken), or a file.
        device: cpu, cuda, mps; by default the best there is.

    Raises:
        FileNotFoundError: Nothing is there.
        InputError: The file is damaged, or not a checkpoint of ccsnet.
    """
    return predictor_of(read_checkpoint(path), device)


def predictor_of(checkpoint: Checkpoint, device: str | None = None) -> Predictor:
    """The predictor that an opened checkpoint describes."""
    model = load_model(checkpoint).to(device or best_device())
    return Predictor(model, checkpoint.info)


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
    for image, files in targets.items():
        prediction = predictor.predict(image, config, progress)
        for kind, file in zip(save, files, strict=False):  # The server's file comes after these.
            prediction.save(file, kind)
        if values is not None:
            write_index_png(files[-1], values[prediction.label])
        yield SavedPrediction(image, prediction, tuple(files))
