"""Cityscapes: 19 classes of street scenes from 50 cities, with fine annotations.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
The labels are the label ids of `*_gtFine_labelIds.png`, as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec, Split

COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

# Label ids of the 19 classes that are evaluated; every other id is void there.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _split(name: str, count: int) -> Split:
    return Split(
        images=f"leftImg8bit/{name}/*/*_leftImg8bit.png",
        labels=f"gtFine/{name}/*/*_gtFine_labelIds.png",
        count=count,
    )


SPEC = DatasetSpec(
    name="cityscapes",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class={raw: index for index, raw in enumerate(LABEL_IDS)},
    ignore_raw=None,
    # The test split's truth is kept by the authors' server: its label files hold no classes.
    splits={
        "train": _split("train", 2975),
        "val": _split("val", 500),
        "test": Split(images="leftImg8bit/test/*/*_leftImg8bit.png", count=1525),
    },
    licence="non-commercial, registration needed: https://www.cityscapes-dataset.com/license/",
    source=(
        "Register at https://www.cityscapes-dataset.com, get leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip. Then: ccsnet data prepare cityscapes DOWNLOADS..."
    ),
    default_root="data/cityscapes",
    short_side=1024,
    long_side=2048,
    crop=(512, 1024),
    archives=(
        Archive(file="leftImg8bit_trainvaltest.zip"),
        Archive(file="gtFine_trainvaltest.zip"),
    ),
)
