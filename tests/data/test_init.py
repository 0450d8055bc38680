"""`ccsnet data init`: folders as people have them become data sets that load."""

import io

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from ccsnet.cli_data import data
from ccsnet.data import coding, init
from ccsnet.data.check import check_labels
from ccsnet.data.coding import find_coding
from ccsnet.data.init import describe
from ccsnet.data.layout import find_layout
from ccsnet.data.loading import training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.datasets._folder import read_spec
from ccsnet.errors import InputError

SIZE = (64, 96)
RNG = np.random.default_rng(0)


def image(size=SIZE, bands=3, dtype=np.uint8):
    return RNG.integers(0, 250, (*size, bands), dtype=dtype).squeeze()


def label(*values, size=SIZE, dtype=np.uint8):
    """Bands of the values from left to right, the last one narrow."""
    edges = [*(np.arange(len(values)) * (size[1] - 8) // max(1, len(values) - 1)), size[1]]
    raw = np.zeros(size, dtype)
    for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
        raw[:, left:right] = value
    return raw


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        kind = "rgb" if pixels.ndim == 3 and pixels.shape[2] == 3 else "minisblack"
        options = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        tifffile.imwrite(path, pixels, photometric=kind, **options)
        return
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(np.array(palette, np.uint8).tobytes())
    picture.save(path)


def fill(root, images, labels, raw, num=10, **words):
    """`num` pairs; `{}` of the patterns is the number, other fields as in `words`."""
    for i in range(num):
        save(root / images.format(i, **words), image())
        one = raw(i) if callable(raw) else raw
        save(root / labels.format(i, **words), *(one if isinstance(one, tuple) else (one,)))


def check(made, root):
    """The description is accepted as training accepts it; returns a batch."""
    config = DataConfig(dataset=str(root), workers=0)
    spec, found = open_dataset(config)
    assert spec == made.spec
    assert found == root
    assert list(spec.splits)[:2] == ["train", "val"]
    for split in spec.splits:
        check_labels(spec, root, split)
    (batch,) = training_batches(spec, root, config, batch_size=2, seed=0, steps=1)
    assert set(batch.label.unique().tolist()) <= {*range(spec.num_classes), spec.ignore_index}
    return batch


PLAIN = ("images/{}.jpg", "masks/{}.png")


def test_numbers(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1, 2))
    made = describe(tmp_path)
    check(made, tmp_path)
    spec = made.spec
    assert spec.classes == ("class_0", "class_1", "class_2")
    assert spec.raw_to_class == {0: 0, 1: 1, 2: 2}
    assert spec.crop == (64, 96)
    assert spec.channels == 3
    assert sum(made.counts.values()) == 10
    assert made.counts["val"] in (1, 2, 3)
    shares = [entry.share for entry in made.coding.classes]
    assert shares == pytest.approx([44 / 96, 44 / 96, 8 / 96])
    text = made.file.read_text()
    assert "class_0  # value 0: 45.83 % of the pixels, in 10 of 10 labels" in text
    assert yaml.safe_load(text)["images"] == "images/*.jpg"


@pytest.mark.parametrize(
    ("values", "dtype", "raw", "ignored", "names"),
    [
        ((0, 255), np.uint8, {0: 0, 255: 1}, frozenset(), ("background", "foreground")),
        ((0, 1), np.uint8, {0: 0, 1: 1}, {255}, ("background", "foreground")),
        ((0, 1, 255), np.uint8, {0: 0, 1: 1}, {255}, ("background", "foreground")),
        ((0, 128, 255), np.uint8, {0: 0, 128: 1, 255: 2}, frozenset(), None),
        ((1, 2, 3, 255), np.uint8, {1: 0, 2: 1, 3: 2}, {255}, ("class_1", "class_2", "class_3")),
        ((0, 7, 26, 33), np.uint8, {0: 0, 7: 1, 26: 2, 33: 3}, {255}, None),
        ((0, 300, 65535), np.uint16, {0: 0, 300: 1, 65535: 2}, {255}, None),
        ((0, 1, 2, 65535), np.uint16, {0: 0, 1: 1, 2: 2}, {65535}, None),
    ],
)
def test_values_with_gaps_masks_and_unlabelled(tmp_path, values, dtype, raw, ignored, names):
    fill(tmp_path, *PLAIN, label(*values, dtype=dtype))
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.spec.raw_to_class == raw
    assert made.spec.ignore_raw == ignored
    if names is not None:
        assert made.spec.classes == names


def test_borders_are_unlabelled(tmp_path):
    """255 around objects whose numbers lie far apart."""
    raw = label(0, 60, 120)
    raw[30:32] = 255
    fill(tmp_path, *PLAIN, raw)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.spec.raw_to_class == {0: 0, 60: 1, 120: 2}
    assert made.spec.ignore_raw == {255}


def test_smoothed_mask_is_parted_half_way(tmp_path):
    raw = np.zeros((400, 400), np.uint8)
    raw[:, 200:] = 255
    raw[0, 180:199] = np.arange(10, 200, 10)
    for i in range(4):
        save(tmp_path / f"images/{i}.jpg", image((400, 400)))
        save(tmp_path / f"masks/{i}.png", raw)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert yaml.safe_load(made.file.read_text())["raw_values"] == {
        "0-127": "background",
        "128-255": "foreground",
    }
    assert any("smoothed" in note for note in made.notes)


COLOURS = [(0, 0, 0), (128, 64, 128), (0, 0, 142)]


def painted(*numbers):
    return np.array(COLOURS, np.uint8)[label(*numbers)]


def test_colours(tmp_path):
    fill(tmp_path, *PLAIN, lambda i: painted(0, 1) if i else painted(0, 1, 2))
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.spec.colour_to_class == {(0, 0, 0): 0, (0, 0, 142): 1, (128, 64, 128): 2}
    assert made.spec.colours == ((0, 0, 0), (0, 0, 142), (128, 64, 128))
    assert "class_2  # colour #804080" in made.file.read_text()


def test_smoothed_colours_leave_the_rest_out(tmp_path):
    raw = np.zeros((400, 400, 3), np.uint8)
    raw[:, 200:] = COLOURS[1]
    raw[0, 100:120] = np.arange(1, 21)[:, None]
    for i in range(4):
        save(tmp_path / f"images/{i}.jpg", image((400, 400)))
        save(tmp_path / f"masks/{i}.png", raw)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert set(made.spec.colour_to_class) == set(COLOURS[:2])
    assert made.spec.ignore_colours is None


def test_border_colour_of_voc(tmp_path):
    raw = painted(0, 1, 2)
    raw[:3] = coding.VOC_BORDER
    fill(tmp_path, *PLAIN, raw)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert set(made.spec.colour_to_class) == set(COLOURS)
    assert made.spec.ignore_colours == {coding.VOC_BORDER}


def test_palettes(tmp_path):
    fill(tmp_path, *PLAIN, (label(0, 1, 2), COLOURS))
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.spec.raw_to_class == {0: 0, 1: 1, 2: 2}
    assert made.spec.colours == tuple(COLOURS)


def test_palettes_that_differ_are_read_as_colours(tmp_path):
    swapped = [COLOURS[1], COLOURS[0], COLOURS[2]]
    fill(
        tmp_path,
        *PLAIN,
        lambda i: (label(1, 0, 2), swapped) if i % 2 else (label(0, 1, 2), COLOURS),
    )
    made = describe(tmp_path)
    check(made, tmp_path)
    assert set(made.spec.colour_to_class) == set(COLOURS)


def test_many_bands_of_16_bits(tmp_path):
    for i in range(4):
        save(tmp_path / f"img/{i}.tif", image(bands=5, dtype=np.uint16))
        save(tmp_path / f"gt/{i}.tif", label(0, 1))
    made = describe(tmp_path)
    assert check(made, tmp_path).image.shape[1] == 5
    assert made.spec.channels == 5


def test_grey_images_stay_three_bands(tmp_path):
    for i in range(4):
        save(tmp_path / f"img/{i}.png", image(bands=1))
        save(tmp_path / f"gt/{i}.png", label(0, 1))
    assert describe(tmp_path).spec.channels == 3


LAYOUTS = {
    "suffix in one folder": ("{}.png", "{}_mask.png", "*.png", "*_mask.png"),
    "two suffixes": ("d/{}_sat.jpg", "d/{}_gt.png", "d/*_sat.jpg", "d/*_gt.png"),
    "prefixes": ("d/img_{}.png", "d/mask_{}.png", "d/img_*.png", "d/mask_*.png"),
    "same stems": ("all/{}.jpg", "all/{}.png", "all/*.jpg", "all/*.png"),
    "a folder each": ("case{}/image.png", "case{}/mask.png", "*/image.png", "*/mask.png"),
    "no telling names": ("one/{}.png", "two/{}.png", "one/*.png", "two/*.png"),
    "the wrong order": ("b/{}.png", "a/{}.png", "b/*.png", "a/*.png"),
    "letters": ("JPEGImages/x_{}.jpg", "SegmentationClass/x_{}.png", None, None),
    "gif": ("train/{}.jpg", "train_masks/{}_mask.gif", "train/*.jpg", "train_masks/*_mask.gif"),
    "odd": ("my data [1]/img/{}.png", "my data [1]/labels/{}.png", None, None),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_where_files_lie(tmp_path, kind):
    images, labels, *patterns = LAYOUTS[kind]
    fill(tmp_path, images, labels, label(0, 1, 2), num=12)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert sum(made.counts.values()) == 12
    if patterns[0] is not None:
        entries = yaml.safe_load(made.file.read_text())
        assert [entries["images"], entries["labels"]] == patterns


SPLITS = {
    "images/{split}/{}.jpg | labels/{split}/{}.png": ("train", "val", "test"),
    "{split}/images/{}.jpg | {split}/annotations/{}.png": ("training", "validation"),
    "{split}/{}.png | {split}annot/{}.png": ("train", "val"),
    "img/{split}2017/{}.jpg | ann/{split}2017/{}.png": ("train", "val"),
    "{split}_images/{}.png | {split}_labels/{}.png": ("Train", "Valid"),
    "x/{split}/{}_sat.jpg | x/{split}/{}_mask.png": ("train", "test"),
    "leftImg8bit/{split}/ulm/{}_leftImg8bit.png | gtFine/{split}/ulm/{}_gtFine_labelIds.png": (
        "train",
        "val",
    ),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_folders_of_splits(tmp_path, kind):
    images, labels = kind.split(" | ")
    for place, split in enumerate(SPLITS[kind]):
        fill(tmp_path, images, labels, label(0, 1, 2), num=6 - place, split=split)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert list(made.counts.values()) == [6, 5, 4][: len(SPLITS[kind])]
    assert list(made.counts) == ["train", "val", "test"][: len(SPLITS[kind])]


def test_cities_and_label_files_of_several_kinds(tmp_path):
    for split in ("train", "val"):
        for city in ("ulm", "bonn"):
            for i in range(4):
                save(tmp_path / f"leftImg8bit/{split}/{city}/{city}_{i}_leftImg8bit.png", image())
                for kind, raw in (
                    ("color", painted(0, 1, 2)),
                    ("labelIds", label(7, 11, 26)),
                    ("instanceIds", label(7, 11, 26000, dtype=np.uint16)),
                ):
                    save(tmp_path / f"gtFine/{split}/{city}/{city}_{i}_gtFine_{kind}.png", raw)
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.spec.splits["val"].images == "leftImg8bit/val/*/*_leftImg8bit.png"
    assert made.spec.splits["val"].labels == "gtFine/val/*/*_gtFine_labelIds.png"
    assert made.spec.raw_to_class == {7: 0, 11: 1, 26: 2}
    assert made.counts == {"train": 8, "val": 8}


def test_lists_that_lie_there_are_used(tmp_path):
    fill(tmp_path, "JPEGImages/2007_{}.jpg", "SegmentationClass/2007_{}.png", label(0, 1, 2, 255))
    for i in range(20, 25):
        save(tmp_path / f"JPEGImages/2007_{i}.jpg", image())
    place = tmp_path / "ImageSets/Segmentation"
    place.mkdir(parents=True)
    (place / "train.txt").write_text("".join(f"2007_{i}\n" for i in range(7)))
    (place / "val.txt").write_text("2007_7\n2007_8\n2007_9\n")
    made = describe(tmp_path)
    check(made, tmp_path)
    assert made.counts == {"train": 7, "val": 3}
    assert made.spec.splits["val"].names == "ImageSets/Segmentation/val.txt"
    assert any("5 of 15 images have no label" in note for note in made.notes)


@pytest.mark.parametrize("split", ["", "train/"])
def test_images_without_label_are_left_out_by_lists(tmp_path, split):
    fill(tmp_path, f"images/{split}{{}}.jpg", f"labels/{split}{{}}.png", label(0, 1))
    if split:
        fill(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", label(0, 1), num=3)
    save(tmp_path / f"images/{split}bare.jpg", image())
    made = describe(tmp_path)
    check(made, tmp_path)
    assert sum(made.counts.values()) == (13 if split else 10)
    if split:
        assert made.counts == {"train": 10, "val": 3}
    listed = (tmp_path / "splits/train.txt").read_text()
    assert "bare" not in listed
    assert listed.count("\n") == made.counts["train"]


def test_a_few_images_are_divided_too(tmp_path):
    for num in (2, 3, 5):
        root = tmp_path / str(num)
        fill(root, *PLAIN, label(0, 1), num=num)
        made = describe(root)
        check(made, root)
        assert made.counts["val"] == 1


def test_another_file_elsewhere(tmp_path):
    fill(tmp_path / "data", *PLAIN, label(0, 1))
    made = describe(tmp_path / "data", tmp_path / "yaml/photos.yaml")
    spec, root = read_spec(tmp_path / "yaml/photos.yaml")
    assert spec == made.spec
    assert root == tmp_path / "data"
    assert len(spec.pairs(root, "train")) == made.counts["train"]
    assert not (tmp_path / "data/dataset.yaml").exists()


def test_only_so_many_labels_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(init, "LOOKED_AT", 5)
    fill(tmp_path, *PLAIN, lambda i: label(0, i % 5 + 1), num=40)
    made = describe(tmp_path)
    assert made.coding.looked_at == 5
    assert made.spec.classes[:2] == ("class_0", "class_1")
    monkeypatch.setattr(coding, "MAX_PIXELS", 7 * SIZE[0] * SIZE[1])
    labels = sorted((tmp_path / "masks").iterdir())
    assert find_coding(labels).looked_at == 7


def test_values_that_were_not_seen_become_classes_too(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1, 2, 4, 5))
    labels = sorted((tmp_path / "masks").iterdir())
    assert [entry.raw for entry in find_coding(labels).classes] == [0, 1, 2, 4, 5]
    found = find_coding(labels, complete=False)
    assert [entry.raw for entry in found.classes] == [0, 1, 2, 3, 4, 5]
    assert "[3]" in found.notes[0]


# What cannot be made sense of


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1))
    (tmp_path / "dataset.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"dataset\.yaml is there already"):
        describe(tmp_path)
    assert (tmp_path / "dataset.yaml").read_text() == "mine"
    with pytest.raises(InputError, match=r"must end in \.yaml"):
        describe(tmp_path, tmp_path / "notes.txt")


def test_folders_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        describe(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no image.*\.png"):
        describe(tmp_path)
    for i in range(3):
        save(tmp_path / f"images/{i}.jpg", image())
    with pytest.raises(InputError, match=r"holds 3 images, but no labels(.|\n)*images/\*\.jpg"):
        describe(tmp_path)
    for i in range(3):
        save(tmp_path / f"labels/x{i}.png", label(0, 1))
    with pytest.raises(InputError, match=r"names that fit(.|\n)*labels/\*\.png  \(3 files\)"):
        describe(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


def smoothed(_):
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "JPEG")
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (label(0), "one value 0"),
        (np.zeros((*SIZE, 3), np.uint8) + np.array([1, 2, 3], np.uint8), "one colour #010203"),
        (np.arange(64 * 96, dtype=np.uint16).reshape(SIZE), "6,144 different values.*instances"),
        (smoothed, "colours or more"),
    ],
)
def test_labels_that_are_none(tmp_path, raw, message):
    fill(tmp_path, *PLAIN, raw)
    with pytest.raises(InputError, match=message):
        describe(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "masks"]


def test_labels_as_jpeg(tmp_path):
    fill(tmp_path, "images/{}.jpg", "masks/{}.jpg", label(0, 255))
    with pytest.raises(InputError, match=r"masks/\*\.jpg.*JPEG"):
        describe(tmp_path)


def test_one_pair_is_too_few(tmp_path):
    fill(tmp_path, "images/a{}.jpg", "masks/a{}.png", label(0, 1), num=1)
    with pytest.raises(InputError, match="1 image with a label"):
        describe(tmp_path)


def test_damaged_label_is_named(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1))
    (tmp_path / "masks/3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"masks/3\.png"):
        describe(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


def test_images_that_cannot_be_read_leave_nothing(tmp_path):
    fill(tmp_path, "images/{}.tif", "masks/{}.png", label(0, 1))
    for path in (tmp_path / "images").iterdir():
        tifffile.imwrite(path, np.zeros((*SIZE, 3), np.float32), photometric="rgb")
    save(tmp_path / "images/bare.tif", image())
    with pytest.raises(InputError, match="float32"):
        describe(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "masks"]


def test_different_bands(tmp_path):
    for i in range(4):
        save(tmp_path / f"img/{i}.tif", image(bands=4 + i % 2))
        save(tmp_path / f"gt/{i}.tif", label(0, 1))
    with pytest.raises(InputError, match="2 with 4 bands, 2 with 5 bands"):
        describe(tmp_path)


def test_other_sizes_are_told(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1))
    save(tmp_path / "masks/9.png", label(0, 1, size=(32, 32)))
    assert any("1 of 10 labels are of another size" in note for note in describe(tmp_path).notes)


# The command


def test_command(tmp_path, capsys):
    fill(tmp_path, *PLAIN, label(0, 1, 255))
    assert data(["init", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Found in 10 labels" in out
    assert "(unlabelled)" in out
    assert f"ccsnet train {tmp_path}" in out
    with pytest.raises(InputError, match="there already"):
        data(["init", str(tmp_path)])
    assert data(["init", str(tmp_path), "--out", str(tmp_path / "b.yml")]) == 0
    assert f"ccsnet train {tmp_path / 'b.yml'}" in capsys.readouterr().out
    with pytest.raises(InputError, match="First comes the folder"):
        data(["init", "--out", "x"])


def test_patterns_that_no_pattern_can_name_are_left(tmp_path):
    fill(tmp_path, *PLAIN, label(0, 1))
    save(tmp_path / "images/{odd}*.jpg", image())
    assert find_layout(tmp_path).images == "images/*.jpg"


@pytest.mark.slow
def test_training_starts_from_it(tmp_path):
    from ccsnet.train import train
    from tests.shapes import make_shapes, tiny_config

    root = make_shapes(tmp_path / "shapes")
    (root / "dataset.yaml").unlink()
    made = describe(root)
    assert made.spec.ignore_raw == {255}
    assert train(tiny_config(root, steps=2), tmp_path / "run").metrics.images == 4


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    from ccsnet.data.layout import image_files

    elsewhere = tmp_path / "disk" / "images"
    elsewhere.mkdir(parents=True)
    (elsewhere / "a.png").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images").symlink_to(elsewhere)
    (elsewhere / "around").symlink_to(folder)
    assert list(image_files(folder)) == ["images/a.png"]
