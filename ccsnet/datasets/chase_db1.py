"""CHASE_DB1: vessels of the retina of 14 children, both eyes.

Source: Fraz et al., "An Ensemble Classification-Based Approach Applied to Retinal Blood Vessel
Segmentation", IEEE Transactions on Biomedical Engineering 2012. The labels are those of the first
observer (1stHO), as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._retina import COLOURS, RAW_TO_CLASS
from ccsnet.datasets._spec import DatasetSpec, Split

IMAGES, LABELS = "Image_*.jpg", "Image_*_1stHO.png"

SPEC = DatasetSpec(
    name="chase_db1",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class=RAW_TO_CLASS,
    # The authors name no split; usual are the first ten children and the other four.
    splits={
        "train": Split(images=IMAGES, labels=LABELS, stop=20, count=20),
        "val": Split(images=IMAGES, labels=LABELS, start=20, count=8),
    },
    licence="as its page states",
    source=(
        "Get CHASEDB1.zip from https://blogs.kingston.ac.uk/retinal/chasedb1. "
        "Then: ccsnet data prepare chase_db1 DOWNLOADS..."
    ),
    default_root="data/chase_db1",
    short_side=960,
    long_side=999,
    crop=(128, 128),
    window=(128, 85),
    archives=(Archive(file="CHASEDB1.zip", strip="CHASEDB1"),),
)
