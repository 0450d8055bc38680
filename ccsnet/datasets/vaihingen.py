"""Vaihingen: a small town from the air in 33 images of near infrared, red and green, 9 cm a pixel.

Source: the 2D Semantic Labeling Contest of ISPRS, working group II/4. The labels are those without
boundaries. Tiles keep the official colours.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._isprs import COLOUR_TO_CLASS, COLOURS, LICENCE, SIZE, tiled_split, tiles
from ccsnet.datasets._spec import DatasetSpec

FOLDER = "ISPRS_semantic_labeling_Vaihingen"
TRUTH = f"{FOLDER}_ground_truth_eroded_COMPLETE"

IMAGES = "top/top_mosaic_09cm_area*.tif"
LABELS = f"{TRUTH}/top_mosaic_09cm_area*_noBoundary.tif"

IDS = {
    "train": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
    "val": "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
}

SPEC = DatasetSpec(
    name="vaihingen",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    colour_to_class=COLOUR_TO_CLASS,
    ignore_colours=None,
    splits={"train": tiled_split("train", 344), "val": tiled_split("val", 398)},
    licence=LICENCE,
    source=(
        "Ask at https://www.isprs.org/education/benchmarks/UrbanSemLab for "
        "ISPRS_semantic_labeling_Vaihingen.zip and "
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip. "
        "Then: ccsnet data prepare vaihingen DOWNLOADS..."
    ),
    default_root="data/vaihingen",
    short_side=SIZE,
    long_side=SIZE,
    crop=(SIZE, SIZE),
    archives=(
        Archive(file=f"{FOLDER}.zip", strip=FOLDER),
        Archive(file=f"{TRUTH}.zip", to=TRUTH, strip=TRUTH),
    ),
    steps=tuple(tiles(name, IMAGES, LABELS, ids, prefix="area") for name, ids in IDS.items()),
)
