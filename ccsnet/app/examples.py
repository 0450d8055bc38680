"""Pictures to try a model on: its own validation images, or where they are gone, drawn ones."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

from ccsnet.data.images import read_image
from ccsnet.data.opening import DataConfig
from ccsnet.datasets import earth
from ccsnet.datasets._folder import read_spec
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.plugins import find_plugin
from ccsnet.predict import Predictor

NUM_EXAMPLES = 8
DRAWN = (480, 640)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture to try."""

    name: str
    load: Callable[[], Num[np.ndarray, "H W C"]] = field(repr=False)
    seen: str = "tested"
    """How it is best seen, as in `ccsnet.app.results.config_for`."""


def examples_of(predictor: Predictor) -> tuple[Example, ...]:
    """A few of the images that the model was validated on, or drawn ones where there are none."""
    found = _validation_images(predictor)
    if predictor.info.dataset == earth.SPEC.name and _has_world():
        found.append(Example(name="The whole Earth", load=earth.world_image, seen="windows"))
    if found:
        return tuple(found)
    channels = predictor.info.channels
    return tuple(
        Example(name=f"Drawn {number}", load=partial(drawn, number, channels))
        for number in range(1, 4)
    )


def _validation_images(predictor: Predictor) -> list[Example]:
    if predictor.checkpoint is None:
        return []
    config = predictor.checkpoint.config.data
    try:
        spec, root = _dataset_there(config)
        pairs = spec.pairs(root, config.val_split)
    except (InputError, OSError, ImportError):  # Moved, removed, or never on this machine.
        return []
    step = max(1, len(pairs) // NUM_EXAMPLES)
    return [
        Example(
            name=pair.name, load=partial(read_image, pair.image, channels=predictor.info.channels)
        )
        for pair in pairs[step // 2 :: step][:NUM_EXAMPLES]
        if pair.image.is_file()
    ]


def _dataset_there(config: DataConfig) -> tuple[DatasetSpec, Path]:
    """As `ccsnet.data.opening.open_dataset`, but nothing is prepared and no code is imported.

    Raises:
        InputError: The data set is not one of ours or a folder.
        OSError: Its folder is not there.
    """
    name = config.dataset
    if ":" in name:
        raise InputError("Whose code a model's settings name is not run to show examples.")
    if "/" in name or Path(name).is_dir() or name.endswith((".yaml", ".yml")):
        spec, root = read_spec(Path(name).expanduser())
    else:
        spec = find_plugin("ccsnet.datasets", name, "SPEC")
        root = Path(spec.default_root)
    return spec, root if config.root is None else config.root.expanduser()


def _has_world() -> bool:
    try:
        importlib.metadata.distribution(earth.IMAGE_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def drawn(seed: int, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Hills under a sky with a sun, of any number of bands; the same for the same seed."""
    rng = np.random.default_rng(seed)
    height, width = DRAWN
    rows, columns = np.mgrid[:height, :width]
    picture = np.linspace((120, 170, 230), (225, 225, 215), height)[:, None].repeat(width, 1)
    middle = rng.integers(60, 160), rng.integers(80, width - 80)
    picture[(rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 40**2] = (250, 225, 130)
    for level, colour in ((0.45, (110, 130, 120)), (0.6, (80, 120, 70)), (0.78, (60, 90, 40))):
        waves = rng.uniform(0.5, 2.5, 3)[:, None] * np.linspace(0, 2 * np.pi, width)
        hills = np.sin(waves + rng.uniform(0, 6, (3, 1))).mean(0) * 0.1 + level
        picture[rows > hills * height] = colour
    picture += rng.normal(0, 6, (height, width, 1))
    bands = [picture[..., band % 3] for band in range(channels)]
    return np.stack(bands, -1).clip(0, 255).astype(np.uint8)
