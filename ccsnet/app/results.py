"""What the page has labelled: label maps with their confidence, kept while there is room.

Letters: H W an image's size in pixels, C its bands, h w the size of a coarser map.
"""

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8

from ccsnet.attention import Attention
from ccsnet.draw import overlay, rgb_of
from ccsnet.inference import TOGETHER, Pipeline
from ccsnet.outputs import areas_of
from ccsnet.predict import Predictor
from ccsnet.predict_config import PredictConfig

CONFIDENCE_PIXELS = 2**20
"""Of larger images, confidence is given on a coarser grid of so many places."""
WINDOW = 512
"""Side of windows at an image's own size, unless the settings name another."""
LARGE_WINDOW = 1024
"""Side of windows over images that would be seen at more than `TOGETHER` pixels at once."""
THUMBNAIL = 240
"""Longer side of a small picture."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What one model makes of an image."""

    label: Integer[np.ndarray, "H W"]
    confidence: UInt8[np.ndarray, "h w"]
    """Greatest probability, 255 for 1; of large images on a coarser grid."""
    uncertainty: float
    """Mean over that grid of 1 - the greatest probability."""
    shares: tuple[float, ...]
    """Of the pixels, by class index."""
    seen: str
    """In words, how the model saw the image."""


class Look(NamedTuple):
    """What a model looked at when it saw all of an image at once."""

    attention: Attention
    label: Integer[np.ndarray, "_ _"]
    """The classes that it found then, which in windows may be others."""
    seen: tuple[int, int]
    """Height and width at which it saw the image."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, nearly."""
        seen = self.attention
        parts = (seen.coarse, seen.relevant, seen.sources, seen.logits, *seen.reads)
        return self.label.nbytes + sum(part.nbytes for part in parts)


@dataclass(frozen=True, kw_only=True)
class Result:
    """An image and what each of the models makes of it."""

    number: str
    name: str
    image: Num[np.ndarray, "H W C"] = field(repr=False)
    views: tuple[View, ...] = field(repr=False)
    looks: dict[int, Look] = field(default_factory=dict, repr=False)
    """What a model looked at, by its index, where it was asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def differing(self) -> float | None:
        """Share of the pixels to which two models give different classes."""
        if len(self.views) < 2:
            return None
        return float((self.views[0].label != self.views[1].label).mean())

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, nearly."""
        maps = sum(view.label.nbytes + view.confidence.nbytes for view in self.views)
        return self.image.nbytes + maps + sum(look.num_bytes for look in self.looks.values())


class Shelf:
    """The latest results, as many as fit; the oldest go first, the latest always stays."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: Result) -> None:
        """Keep a result, and drop what there is no room for."""
        with self._lock:
            self._results[result.number] = result
            while len(self._results) > 1 and self._taken() > self._max_bytes:
                self._results.popitem(last=False)

    def get(self, number: str) -> Result | None:
        """The result, if it is still there."""
        with self._lock:
            if number in self._results:
                self._results.move_to_end(number)
            return self._results.get(number)

    def _taken(self) -> int:
        return sum(result.num_bytes for result in self._results.values())


def config_for(config: PredictConfig, seen: str) -> PredictConfig:
    """The settings of a way to see images: "tested", as they are, or "windows" at full size."""
    if seen == "tested" or (config.window and config.own_size is not False):
        return config
    return replace(config, window=config.window or WINDOW, own_size=True)


def view_of(
    predictor: Predictor,
    image: Num[np.ndarray, "H W C"],
    config: PredictConfig,
    progress: Callable[[int, int], None],
) -> View:
    """Label an image as `Predictor.predict` does, and keep how sure the model is.

    An image that would be seen at once at more than `TOGETHER` pixels is seen in windows.

    Raises:
        InputError: The image has another number of bands.
    """
    image = predictor.read(image)
    size, bands = (image.shape[0], image.shape[1]), image.shape[2]
    pipeline = predictor.pipeline(config)
    window = pipeline.plan(size, bands).window
    seen = pipeline.seen_size(size, max(config.scales), window)
    if window is None and seen[0] * seen[1] > TOGETHER:
        config = replace(config, window=LARGE_WINDOW, own_size=pipeline.own_size)
        pipeline = predictor.pipeline(config)
    progress(0, 0)
    grid = pipeline.scores([image], progress)
    dtype = np.uint8 if predictor.info.ignore_index == 255 else np.uint16
    label = grid.label(0, size).cpu().numpy().astype(dtype)
    scale = min(1.0, (CONFIDENCE_PIXELS / (size[0] * size[1])) ** 0.5)
    small = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
    confidence = grid.confidence(0, small).float().cpu().numpy()
    counts = areas_of(label, len(predictor.classes))
    return View(
        label=label,
        confidence=np.rint(confidence * 255).clip(0, 255).astype(np.uint8),
        uncertainty=float(1 - confidence.mean(dtype=np.float64)),
        shares=tuple(counts.get(i, 0) / label.size for i in range(len(predictor.classes))),
        seen=_seen_text(pipeline, size, bands),
    )


def _seen_text(pipeline: Pipeline, size: tuple[int, int], bands: int) -> str:
    window, config = pipeline.plan(size, bands).window, pipeline.config
    height, width = pipeline.seen_size(size, max(config.scales), window)
    passes = len(pipeline.models) * len(config.scales) * (1 + config.flip)
    often = f"in {passes} passes, " if passes > 1 else ""
    at = "at most" if len(config.scales) > 1 else "at"
    where = "at once"
    if window is not None:
        windows = pipeline.num_windows(size, window, max(config.scales))
        where = f"in {windows} window{'s' * (windows != 1)} of {window[0]}"
    return f"Seen {where}, {often}{at} {width} × {height}"


def facts_of(result: Result) -> dict[str, Any]:
    """What the page is told of a result."""
    return {
        "id": result.number,
        "name": result.name,
        "height": result.size[0],
        "width": result.size[1],
        "differing": result.differing,
        "views": [
            {
                "shares": view.shares,
                "uncertainty": view.uncertainty,
                "seen": view.seen,
                "confidence": view.confidence.shape,
                "bytes": view.label.itemsize,
            }
            for view in result.views
        ],
    }


def brief_of(
    name: str,
    image: Num[np.ndarray, "H W C"],
    view: View,
    colours: Sequence[tuple[int, int, int]],
) -> dict[str, Any]:
    """A line of the gallery: how unsure the model is, the classes' shares, and a small picture."""
    factor = THUMBNAIL / max(view.label.shape)
    height, width = (max(1, round(side * min(1.0, factor))) for side in view.label.shape)
    label = cv2.resize(view.label, (width, height), interpolation=cv2.INTER_NEAREST)
    painted = overlay(rgb_of(image, (height, width)), label, colours, 0.5)
    data = base64.b64encode(jpeg(painted, 80)).decode()
    return {
        "name": name,
        "uncertainty": view.uncertainty,
        "shares": view.shares,
        "thumbnail": f"data:image/jpeg;base64,{data}",
    }


def jpeg(rgb: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """The bytes of a JPEG file, its colours as sharp as its greys."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, *sampling)
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def png(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The bytes of a PNG file, as `ccsnet.data.images.write_png` writes them."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
