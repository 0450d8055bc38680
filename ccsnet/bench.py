"""What models cost on this machine: from images to label maps, in every precision that it has."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from ccsnet.bench_config import BenchConfig
from ccsnet.checkpoint import ClassInfo
from ccsnet.footprint import forward_bytes
from ccsnet.precision import Mode, autocast, has_bf16
from ccsnet.predict import Predictor, best_device
from ccsnet.predict_config import PredictConfig
from ccsnet.segmenter import ModelConfig, Segmenter, create_segmenter


class Cost(NamedTuple):
    """One row: a model, an image size and a precision."""

    backbone: str
    size: int
    precision: str
    parameters: int
    """Of the whole model."""
    latency: float
    """Seconds from one image in memory to its label map, resizing included."""
    images_per_second: float
    """The same with `batch_size` images at once."""
    bytes: int
    """Weights and the most that a forward pass of one image holds at once, by its shapes."""


def bench(backbones: Sequence[str], config: BenchConfig) -> Iterator[Cost]:
    """Measure models with random weights, a row at a time.

    Args:
        backbones: Names as for training.
        config: What to measure.

    Raises:
        InputError: An unknown backbone or head, or one that cannot be built.
    """
    device = torch.device("cpu" if config.cpu else best_device())
    precisions = config.precisions or (("float32", "bf16") if has_bf16(device) else ("float32",))
    for backbone in backbones:
        model = create_segmenter(
            ModelConfig(backbone=backbone, head=config.head), num_classes=config.classes
        )
        model = model.eval().to(device)
        predictor = Predictor(model, _info(config.classes))
        for size in config.sizes:
            for precision in precisions:
                yield _measure(predictor, backbone, size, precision, config)


def _info(classes: int) -> ClassInfo:
    return ClassInfo(
        dataset="none",
        classes=tuple(map(str, range(classes))),
        colours=((0, 0, 0),) * classes,
    )


def _measure(
    predictor: Predictor,
    backbone: str,
    size: int,
    precision: Literal["float32", "bf16"],
    config: BenchConfig,
) -> Cost:
    model: Segmenter = predictor.model
    settings = PredictConfig(
        precision=precision, batch_size=config.batch_size, compile=config.compile
    )
    random = np.random.default_rng(0)
    # Areas as in photographs: of pure noise the label map would cost more than of a real image.
    cells = random.integers(0, 256, (config.batch_size, 8, 8, 3), np.uint8)
    repeats = -(-size // 8)
    images = list(cells.repeat(repeats, 1).repeat(repeats, 2)[:, :size, :size])
    seconds = {
        count: _median_seconds(predictor, images[:count], settings, config.rounds)
        for count in {1, config.batch_size}
    }
    parameters = list(model.parameters())
    mode = autocast(Mode(precision, False), parameters[0].device)
    forward = forward_bytes(model, (1, 3, size, size), mode)
    return Cost(
        backbone=backbone,
        size=size,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in parameters),
        latency=seconds[1],
        images_per_second=config.batch_size / seconds[config.batch_size],
        bytes=forward + sum(p.numel() * p.element_size() for p in parameters),
    )


def _median_seconds(
    predictor: Predictor, images: Sequence[np.ndarray], config: PredictConfig, rounds: int
) -> float:
    """Of labelling the images; the label maps are back in memory then, on a GPU too."""
    times = []
    for _ in range(2 + rounds):
        start = time.perf_counter()
        predictor.predict_batch(images, config)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
