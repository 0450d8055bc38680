"""The data sets' figures as published, apart from the SPECs that should hold them."""

import re
from pathlib import Path

import numpy as np
import pytest

from ccsnet.checkpoint import Checkpoint, ClassInfo
from ccsnet.config import RunConfig
from ccsnet.data.images import read_label
from ccsnet.data.opening import DataConfig
from ccsnet.datasets._archives import ContextToPng, Tiles
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.plugins import find_plugin
from ccsnet.preflight import check_classes
from tests.datasets.encoding import encoded, png

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"

# Name -> classes, images or tiles of each split, and the first, the last and some other class: its
# index, name, colour, and what label files hold for it (of Pascal Context the JSON).
FACTS = {
    "cityscapes": (
        *(19, {"train": 2975, "val": 500, "test": 1525}),
        [
            (0, "road", (128, 64, 128), 7),
            (3, "wall", (102, 102, 156), 12),
            (18, "bicycle", (119, 11, 32), 33),
        ],
    ),
    "pascal_voc12": (
        *(21, {"train": 1464, "val": 1449, "trainaug": 10582, "test": 1456}),
        [
            (0, "background", (0, 0, 0), 0),
            (11, "diningtable", (192, 128, 0), 11),
            (20, "tvmonitor", (0, 64, 128), 20),
        ],
    ),
    "ade20k": (
        *(150, {"train": 20210, "val": 2000, "test": 3352}),
        [
            (0, "wall", (120, 120, 120), 1),
            (7, "bed", (204, 5, 255), 8),
            (149, "flag", (92, 0, 255), 150),
        ],
    ),
    "pascal_context_60": (
        *(60, {"train": 4996, "val": 5104}),
        [
            (0, "background", (120, 120, 120), 0),
            (1, "aeroplane", (180, 120, 120), 2),
            (59, "wood", (31, 0, 255), 458),
        ],
    ),
    "pascal_context_59": (
        *(59, {"train": 4996, "val": 5104}),
        [
            (0, "aeroplane", (180, 120, 120), 2),
            (1, "bag", (6, 230, 230), 9),
            (58, "wood", (31, 0, 255), 458),
        ],
    ),
    "coco_stuff10k": (
        *(171, {"train": 9000, "val": 1000}),
        [
            (0, "person", (0, 192, 64), 1),
            (11, "stop sign", (0, 0, 224), 13),
            (170, "wood", (64, 64, 0), 182),
        ],
    ),
    "coco_stuff164k": (
        *(171, {"train": 118287, "val": 5000}),
        [
            (0, "person", (0, 192, 64), 0),
            (11, "stop sign", (0, 0, 224), 12),
            (170, "wood", (64, 64, 0), 181),
        ],
    ),
    "dark_zurich": (
        *(19, {"val": 50}),
        [(0, "road", (128, 64, 128), 0), (18, "bicycle", (119, 11, 32), 18)],
    ),
    "nighttime_driving": (
        *(19, {"test": 50}),
        [(0, "road", (128, 64, 128), 0), (18, "bicycle", (119, 11, 32), 18)],
    ),
    "loveda": (
        *(7, {"train": 2522, "val": 1669, "test": 1796}),
        [
            (0, "background", (255, 255, 255), 1),
            (4, "barren", (159, 129, 183), 5),
            (6, "agricultural", (255, 195, 128), 7),
        ],
    ),
    "isaid": (
        *(16, {"train": 33978, "val": 11644, "test": 937}),
        [
            (0, "background", (0, 0, 0), (0, 0, 0)),
            (1, "ship", (0, 0, 63), (0, 0, 63)),
            (15, "Harbor", (0, 100, 155), (0, 100, 155)),
        ],
    ),
    **{
        name: (
            *(2, {"train": train, "val": val}),
            [(0, "background", (120, 120, 120), 0), (1, "vessel", (6, 230, 230), 255)],
        )
        for name, train, val in (
            *(("chase_db1", 20, 8), ("drive", 20, 20)),
            *(("hrf", 15, 30), ("stare", 10, 10)),
        )
    },
    **{
        name: (
            *(6, {"train": train, "val": val}),
            [
                (0, "impervious_surface", (255, 255, 255), (255, 255, 255)),
                (2, "low_vegetation", (0, 255, 255), (0, 255, 255)),
                (5, "clutter", (255, 0, 0), (255, 0, 0)),
            ],
        )
        for name, train, val in (("potsdam", 3456, 2016), ("vaihingen", 344, 398))
    },
}

# Shorter and longer side of an image, crop, and side and stride of the windows, as published.
SIZES = {
    "cityscapes": (1024, 2048, (512, 1024), None),
    "ade20k": (512, 2048, (512, 512), None),
    "pascal_voc12": (512, 2048, (512, 512), None),
    "coco_stuff10k": (512, 2048, (512, 512), None),
    "coco_stuff164k": (512, 2048, (512, 512), None),
    "pascal_context_60": (520, 520, (480, 480), None),
    "pascal_context_59": (520, 520, (480, 480), None),
    "chase_db1": (960, 999, (128, 128), (128, 85)),
    "drive": (565, 584, (64, 64), (64, 42)),
    "hrf": (2336, 3504, (256, 256), (256, 170)),
    "stare": (605, 700, (128, 128), (128, 85)),
    "dark_zurich": (1080, 1920, (512, 1024), None),
    "nighttime_driving": (1080, 1920, (512, 1024), None),
    "loveda": (1024, 1024, (512, 512), None),
    "potsdam": (512, 512, (512, 512), None),
    "vaihingen": (512, 512, (512, 512), None),
    "isaid": (896, 896, (896, 896), None),
}

