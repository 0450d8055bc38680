import dataclasses
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from ccsnet.cli_data import data
from ccsnet.data import duplicates
from ccsnet.data.check import check_dataset
from ccsnet.data.duplicates import MAX_DISTANCE, find_twins, perceptual_hash
from ccsnet.data.findings import KINDS
from ccsnet.data.loading import training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.datasets._split import Split
from ccsnet.errors import InputError

YAML = """
classes: [ground, disc, box]
images: images/{split}/*.png
labels: labels/{split}/*.png
crop: [16, 16]
"""


def photograph(seed, size=(60, 90)):
    """A picture with structure at all scales, like no other."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((*size, 3))
    for cells in (3, 6, 12, 24):
        noise = rng.normal(0, 60 / cells, (cells, cells, 3)) + rng.normal(0, 5)
        picture += cv2.resize(noise, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return (128 + 3 * picture).clip(0, 255).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Six training and four validation pairs with nothing wrong."""
    folder = tmp_path / "set"
    for split, num, seed in (("train", 6, 0), ("val", 4, 100)):
        for i in range(num):
            save(folder / "images" / split / f"{i}.png", photograph(seed + i))
            label = np.zeros((60, 90), np.uint8)
            label[10:20] = 1
            label[30:40, :45] = 2
            label[0] = 255
            save(folder / "labels" / split / f"{i}.png", label)
    (folder / "dataset.yaml").write_text(YAML)
    return folder


def check(root, *splits, workers=0, changes=None):
    spec, _ = open_dataset(DataConfig(dataset=str(root)))
    spec = dataclasses.replace(spec, **changes) if changes else spec
    return check_dataset(spec, root, splits, workers=workers)


def found(report):
    """Kind, split and file of every problem."""
    return {(p.kind, p.split, p.file and report.name_of(p.file)) for p in report.problems}


def test_nothing_wrong(root):
    report = check(root)
    assert report.problems == []
    assert not report.fails
    train = report.splits["train"]
    assert (train.images, train.labelled) == (6, True)
    assert train.pixels.tolist() == [6 * (59 * 90 - 900 - 450), 6 * 900, 6 * 450]
    assert sum(train.shares) == pytest.approx(1)
    assert train.unlabelled_share == pytest.approx(1 / 60)
    assert train.images_with.tolist() == [6, 6, 6]
    # Frequencies in the ratio 3960 : 900 : 450.
    assert report.class_weights == (round(900 / 3960, 4), 1.0, 2.0)


