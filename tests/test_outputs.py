import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from ccsnet.errors import InputError
from ccsnet.outputs import (
    KINDS,
    areas_of,
    check_kinds,
    class_borders,
    contours,
    segments_of,
    write_area_csv,
    write_segments_json,
)
from tests.shapes import CLASSES, COLOURS

LABELS = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)
)


@dataclass(frozen=True)
class Made:
    """What the writers ask of a prediction."""

    label: np.ndarray
    image: np.ndarray
    probs: np.ndarray | None = None
    classes: tuple[str, ...] = CLASSES
    colours: tuple[tuple[int, int, int], ...] = COLOURS


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    scores = rng.random((3, 40, 50)).astype(np.float32)
    probs = (scores / scores.sum(0)).astype(np.float16)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Made(probs.argmax(0).astype(np.uint8), image, probs)


# Contours


@given(LABELS, st.integers(1, 3))
def test_borders_are_where_another_class_is_near(label, width):
    found = class_borders(label, width)
    height, long = label.shape
    for row in range(height):
        for column in range(long):
            near = [
                label[y, x]
                for y in range(height)
                for x in range(long)
                if abs(y - row) + abs(x - column) <= width
            ]
            assert found[row, column] == (len(set(near)) > 1)


def test_borders_of_more_than_256_classes():
    label = np.full((4, 6), 300, np.uint16)
    label[:, 3:] = 44  # Equal to 300 in 8 bits.
    assert np.array_equal(np.flatnonzero(class_borders(label)[0]), [2, 3])


def test_contours_leave_the_rest_of_the_image():
    image = np.full((20, 20, 3), 77, np.uint8)
    label = np.zeros((20, 20), np.uint8)
    label[:, 10:] = 2
    drawn = contours(image, label, COLOURS)
    assert (drawn[:, :9] == 77).all()
    assert (drawn[:, 11:] == 77).all()
    assert (drawn[:, 9] == COLOURS[0]).all()
    assert (drawn[:, 10] == COLOURS[2]).all()
    assert (contours(image, label * 0, COLOURS) == 77).all()


# Segments


@given(LABELS)
def test_segments_are_connected_pieces_of_a_class(label):
    """Against SciPy's, class by class; class 3 is none of the three."""
    ids, found = segments_of(label, 3)
    assert [s["id"] for s in found] == list(range(1, len(found) + 1))
    assert np.array_equal(ids == 0, label == 3)
    expected = 0
    for index in range(3):
        pieces, num = ndimage.label(label == index, np.ones((3, 3)))
        expected += num
        for piece in range(1, num + 1):
            inside = pieces == piece
            (number,) = np.unique(ids[inside])
            assert (ids == number).sum() == inside.sum()
            segment = found[number - 1]
            rows, columns = np.nonzero(inside)
            assert segment["category_id"] == index + 1
            assert segment["area"] == inside.sum()
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
            assert segment["bbox"] == box
    assert expected == len(found)


def test_segments_png_holds_the_ids(tmp_path):
    """More than 65535 segments, so that all three bytes are in use."""
    label = (np.indices((520, 520)).sum(0) % 2).astype(np.uint8)
    label[:, ::2] = 2  # Single pixels of two classes in every other column.
    label[::2] = 2
    label[1::2, 1::2] = np.arange(260 * 260).reshape(260, 260) % 2
    prediction = Made(label, np.zeros((520, 520, 3), np.uint8))
    path = tmp_path / "a.png"
    assert KINDS["segments"].write is not None
    found = KINDS["segments"].write(path, prediction)
    assert len(found) > 65536
    png = np.asarray(Image.open(path)).astype(int)
    ids = png[..., 0] + 256 * png[..., 1] + 256**2 * png[..., 2]
    assert np.array_equal(ids, segments_of(label, 3)[0])


