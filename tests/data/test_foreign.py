"""Labels of other programs: small files as those programs write them, painted by hand here."""

import base64
import importlib.util
import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image

from ccsnet import cli_data
from ccsnet.cli import run
from ccsnet.data.foreign import import_labels
from ccsnet.data.loading import evaluation_samples
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.data.regions import (
    IGNORED,
    UNLABELLED,
    Bitmap,
    Region,
    ellipse,
    from_runs,
    outline,
    paint,
    rectangle,
)
from ccsnet.errors import InputError

SIZE = (40, 60)
needs_coco = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="needs pycocotools"
)


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def box(top, left, bottom, right, size=SIZE):
    inside = np.zeros(size, bool)
    inside[top:bottom, left:right] = True
    return inside


def corners(top, left, bottom, right):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def read(made):
    """Name -> label map as training reads it, over all splits; and the classes."""
    spec, root = open_dataset(DataConfig(dataset=str(made.folder), workers=0))
    config = DataConfig(dataset=str(made.folder), workers=0)
    labels = {
        sample.name: sample.label.numpy()
        for split in spec.splits
        for sample in evaluation_samples(spec, root, config, split)
    }
    return labels, spec


def refused(source, out, *parts, **how):
    """The import fails, its text holds the parts, and nothing is left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        import_labels(source, out, **how)
    for part in parts:
        assert part in str(caught.value)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


# Painting


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-30, 90), st.floats(-30, 70)), min_size=3, max_size=3, unique=True)
)
def test_triangles_hold_the_pixels_whose_centres_are_inside(points):
    label = paint(SIZE, [Region("a", [outline(points)])], {"a": 0})
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    # On which side of each edge a centre lies; those within a hair of an edge are left out.
    sides = np.stack(
        [
            (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True)
        ]
    )
    inside = (sides > 1e-6).all(0) | (sides < -1e-6).all(0)
    outside = (sides > 1e-6).any(0) & (sides < -1e-6).any(0)
    assert (label[inside] == 0).all()
    assert (label[outside] == UNLABELLED).all()


def test_a_polygon_with_a_dent():
    points = [(5, 5), (50, 5), (50, 35), (27.3, 12.1), (5, 35)]
    label = paint(SIZE, [Region("a", [outline(points)])], {"a": 0})
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = Polygon([*points, points[0]], closed=True).contains_points(centres).reshape(SIZE)
    assert ((label == 0) == inside).all()


def test_whole_pixels_are_painted_exactly():
    label = paint(SIZE, [Region("a", [outline(corners(3, 10, 20, 30))])], {"a": 7})
    assert np.array_equal(label == 7, box(3, 10, 20, 30))
    assert (label[label != 7] == UNLABELLED).all()
    assert np.array_equal(
        paint(SIZE, [Region("a", [rectangle(30.0, 20.0, 10.0, 3.0)])], {"a": 7}), label
    )


def test_circles_and_turned_boxes():
    label = paint(SIZE, [Region("a", [ellipse(30.0, 20.0, 12.0, 12.0)])], {"a": 0})
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    assert np.array_equal(label == 0, (rows - 20) ** 2 + (columns - 30) ** 2 < 144)
    upright = paint(SIZE, [Region("a", [ellipse(30.0, 20.0, 4.0, 12.0)])], {"a": 0})
    turned = paint(SIZE, [Region("a", [ellipse(30.0, 20.0, 12.0, 4.0, 90.0)])], {"a": 0})
    assert np.array_equal(upright, turned)
    wide = paint(SIZE, [Region("a", [rectangle(20.1, 10.2, 40.3, 30.4)])], {"a": 0})
    again = paint(SIZE, [Region("a", [rectangle(20.1, 10.2, 40.3, 30.4, 180.0)])], {"a": 0})
    assert np.array_equal(wide, again)
    # Clockwise: the right end of a flat box goes down.
    tilted = paint(SIZE, [Region("a", [rectangle(10.0, 18.0, 50.0, 22.0, 30.0)])], {"a": 0})
    assert tilted[28, 44] == 0
    assert tilted[12, 44] == UNLABELLED


def test_small_regions_stay_visible_and_levels_come_first():
    small = Region("small", [outline(corners(10, 10, 20, 20))])
    large = Region("large", [outline(corners(0, 0, 40, 40))])
    crowd = Region(None, [outline(corners(5, 5, 30, 30))])
    numbers = {"small": 0, "large": 1}
    for order in ([small, large, crowd], [crowd, large, small]):
        label = paint(SIZE, order, numbers)
        assert (label[10:20, 10:20] == 0).all()
        assert label[6, 6] == IGNORED
        assert label[39, 39] == 1
    label = paint(SIZE, [small, large._replace(level=1)], numbers)
    assert not (label == 0).any()


def test_what_lies_outside_is_cut_off():
    huge = outline([(-1e300, -1e300), (1e300, -1e300), (1e300, 1e300), (-1e300, 1e300)])
    assert (paint(SIZE, [Region("a", [huge])], {"a": 0}) == 0).all()
    for far in ([(1e9, 5), (2e9, 5), (2e9, 9)], [(-9, -9), (-5, -9), (-5, -5)], [(1, 1)] * 3):
        assert (paint(SIZE, [Region("a", [outline(far)])], {"a": 0}) == UNLABELLED).all()
    bitmap = np.ones((30, 30), bool)
    for top, left in ((-10, -20), (30, 50), (-100, 0), (0, 100)):
        label = paint(SIZE, [Region("a", [Bitmap(bitmap, top, left)])], {"a": 0})
        expected = box(max(top, 0), max(left, 0), max(top + 30, 0), max(left + 30, 0))
        assert np.array_equal(label == 0, expected)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([(1, 1), (2, 2)], "a polygon has 2 corners; at least 3"),
        ([], "a polygon has 0 corners"),
        ([(1, 1), (2, float("nan")), (3, 3)], "no finite number"),
        ([(1, 1), (2, float("inf")), (3, 3)], "no finite number"),
        ([(1, 1), (2, 10**400), (3, 3)], "no pairs of numbers"),
        ([(1, 1), (2,), (3, 3)], "no pairs of numbers"),
        (["ab", "cd", "ef"], "no pairs of numbers"),
        (None, "no pairs of numbers"),
        (5, "no pairs of numbers"),
    ],
)
def test_outlines_that_are_none(points, text):
    with pytest.raises(InputError, match=text):
        outline(points)


def test_runs():
    assert from_runs([2, 3, 1], 2, 3).tolist() == [[False, False, True], [True, True, False]]
    for runs in ([2, 3], [2, 3, 2], [-1, 7], []):
        with pytest.raises(InputError, match="its runs add up to"):
            from_runs(runs, 2, 3)
    for height, width in ((0, 3), (-1, -6), (10**6, 10**6)):
        with pytest.raises(InputError, match="a mask of"):
            from_runs([height * width], height, width)


# LabelMe


def labelme(folder, name, shapes, size=SIZE, **more):
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": label, "points": points, "group_id": None, "flags": {}, "shape_type": kind}
            for label, kind, points in shapes
        ],
        "imagePath": f"{name}.png",
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | more))
    return path


def png_text(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_labelme(tmp_path):
    source = tmp_path / "source"
    shapes = [
        ("road", "polygon", corners(20, 0, 40, 60)),
        ("Car", "rectangle", [[10, 22], [20, 28]]),
        ("Car", "oriented_rectangle", corners(30, 10, 32, 20)),
        ("sign", "circle", [[40, 10], [45, 10]]),
        ("__ignore__", "polygon", corners(0, 0, 5, 5)),
    ]
    labelme(source, "a", shapes)
    picture(source / "a.png")
    labelme(source, "b", [("road", "polygon", corners(0, 0, 10, 10))])
    picture(source / "b.png")
    made = import_labels(source, tmp_path / "out")
    assert made.kind == "labelme"
    assert made.classes == ("background", "Car", "road", "sign")
    labels, spec = read(made)
    expected = np.zeros(SIZE, int)
    expected[20:] = 2
    expected[22:28, 10:20] = expected[30:32, 10:20] = 1
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    expected[(rows - 10) ** 2 + (columns - 40) ** 2 < 25] = 3
    expected[:5, :5] = 255
    assert np.array_equal(labels["a"], expected)
    assert np.array_equal(labels["b"] == 2, box(0, 0, 10, 10))
    assert made.splits == {"train": 1, "val": 1}  # Two images: one each.
    assert sum(made.pixels) + made.ignored == 2 * SIZE[0] * SIZE[1]
    assert made.ignored == 25
    # The images are links; the label files are palettes that show the classes' colours.
    (link,) = (tmp_path / "out" / "images").glob("*/a.png")
    assert link.is_symlink()
    assert link.resolve() == (source / "a.png").resolve()
    (file,) = (tmp_path / "out" / "labels").glob("*/a.png")
    with Image.open(file) as palette:
        assert palette.mode == "P"
        shown = np.asarray(palette.convert("RGB"))
    assert (shown[30, 50] == spec.colours[2]).all()
    assert spec.colours[0] == (0, 0, 0)


def test_labelme_of_older_and_newer_versions(tmp_path):
    """No shape_type, no size; masks; the image inside the file; Windows' paths."""
    source = tmp_path / "source"
    path = labelme(source / "json", "a", [("road", "polygon", corners(0, 0, 10, 10))])
    content = json.loads(path.read_text())
    del content["shapes"][0]["shape_type"], content["imageHeight"], content["imageWidth"]
    content["imagePath"] = "..\\photos\\a.png"
    path.write_text(json.dumps(content))
    picture(source / "photos" / "a.png")

    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    path = labelme(
        source / "json",
        "b",
        [("spot", "mask", [[10, 20], [15, 23]])],
        imagePath="gone.png",
        imageData=base64.b64encode(picture(tmp_path / "inner.png").read_bytes()).decode(),
    )
    content = json.loads(path.read_text())
    content["shapes"][0]["mask"] = png_text(mask)
    path.write_text(json.dumps(content))

    made = import_labels(source, tmp_path / "out")
    labels, _ = read(made)
    assert set(labels) == {"json_a", "json_b"}
    assert np.array_equal(labels["json_a"] == 1, box(0, 0, 10, 10))
    assert np.array_equal(labels["json_b"] == 2, box(21, 12, 23, 15))
    (written,) = (tmp_path / "out" / "images").glob("*/json_b.png")
    assert not written.is_symlink()
    assert written.read_bytes() == (tmp_path / "inner.png").read_bytes()


