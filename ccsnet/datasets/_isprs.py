"""What the two data sets of ISPRS, Potsdam and Vaihingen, share."""

from ccsnet.datasets._archives import Tiles
from ccsnet.datasets._spec import Split

# Each class is painted in label files as here; black is the border between areas.
COLOURS = {
    "impervious_surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low_vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}

COLOUR_TO_CLASS = {colour: index for index, colour in enumerate(COLOURS.values())}

LICENCE = "on request, for research"
SIZE = 512


def tiled_split(name: str, count: int) -> Split:
    """A split of the tiles that `tiles` makes."""
    return Split(images=f"images/{name}/*.png", labels=f"labels/{name}/*.png", count=count)


def tiles(name: str, images: str, labels: str, ids: str, prefix: str = "") -> Tiles:
    """How the large images of a split are cut.

    Args:
        name: The split's name.
        images: Pattern of the large images.
        labels: Pattern of their labels.
        ids: Which of them, with blanks between.
        prefix: What the tiles' names start with, before the id.
    """
    return Tiles(
        images=images,
        labels=labels,
        tile_images=f"images/{name}/{prefix}*.png",
        tile_labels=f"labels/{name}/{prefix}*.png",
        size=SIZE,
        ids=tuple(ids.split()),
        fill=0,  # White, as elsewhere, is a class here.
    )
