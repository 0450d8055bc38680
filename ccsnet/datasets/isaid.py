"""iSAID: 15 kinds of object and the background in aerial images of very different sizes.

Source: Waqas Zamir et al., "iSAID: A Large-scale Dataset for Instance Segmentation in Aerial
Images", CVPR workshops 2019. The images are those of DOTA 1.0. Tiles keep the official colours.
"""

from ccsnet.datasets._archives import Archive, Tiles
from ccsnet.datasets._spec import DatasetSpec, Split

COLOURS = {
    "background": (0, 0, 0),
    "ship": (0, 0, 63),
    "store_tank": (0, 63, 63),
    "baseball_diamond": (0, 63, 0),
    "tennis_court": (0, 63, 127),
    "basketball_court": (0, 63, 191),
    "Ground_Track_Field": (0, 63, 255),
    "Bridge": (0, 127, 63),
    "Large_Vehicle": (0, 127, 127),
    "Small_Vehicle": (0, 0, 127),
    "Helicopter": (0, 0, 191),
    "Swimming_pool": (0, 0, 255),
    "Roundabout": (0, 191, 127),
    "Soccer_ball_field": (0, 127, 191),
    "plane": (0, 127, 255),
    "Harbor": (0, 100, 155),
}

# Split -> in how many archives its images come.
NUM_PARTS = {"train": 3, "val": 1, "test": 2}

COUNTS = {"train": 33978, "val": 11644}  # Tiles, of 1411 and 458 images.
LABEL_END = "_instance_color_RGB.png"


def _tiles(name: str) -> Tiles:
    return Tiles(
        images=f"{name}/images/*.png",
        labels=f"{name}/Semantic_masks/*{LABEL_END}",
        tile_images=f"images/{name}/*.png",
        tile_labels=f"labels/{name}/*{LABEL_END}",
        size=896,
        overlap=384,
        position="{y0}_{y1}_{x0}_{x1}",
    )


SPEC = DatasetSpec(
    name="isaid",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    colour_to_class={colour: index for index, colour in enumerate(COLOURS.values())},
    # What tiles of smaller images are filled up with; the background is a class here.
    ignore_colours=frozenset({(255, 255, 255)}),
    # The truth of the test split is kept by the authors' server; its images are not cut.
    splits={
        **{
            name: Split(
                images=f"images/{name}/*.png", labels=f"labels/{name}/*{LABEL_END}", count=count
            )
            for name, count in COUNTS.items()
        },
        "test": Split(images="test/images/*.png", count=937),
    },
    licence="academic use only; images: Google Earth's terms of use",
    source=(
        "Get the images of DOTA 1.0 from https://captain-whu.github.io/DOTA/dataset.html and the "
        "semantic masks from https://captain-whu.github.io/iSAID/dataset.html, and keep their "
        "folders, because the names repeat: train/images/part1.zip, part2.zip and part3.zip, "
        "train/Semantic_masks/images.zip, val/images/part1.zip, val/Semantic_masks/images.zip, "
        "and for the split test test/images/part1.zip and part2.zip. "
        "Then: ccsnet data prepare isaid DOWNLOADS..."
    ),
    default_root="data/isaid",
    short_side=896,
    long_side=896,
    crop=(896, 896),
    archives=(
        *(
            Archive(
                file=f"{name}/images/part{part}.zip",
                to=f"{name}/images",
                strip="images",
                optional=name == "test",
            )
            for name, num in NUM_PARTS.items()
            for part in range(1, num + 1)
        ),
        *(
            Archive(
                file=f"{name}/Semantic_masks/images.zip",
                to=f"{name}/Semantic_masks",
                strip="images",
            )
            for name in COUNTS
        ),
    ),
    steps=tuple(_tiles(name) for name in COUNTS),
)
