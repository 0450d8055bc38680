"""What is made of unpacked files: label PNGs, lists and tiles."""

import dataclasses
import gzip
import json
import os

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from ccsnet.data.images import read_label
from ccsnet.data.parallel import run_all
from ccsnet.data.steps import Place, inputs, matches, outputs, plan, run_length_mask
from ccsnet.data.tiles import boxes
from ccsnet.datasets._archives import ContextToPng, Gunzip, MatToPng, NameList, Tiles
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.errors import InputError
from ccsnet.progress import Silent

SPEC = DatasetSpec(
    name="tiny",
    classes=("white", "red"),
    colours=((255, 255, 255), (255, 0, 0)),
    colour_to_class={(255, 255, 255): 0, (255, 0, 0): 1},
    splits={"train": Split(images="tiles/*.png", labels="truth/*.png")},
    licence="none",
    source="none",
    default_root="data/tiny",
)


def take(step, root, spec=SPEC, since=0.0):
    work = plan(step, spec, Place(root, since))
    run_all(work.do, work.tasks, workers=0, reporter=Silent())
    return len(work.tasks), work.done


def pixels(path):
    return np.asarray(Image.open(path))


# Matrices

MAT = MatToPng(sources="cls/*.mat", targets="png/*.png", path=("GTcls", "Segmentation"))


def write_mat(path, matrix):
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, {"GTcls": {"Segmentation": matrix}, "other": 1})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1)])
def test_matrices(dtype, shape, tmp_path):
    label = (np.arange(np.prod(shape)).reshape(shape) * 50 % 256).astype(dtype)
    write_mat(tmp_path / "cls/a.mat", label)
    assert take(MAT, tmp_path) == (1, 0)
    found = pixels(tmp_path / "png/a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, label)
    assert take(MAT, tmp_path) == (0, 1)
    assert take(MAT, tmp_path, since=(tmp_path / "png/a.png").stat().st_mtime + 1) == (1, 0)


def test_a_matrix_without_structure(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"S": np.eye(3, dtype=np.uint8)})
    take(MatToPng(sources="*.mat", targets="*.png", path=("S",)), tmp_path)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.eye(3))


