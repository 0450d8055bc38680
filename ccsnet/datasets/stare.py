"""STARE: vessels of the retina, half of the images with pathologies.

Source: Hoover, Kouznetsova, Goldbaum, "Locating Blood Vessels in Retinal Images by Piecewise
Threshold Probing of a Matched Filter Response", IEEE Transactions on Medical Imaging 2000. The
labels are those of the first observer (ah).
"""

from ccsnet.datasets._archives import Archive, Gunzip
from ccsnet.datasets._retina import COLOURS, RAW_TO_CLASS
from ccsnet.datasets._spec import DatasetSpec, Split

IMAGES, LABELS = "images/*.ppm", "labels-ah/*.ah.ppm"

SPEC = DatasetSpec(
    name="stare",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class=RAW_TO_CLASS,
    # The authors name no split; usual are the first ten images and the others.
    splits={
        "train": Split(images=IMAGES, labels=LABELS, stop=10, count=10),
        "val": Split(images=IMAGES, labels=LABELS, start=10, count=10),
    },
    licence="none stated",
    source=(
        "Get stare-images.tar and labels-ah.tar from https://cecas.clemson.edu/~ahoover/stare. "
        "Then: ccsnet data prepare stare DOWNLOADS..."
    ),
    default_root="data/stare",
    short_side=605,
    long_side=700,
    crop=(128, 128),
    window=(128, 85),
    archives=(
        Archive(file="stare-images.tar", to="images"),
        Archive(file="labels-ah.tar", to="labels-ah"),
        # The second observer, whom nothing here reads.
        Archive(file="labels-vk.tar", to="labels-vk", optional=True),
    ),
    steps=(Gunzip(sources="images/*.ppm.gz"), Gunzip(sources="labels-ah/*.ppm.gz")),
)