def test_labels_txt_gives_the_order(tmp_path):
    source = tmp_path / "source"
    for name in "ab":
        labelme(source, name, [("car", "polygon", corners(0, 0, 10, 10))])
        picture(source / f"{name}.png")
    (source / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    made = import_labels(source, tmp_path / "out")
    assert made.classes == ("background", "road", "car")
    assert made.pixels[1] == 0
    made = import_labels(source, tmp_path / "two", classes=("car", "background", "tree"))
    assert made.classes == ("car", "background", "tree")
    assert made.pixels == (200, 2 * 2400 - 200, 0)
    refused(source, tmp_path / "three", "No class is called 'car'", classes=("road", "tree"))


@pytest.mark.parametrize("kind", ["line", "linestrip", "point", "points"])
def test_labelme_shapes_without_area(tmp_path, kind):
    source = tmp_path / "source"
    path = labelme(source, "a", [("lane", kind, [[1, 1], [20, 20]])])
    picture(source / "a.png")
    refused(source, tmp_path / "out", str(path), f"shape 1: 'lane' is a {kind}, which has no area")


def test_all_mistakes_are_told_at_once(tmp_path):
    source = tmp_path / "source"
    road = ("road", "polygon", corners(0, 0, 10, 10))
    labelme(source, "good", [road])
    picture(source / "good.png")
    labelme(source, "thin", [road, ("car", "polygon", [[0, 0], [5, 5]])])
    picture(source / "thin.png")
    labelme(source, "lost", [road])
    labelme(source, "sizes", [road], size=(60, 40))
    picture(source / "sizes.png")
    labelme(source, "odd", [("car", "polygon", "none")])
    picture(source / "odd.png")
    labelme(source, "nameless", [(" ", "polygon", corners(0, 0, 9, 9))])
    picture(source / "nameless.png")
    labelme(source, "damaged", [road])
    (source / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (source / "other.json").write_text('{"name": "package"}')
    (source / "broken.json").write_text("{")
    text = refused(
        source,
        tmp_path / "out",
        "Nothing was imported, because of 8 problems:",
        "thin.json: shape 2: a polygon has 2 corners; at least 3 are needed",
        f"lost.json: the image 'lost.png' is not in {source}. Name the folder of the images by",
        "sizes.json: the labels were drawn for 60 x 40 pixels, but",
        "40 x 60 (height x width)",
        "odd.json: shape 1: its corners are no pairs of numbers",
        "nameless.json: a shape has no class",
        "damaged.png",
        "other.json: this is no LabelMe file: it holds the keys name",
        "broken.json is no JSON text",
        kind="labelme",
    )
    assert "good.json" not in text


def test_only_ten_are_shown(tmp_path):
    source = tmp_path / "source"
    for number in range(13):
        labelme(source, f"{number}", [])
    text = refused(source, tmp_path / "out", "13 problems", "and 3 more.")
    assert text.count("is not in") == 10


def test_nothing_of_the_users_is_touched(tmp_path):
    source = tmp_path / "source"
    for name in "abc":
        labelme(source, name, [("car", "polygon", corners(0, 0, 10, 10))])
        picture(source / f"{name}.png")
    before = {path: path.read_bytes() for path in source.iterdir()}
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out is there already. Give another --out"):
        import_labels(source, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()  # An empty folder is as good as none.
    import_labels(source, out)
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    with pytest.raises(InputError, match="is there already"):
        import_labels(source, out)
    with pytest.raises(InputError, match="is there already"):
        import_labels(source, source / "a.json")


# Unlabelled pixels, classes, splits


def test_unlabelled_pixels(tmp_path):
    source = tmp_path / "source"
    half = [
        ("left", "polygon", corners(0, 0, 40, 30)),
        ("right", "polygon", corners(0, 30, 40, 60)),
    ]
    for name, shapes in (("a", half), ("b", half)):
        labelme(source, name, shapes)
        picture(source / f"{name}.png")
    covered = import_labels(source, tmp_path / "covered")
    assert covered.classes == ("left", "right")  # No pixel is left for a background.
    assert covered.ignored == 0
    labels, _ = read(covered)
    assert np.array_equal(labels["a"] == 1, box(0, 30, 40, 60))

    labelme(source, "c", half[:1])
    picture(source / "c.png")
    assert import_labels(source, tmp_path / "class").classes == ("background", "left", "right")
    ignoring = import_labels(source, tmp_path / "ignored", unlabelled="ignore")
    assert ignoring.classes == ("left", "right")
    assert ignoring.ignored == 40 * 30
    labels, _ = read(ignoring)
    assert np.array_equal(labels["c"] == 255, box(0, 30, 40, 60))


def test_a_background_of_ones_own(tmp_path):
    """Drawn or not, and however it is written, background is one class."""
    source = tmp_path / "source"
    for name in "ab":
        shapes = [
            ("Background", "polygon", corners(0, 0, 5, 60)),
            ("_background_", "polygon", corners(5, 0, 10, 60)),
            ("car", "polygon", corners(20, 0, 30, 60)),
        ]
        labelme(source, name, shapes)
        picture(source / f"{name}.png")
    made = import_labels(source, tmp_path / "out")
    assert made.classes == ("background", "car")
    assert made.pixels == (2 * 30 * 60, 2 * 10 * 60)
    made = import_labels(source, tmp_path / "ignored", unlabelled="ignore")
    assert made.pixels == (2 * 10 * 60, 2 * 10 * 60)  # What was drawn stays.


def test_one_class_needs_a_background(tmp_path):
    source = tmp_path / "source"
    labelme(source, "a", [("car", "polygon", corners(0, 0, 10, 10))])
    picture(source / "a.png")
    refused(
        source, tmp_path / "out", "The labels have 1 classes (car)", "--unlabelled background",
        unlabelled="ignore",
    )  # fmt: skip
    made = import_labels(source, tmp_path / "out")
    assert made.classes == ("background", "car")
    assert made.splits == {"train": 1}  # One image cannot be shared.


def test_many_classes(tmp_path):
    """More than a palette holds: the label maps have 16 bits."""
    source = tmp_path / "source"
    names = [f"c{number:03}" for number in range(300)]
    shapes = [
        (name, "polygon", corners(i // 60, i % 60, i // 60 + 1, i % 60 + 1))
        for i, name in enumerate(names)
    ]
    shapes.append(("__ignore__", "polygon", corners(39, 0, 40, 60)))
    labelme(source, "a", shapes)
    picture(source / "a.png")
    made = import_labels(source, tmp_path / "out")
    labels, spec = read(made)
    assert spec.classes == ("background", *names)
    assert np.array_equal(labels["a"][:5].ravel(), np.arange(1, 301))
    assert (labels["a"][39] == spec.ignore_index).all()


def test_names_that_yaml_would_read_otherwise(tmp_path):
    source = tmp_path / "source"
    shapes = [
        (name, "polygon", corners(i, 0, i + 1, 9)) for i, name in enumerate(("no", "1", "é: #"))
    ]
    labelme(source, "a", shapes)
    picture(source / "a.png")
    made = import_labels(source, tmp_path / "out")
    assert read(made)[1].classes == ("background", "1", "no", "é: #")


def test_images_stay_in_their_split(tmp_path):
    source = tmp_path / "source"
    for number in range(12):
        labelme(source, f"{number}", [("car", "polygon", corners(0, 0, 10, 10))])
        picture(source / f"{number}.png")

    def split_of(out):
        return {p.stem: p.parent.name for p in (out / "images").glob("*/*")}

    import_labels(source, tmp_path / "first", val_share=0.4)
    first = split_of(tmp_path / "first")
    assert set(first.values()) == {"train", "val"}
    for number in range(12, 16):
        labelme(source, f"{number}", [("car", "polygon", corners(0, 0, 10, 10))])
        picture(source / f"{number}.png")
    import_labels(source, tmp_path / "more", val_share=0.4)
    more = split_of(tmp_path / "more")
    assert all(more[name] == split for name, split in first.items())
    assert import_labels(source, tmp_path / "all", val_share=0.0).splits == {"train": 16}
    refused(source, tmp_path / "out", "val is 1.5; it must be a share", val_share=1.5)


# COCO


def coco(path, images, annotations, categories=((1, "car"), (7, "road"))):
    """`images`: name -> size; `annotations`: image number, category, segmentation, crowd."""
    content = {
        "info": {},
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, (name, size) in enumerate(images.items())
        ],
        "annotations": [
            {"id": 100 + i, "image_id": image, "category_id": category,
             "segmentation": segmentation, "iscrowd": crowd, "bbox": [0, 0, 1, 1], "area": 1}
            for i, (image, category, segmentation, crowd) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def flat(*box_corners):
    return [float(n) for point in corners(*box_corners) for n in point]


def column_runs(inside):
    """Run lengths down the columns, outside first."""
    values = inside.T.ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *edges, values.size]).tolist()
    return [0, *runs] if values[0] else runs


def test_coco(tmp_path):
    runs = {"size": list(SIZE), "counts": column_runs(box(0, 40, 8, 60))}
    crowd = {"size": list(SIZE), "counts": column_runs(box(0, 0, 6, 10))}
    path = coco(
        tmp_path / "annotations" / "instances_val.json",
        {"a.png": SIZE, "empty.png": SIZE},
        [
            (0, 1, [flat(22, 10, 28, 20), flat(30, 10, 32, 20)], 0),
            (0, 7, [flat(20, 0, 40, 60)], 0),
            (0, 7, runs, 0),
            (0, 1, crowd, 1),
        ],
    )
    for name in ("a", "empty"):
        picture(tmp_path / "val" / f"{name}.png")
    made = import_labels(path, tmp_path / "out", images=tmp_path / "val")
    assert made.kind == "coco"
    assert made.classes == ("background", "car", "road")  # By the categories' ids.
    labels, _ = read(made)
    expected = np.zeros(SIZE, int)
    expected[20:] = 2
    expected[22:28, 10:20] = expected[30:32, 10:20] = 1
    expected[0:8, 40:] = 2
    expected[:6, :10] = 255  # A crowd is roughly drawn: left out.
    assert np.array_equal(labels["a"], expected)
    assert (labels["empty"] == 0).all()
    refused(path, tmp_path / "two", "'a.png' is not in", "--images")


@needs_coco
def test_coco_compressed(tmp_path):
    import warnings

    from pycocotools import mask as coder

    rng = np.random.default_rng(0)
    inside = rng.random(SIZE) < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        packed = coder.encode(np.asfortranarray(inside.astype(np.uint8)))
    text = packed["counts"].decode()
    path = coco(
        tmp_path / "in" / "a.json",
        {"a.png": SIZE},
        [(0, 1, {"size": list(SIZE), "counts": text}, 0)],
    )
    picture(tmp_path / "in" / "a.png")
    labels, _ = read(import_labels(path, tmp_path / "out"))
    assert np.array_equal(labels["a"] == 1, inside)
    for wrong in (text[: len(text) // 2], text + text, "zzz", "", "é"):
        coco(path, {"a.png": SIZE}, [(0, 1, {"size": list(SIZE), "counts": wrong}, 0)])
        refused(path, tmp_path / "two", "annotation 100: ")


@needs_coco
def test_polygons_are_nearly_those_of_pycocotools():
    """It traces outlines on a fine grid; only pixels on the outline may differ."""
    import warnings

    from pycocotools import mask as coder

    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(0, 100, (rng.integers(3, 9), 2))
        points = points[np.argsort(np.arctan2(*(points - points.mean(0)).T))]
        ours = paint((100, 100), [Region("a", [outline(points)])], {"a": 0}) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            packed = coder.frPyObjects([points.ravel().tolist()], 100, 100)
            theirs = coder.decode(coder.merge(packed)).astype(bool)
        differ = np.argwhere(ours != theirs)[:, ::-1] + 0.5
        start, along = points, np.roll(points, -1, axis=0) - points
        share = np.clip(((differ[:, None] - start) * along).sum(-1) / (along**2).sum(-1), 0, 1)
        nearest = np.linalg.norm(differ[:, None] - start - share[..., None] * along, axis=-1).min(1)
        assert (nearest < 1).all()
        assert (ours != theirs).mean() < 0.02


def test_coco_compressed_needs_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    path = coco(
        tmp_path / "in" / "a.json",
        {"a.png": SIZE},
        [(0, 1, {"size": list(SIZE), "counts": "abc"}, 0)],
    )
    picture(tmp_path / "in" / "a.png")
    refused(path, tmp_path / "out", "annotation 100", "pip install 'ccsnet[import]'")


def test_coco_files_as_splits(tmp_path):
    for split, name in (("train", "a.png"), ("valid", "b.png")):  # As Roboflow writes them.
        coco(
            tmp_path / "in" / split / "_annotations.coco.json",
            {name: SIZE},
            [(0, 1, [flat(0, 0, 9, 9)], 0)],
        )
        picture(tmp_path / "in" / split / name)
    made = import_labels(tmp_path / "in", tmp_path / "out")
    assert made.splits == {"train": 1, "val": 1}
    assert (tmp_path / "out" / "images" / "val" / "b.png").is_file()
    coco(tmp_path / "in" / "valid" / "_annotations.coco.json", {}, [], [(1, "car")])
    refused(tmp_path / "in", tmp_path / "two", "have different categories")


@pytest.mark.parametrize(
    ("files", "splits", "options"),
    [
        (("train2017", "val2017"), {"train", "val"}, ""),  # As COCO calls them.
        (("train", "test"), {"train", "val"}, ""),
        (("val", "test"), {"val", "test"}, " --train-split test"),
        (("day", "night"), {"day", "night"}, " --train-split night --val-split day"),
    ],
)
def test_what_comes_next_fits_the_splits(tmp_path, capsys, files, splits, options):
    """The command that is named does train on what was made."""
    for num, name in enumerate(files, start=1):
        images = {f"{name}-{i}.png": SIZE for i in range(num)}
        coco(tmp_path / "in" / f"instances_{name}.json", images, [(0, 1, [flat(0, 0, 9, 9)], 0)])
        for image in images:
            picture(tmp_path / "in" / image)
    out = tmp_path / "out"
    assert run(["data", "import", str(tmp_path / "in"), "--out", str(out)]) == 0
    assert {path.name for path in (out / "images").iterdir()} == splits
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(f"Next: ccsnet train {out}{options}")


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ((0, 1, [flat(0, 0, 9, 9)[:4]], 0), "annotation 100: a polygon has 2 corners"),
        ((0, 1, [flat(0, 0, 9, 9)[:7]], 0), "a polygon has 7 numbers, which are no pairs"),
        ((0, 5, [flat(0, 0, 9, 9)], 0), "No category id is called '5'"),
        ((0, 1, [], 0), "it has no segmentation, only a box"),
        ((0, 1, {"size": [9, 9], "counts": [81]}, 0), "its mask is for [9, 9] pixels"),
        ((0, 1, {"size": list(SIZE), "counts": [9, 9]}, 0), "its runs add up to 18 pixels"),
        ((0, 1, {"counts": [9, 9]}, 0), "annotation 100 is not as COCO's are (KeyError('size'))"),
        ((3, 1, [flat(0, 0, 9, 9)], 0), "lacks something or names what is not there (KeyError(3))"),
    ],
)
def test_coco_mistakes(tmp_path, annotation, text):
    path = coco(tmp_path / "in" / "a.json", {"a.png": SIZE}, [annotation])
    picture(tmp_path / "in" / "a.png")
    refused(path, tmp_path / "out", str(path), text)


def test_images_that_are_elsewhere_or_twice(tmp_path):
    path = coco(
        tmp_path / "in" / "labels" / "a.json", {"x/a.png": SIZE}, [(0, 1, [flat(0, 0, 9, 9)], 0)]
    )
    picture(tmp_path / "in" / "deep" / "photos" / "a.png")
    assert import_labels(tmp_path / "in", tmp_path / "one").splits == {"train": 1}
    picture(tmp_path / "in" / "other" / "a.png")
    refused(tmp_path / "in", tmp_path / "two", "'x/a.png' could be", "--images")
    with pytest.raises(FileNotFoundError, match="No folder"):
        import_labels(path, tmp_path / "two", images=tmp_path / "nowhere")
    coco(path, {"a.png": SIZE, "a.jpg": SIZE}, [])
    picture(path.parent / "a.png")
    picture(path.parent / "a.jpg")
    refused(path, tmp_path / "two", "several images are called 'a'")


def test_huge_sizes_are_refused_before_they_are_made(tmp_path):
    path = coco(
        tmp_path / "in" / "a.json",
        {"a.png": (10**6, 10**6)},
        [(0, 1, {"size": [10**6, 10**6], "counts": [10**12]}, 0)],
    )
    picture(tmp_path / "in" / "a.png")
    refused(path, tmp_path / "out", "annotation 100: a mask of 1000000 x 1000000 pixels")


# CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels>
  <label><name>road</name><color>#804080</color><attributes></attributes></label>
  <label><name>car</name><color>#00008e</color></label>
</labels></task></meta>
{images}
</annotations>
"""
IMAGE = '<image id="0" name="a.png" width="60" height="40"{more}>{shapes}</image>'


def cvat(path, shapes, more="", image=IMAGE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CVAT.format(images=image.format(shapes=shapes, more=more)))
    return path


SHAPES = """
<polygon label="road" occluded="0" points="0.0,20.0;60.0,20.0;60.0,40.0;0.0,40.0" z_order="0">
  <attribute name="wet">no</attribute></polygon>
<box label="car" occluded="0" xtl="10.00" ytl="22.00" xbr="20.00" ybr="28.00" z_order="0"></box>
<ellipse label="car" cx="40.00" cy="10.00" rx="5.00" ry="5.00" z_order="0"></ellipse>
<mask label="car" rle="7, 3, 2, 3, 9" left="50" top="2" width="6" height="4" z_order="0"></mask>
<tag label="car" source="manual"></tag>
"""


def test_cvat(tmp_path):
    cvat(tmp_path / "in" / "annotations.xml", SHAPES)
    picture(tmp_path / "in" / "images" / "a.png")
    made = import_labels(tmp_path / "in", tmp_path / "out")
    assert made.kind == "cvat"
    assert made.classes == ("background", "road", "car")
    labels, spec = read(made)
    assert spec.colours == ((0, 0, 0), (128, 64, 128), (0, 0, 142))
    expected = np.zeros(SIZE, int)
    expected[20:] = 1
    expected[22:28, 10:20] = 2
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    expected[(rows - 10) ** 2 + (columns - 40) ** 2 < 25] = 2
    # 24 pixels along the rows of 6: 7 outside, 3 inside, 2 outside, 3 inside, 9 outside.
    expected[3, 51:54] = expected[4, 50:53] = 2
    assert np.array_equal(labels["a"], expected)


def test_cvat_layers_and_subsets(tmp_path):
    over = (
        '<box label="road" xtl="0" ytl="0" xbr="30" ybr="30" z_order="1"/>'
        '<box label="car" xtl="5" ytl="5" xbr="9" ybr="9" z_order="0"/>'
    )
    images = IMAGE.format(more=' subset="Train"', shapes=over)
    images += IMAGE.format(more=' subset="Validation"', shapes="").replace("a.png", "b.png")
    path = tmp_path / "in" / "annotations.xml"
    path.parent.mkdir()
    path.write_text(CVAT.format(images=images))
    for name in "ab":
        picture(path.parent / f"{name}.png")
    made = import_labels(path, tmp_path / "out")
    assert made.splits == {"train": 1, "val": 1}
    labels, _ = read(made)
    assert np.array_equal(labels["a"] == 1, box(0, 0, 30, 30))


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (
            '<polyline label="car" points="1,1;2,2"/>',
            "shape 1: 'car' is a <polyline>, which has no",
        ),
        ('<polygon label="car" points="1,1;2,2"/>', "shape 1: a polygon has 2 corners"),
        ('<polygon label="car"/>', "shape 1: <polygon> has no 'points'"),
        ('<polygon label="car" points="1,1;2;3,3"/>', "no pairs of numbers"),
        ('<polygon label="bus" points="1,1;2,2;3,1"/>', "No class is called 'bus'"),
        ('<box label="car" xtl="a" ytl="0" xbr="1" ybr="1"/>', "shape 1: could not convert"),
        (
            '<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>',
            "shape 1: its runs add up to 3 pixels, not to 2 x 2",
        ),
        (
            '<mask label="car" rle="1" left="0" top="0" width="99999" height="99999"/>',
            "shape 1: a mask of 99999 x 99999 pixels",
        ),
    ],
)
def test_cvat_mistakes(tmp_path, shapes, text):
    path = cvat(tmp_path / "in" / "annotations.xml", shapes)
    picture(path.parent / "a.png")
    refused(path, tmp_path / "out", f"{path}, image a.png: ", text)


def test_cvat_files_that_are_not(tmp_path):
    path = tmp_path / "in" / "a.xml"
    path.parent.mkdir()
    path.write_text("<annotation><filename>a.jpg</filename></annotation>")
    refused(path, tmp_path / "out", "none of the formats", "a.xml begins with <annotation>")
    refused(path, tmp_path / "out", "is not CVAT's: it begins with <annotation>", kind="cvat")
    path.write_text(CVAT.format(images='<track id="0" label="car"></track>'))
    refused(path, tmp_path / "out", "labels a video", "CVAT for images 1.1")
    path.write_text("<annotations><image>")
    refused(path, tmp_path / "out", "a.xml is no XML: ")
    path.write_text(CVAT.format(images=""))
    refused(path, tmp_path / "out", "holds no image")


def test_entities_are_refused(tmp_path):
    """A file of a few lines that would become gigabytes, and one that reads another file."""
    path = tmp_path / "in" / "annotations.xml"
    path.parent.mkdir()
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(10))
    for kind in (laughs, '<!ENTITY l9 SYSTEM "file:///etc/hostname">', ""):
        path.write_text(f"<!DOCTYPE annotations [{kind}]><annotations>&l9;</annotations>")
        refused(path, tmp_path / "out", "annotations.xml has a DOCTYPE")


# Masks in colours


def masks(root, lists=(("train", ["a"]), ("val", ["b"])), extra=""):
    root.mkdir(parents=True, exist_ok=True)
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n"
        f"car:0,0,142::\n{extra}"
    )
    for name, stems in lists:
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{stem}\n" for stem in stems))
    for stem in "ab":
        picture(root / "JPEGImages" / f"{stem}.jpg")
        colours = np.zeros((*SIZE, 3), np.uint8)
        colours[20:] = (128, 64, 128)
        colours[22:28, 10:20] = (0, 0, 142)
        colours[19] = (224, 224, 192)
        path = root / "SegmentationClass" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(path)
    shutil.copytree(root / "SegmentationClass", root / "SegmentationObject", dirs_exist_ok=True)
    return root


def test_masks(tmp_path):
    root = masks(tmp_path / "in")
    with Image.open(root / "SegmentationClass" / "b.png") as colours:  # As a palette, too.
        colours.quantize(8).save(root / "SegmentationClass" / "b.png")
    made = import_labels(root, tmp_path / "out")
    assert made.kind == "voc"
    assert made.classes == ("background", "road", "car")
    assert made.splits == {"train": 1, "val": 1}
    labels, spec = read(made)
    assert spec.colours == ((0, 0, 0), (128, 64, 128), (0, 0, 142))
    expected = np.zeros(SIZE, int)
    expected[20:] = 1
    expected[22:28, 10:20] = 2
    expected[19] = 255  # Pascal VOC's border.
    assert np.array_equal(labels["a"], expected)
    assert np.array_equal(labels["b"], expected)
    ignoring = import_labels(root, tmp_path / "ignored", unlabelled="ignore")
    assert ignoring.classes == ("road", "car")
    labels, _ = read(ignoring)
    assert (labels["a"][:20] == 255).all()


def test_masks_without_lists_or_images(tmp_path):
    root = masks(tmp_path / "in", lists=())
    assert sum(import_labels(root, tmp_path / "out").splits.values()) == 2
    (root / "JPEGImages").rename(tmp_path / "photos")
    refused(root, tmp_path / "two", "a.png: the image 'a' is not in", "--images")
    made = import_labels(root, tmp_path / "two", images=tmp_path / "photos")
    assert sum(made.splits.values()) == 2


def test_mask_mistakes(tmp_path):
    root = masks(tmp_path / "in")
    mask = root / "SegmentationClass" / "a.png"
    colours = np.asarray(Image.open(mask)).copy()
    colours[:2] = (1, 2, 3)
    Image.fromarray(colours).save(mask)
    refused(
        root, tmp_path / "out", str(mask), "colours that labelmap.txt does not list",
        "(1, 2, 3) (120 pixels)",
    )  # fmt: skip
    mask.unlink()
    with pytest.warns(UserWarning, match="1 of the 2 images that .* have no mask"):
        made = import_labels(root, tmp_path / "one")
    assert read(made)[0].keys() == {"b"}
    (root / "SegmentationClass" / "b.png").unlink()
    with pytest.warns(UserWarning, match="2 of the 2 images"):
        refused(root, tmp_path / "out", "holds no image")
    masks(root, lists=(("train", ["a"]), ("val", ["a"])))
    refused(root, tmp_path / "out", "lists 'a' in train and in val")
    masks(root, extra="bus:0,0,142::\n")
    refused(root, tmp_path / "out", "the colour (0, 0, 142) stands for two classes")
    masks(root, extra="bus:0,0\n")
    refused(root, tmp_path / "out", "labelmap.txt, line 5: 'bus:0,0' is not like")
    masks(root, extra="road:0,0,1::\n")
    refused(root, tmp_path / "out", "line 5: 'road' is there twice")
    (root / "labelmap.txt").write_bytes("stra\u00dfe:128,64,128::\n".encode("latin-1"))
    refused(root, tmp_path / "out", "labelmap.txt is no UTF-8 text", "Save it as UTF-8")
    (root / "labelmap.txt").unlink()
    refused(root, tmp_path / "out", "No", "labelmap.txt, which says", kind="voc")
    refused(root, tmp_path / "out", "none of the formats")


# What it is, and the command


def test_none_of_the_formats(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    text = refused(source, tmp_path / "out", "none of the formats", "no .json, .xml or labelmap")
    for name in ("LabelMe", "COCO", "CVAT for images 1.1", "labelmap.txt"):
        assert name in text
    (source / "package.json").write_text('{"name": "x", "version": 1}')
    (source / "list.json").write_text("[1, 2]")
    refused(source, tmp_path / "out", "list.json holds a list", "package.json holds the keys name")
    refused(source / "list.json", tmp_path / "out", "holds a list, not images", kind="coco")
    refused(source / "list.json", tmp_path / "out", "holds no .xml file", kind="cvat")
    refused(source / "nowhere", tmp_path / "out", "No file or folder")
    refused(source, tmp_path / "out", "No format is called 'yolo'", kind="yolo")
    (source / "export.zip").write_bytes(b"PK")
    refused(source / "export.zip", tmp_path / "out", "Unpack it first")


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    source = tmp_path / "source"
    for name in "abc":
        labelme(source, name, [("car", "polygon", corners(0, 0, 20, 60))])
        picture(source / f"{name}.png")
    out = tmp_path / "out"
    assert cli_data.data(["import", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Imported from labelme" in printed
    assert "50.0" in printed
    assert "3 images (train" in printed
    assert f"ccsnet train {out}" in printed
    with pytest.raises(InputError, match="First comes the source"):
        cli_data.data(["import", "--out", str(out)])
    with pytest.raises(InputError, match="is there already"):
        cli_data.data(["import", str(source), "--out", str(out)])
    with pytest.raises(SystemExit):
        cli_data.data(["import", "--help"])
    assert "--unlabelled" in capsys.readouterr().out


def test_what_is_imported_trains(tmp_path):
    from ccsnet.train import train
    from tests.shapes import tiny_config

    source = tmp_path / "source"
    for number in range(4):
        labelme(source, f"{number}", [("car", "polygon", corners(0, 0, 20, 60))])
        picture(source / f"{number}.png")
    made = import_labels(source, tmp_path / "out")
    assert train(tiny_config(made.folder, steps=1), tmp_path / "run").metrics.images >= 1
