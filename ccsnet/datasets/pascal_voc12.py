"""PASCAL VOC 2012: 20 kinds of object and the background.

Sources: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; for
`trainaug` Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011 (SBD).
"""

from ccsnet.datasets._archives import Archive, MatToPng, NameList
from ccsnet.datasets._spec import DatasetSpec, Split

COLOURS = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}

LISTS = "ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"


def _split(name: str, count: int) -> Split:
    return Split(
        images="JPEGImages/*.jpg",
        labels="SegmentationClass/*.png",
        names=f"{LISTS}/{name}.txt",
        count=count,
    )


SPEC = DatasetSpec(
    name="pascal_voc12",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    # The palette's index is the class; 255 is the border around objects, which SBD does not have.
    raw_to_class={index: index for index in range(len(COLOURS))},
    ignore_raw=frozenset({255}),
    # `trainaug` holds `train`; it shares nothing with `val`.
    splits={
        "train": _split("train", 1464),
        "val": _split("val", 1449),
        "trainaug": (
            _split("train", 1464),
            Split(
                images="JPEGImages/*.jpg",
                labels="SegmentationClassAug/*.png",
                names=f"{LISTS}/aug.txt",
                count=9118,
            ),
        ),
        "test": Split(images="JPEGImages/*.jpg", names=f"{LISTS}/test.txt", count=1456),
    },
    licence="images: Flickr's terms of use; annotations: none stated",
    source=(
        "Get VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, "
        "for the split trainaug also benchmark.tgz (SBD) from "
        "http://home.bharathh.info/pubs/codes/SBD/download.html, and for the split test "
        "VOC2012test.tar from http://host.robots.ox.ac.uk:8080 (registration). Then: "
        "ccsnet data prepare pascal_voc12 DOWNLOADS..."
    ),
    default_root="data/pascal_voc12",
    short_side=512,
    long_side=2048,
    crop=(512, 512),
    archives=(
        Archive(
            file="VOCtrainval_11-May-2012.tar",
            strip="VOCdevkit/VOC2012",
            md5="6cd6e144f989b92b3379bac3b3de84fd",
        ),
        Archive(file="benchmark.tgz", md5="82b4d87ceb2ed10f6038a1cba92111cb", optional=True),
        Archive(file="VOC2012test.tar", strip="VOCdevkit/VOC2012", optional=True),
    ),
    steps=(
        MatToPng(
            sources=f"{SBD}/cls/*.mat",
            targets="SegmentationClassAug/*.png",
            path=("GTcls", "Segmentation"),
        ),
        NameList(
            target=f"{LISTS}/aug.txt",
            add=(f"{SBD}/train.txt", f"{SBD}/val.txt"),
            less=(f"{LISTS}/train.txt", f"{LISTS}/val.txt"),
        ),
    ),
)
