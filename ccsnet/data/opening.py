"""Where samples come from: the settings, the data set that they name, one image with its label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccsnet.data.images import read_image, read_label
from ccsnet.data.parallel import num_processors
from ccsnet.data.record import refuse_unfinished
from ccsnet.data.transforms import Augmentation
from ccsnet.datasets._folder import read_spec
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError
from ccsnet.plugins import find_plugin

PACKAGE = "ccsnet.datasets"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how training samples are made of it."""

    dataset: str
    """A built-in name, a folder with a dataset.yaml, such a file, or your_module:SPEC."""

    root: Path | None = None
    """The data's folder. None: the data set's own default."""

    crop: tuple[int, int] | None = None
    """Height and width of a training sample. None: the data set's own."""

    short_side: int | None = None
    """Images are scaled until the shorter side has this length. None: the data set's own."""

    long_side: int | None = None
    """The longer side never passes this. None: the data set's own."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale of a training sample."""

    max_class_share: float = 0.75
    """Crops in which one class has more of the labelled pixels are drawn again; 1 allows all."""

    flip: bool = True
    """Mirror half of the training samples."""

    photometric: bool = True
    """Change brightness, contrast, saturation and hue of training samples."""

    repeat_threshold: float | None = None
    """Images with classes in less than this share of all images are shown more often (LVIS's
    repeat-factor sampling); none: all alike."""

    rare_crop: float = 0.0
    """Share of training samples whose crop shows a pixel of a rare class (DAFormer's odds)."""

    train_split: str = "train"
    """The split to learn from."""

    val_split: str = "val"
    """The split to validate on."""

    workers: int = -1
    """Processes that read ahead; 0 reads in the main process, -1 takes one less than the
    processors, at most 4."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data.

        Raises:
            InputError: A value is impossible.
        """
        low, high = self.scale
        if not 0 < low <= high:
            raise InputError(
                f"scale is {self.scale}; it must be two numbers, 0 < smallest <= largest."
            )
        if not 0 < self.max_class_share <= 1:
            raise InputError(f"max_class_share is {self.max_class_share}; it must be in (0, 1].")
        if self.repeat_threshold is not None and not 0 < self.repeat_threshold <= 1:
            raise InputError(f"repeat_threshold is {self.repeat_threshold}; it must be in (0, 1].")
        if not 0 <= self.rare_crop <= 1:
            raise InputError(f"rare_crop is {self.rare_crop}; it must be in [0, 1].")
        if self.workers < -1:
            raise InputError(f"workers is {self.workers}; it must be -1 (automatic), 0 or more.")
        for name, size in self._sizes():
            if size is not None and size < 1:
                raise InputError(f"{name} is {size}; it must be at least 1 pixel.")

    def _sizes(self) -> list[tuple[str, int | None]]:
        crop = [] if self.crop is None else [("crop", side) for side in self.crop]
        return [*crop, ("short_side", self.short_side), ("long_side", self.long_side)]

    @property
    def num_workers(self) -> int:
        """Processes that read ahead, with -1 resolved."""
        return self.workers if self.workers >= 0 else min(4, num_processors() - 1)

    @property
    def knows_classes(self) -> bool:
        """Whether samples depend on which classes the training labels hold."""
        return self.repeat_threshold is not None or self.rare_crop > 0


def open_dataset(config: DataConfig) -> tuple[DatasetSpec, Path]:
    """The data set that a config names, and the folder that its files are in.

    A built-in data set that can make its own data does so when its folder does not exist.

    Raises:
        FileNotFoundError: The named folder or file does not exist.
        InputError: No data set has that name, its description is wrong, or the preparation of its
            folder is not finished.
    """
    name = config.dataset
    if ":" not in name and ("/" in name or name in (".", "..") or name.endswith((".yaml", ".yml"))):
        spec, root = read_spec(Path(name).expanduser())
    elif ":" not in name and Path(name).is_dir() and not _is_built_in(name):
        spec, root = read_spec(Path(name))
    else:
        spec = find_plugin(PACKAGE, name, "SPEC")
        if not isinstance(spec, DatasetSpec):
            raise InputError(
                f"{name} is a {type(spec).__name__}; a data set must be a DatasetSpec."
            )
        root = Path(spec.default_root)
    root = root if config.root is None else config.root.expanduser()
    if spec.prepare is not None and not root.exists():
        spec.prepare(root)
    refuse_unfinished(root, name)
    return spec, root


def _is_built_in(name: str) -> bool:
    try:
        find_plugin(PACKAGE, name, "SPEC")
    except InputError:
        return False
    return True


def augmentation(spec: DatasetSpec, config: DataConfig) -> Augmentation:
    """How training samples are made: the config's settings, else the data set's."""
    short_side, long_side = test_sides(spec, config)
    return Augmentation(
        crop=config.crop or spec.crop,
        short_side=short_side,
        long_side=long_side,
        ignore_index=spec.ignore_index,
        scale=config.scale,
        max_class_share=config.max_class_share,
        flip=config.flip,
        photometric=config.photometric,
        rare_crop=config.rare_crop,
    )


def test_sides(spec: DatasetSpec, config: DataConfig) -> tuple[int | None, int | None]:
    """Short and long side that images are scaled to: the config's, else the data set's."""
    return config.short_side or spec.short_side, config.long_side or spec.long_side


def read_pair(pair: Pair, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map, of one size.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: A file cannot be used, or the sizes differ.
    """
    if pair.label is None:
        raise InputError(f"{pair.image} has no label.")
    image = read_image(pair.image, spec.channels)
    label = read_label(pair.label, spec)
    if image.shape[:2] != label.shape:
        raise InputError(sizes_differ(pair, image.shape[:2], label.shape))
    return image, label


def sizes_differ(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> str:
    """What to tell of an image and a label of two sizes."""
    return (
        f"The image {pair.image} has {image[0]} x {image[1]} pixels, but its label {pair.label} "
        f"has {label[0]} x {label[1]} (height x width). Every pixel needs its own label: make them "
        "again at one size (labels by nearest neighbour)."
    )
