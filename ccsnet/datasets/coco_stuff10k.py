"""COCO-Stuff 10k: 171 classes of things and stuff on 10000 images of COCO.

Source: Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018.
"""

from ccsnet.datasets._archives import Archive, MatToPng
from ccsnet.datasets._coco_stuff import COLOURS, IDS, LICENCE, PAINTS
from ccsnet.datasets._spec import DatasetSpec, Split


def _split(name: str, count: int) -> Split:
    return Split(
        images="images/*.jpg", labels="labels/*.png", names=f"imageLists/{name}.txt", count=count
    )


SPEC = DatasetSpec(
    name="coco_stuff10k",
    classes=tuple(COLOURS),
    colours=PAINTS,
    # Here 0 is unlabelled and the classes count from 1.
    raw_to_class={raw + 1: index for index, raw in enumerate(IDS)},
    ignore_raw=frozenset({0}),
    # The authors call the second split test; its labels are published.
    splits={"train": _split("train", 9000), "val": _split("test", 1000)},
    licence=LICENCE,
    source=(
        "Get cocostuff-10k-v1.1.zip, which https://github.com/nightrome/cocostuff10k links to. "
        "Then: ccsnet data prepare coco_stuff10k DOWNLOADS..."
    ),
    default_root="data/coco_stuff10k",
    short_side=512,
    long_side=2048,
    crop=(512, 512),
    archives=(Archive(file="cocostuff-10k-v1.1.zip", strip="cocostuff-10k-v1.1"),),
    steps=(MatToPng(sources="annotations/*.mat", targets="labels/*.png", path=("S",)),),
)
