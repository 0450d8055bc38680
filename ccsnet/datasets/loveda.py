"""LoveDA: land cover of three Chinese cities and their surroundings, 0.3 m per pixel.

Source: Wang et al., "LoveDA: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic
Segmentation", NeurIPS 2021. The labels are read as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec, Split

COLOURS = {
    "background": (255, 255, 255),
    "building": (255, 0, 0),
    "road": (255, 255, 0),
    "water": (0, 0, 255),
    "barren": (159, 129, 183),
    "forest": (0, 255, 0),
    "agricultural": (255, 195, 128),
}


def _split(folder: str, count: int) -> Split:
    """Rural and urban images together."""
    return Split(
        images=f"{folder}/*/images_png/*.png", labels=f"{folder}/*/masks_png/*.png", count=count
    )


SPEC = DatasetSpec(
    name="loveda",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    # 0 is where there is no data.
    raw_to_class={index + 1: index for index in range(len(COLOURS))},
    ignore_raw=frozenset({0}),
    # The truth of the test split is kept by the authors' server.
    splits={
        "train": _split("Train", 2522),
        "val": _split("Val", 1669),
        "test": Split(images="Test/*/images_png/*.png", count=1796),
    },
    licence="CC BY-NC-SA 4.0, academic use only",
    source=(
        "Get Train.zip and Val.zip, for the split test also Test.zip, from "
        "https://zenodo.org/records/5706578. Then: ccsnet data prepare loveda DOWNLOADS..."
    ),
    default_root="data/loveda",
    # The size of the files. Published results train at half of it: there `scale` is 0.25 to 1.
    short_side=1024,
    long_side=1024,
    crop=(512, 512),
    archives=(
        Archive(file="Train.zip", md5="de2b196043ed9b4af1690b3f9a7d558f"),
        Archive(file="Val.zip", md5="84cae2577468ff0b5386758bb386d31d"),
        Archive(file="Test.zip", md5="a489be0090465e01fb067795d24e6b47", optional=True),
    ),
)
