"""Potsdam: a city from the air in 38 images of 6000 x 6000 pixels, 5 cm each.

Source: the 2D Semantic Labeling Contest of ISPRS, working group II/4. The labels are those without
boundaries. Tiles keep the official colours.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._isprs import COLOUR_TO_CLASS, COLOURS, LICENCE, SIZE, tiled_split, tiles
from ccsnet.datasets._spec import DatasetSpec

IMAGES = "2_Ortho_RGB/top_potsdam_*_RGB.tif"
LABELS = "5_Labels_all_noBoundary/top_potsdam_*_label_noBoundary.tif"

IDS = {
    "train": (
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
    ),
    "val": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
}

SPEC = DatasetSpec(
    name="potsdam",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    colour_to_class=COLOUR_TO_CLASS,
    ignore_colours=None,
    splits={"train": tiled_split("train", 3456), "val": tiled_split("val", 2016)},
    licence=LICENCE,
    source=(
        "Ask at https://www.isprs.org/education/benchmarks/UrbanSemLab for 2_Ortho_RGB.zip and "
        "5_Labels_all_noBoundary.zip. Then: ccsnet data prepare potsdam DOWNLOADS..."
    ),
    default_root="data/potsdam",
    short_side=SIZE,
    long_side=SIZE,
    crop=(SIZE, SIZE),
    archives=(
        Archive(file="2_Ortho_RGB.zip", to="2_Ortho_RGB", strip="2_Ortho_RGB"),
        Archive(
            file="5_Labels_all_noBoundary.zip",
            to="5_Labels_all_noBoundary",
            strip="5_Labels_all_noBoundary",
        ),
    ),
    steps=tuple(tiles(name, IMAGES, LABELS, ids) for name, ids in IDS.items()),
)