def test_matrices_that_cannot_be_used(tmp_path):
    path = tmp_path / "cls" / "a.mat"
    for matrix, match in (
        (np.full((2, 2), 256), "holds 256 to 256"),
        (np.full((2, 2), -1), "holds -1 to -1"),
        (np.full((2, 2), 0.5), "2-dimensional float64"),
        (np.zeros((2, 2, 2), np.uint8), "3-dimensional"),
    ):
        write_mat(path, matrix)
        with pytest.raises(InputError, match=rf"Cannot read {path}: .*{match}"):
            take(MAT, tmp_path)
    scipy.io.savemat(path, {"S": 1})
    with pytest.raises(InputError, match="KeyError"):
        take(MAT, tmp_path)
    write_mat(path, np.zeros((200, 200), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=f"Cannot read {path}"):
        take(MAT, tmp_path)
    assert not (tmp_path / "png").exists()


# Packed files and lists


def test_packed_files(tmp_path):
    (tmp_path / "a.ppm.gz").write_bytes(gzip.compress(b"content", mtime=0))
    (tmp_path / ".hidden.ppm.gz").write_bytes(b"none")
    step = Gunzip(sources="*.ppm.gz")
    assert take(step, tmp_path) == (1, 0)
    assert (tmp_path / "a.ppm").read_bytes() == b"content"
    assert take(step, tmp_path) == (0, 1)
    (tmp_path / "a.ppm").write_bytes(b"")  # What a power cut may leave.
    assert take(step, tmp_path) == (1, 0)


@pytest.mark.parametrize("content", [b"no gz", gzip.compress(b"content", mtime=0)[:-6]])
def test_damaged_packed_files(content, tmp_path):
    (tmp_path / "a.ppm.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ppm\.gz is damaged or not whole"):
        take(Gunzip(sources="*.ppm.gz"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ppm.gz"]


def test_lists(tmp_path):
    for name, lines in {"one": "b 1\n\na", "two": "c\nb\n", "less": "a\n"}.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    step = NameList(target="lists/new.txt", add=("one.txt", "two.txt"), less=("less.txt",))
    take(step, tmp_path)
    assert (tmp_path / "lists/new.txt").read_text() == "b\nc\n"
    (tmp_path / "less.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"less\.txt, of which lists/new\.txt is made"):
        take(step, tmp_path)


# Pascal Context

CONTEXT = ContextToPng(json="a.json", labels="png/*.png", lists="lists/*.txt", raw_ids=(0, 9, 2))
IMAGE = {"image_id": 7, "file_name": "2008_7.jpg", "height": 2, "width": 3, "phase": "train"}


def write_json(root, annotations, images=(IMAGE,)):
    numbered = [{"image_id": 7, "id": i} | a for i, a in enumerate(annotations)]
    content = {"images": images, "annos_segmentation": numbered}
    (root / "a.json").write_text(json.dumps(content))


def code(counts, size=(2, 3)):
    return {"size": list(size), "counts": counts}


def test_what_is_later_in_the_file_is_painted_over(tmp_path):
    first, second = code([0, 4, 2]), code([3, 2, 1])
    write_json(
        tmp_path,
        [
            {"category_id": 9, "segmentation": first},
            {"category_id": 2, "segmentation": second},
            {"category_id": 2, "segmentation": second, "image_id": 99},
        ],
        [IMAGE, IMAGE | {"image_id": 8, "file_name": "2008_1.jpg"}],
    )
    assert take(CONTEXT, tmp_path) == (2, 0)
    # Down the columns: four of 9, of which the last becomes 2, and one more.
    assert pixels(tmp_path / "png/2008_7.png").tolist() == [[1, 1, 2], [1, 2, 0]]
    assert not pixels(tmp_path / "png/2008_1.png").any()
    assert (tmp_path / "lists/train.txt").read_text() == "2008_1\n2008_7\n"
    assert take(CONTEXT, tmp_path) == (0, 2)


@pytest.mark.parametrize(
    ("annotation", "match"),
    [
        ({"category_id": 5, "segmentation": code([0, 6])}, r"no class has the categories \[5\]"),
        ({"category_id": 9, "segmentation": code([0, 5])}, "the runs cover 5 of 2 x 3"),
        ({"category_id": 9, "segmentation": code([0, 6], (3, 2))}, r"expected a run-length code"),
        ({"category_id": 9, "segmentation": [[0, 0, 2, 0, 2, 2]]}, "expected a run-length code"),
    ],
)
def test_annotations_that_cannot_be_used(annotation, match, tmp_path):
    write_json(tmp_path, [annotation])
    with pytest.raises(InputError, match=rf"a\.json: the annotation of 2008_7 cannot.*{match}"):
        take(CONTEXT, tmp_path)


def test_a_json_of_something_else(tmp_path):
    for content in ("{", "[]", '{"images": [{}]}', '{"images": []}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=r"a\.json is not the annotation file of Pascal"):
            take(CONTEXT, tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No .*a\.json"):
        take(CONTEXT, tmp_path)


# Encoded by pycocotools 2.0.11.
CODED = {
    "3110001020O0N31M11O": ["0111000", "0000101", "0100111", "1000100", "0001100"],
    "01121NO": list("101110010"),
    "9": ["000000000"],
    "T1": ["000000"] * 6,
    "0T1": ["111111"] * 6,
}


@pytest.mark.parametrize("text", CODED)
def test_run_length_codes(text):
    mask = np.array([[digit == "1" for digit in row] for row in CODED[text]])
    found = run_length_mask({"size": list(mask.shape), "counts": text}, mask.shape)
    assert np.array_equal(found, mask)


def test_run_length_codes_that_are_none():
    for counts in ("", "é", "00", [], [-1, 7], [3]):
        with pytest.raises(ValueError, match=r"the runs cover|ascii"):
            run_length_mask(code(counts), (2, 3))


# Tiles

TILES = Tiles(
    images="large/*.tif",
    labels="large/*_label.tif",
    tile_images="tiles/*.png",
    tile_labels="truth/*.png",
    size=64,
    ids=("a",),
)


@pytest.mark.parametrize(
    ("length", "side", "overlap", "starts"),
    [
        (100, 100, 0, [0]),
        (40, 100, 0, [0]),
        (101, 100, 0, [0, 1]),
        (200, 100, 0, [0, 100]),
        (250, 100, 0, [0, 100, 150]),
        (1408, 896, 384, [0, 512]),
        (1409, 896, 384, [0, 512, 513]),
        (896, 896, 384, [0]),
    ],
)
def test_where_tiles_lie(length, side, overlap, starts):
    assert [box.y0 for box in boxes((length, side), side, overlap)] == starts
    assert [box.x0 for box in boxes((side, length), side, overlap)] == starts
    assert all(box.y1 - box.y0 == box.x1 - box.x0 == side for box in boxes((9, 9), side, overlap))


def test_published_numbers_of_tiles():
    """Of the 24 and 14 mosaics of Potsdam, all of one size."""
    num = len(list(boxes((6000, 6000), 512, 0)))
    assert (24 * num, 14 * num) == (3456, 2016)


def large(size=(70, 130)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    label = np.where(rng.random(size)[..., None] < 0.5, (255, 255, 255), (255, 0, 0))
    return image, label.astype(np.uint8)


def write_large(root, image, label, **settings):
    (root / "large").mkdir(exist_ok=True)
    tifffile.imwrite(root / "large/a.tif", image, photometric="rgb", **settings)
    tifffile.imwrite(root / "large/a_label.tif", label, photometric="rgb", **settings)
    tifffile.imwrite(root / "large/other.tif", image[:5], photometric="rgb")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiles(compression, tmp_path):
    image, label = large()
    write_large(tmp_path, image, label, compression=compression)
    assert take(TILES, tmp_path) == (1, 0)
    places = [(x, y) for y in (0, 6) for x in (0, 64, 66)]
    names = {f"a_{x}_{y}_{x + 64}_{y + 64}.png": (x, y) for x, y in places}
    for folder, whole in (("tiles", image), ("truth", label)):
        assert {path.name for path in (tmp_path / folder).iterdir()} == set(names)
        for name, (x, y) in names.items():
            assert np.array_equal(
                pixels(tmp_path / folder / name), whole[y : y + 64, x : x + 64]
            ), name
    for pair in SPEC.pairs(tmp_path, "train"):
        classes = read_label(pair.label, SPEC)
        assert np.array_equal(classes, np.where(pixels(pair.label)[..., 1] == 255, 0, 1))
    assert take(TILES, tmp_path) == (0, 1)
    (tmp_path / "truth" / min(names)).unlink()
    assert take(TILES, tmp_path) == (1, 0)


def test_tiles_of_images_that_are_too_small(tmp_path):
    image, label = large((40, 100))
    write_large(tmp_path, image, label)
    with pytest.raises(InputError, match=r"a\.tif has 40 x 100 .* the rest of its label, 255, is"):
        take(TILES, tmp_path)
    assert not (tmp_path / "tiles").exists()
    take(dataclasses.replace(TILES, fill=7, overlap=32, position="{y0}_{y1}_{x0}_{x1}"), tmp_path)
    for folder, whole, fill in (("tiles", image, 0), ("truth", label, 7)):
        found = pixels(tmp_path / folder / "a_0_64_32_96.png")
        assert np.array_equal(found[:40], whole[:, 32:96])
        assert (found[40:] == fill).all()
    assert len(list((tmp_path / "tiles").iterdir())) == 3


def test_tiles_of_class_numbers_and_one_band(tmp_path):
    spec = dataclasses.replace(
        SPEC, colour_to_class=None, raw_to_class={1: 0, 2: 1}, channels=1, ignore_raw=None
    )
    (tmp_path / "large").mkdir()
    image = large()[0][..., 0]
    label = (image % 3).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "large/a.tif"), image)
    picture = Image.fromarray(label)
    picture.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    picture.save(tmp_path / "large/a_label.tif")
    take(TILES, tmp_path, spec)
    assert np.array_equal(pixels(tmp_path / "tiles/a_66_6_130_70.png"), image[6:, 66:])
    assert np.array_equal(pixels(tmp_path / "truth/a_66_6_130_70.png"), label[6:, 66:])


def test_tiles_that_cannot_be_made(tmp_path):
    image, label = large()
    write_large(tmp_path, image, label[:-1])
    with pytest.raises(InputError, match=r"a\.tif has 70 x 130 .*a_label\.tif has 69 x 130"):
        take(TILES, tmp_path)
    (tmp_path / "large/a_label.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"No .*a_label\.tif, the label of .*a\.tif"):
        take(TILES, tmp_path)
    take(dataclasses.replace(TILES, labels=None, tile_labels=None), tmp_path)
    assert len(list((tmp_path / "tiles").iterdir())) == 6
    write_large(tmp_path, image, label)
    (tmp_path / "large/a.tif").write_bytes((tmp_path / "large/a.tif").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"Cannot read .*a\.tif"):
        take(dataclasses.replace(TILES, tile_images="new/*.png"), tmp_path)


# All of them


@pytest.mark.parametrize("step", [MAT, Gunzip(sources="a/*.gz"), CONTEXT, TILES])
def test_steps_tell_what_they_need_and_make(step, tmp_path):
    assert inputs(step)
    assert outputs(step)
    with pytest.raises(FileNotFoundError, match="No "):
        plan(step, SPEC, Place(tmp_path, 0.0))


def test_patterns_match_within_a_folder(tmp_path):
    for name in ("a/1_x.png", "b/2_x.png", "a/.3_x.png", "a/deep/4_x.png", "a/5_y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [stars for _, stars in matches(tmp_path, "*/*_x.png")]
    assert found == [("a", "1"), ("b", "2")]


def _end(number: int) -> int:
    if number == 3:
        os._exit(1)
    return 1


@pytest.mark.slow
def test_a_process_that_is_killed():
    with pytest.raises(InputError, match=r"A worker process was ended.*fewer --workers"):
        run_all(_end, list(range(8)), workers=2, reporter=Silent())
