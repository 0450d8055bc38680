"""Nighttime Driving: streets at night, with the classes of Cityscapes; for evaluation only.

Source: Dai, Van Gool, "Dark Model Adaptation: Semantic Image Segmentation from Daytime to
Nighttime", ITSC 2018. The labels are read as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.datasets.cityscapes import COLOURS

SPEC = DatasetSpec(
    name="nighttime_driving",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class={index: index for index in range(len(COLOURS))},
    ignore_raw=frozenset({255}),
    splits={
        "test": Split(
            images="leftImg8bit/test/night/*_leftImg8bit.png",
            labels="gtCoarse_daytime_trainvaltest/test/night/*_gtCoarse_labelTrainIds.png",
            count=50,
        )
    },
    licence="non-commercial",
    source=(
        "Get NighttimeDrivingTest.zip from http://people.ee.ethz.ch/~daid/NightDriving. "
        "Then: ccsnet data prepare nighttime_driving DOWNLOADS..."
    ),
    default_root="data/nighttime_driving",
    short_side=1080,
    long_side=1920,
    crop=(512, 1024),
    archives=(Archive(file="NighttimeDrivingTest.zip", strip="NighttimeDrivingTest"),),
)
