"""PASCAL Context: 59 classes of whole scenes and the background, on images of VOC 2010.

Source: Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in
the Wild", CVPR 2014. The same without the background is `pascal_context_59`; both read the
same files, so `--root data/pascal_context_60` does for either.
"""

from ccsnet.datasets._archives import Archive, ContextToPng
from ccsnet.datasets._spec import DatasetSpec, Split, distinct

# Class -> its category among the 459 that were annotated, and its colour as published.
CLASSES = {
    "background": (0, (120, 120, 120)),
    "aeroplane": (2, (180, 120, 120)),
    "bag": (9, (6, 230, 230)),
    "bed": (18, (80, 50, 50)),
    "bedclothes": (19, (4, 200, 3)),
    "bench": (22, (120, 120, 80)),
    "bicycle": (23, (140, 140, 140)),
    "bird": (25, (204, 5, 255)),
    "boat": (31, (230, 230, 230)),
    "book": (33, (4, 250, 7)),
    "bottle": (34, (224, 5, 255)),
    "building": (44, (235, 255, 7)),
    "bus": (45, (150, 5, 61)),
    "cabinet": (46, (120, 120, 70)),
    "car": (59, (8, 255, 51)),
    "cat": (65, (255, 6, 82)),
    "ceiling": (68, (143, 255, 140)),
    "chair": (72, (204, 255, 4)),
    "cloth": (80, (255, 51, 7)),
    "computer": (85, (204, 70, 3)),
    "cow": (98, (0, 102, 200)),
    "cup": (104, (61, 230, 250)),
    "curtain": (105, (255, 6, 51)),
    "dog": (113, (11, 102, 255)),
    "door": (115, (255, 7, 71)),
    "fence": (144, (255, 9, 224)),
    "floor": (158, (9, 7, 230)),
    "flower": (159, (220, 220, 220)),
    "food": (162, (255, 9, 92)),
    "grass": (187, (112, 9, 255)),
    "ground": (189, (8, 255, 214)),
    "horse": (207, (7, 255, 224)),
    "keyboard": (220, (255, 184, 6)),
    "light": (232, (10, 255, 71)),
    "motorbike": (258, (255, 41, 10)),
    "mountain": (259, (7, 255, 255)),
    "mouse": (260, (224, 255, 8)),
    "person": (284, (102, 8, 255)),
    "plate": (295, (255, 61, 6)),
    "platform": (296, (255, 194, 7)),
    "pottedplant": (308, (255, 122, 8)),
    "road": (324, (0, 255, 20)),
    "rock": (326, (255, 8, 41)),
    "sheep": (347, (255, 5, 153)),
    "shelves": (349, (6, 51, 255)),
    "sidewalk": (354, (235, 12, 255)),
    "sign": (355, (160, 150, 20)),
    "sky": (360, (0, 163, 255)),
    "snow": (366, (140, 140, 140)),
    "sofa": (368, (250, 10, 15)),
    "table": (397, (20, 255, 0)),
    "track": (415, (31, 255, 0)),
    "train": (416, (255, 31, 0)),
    "tree": (420, (255, 224, 0)),
    "truck": (424, (153, 255, 0)),
    "tvmonitor": (427, (0, 0, 255)),
    "wall": (440, (255, 71, 0)),
    "water": (445, (0, 235, 255)),
    "window": (454, (0, 173, 255)),
    "wood": (458, (31, 0, 255)),
}

COLOURS = distinct(colour for _, colour in CLASSES.values())

LABELS = "SegmentationClassContext/*.png"
LISTS = "ImageSets/SegmentationContext/*.txt"

# The authors name 4998 and 5105; the published annotations hold these.
COUNTS = {"train": 4996, "val": 5104}

SPLITS = {
    name: Split(
        images="JPEGImages/*.jpg", labels=LABELS, names=LISTS.replace("*", name), count=count
    )
    for name, count in COUNTS.items()
}
LICENCE = "images: Flickr's terms of use; annotations: none stated"
ARCHIVES = (
    Archive(
        file="VOCtrainval_03-May-2010.tar",
        strip="VOCdevkit/VOC2010",
        md5="da459979d0c395079b5c75ee67908abb",
    ),
    Archive(file="trainval_merged.json"),
)
STEPS = (
    ContextToPng(
        json="trainval_merged.json",
        labels=LABELS,
        lists=LISTS,
        raw_ids=tuple(raw for raw, _ in CLASSES.values()),
    ),
)


def source(name: str) -> str:
    """Where to get the data, with the command that prepares the data set of this name."""
    return (
        "Get VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010 and "
        "trainval_merged.json from https://codalabuser.blob.core.windows.net/public/"
        f"trainval_merged.json. Then: ccsnet data prepare {name} DOWNLOADS..."
    )


SPEC = DatasetSpec(
    name="pascal_context_60",
    classes=tuple(CLASSES),
    colours=COLOURS,
    # What `ContextToPng` writes: the place in CLASSES.
    raw_to_class={index: index for index in range(len(CLASSES))},
    splits=SPLITS,
    licence=LICENCE,
    source=source("pascal_context_60"),
    default_root="data/pascal_context_60",
    short_side=520,
    long_side=520,
    crop=(480, 480),
    archives=ARCHIVES,
    steps=STEPS,
)
