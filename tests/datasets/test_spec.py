import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.errors import InputError


def make_spec(**changes) -> DatasetSpec:
    values = {
        "name": "toy",
        "classes": ("road", "car"),
        "colours": ((1, 2, 3), (4, 5, 6)),
        "raw_to_class": {7: 0, 9: 1},
        "ignore_raw": frozenset({0}),
        "splits": {"train": Split(images="images/train/*/*.jpg", labels="truth/train/*/*_ids.png")},
        "licence": "none",
        "source": "made up",
        "default_root": "data/toy",
    }
    return DatasetSpec(**(values | changes))


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)


def test_stars_of_the_label_repeat_those_of_the_image(tmp_path):
    for city, name in (("ulm", "b"), ("aachen", "a_1"), ("ulm", "a.2")):
        write(tmp_path / f"images/train/{city}/{name}.jpg")
        write(tmp_path / f"truth/train/{city}/{name}_ids.png")
    write(tmp_path / "images/train/ulm/._b.jpg")  # What macOS leaves in archives.
    pairs = make_spec().pairs(tmp_path, "train")
    assert [pair.name for pair in pairs] == ["aachen/a_1", "ulm/a.2", "ulm/b"]
    assert pairs[2].label == tmp_path / "truth/train/ulm/b_ids.png"


def test_missing_labels_are_all_counted(tmp_path):
    for i in range(8):
        write(tmp_path / f"images/train/ulm/{i}.jpg")
    write(tmp_path / "truth/train/ulm/3_ids.png")
    spec = make_spec()
    with pytest.raises(InputError, match=r"7 of 8 images.*no label(.|\n)*0\.jpg(.|\n)*2 more"):
        spec.pairs(tmp_path, "train")
    labels = [pair.label for pair in spec.pairs(tmp_path, "train", require_labels=False)]
    assert sum(label is None for label in labels) == 7


def test_empty_split_tells_what_is_there(tmp_path):
    write(tmp_path / "images/train/ulm/a.png")
    with pytest.raises(InputError, match=r"\.png"):
        make_spec().pairs(tmp_path, "train")


def test_missing_split_folder(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="images/train"):
        make_spec().pairs(tmp_path, "train")


def test_unknown_split_gets_a_suggestion(tmp_path):
    with pytest.raises(InputError, match="train"):
        make_spec().pairs(tmp_path, "trian")


def test_one_label_for_two_images_is_refused(tmp_path):
    splits = {"train": Split(images="images/*.*", labels="labels/*.png")}
    write(tmp_path / "images/a.jpg")
    write(tmp_path / "images/a.png")
    with pytest.raises(InputError, match="'a'"):
        make_spec(splits=splits).pairs(tmp_path, "train", require_labels=False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": ("road",)}, "2 to 1000"),
        ({"colours": ((1, 2, 3),)}, "one colour per class"),
        ({"colours": ((1, 2, 3), (1, 2, 3))}, "differ"),
        ({"colours": ((1, 2, 3), (1, 2, 256))}, "no colour"),
        ({"classes": ("road", "road")}, "differ"),
        ({"raw_to_class": {7: 0, 9: 2}}, "class 2"),
        ({"raw_to_class": {7: 0}}, "'car'"),
        ({"ignore_raw": frozenset({7})}, "both"),
        ({"raw_to_class": {7: 0, 70000: 1}}, "70000"),
        ({"crop": (0, 5)}, "crop height"),
        ({"channels": 0}, "channels"),
        ({"splits": {}}, "splits"),
    ],
)
def test_what_does_not_fit_is_refused(changes, text):
    with pytest.raises(InputError, match=text):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("images", "labels"), [("a/b.png", "c/*.png"), ("a/**/b.png", "c/*"), ("a/*", "c/*/*")]
)
def test_patterns_that_name_no_pairs_are_refused(images, labels):
    with pytest.raises(InputError, match=r"\*"):
        Split(images=images, labels=labels)


@pytest.mark.parametrize(("num", "ignore", "dtype"), [(255, 255, "uint8"), (256, 65535, "uint16")])
def test_ignore_is_the_largest_value_of_the_type(num, ignore, dtype):
    spec = make_spec(
        classes=tuple(map(str, range(num))),
        colours=tuple((i // 256, i % 256, 7) for i in range(num)),
        raw_to_class={i: i for i in range(num)},
        ignore_raw=frozenset({65535}),
    )
    assert spec.ignore_index == ignore
    assert spec.label_dtype == dtype
    assert spec.lookup().table[65535] == ignore
    assert spec.lookup().known.sum() == num + 1


def test_spec_travels_to_worker_processes_and_can_be_changed():
    spec = make_spec()
    spec.lookup()
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert dataclasses.replace(spec, channels=4).channels == 4
