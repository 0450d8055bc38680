import pytest

from ccsnet.datasets._folder import distinct_colours, read_spec
from ccsnet.errors import InputError

GOOD = """
classes: [road, car]
images: images/{split}/*.jpg
labels: labels/{split}/*.png
"""


def read(tmp_path, text):
    (tmp_path / "dataset.yaml").write_text(text)
    return read_spec(tmp_path)


def test_defaults(tmp_path):
    spec, root = read(tmp_path, GOOD)
    assert root == tmp_path
    assert spec.name == tmp_path.name
    assert spec.raw_to_class == {0: 0, 1: 1}
    assert spec.ignore_raw == {255}
    assert list(spec.splits) == ["train", "val"]
    assert spec.splits["val"].labels == "labels/val/*.png"
    assert (spec.short_side, spec.long_side, spec.crop, spec.channels) == (
        None,
        None,
        (512, 512),
        3,
    )
    assert read_spec(tmp_path / "dataset.yaml") == (spec, root)


def test_every_key(tmp_path):
    extra = """
name: mine
colours: [[1, 2, 3], "#0a0B0c"]
raw_values: {7: road, 8: road, 255: car}
ignore_raw: rest
splits: [train]
channels: 5
short_side: 100
long_side: 200
crop: [64, 96]
licence: CC0
source: the lab
"""
    spec, _ = read(tmp_path, GOOD + extra)
    assert spec.colours == ((1, 2, 3), (10, 11, 12))
    assert spec.raw_to_class == {7: 0, 8: 0, 255: 1}
    assert spec.ignore_raw is None
    assert (spec.short_side, spec.long_side, spec.crop, spec.channels) == (100, 200, (64, 96), 5)
    assert (spec.name, spec.licence, spec.source) == ("mine", "CC0", "the lab")


def test_binary_masks_need_no_ignore(tmp_path):
    spec, _ = read(tmp_path, GOOD + "raw_values: [0, 255]\n")
    assert spec.raw_to_class == {0: 0, 255: 1}
    assert spec.ignore_raw == frozenset()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "ignor_raw: [0]\n", "ignore_raw"),
        (GOOD.replace("classes:", "clases:"), "classes"),
        ("classes: [road, car]\nimages: a/*\n", "`labels` is missing"),
        ("- a\n- b\n", "key: value"),
        ("classes: [road\n", "no YAML"),
        (GOOD + "crop: 512\n", "crop.*height, width"),
        (GOOD + "crop: [5, x]\n", "crop.*whole number"),
        (GOOD + "channels: yes\n", "channels.*whole number"),
        (GOOD + "colours: [[1, 2, 3]]\n", "one colour per class"),
        (GOOD + "colours: [[1, 2], [3, 4]]\n", "red, green, blue"),
        (GOOD + "colours: ['#00000g', '#111111']\n", "red, green, blue"),
        (GOOD + "colours: [[1, 2, 3], [1, 2, 3]]\n", "differ"),
        (GOOD + "raw_values: {7: raod, 8: car}\n", "road"),
        (GOOD + "raw_values: [7]\n", "one per class"),
        (GOOD + "raw_values: [7, 7]\n", "twice"),
        (GOOD + "raw_values: {7: road}\n", "'car'"),
        (GOOD + "ignore_raw: [a]\n", "ignore_raw"),
        (GOOD + "ignore_raw: [1]\n", "both"),
        (GOOD + "splits: train\n", "splits"),
        (GOOD.replace("{split}", "all") + "splits: [train, val]\n", "{split}"),
        (GOOD.replace("car", "yes"), "quotes"),
        (GOOD.replace("[road, car]", "[road]"), "2 to 1000"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "dataset.yaml") in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dataset\.yaml"):
        read_spec(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"x\.yaml"):
        read_spec(tmp_path / "x.yaml")


def test_made_up_colours_differ_and_stay_the_same():
    colours = distinct_colours(1000)
    assert len({*colours, (0, 0, 0)}) == 1001
    assert colours[:3] == distinct_colours(3)
