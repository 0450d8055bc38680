"""COCO-Stuff 164k: 171 classes of things and stuff on all labelled images of COCO 2017.

Source: Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018.
The labels are read as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._coco_stuff import COLOURS, IDS, LICENCE, PAINTS
from ccsnet.datasets._spec import DatasetSpec, Split

COUNTS = {"train": 118287, "val": 5000}

SPEC = DatasetSpec(
    name="coco_stuff164k",
    classes=tuple(COLOURS),
    colours=PAINTS,
    raw_to_class={raw: index for index, raw in enumerate(IDS)},
    ignore_raw=frozenset({255}),
    splits={
        name: Split(
            images=f"images/{name}2017/*.jpg", labels=f"annotations/{name}2017/*.png", count=count
        )
        for name, count in COUNTS.items()
    },
    licence=LICENCE,
    source=(
        "Get train2017.zip and val2017.zip from https://cocodataset.org/#download and "
        "stuffthingmaps_trainval2017.zip, which https://github.com/nightrome/cocostuff links to. "
        "Then: ccsnet data prepare coco_stuff164k DOWNLOADS..."
    ),
    default_root="data/coco_stuff164k",
    short_side=512,
    long_side=2048,
    crop=(512, 512),
    archives=(
        Archive(file="train2017.zip", to="images"),
        Archive(file="val2017.zip", to="images"),
        Archive(file="stuffthingmaps_trainval2017.zip", to="annotations"),
    ),
)
