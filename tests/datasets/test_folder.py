import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ccsnet.data.images import read_label
from ccsnet.data.loading import training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.datasets._folder import OPTIONAL, REQUIRED, distinct_colours, read_spec
from ccsnet.errors import InputError

GOOD = """
classes: [road, car]
images: images/{split}/*.jpg
labels: labels/{split}/*.png
"""
FLAT = """
classes: [road, car]
images: images/*.png
labels: labels/*.png
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


EVERY_KEY = """
name: mine
colours: [[1, 2, 3], "#0a0B0c"]
raw_values: {7: road, 8: road, 255: car}
ignore_raw: rest
splits: [train]
channels: 5
short_side: 100
long_side: 200
crop: [64, 96]
window: [64, 42]
root: pictures
licence: CC0
source: the lab
"""


def test_every_key(tmp_path):
    spec, root = read(tmp_path, GOOD + EVERY_KEY)
    assert root == tmp_path / "pictures"
    assert spec.window == (64, 42)
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
        (GOOD + "raw_values: {0-300: road, 200-400: car}\n", "200.*two ranges"),
        (GOOD + "raw_values: {0-70000: road, 1: car}\n", "0-70000.*128-255, up to 65535"),
        (GOOD + "raw_values: {9-3: road, 1: car}\n", "9-3.*range"),
        (GOOD + "raw_values: {a: road, 1: car}\n", "'a'.*range"),
        (GOOD.replace("car]", "car, sky]") + "raw_values: binary\n", "binary.*2 classes"),
        (GOOD + "raw_values: twice\n", "word binary"),
        (GOOD + "raw_values: [0, 1]\nraw_colours: ['#000000', '#ffffff']\n", "leave out one"),
        (GOOD + "raw_colours: ['#000000']\n", "1 colours for 2 classes"),
        (GOOD + "raw_colours: [red, green]\n", "raw_colours.*'red'.*red, green, blue"),
        (GOOD + "raw_colours: [[0, 0, 256], [0, 0, 1]]\n", "0-255"),
        (GOOD + "raw_colours: ['#000000', '0 0 0']\n", "twice"),
        (GOOD + "raw_colours: {'#000000': road, '#000001': raod}\n", "road"),
        (GOOD + "raw_colours: {'#000000': road}\n", "'car'"),
        (GOOD + "raw_colours: {#000000: road}\n", "quotes: '#rrggbb'"),
        (GOOD + "raw_colours: yes\n", "raw_colours"),
        (GOOD + "raw_colours: ['#000000', '#ffffff']\nignore_raw: 7\n", "ignore_raw"),
        (GOOD + "raw_colours: ['#000000', '#ffffff']\nignore_raw: '#ffffff'\n", "both"),
        (GOOD + "ignore_raw: ['#ffffff']\n", "raw_colours"),
        (GOOD + "merge: [road]\n", "merge.*new name"),
        (GOOD + "merge: {way: road}\n", "merge.*new name"),
        (GOOD + "merge: {way: [roda]}\n", "merge.*road"),
        (GOOD + "merge: {a: [road], b: [road]}\n", "'road'.*one way"),
        (GOOD + "merge: {road: [car]}\n", "merge.*'road'.*not part"),
        (GOOD + "merge: {way: [road, car]}\n", "1 classes"),
        (GOOD + "ignore: road\n", "ignore.*list"),
        (GOOD + "ignore: [roda]\n", "ignore.*road"),
        (GOOD + "ignore: [road]\nmerge: {x: [road, car]}\n", "'road'.*one way"),
        (GOOD + "ignore: [road]\ncolours: ['#000001']\n", "also for those"),
        (GOOD + "split: 0.8\n", "images.*without {split}"),
        (FLAT + "split: 0.8\nsplits: [train]\n", "leave out one"),
        (FLAT + "split: 1\n", "add up to 1"),
        (FLAT + "split: 1.5\n", "add up to 1"),
        (FLAT + "split: [0.5, 0.2, 0.1]\n", "add up to 1"),
        (FLAT + "split: [0.5, 0.2, 0.2, 0.1]\n", "add up to 1"),
        (FLAT + "split: yes\n", "split.*share"),
        (FLAT + "splits: {train: a, val: b}\n", "images.*train, val.*{split}"),
        (FLAT + "splits: {train: 1}\n", "splits"),
        (FLAT + "splits: []\n", "splits"),
        (GOOD.replace("labels/{split}/*.png", "images/{split}/*.jpg"), "both"),
        (GOOD.replace("{split}/*.jpg", "{splt}/*.jpg"), "braces"),
        (GOOD.replace("*.jpg", "*.{jpg,png"), "braces"),
        (GOOD.replace("images/{split}/*.jpg", "images/{split}/a.jpg"), "hold `\\*`"),
        (GOOD + "window: [64, 100]\n", "window.*stride"),
        (GOOD + "window: 64\n", "window.*stride"),
        (GOOD + "root: [a]\n", "root.*text"),
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


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
        return path
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(palette)
    picture.save(path)
    return path


CLASS_OF = np.array([[0, 1, 1], [2, 0, 255]], np.uint8).repeat(16, 0).repeat(16, 1)
RAW_COLOURS = ((10, 20, 30), (200, 0, 0), (0, 0, 255), (255, 255, 255))
PAINTED = np.array(RAW_COLOURS, np.uint8)[np.minimum(CLASS_OF, 3)]
THREE = "classes: [road, car, sky]\nimages: images/*.png\nsplits: [train]\ncrop: [32, 48]\n"
COLOURED = """
raw_colours: [[10, 20, 30], '#C80000', 0 0 255]
ignore_raw: '#ffffff'
"""

CODINGS = {
    "numbers": ("labels: l/*.png\n", "l/{}.png", CLASS_OF),
    "gaps": (
        "labels: l/*.png\nraw_values: [7, 9, 11]\nignore_raw: rest\n",
        "l/{}.png",
        np.choose(np.minimum(CLASS_OF, 3), [7, 9, 11, 77]).astype(np.uint8),
    ),
    "16 bits": (
        "labels: l/*.png\nraw_values: {300: road, 301: car, 1000-2000: sky}\nignore_raw: [0]\n",
        "l/{}.png",
        np.choose(np.minimum(CLASS_OF, 3), [300, 301, 1500, 0]).astype(np.uint16),
    ),
    "16-bit TIFF": (
        "labels: l/*.tif\nraw_values: [300, 301, 65534]\nignore_raw: [65535]\n",
        "l/{}.tif",
        np.choose(np.minimum(CLASS_OF, 3), [300, 301, 65534, 65535]).astype(np.uint16),
    ),
    "RGB": (f"labels: l/*.png\n{COLOURED}", "l/{}.png", PAINTED),
    "RGBA": (
        f"labels: l/*.png\n{COLOURED}",
        "l/{}.png",
        np.dstack([PAINTED, np.full_like(CLASS_OF, 255)]),
    ),
    "RGB TIFF": (f"labels: l/*.tif\n{COLOURED}", "l/{}.tif", PAINTED),
    "suffixes": ("labels: images/*_mask.png\n", "images/{}_mask.png", CLASS_OF),
}


def one_batch(root, yaml):
    (root / "dataset.yaml").write_text(yaml)
    config = DataConfig(
        dataset=str(root), workers=0, scale=(1.0, 1.0), flip=False, max_class_share=1.0
    )
    spec, root = open_dataset(config)
    spec = pickle.loads(pickle.dumps(spec))
    (batch,) = training_batches(spec, root, config, batch_size=2, seed=0, steps=1)
    return spec, batch


@pytest.mark.parametrize("kind", CODINGS)
def test_every_coding_reaches_a_training_batch(tmp_path, kind):
    keys, name, raw = CODINGS[kind]
    for i in range(3):
        save(tmp_path / f"images/{i}.png", np.zeros((32, 48, 3), np.uint8))
        save(tmp_path / name.format(i), raw)
    spec, batch = one_batch(tmp_path, THREE + keys)
    assert len(spec.pairs(tmp_path, "train")) == 3
    for label in batch.label:
        assert np.array_equal(label, CLASS_OF)


def test_palette_files_by_index_and_by_colour(tmp_path):
    """Files of one palette each: the index means something else in every one."""
    order = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]]
    for i, places in enumerate(order):
        save(tmp_path / f"images/{i}.png", np.zeros((32, 48, 3), np.uint8))
        palette = np.zeros((4, 3), np.uint8)
        palette[places] = RAW_COLOURS
        indices = np.array(places, np.uint8)[np.minimum(CLASS_OF, 3)]
        save(tmp_path / f"l/{i}.png", indices, palette.tobytes())
    _, batch = one_batch(tmp_path, f"{THREE}labels: l/*.png\n{COLOURED}")
    for label in batch.label:
        assert np.array_equal(label, CLASS_OF)
    spec, _ = read(tmp_path, f"{THREE}labels: l/*.png\nignore_raw: [3]\n")
    assert np.array_equal(read_label(tmp_path / "l/0.png", spec) == 1, CLASS_OF == 1)


@pytest.mark.parametrize(
    ("keys", "values", "expected"),
    [
        ("raw_values: binary\n", [0, 1, 255], [0, 1, 1]),
        ("raw_values: binary\nignore_raw: [255]\n", [0, 1, 255], [0, 1, 255]),
        ("raw_values: {0-127: road, 128-255: car}\n", [0, 127, 128, 255], [0, 0, 1, 1]),
        ("raw_values: {0-127: road, 5: car, 128-255: car}\n", [4, 5, 6], [0, 1, 0]),
        ("raw_values: {0-9: road, 10: car}\nignore_raw: [3]\n", [2, 3, 10], [0, 255, 1]),
        ("raw_values: binary\n", [0, 256, 65535], [0, 1, 1]),
    ],
)
def test_one_mask_of_two_classes(tmp_path, keys, values, expected):
    spec, _ = read(tmp_path, FLAT + "split: 0.5\n" + keys)
    dtype = np.uint16 if max(values) > 255 else np.uint8
    path = save(tmp_path / "a.png", np.array([values], dtype))
    assert read_label(path, spec).tolist() == [expected]


def test_many_band_images_with_coloured_labels(tmp_path):
    bands = np.random.default_rng(0).integers(0, 9000, (32, 48, 5), dtype=np.uint16)
    for i in range(2):
        path = tmp_path / f"i/{i}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
        save(tmp_path / f"l/{i}.png", PAINTED)
    yaml = THREE.replace("images/*.png", "i/*.tif") + "labels: l/*.png\nchannels: 5\n" + COLOURED
    _, batch = one_batch(tmp_path, yaml)
    assert batch.image.shape == (2, 5, 32, 48)
    assert np.array_equal(batch.label[0], CLASS_OF)


def test_several_colours_of_one_class(tmp_path):
    keys = "raw_colours: {'#000000': road, 1 2 3: road, '#00ff00': car}\nignore_raw: rest\n"
    spec, _ = read(tmp_path, FLAT + "split: 0.5\n" + keys)
    assert spec.colour_to_class == {(0, 0, 0): 0, (1, 2, 3): 0, (0, 255, 0): 1}
    assert spec.colours == ((0, 0, 0), (0, 255, 0))
    assert spec.ignore_colours is None
    spec, _ = read(tmp_path, FLAT + "split: 0.5\n" + keys + "colours: ['#010101', '#020202']\n")
    assert spec.colours == ((1, 1, 1), (2, 2, 2))


def test_merged_and_ignored_classes(tmp_path):
    text = """