# Unlabelled values; None: all others.
IGNORED = {
    "cityscapes": None,
    "pascal_voc12": {255},
    "ade20k": {0},
    "pascal_context_60": set(),
    "pascal_context_59": {0},
    "coco_stuff10k": {0},
    "coco_stuff164k": {255},
    "dark_zurich": {255},
    "nighttime_driving": {255},
    "loveda": {0},
    **{name: set() for name in ("chase_db1", "drive", "hrf", "stare")},
}


def spec_of(name: str) -> DatasetSpec:
    return find_plugin("ccsnet.datasets", name, "SPEC")


@pytest.mark.parametrize("name", FACTS)
def test_promises_agree_with_the_published_figures(name):
    spec = spec_of(name)
    num_classes, counts, classes = FACTS[name]
    assert spec.num_classes == num_classes
    assert {split: spec.published_count(split) for split in spec.splits} == counts
    for index, word, colour, raw in classes:
        assert (spec.classes[index], spec.colours[index]) == (word, colour)
        if name.startswith("pascal_context"):
            (step,) = (step for step in spec.steps if isinstance(step, ContextToPng))
            raw = step.raw_ids.index(raw)
        means = spec.raw_to_class if spec.colour_to_class is None else spec.colour_to_class
        assert means[raw] == index
    assert (spec.short_side, spec.long_side, spec.crop, spec.window) == SIZES[name]
    if name in IGNORED:
        assert spec.ignore_raw == IGNORED[name]


def test_coco_stuff_leaves_out_what_was_never_annotated():
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    raws = spec_of("coco_stuff10k").raw_to_class
    assert set(range(1, 183)) - set(raws) == unused
    assert {raw + 1 for raw in spec_of("coco_stuff164k").raw_to_class} == set(raws)


def test_colours_that_repeat_are_moved_and_the_first_stays():
    spec = spec_of("coco_stuff164k")
    colours = dict(zip(spec.classes, spec.colours, strict=True))
    assert colours["person"] == (0, 192, 64)  # As published, also for the bicycle.
    assert colours["bicycle"] == (0, 192, 65)


def test_a_model_of_cityscapes_may_be_measured_at_night(tmp_path):
    spec = spec_of("cityscapes")
    checkpoint = Checkpoint(
        path=tmp_path / "best.safetensors",
        config=RunConfig(data=DataConfig(dataset="cityscapes")),
        info=ClassInfo.of(spec),
        step=1,
    )
    for name in ("dark_zurich", "nighttime_driving"):
        check_classes(checkpoint, spec_of(name))
        assert spec_of(name).colours == spec.colours
    with pytest.raises(InputError, match="'pascal_voc12' has 21"):
        check_classes(checkpoint, spec_of("pascal_voc12"))


@pytest.mark.parametrize("name", ["chase_db1", "drive", "hrf", "stare"])
def test_vessels_are_the_upper_half_of_8_bits_and_the_one_of_1_bit(name, tmp_path):
    spec = spec_of(name)
    path = tmp_path / "label.png"
    path.write_bytes(png(np.array([[0, 2, 127, 128, 255]], np.uint8)))
    assert read_label(path, spec).tolist() == [[0, 0, 0, 1, 1]]
    path.write_bytes(png(np.array([[False, True]])))
    assert read_label(path, spec).tolist() == [[0, 1]]
    path.write_bytes(encoded(np.array([[0, 255]], np.uint8), "GIF"))
    assert read_label(path, spec).tolist() == [[0, 1]]


def test_tiles_of_the_isprs_sets():
    for name, num_train, num_val in (("potsdam", 24, 14), ("vaihingen", 16, 17)):
        steps = [step for step in spec_of(name).steps if isinstance(step, Tiles)]
        assert [len(step.ids) for step in steps] == [num_train, num_val]
        assert len({i for step in steps for i in step.ids}) == num_train + num_val
        assert {(step.size, step.overlap, step.fill) for step in steps} == {(512, 0, 0)}


def test_tiles_of_6000_pixels_are_144():
    counts = spec_of("potsdam").published_count
    per_image = len(range(0, 6000, 512)) ** 2
    assert (counts("train"), counts("val")) == (24 * per_image, 14 * per_image)


def row_of(spec: DatasetSpec) -> str:
    """What docs/datasets.md says of a data set."""
    splits = []
    for split in spec.splits:
        note = "" if any(part.labels for part in spec.parts(split)) else " (no labels)"
        splits.append(f"{split} {spec.published_count(split)}{note}")
    archives = [f"`{a.file}`" + (" (optional)" if a.optional else "") for a in spec.archives]
    where = [f"<{url.rstrip('.')}>" for url in re.findall(r"https?://[^\s,)]+", spec.source)]
    cells = (
        *(f"`{spec.name}`", str(spec.num_classes), ", ".join(splits), ", ".join(archives)),
        *(spec.licence, ", ".join(where), f"`ccsnet data prepare {spec.name} DOWNLOADS...`"),
    )
    return f"| {' | '.join(cells)} |"


def test_docs_tell_the_same():
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row_of(spec_of(name)) for name in sorted(FACTS)]