def spoil(root):
    """One of each mistake; returns what must be found."""
    images, labels = root / "images" / "train", root / "labels" / "train"
    save(images / "0.jpg", photograph(0))
    data = (images / "0.jpg").read_bytes()
    (images / "0.jpg").unlink()
    (images / "0.png").write_bytes(data[: len(data) // 2])  # The content decides, not the suffix.
    save(labels / "1.png", np.zeros((61, 90), np.uint8))
    save(labels / "2.png", np.full((60, 90), 7, np.uint8))
    colours = np.zeros((60, 90, 3), np.uint8)
    colours[:30] = 10, 20, 30
    save(labels / "3.png", colours)
    (labels / "4.png").unlink()
    (root / "labels" / "val" / "0.png").write_bytes(b"")
    save(root / "labels" / "val" / "1.png", np.full((60, 90), 255, np.uint8))
    (root / "images" / "val" / "2.png").write_bytes((images / "5.png").read_bytes())
    return {
        ("unreadable image", "train", "images/train/0.png"),
        ("sizes differ", "train", "labels/train/1.png"),
        ("wrong label values", "train", "labels/train/2.png"),
        ("wrong label values", "train", "labels/train/3.png"),
        ("missing label", "train", "images/train/4.png"),
        ("unreadable label", "val", "labels/val/0.png"),
        ("no labelled pixel", "val", "labels/val/1.png"),
        ("same file in two splits", "val", "images/val/2.png"),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_found_at_once(root, workers):
    expected = spoil(root)
    report = check(root, workers=workers)
    assert found(report) == expected
    assert report.fails
    texts = " ".join(p.text for p in report.problems)
    assert all(part in texts for part in ("61 x 90", "holds 7", "(10, 20, 30)", "0 bytes"))
    assert set(report.by_kind()) <= set(KINDS)
    spec, folder = open_dataset(DataConfig(dataset=str(root)))
    with pytest.raises(InputError):
        training_batches(spec, folder, DataConfig(dataset=str(root)), batch_size=1, seed=0, steps=1)


@pytest.mark.parametrize(
    ("kind", "spoil_one"),
    [
        ("missing folder or list", lambda root: (root / "images/val").rename(root / "gone")),
        ("empty split", lambda root: [p.unlink() for p in (root / "images/val").iterdir()]),
        ("no labelled pixel in the split", lambda root: unlabel(root / "labels/val")),
    ],
)
def test_splits_that_cannot_be_used(root, kind, spoil_one):
    spoil_one(root)
    report = check(root)
    assert (kind, "val", None) in found(report)
    assert report.fails
    assert report.splits["train"].images == 6


def unlabel(folder):
    for path in folder.iterdir():
        save(path, np.full((60, 90), 255, np.uint8))


def test_duplicate_names_are_all_listed(root):
    save(root / "images" / "train" / "3.jpg", photograph(50))
    splits = {"train": Split(images="images/train/*.*", labels="labels/train/*.png")}
    report = check(root, changes={"splits": splits})
    files = {file for kind, _, file in found(report) if kind == "duplicate names"}
    assert files == {"images/train/3.jpg", "images/train/3.png"}
    assert report.fails


def test_colour_masks(root):
    """Masks painted in the colours of a data set that says so; one has a colour of its own."""
    colours = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 0, 255): 2}
    table = np.zeros((256, 3), np.uint8)
    for colour, index in colours.items():
        table[index] = colour
    for path in (root / "labels").rglob("*.png"):
        save(path, table[np.asarray(Image.open(path)) % 255])
    painted = np.zeros((60, 90, 3), np.uint8)
    painted[5:9] = 1, 2, 3
    save(root / "labels/train/4.png", painted)
    spec, _ = open_dataset(DataConfig(dataset=str(root)))
    changed = DatasetSpec(
        name="painted",
        classes=spec.classes,
        colours=tuple(colours),
        colour_to_class=colours,
        ignore_colours=frozenset(),
        splits=spec.splits,
        licence="",
        source="",
        default_root="",
    )
    report = check_dataset(changed, root, workers=0)
    assert found(report) == {("wrong label values", "train", "labels/train/4.png")}
    assert "(1, 2, 3)" in report.problems[0].text


def test_classes_that_never_occur(root):
    for path in (root / "labels/val").iterdir():
        save(path, np.zeros((60, 90), np.uint8))
    report = check(root)
    assert found(report) == {("class never occurs", "val", None)}
    assert "'disc'" in report.problems[0].text
    assert not report.fails


def test_mixed_depths(root):
    grey = photograph(77)[..., 0].astype(np.uint16) * 256
    save(root / "images/train/3.png", grey)
    report = check(root)
    assert found(report) == {("mixed depths", "train", None)}
    assert "images/train/3.png of uint16" in report.problems[0].text


def test_other_bands(root):
    report = check(root, changes={"channels": 4})
    assert {kind for kind, _, _ in found(report)} == {"wrong bands"}


def test_only_the_splits_that_are_needed_count(root):
    (root / "dataset.yaml").write_text(YAML + "splits: [train, val, test]\n")
    assert ("missing folder or list", "test", None) in found(check(root))
    assert not check(root).fails
    assert check(root, "test").fails
    assert not check(root, "train").fails
    with pytest.raises(InputError, match="No split of set is called 'tset'"):
        check(root, "tset")


def test_splits_without_labels(root):
    splits = {
        "train": Split(images="images/train/*.png", labels="labels/train/*.png"),
        "test": Split(images="images/val/*.png", count=9),
    }
    report = check(root, changes={"splits": splits})
    assert found(report) == {("other number than published", "test", None)}
    assert not report.splits["test"].labelled
    splits["val"] = Split(images="images/val/*.png")
    report = check(root, changes={"splits": splits})
    assert ("missing label", "val", None) in found(report)
    assert report.fails


# Duplicates


def altered(image):
    yield "jpeg", cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)
    yield "smaller", cv2.resize(image, (150, 100), interpolation=cv2.INTER_AREA)
    yield "brighter", np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)
    yield "16 bits", image.astype(np.uint16) * 257
    yield "grey", np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


