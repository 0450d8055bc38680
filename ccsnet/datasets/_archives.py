"""How a data set comes from its archives, as data; `ccsnet.data.prepare` does what is told here."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file as downloaded."""

    file: str
    """Its name. `*` stands for what differs between downloads, such as a number in brackets."""

    to: str = ""
    """The folder below the data set's, "" for that folder itself, that its content goes to."""

    strip: str = ""
    """A folder of the archive whose content goes there instead of itself, if it is there."""

    md5: str | None = None
    """The published sum, where there is one."""

    optional: bool = False
    """Whether training and validation do without it."""


@dataclass(frozen=True, kw_only=True)
class MatToPng:
    """A matrix inside each .mat file becomes a PNG of 8 bits."""

    sources: str
    """Pattern of the .mat files, relative to the data set's folder."""
    targets: str
    """Pattern of the PNGs; `*` as in `sources`."""
    path: tuple[str, ...]
    """Names of the nested structures down to the matrix."""


@dataclass(frozen=True, kw_only=True)
class Gunzip:
    """Each .gz file becomes the file inside it; `targets` as the sources without .gz."""

    sources: str


@dataclass(frozen=True, kw_only=True)
class ContextToPng:
    """The masks of Pascal Context's JSON become PNGs of its class numbers, and lists of splits."""

    json: str
    labels: str
    """Pattern of the PNGs."""
    lists: str
    """Pattern of the lists; `*` is the split's name."""
    raw_ids: tuple[int, ...]
    """The JSON's category of each class number written, 0 first."""


@dataclass(frozen=True, kw_only=True)
class NameList:
    """A list made of others: the names of all `add`, each once, without those of `less`."""

    target: str
    add: tuple[str, ...]
    less: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Large images and labels are cut into square tiles.

    Tiles stand in a grid; the last of a row or column is shifted back so that it ends with the
    image. An image smaller than a tile is filled up, with 0, and its label with `fill`.
    """

    images: str
    """Pattern of the large images, with one `*`, their id."""
    labels: str | None
    """Pattern of their labels."""
    tile_images: str
    """Pattern of the tiles; `*` is the id with the tile's position."""
    tile_labels: str | None
    size: int
    overlap: int = 0
    ids: tuple[str, ...] | None = None
    """Which images; None: all that match."""
    position: str = "{x0}_{y0}_{x1}_{y1}"
    """How a tile's name, after the id and an underscore, tells where it was."""
    fill: int = 255


Step = MatToPng | Gunzip | ContextToPng | NameList | Tiles
