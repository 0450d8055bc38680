"""Dark Zurich: streets at night, with the classes of Cityscapes; for evaluation only.

Source: Sakaridis, Dai, Van Gool, "Guided Curriculum Model Adaptation and Uncertainty-Aware
Evaluation for Semantic Nighttime Image Segmentation", ICCV 2019. The labels are read as
downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.datasets.cityscapes import COLOURS

SPEC = DatasetSpec(
    name="dark_zurich",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class={index: index for index in range(len(COLOURS))},
    ignore_raw=frozenset({255}),
    splits={
        "val": Split(
            images="rgb_anon/val/night/*/*_rgb_anon.png",
            labels="gt/val/night/*/*_gt_labelTrainIds.png",
            count=50,
        )
    },
    licence="non-commercial",
    source=(
        "Get Dark_Zurich_val_anon.zip from "
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU. "
        "Then: ccsnet data prepare dark_zurich DOWNLOADS..."
    ),
    default_root="data/dark_zurich",
    short_side=1080,
    long_side=1920,
    crop=(512, 1024),
    archives=(Archive(file="Dark_Zurich_val_anon.zip", strip="Dark_Zurich_val_anon"),),
)