def test_hash_survives_what_changes_no_picture():
    images = [photograph(seed, (200, 300)) for seed in range(30)]
    hashes = np.stack([perceptual_hash(image) for image in images])
    for _, changed in altered(images[7]):
        again = np.stack([perceptual_hash(changed)])
        (twin,) = find_twins(again, hashes)
        assert twin.other == 7
    apart = find_twins(hashes[:15], hashes[15:])
    assert apart == []


def test_hash_of_any_image():
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4, 5, 13):
        image = rng.integers(0, 65536, (50, 40, channels)).astype(np.uint16)
        assert perceptual_hash(image).shape == (32,)
    assert perceptual_hash(np.full((50, 40, 3), 9, np.uint8)) is None
    assert perceptual_hash(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8)) is None


@pytest.mark.parametrize("at_once", [7, 1 << 18])
def test_twins_are_all_that_comparing_all_pairs_finds(monkeypatch, at_once):
    monkeypatch.setattr(duplicates, "MAX_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    others = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    ones = rng.integers(0, 256, (60, 32), dtype=np.uint8)
    for i in range(40):  # At every distance around the limit, each bit anywhere.
        bits = np.unpackbits(others[i % 5])
        bits[rng.choice(256, i, replace=False)] ^= 1
        ones[i] = np.packbits(bits)
    distance = np.unpackbits(ones[:, None] ^ others[None], axis=2).sum(axis=2)
    expected = {(i, int(row.min())) for i, row in enumerate(distance) if row.min() <= MAX_DISTANCE}
    twins = find_twins(ones, others)
    assert {(t.one, t.distance) for t in twins} == expected
    assert all(distance[t.one, t.other] == t.distance for t in twins)
    assert len(twins) == MAX_DISTANCE + 1
    assert find_twins(ones[:0], others) == find_twins(ones, others[:0]) == []


def test_near_duplicates_across_splits(root):
    image, label = photograph(3, (300, 400)), np.arange(300 * 400).reshape(300, 400) % 3
    save(root / "images/train/3.png", image)
    save(root / "labels/train/3.png", label.astype(np.uint8))
    path = root / "images/val/1.jpg"
    Image.fromarray(image).resize((200, 150), Image.Resampling.BILINEAR).save(path, quality=70)
    path.rename(root / "images/val/1.png")
    save(root / "labels/val/1.png", label[::2, ::2].astype(np.uint8))
    report = check(root)
    assert found(report) == {("near-duplicate in two splits", "val", "images/val/1.png")}
    assert "images/train/3.png" in report.problems[0].text
    assert not report.fails
    twice = (root / "images/train/2.png").read_bytes()
    (root / "images/train/5.png").write_bytes(twice)
    assert ("same file twice", "train", "images/train/5.png") in found(check(root))


def test_images_of_one_colour_are_no_duplicates(root):
    for split in ("train", "val"):
        save(root / "images" / split / "0.png", np.full((60, 90, 3), 40 + len(split), np.uint8))
    assert check(root).problems == []


# The command


def test_command_fails_when_training_would(root, tmp_path, capsys):
    out = tmp_path / "found.json"
    arguments = ["check", str(root), "--json", str(out), "--workers", "0"]
    assert data(arguments) == 0
    text = capsys.readouterr().out
    assert "No problem found." in text
    assert "suggested weight" in text
    assert json.loads(out.read_text())["problems"] == []
    expected = spoil(root)
    assert data(arguments) == 1
    text = capsys.readouterr().out
    assert "8 problems found: training would fail." in text
    assert "images/train/0.png" in text
    told = json.loads(out.read_text())
    assert told["training_would_fail"] is True
    assert {(p["kind"], p["split"], p["file"]) for p in told["problems"]} == expected
    assert set(told["splits"]["train"]["classes"]) == {"ground", "disc", "box"}
    assert set(told["class_weights"]) == {"ground", "disc", "box"}
    assert data(["check", str(root), "--split", "val", "--workers", "0"]) == 1


def test_command_without_a_data_set():
    with pytest.raises(InputError, match="First comes the data set"):
        data(["check", "--json", "x"])
