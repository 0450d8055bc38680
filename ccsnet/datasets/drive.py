"""DRIVE: vessels of the retina, from a screening for diabetic retinopathy.

Source: Staal et al., "Ridge-Based Vessel Segmentation in Color Images of the Retina", IEEE
Transactions on Medical Imaging 2004. The labels are those of the first observer, as downloaded:
nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._retina import COLOURS, RAW_TO_CLASS
from ccsnet.datasets._spec import DatasetSpec, Split


def _split(folder: str) -> Split:
    return Split(
        images=f"{folder}/images/*_{folder}.tif",
        labels=f"{folder}/1st_manual/*_manual1.gif",
        count=20,
    )


SPEC = DatasetSpec(
    name="drive",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class=RAW_TO_CLASS,
    # The authors call the second split test. Newer downloads lack its 1st_manual: with them,
    # only `train` has labels.
    splits={"train": _split("training"), "val": _split("test")},
    licence="research and education only, no redistribution, registration needed",
    source=(
        "Register at https://drive.grand-challenge.org, get training.zip and test.zip (the folder "
        "test/1st_manual may be missing; without it there is nothing to validate on). "
        "Then: ccsnet data prepare drive DOWNLOADS..."
    ),
    default_root="data/drive",
    short_side=565,
    long_side=584,
    crop=(64, 64),
    window=(64, 42),
    archives=(
        Archive(file="training.zip", to="training", strip="training"),
        Archive(file="test.zip", to="test", strip="test"),
    ),
)