def test_segments_json_is_one_object(tmp_path):
    label = np.array([[0, 0, 2], [0, 2, 2]], np.uint8)
    segments = segments_of(label, 3)[1]
    records = [
        {"image": "a.jpg", "size": [2, 3], "pixels": [[0, 3], [2, 3]], "segments": segments},
        {"image": "no.jpg", "size": [2, 3], "pixels": [], "segments": None},
        {"image": "deep/b.tif", "size": [2, 3], "pixels": [[0, 3], [2, 3]], "segments": segments},
    ]
    write_segments_json(tmp_path / "segments.json", iter(records), CLASSES, COLOURS)
    found = json.loads((tmp_path / "segments.json").read_text())
    assert [c["name"] for c in found["categories"]] == list(CLASSES)
    assert found["categories"][2] == {
        "id": 3, "name": "box", "supercategory": "box", "isthing": 1, "color": list(COLOURS[2])
    }  # fmt: skip
    assert [i["file_name"] for i in found["images"]] == ["a.jpg", "deep/b.tif"]
    assert found["images"][1] == {"id": 2, "file_name": "deep/b.tif", "height": 2, "width": 3}
    assert [a["file_name"] for a in found["annotations"]] == ["a.png", "deep/b.png"]
    assert [a["image_id"] for a in found["annotations"]] == [1, 2]
    first = {"id": 1, "category_id": 1, "area": 3, "bbox": [0, 0, 2, 2], "iscrowd": 0}
    assert found["annotations"][0]["segments_info"][0] == first
    assert list(tmp_path.iterdir()) == [tmp_path / "segments.json"]


def test_segments_json_of_nothing(tmp_path):
    write_segments_json(tmp_path / "segments.json", [], CLASSES, COLOURS)
    found = json.loads((tmp_path / "segments.json").read_text())
    assert found["images"] == found["annotations"] == []


# Probabilities


def test_probs_npz(made, tmp_path):
    KINDS["prob"].write(tmp_path / "deep" / "a.npz", made)
    with np.load(tmp_path / "deep" / "a.npz") as archive:
        assert np.array_equal(archive["probs"], made.probs)
        assert archive["probs"].dtype == np.float16
        assert archive["classes"].tolist() == list(CLASSES)


def test_probs_as_pictures(made, tmp_path):
    KINDS["prob_png"].write(tmp_path / "a", made)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["0_ground.png", "1_disc.png", "2_box.png"]
    disc = np.asarray(Image.open(tmp_path / "a" / "1_disc.png"))
    assert np.abs(disc / 255 - made.probs[1]).max() <= 0.5 / 255 + 1e-6


def test_class_names_make_file_names(made, tmp_path):
    names = ("../up", "road / street", "  ")
    odd = Made(made.label, made.image, made.probs, names)
    KINDS["prob_png"].write(tmp_path / "a", odd)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert found == ["a/0_up.png", "a/1_road_street.png", "a/2_.png"]


# Areas


@given(LABELS)
def test_areas(label):
    found = areas_of(label, 3)
    assert found == {i: int((label == i).sum()) for i in range(3) if (label == i).any()}


def test_area_csv_has_a_row_per_image_and_class(tmp_path):
    records = [
        {"image": "a,b.jpg", "size": [2, 3], "pixels": [[0, 2], [2, 4]]},
        {"image": "c.jpg", "size": [1, 1], "pixels": [[1, 1]]},
    ]
    write_area_csv(tmp_path / "area.csv", records, CLASSES)
    with (tmp_path / "area.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["image"], r["class"]) for r in rows] == [
        (image, name) for image in ("a,b.jpg", "c.jpg") for name in CLASSES
    ]
    assert [int(r["pixels"]) for r in rows] == [2, 0, 4, 0, 1, 0]
    assert float(rows[0]["share"]) == pytest.approx(1 / 3, abs=1e-6)


# All of them


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind.write])
def test_every_kind_takes_any_image(name, made, tmp_path):
    for bands, dtype in ((1, np.uint8), (5, np.uint16)):
        image = np.zeros((40, 50, bands), dtype)
        path = tmp_path / str(bands) / f"a{KINDS[name].suffix}"
        KINDS[name].write(path, Made(made.label, image, made.probs))
        assert path.exists()


def test_unknown_kind():
    check_kinds(["index", "prob"])
    with pytest.raises(InputError, match=r"No output is called 'contour'. Perhaps you meant conto"):
        check_kinds(["index", "contour"])