classes: [road, car, sky, truck, 7]
colours: [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0]]
raw_values: [10, 20, 30, 40, 50]
images: images/{split}/*.jpg
labels: labels/{split}/*.png
merge: {vehicle: [truck, car]}
ignore: [sky]
"""
    spec, _ = read(tmp_path, text)
    assert spec.classes == ("road", "vehicle", "7")
    assert spec.colours == ((1, 0, 0), (2, 0, 0), (5, 0, 0))
    assert spec.raw_to_class == {10: 0, 20: 1, 40: 1, 50: 2}
    assert spec.ignore_raw == {255, 30}
    spec, _ = read(tmp_path, text + "ignore_raw: rest\n")
    assert spec.ignore_raw is None
    spec, _ = read(tmp_path, text.replace("vehicle:", "car:"))
    assert spec.classes == ("road", "car", "7")
    by_colour = text.replace("raw_values: [10, 20, 30, 40, 50]", "").replace(
        "colours", "raw_colours"
    )
    spec, _ = read(tmp_path, by_colour)
    assert spec.colour_to_class == {(1, 0, 0): 0, (2, 0, 0): 1, (4, 0, 0): 1, (5, 0, 0): 2}
    assert spec.ignore_colours == {(3, 0, 0)}
    assert spec.colours == ((1, 0, 0), (2, 0, 0), (5, 0, 0))


def names(spec, root, split):
    return [pair.name for pair in spec.pairs(root, split, require_labels=False)]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_shares_stay_when_files_are_added(tmp_path):
    first = [f"{i}" for i in range(200)]
    touch(tmp_path, *(f"images/{name}.png" for name in first))
    spec, _ = read(tmp_path, FLAT + "split: 0.8\n")
    before = {split: set(names(spec, tmp_path, split)) for split in ("train", "val")}
    assert before["train"] | before["val"] == set(first)
    assert not before["train"] & before["val"]
    assert 0.7 < len(before["train"]) / 200 < 0.9
    touch(tmp_path, *(f"images/more_{i}.png" for i in range(200)))
    for split, old in before.items():
        assert set(names(spec, tmp_path, split)) & set(first) == old
    touch(tmp_path, "images/" + os.fsdecode(b"caf\xe9.png"))  # No text.
    three, _ = read(tmp_path, FLAT + "split: [0.8, 0.1, 0.1]\n")
    parts = [names(three, tmp_path, split) for split in ("train", "val", "test")]
    assert parts[0] == names(spec, tmp_path, "train")
    assert sum(map(len, parts)) == len(set().union(*parts)) == 401
    assert [three.splits[s].share for s in three.splits] == [(0, 0.8), (0.8, 0.9), (0.9, 1)]


def test_splits_by_lists_and_by_folders_of_other_names(tmp_path):
    touch(tmp_path, *(f"images/{name}.png" for name in "abc"), "x/training/1.png", "x/eval/2.png")
    (tmp_path / "train.txt").write_text("c\na\n\n")
    (tmp_path / "val.txt").write_text("b\n")
    spec, _ = read(tmp_path, FLAT + "splits: {train: train.txt, val: val.txt}\n")
    assert names(spec, tmp_path, "train") == ["c", "a"]
    assert names(spec, tmp_path, "val") == ["b"]
    (tmp_path / "val.txt").write_text("b\nz\n")
    with pytest.raises(InputError, match=r"val\.txt lists 2 images.*'z'"):
        spec.pairs(tmp_path, "val")
    folders = FLAT.replace("images/", "x/{split}/").replace("labels/", "y/{split}/")
    spec, _ = read(tmp_path, folders + "splits: {train: training, val: eval}\n")
    assert names(spec, tmp_path, "train") == ["1"]
    assert names(spec, tmp_path, "val") == ["2"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a b\nc.d\ne", ["a b", "c.d", "e"]),
        ("a b.png\nc.d.png\n", ["a b", "c.d"]),
        ("images/c.d.png masks/c.d.png\n/images/e.png 1", ["c.d", "e"]),
        ("a b  \r\n\r\nc.d 0.5\r\n", ["a b", "c.d"]),
    ],
)
def test_lists_as_people_write_them(tmp_path, lines, expected):
    touch(tmp_path, *(f"images/{name}.png" for name in ("a b", "c.d", "e", "f")))
    (tmp_path / "train.txt").write_bytes(lines.encode())
    spec, _ = read(tmp_path, FLAT + "splits: {train: train.txt}\n")
    assert names(spec, tmp_path, "train") == expected


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_lists_in_another_encoding_are_refused(tmp_path, encoding):
    touch(tmp_path, "images/stra\u00dfe.png")
    (tmp_path / "train.txt").write_bytes("stra\u00dfe\n".encode(encoding))
    spec, _ = read(tmp_path, FLAT + "splits: {train: train.txt}\n")
    with pytest.raises(InputError, match=r"train\.txt is no UTF-8 text .* Save it as UTF-8"):
        spec.pairs(tmp_path, "train")


def test_patterns_as_people_write_paths(tmp_path):
    touch(tmp_path, "i/train/a.png", "l/train/a.png")
    text = "classes: [a, b]\nimages: ./i/{split}/*.png\nlabels: l//{split}/./*.png\n"
    spec, _ = read(tmp_path, text + "splits: [train]\n")
    (pair,) = spec.pairs(tmp_path, "train")
    assert (pair.name, pair.label) == ("a", tmp_path / "l/train/a.png")


def test_masks_beside_their_images_are_no_images(tmp_path):
    touch(tmp_path, *(f"p/{name}{end}.png" for name in "abc" for end in ("", "_mask")))
    text = "classes: [a, b]\nimages: '*/*.png'\nlabels: '*/*_mask.png'\nsplits: [all]\n"
    spec, _ = read(tmp_path, text)
    pairs = spec.pairs(tmp_path, "all")
    assert [pair.name for pair in pairs] == ["p/a", "p/b", "p/c"]
    assert [pair.label.name for pair in pairs] == ["a_mask.png", "b_mask.png", "c_mask.png"]


def test_files_of_several_suffixes(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/b.JPG", "i/c.png", "i/d.tif", "l/a.png", "l/b.png", "l/c.gif")
    text = "classes: [a, b]\nimages: i/*.{jpg,JPG,png}\nlabels: l/*.{png,gif}\nsplits: [all]\n"
    spec, _ = read(tmp_path, text)
    pairs = spec.pairs(tmp_path, "all")
    assert [(p.name, p.label.name) for p in pairs] == [
        ("a", "a.png"),
        ("b", "b.png"),
        ("c", "c.gif"),
    ]


EXAMPLES = re.findall(
    r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs/own-data.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_docs(tmp_path, text):
    spec, _ = read(tmp_path, text)
    assert {"train", "val"} <= set(spec.splits)


def test_docs_tell_every_key():
    docs = (Path(__file__).parents[2] / "docs/own-data.md").read_text()
    for key in REQUIRED + OPTIONAL:
        assert re.search(rf"^\|.*`{key}`.*\|", docs, re.MULTILINE), key
        assert key in "".join(EXAMPLES) or key in EVERY_KEY, f"no example of {key}"
