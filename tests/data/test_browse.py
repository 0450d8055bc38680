import base64
import html
import re

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from ccsnet.cli_data import data
from ccsnet.data.browse import displayable, write_page
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.datasets._split import Split
from ccsnet.errors import InputError
from tests.shapes import COLOURS, YAML, make_shapes


@pytest.fixture
def root(tmp_path):
    return make_shapes(tmp_path / "shapes")


def browse(root, out, **settings):
    spec, folder = open_dataset(DataConfig(dataset=str(root)))
    page = write_page(out, spec, folder, **({"workers": 0} | settings))
    return page, out.read_text("utf-8")


def pixels(source):
    kind, _, text = source.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), 1)[..., ::-1]


def test_the_page_stands_alone(root, tmp_path):
    page, text = browse(root, tmp_path / "page.html")
    sources = re.findall(r'src="([^"]*)"', text)
    # 12 samples of three pictures, three classes, three images six times.
    assert len(sources) == 12 * 3 + 3 + 3 * 6
    assert all(pixels(html.unescape(source)).size for source in sources)
    assert not re.search(r"(href|src)=\"(?!data:)", text)
    assert "<script" not in text
    assert all(name in text for name in ("ground", "disc", "box", "train: 0, 72 x 96"))
    assert [tuple(row[:2]) for row in page.splits] == [("train", "8"), ("val", "4")]
    assert [row.colour for row in page.classes] == [f"rgb{c}" for c in COLOURS]
    assert sum(float(row.share) for row in page.classes) == pytest.approx(100, abs=0.1)


def test_pictures_show_image_label_and_both(root, tmp_path):
    page, _ = browse(root, tmp_path / "page.html")
    image, label, over = (pixels(source) for source in page.samples[0].pictures)
    raw = np.asarray(Image.open(root / "labels/train/0.png"))
    painted = np.array([*COLOURS, (0, 0, 0)])[np.minimum(raw, 3)]
    assert np.array_equal(label, painted)
    original = np.asarray(Image.open(root / "images/train/0.png")).astype(int)
    assert np.abs(image.astype(int) - original).mean() < 12  # JPEG.
    inside = (raw == 0) & (np.indices(raw.shape)[0] > 4)
    blend = (original + painted) / 2
    assert np.abs(over.astype(int) - blend)[inside].mean() < 8


def test_each_class_is_shown_where_it_is_largest(root, tmp_path):
    label = np.zeros((72, 96), np.uint8)
    label[4:60] = 1
    Image.fromarray(label).save(root / "labels/train/6.png")
    page, _ = browse(root, tmp_path / "page.html")
    (example,) = [e for e in page.examples if e.name == "disc"]
    assert example.caption == f"{100 * 56 / 72:.1f} % of 6"


@pytest.mark.parametrize(("num", "splits"), [(1, [1, 0]), (2, [1, 1]), (10, [6, 4]), (99, [8, 4])])
def test_samples_are_shared_among_the_splits(root, tmp_path, num, splits):
    page, _ = browse(root, tmp_path / "page.html", num_images=num)
    names = [sample.caption.partition(":")[0] for sample in page.samples]
    assert [names.count("train"), names.count("val")] == splits


def test_what_cannot_be_read_is_told(root, tmp_path):
    (root / "images/train/0.png").write_bytes(b"")
    Image.fromarray(np.full((72, 96), 9, np.uint8)).save(root / "labels/train/2.png")
    page, text = browse(root, tmp_path / "page.html")
    assert len(page.samples) == 10
    assert "0 bytes" in text
    assert "labels/train/2.png holds 9" in text
    assert len(page.problems) == len(set(page.problems)) == 2


def test_names_are_text_not_html(root, tmp_path):
    (root / "dataset.yaml").write_text(YAML.replace("disc", "'<b>disc & co</b>'"))
    _, text = browse(root, tmp_path / "page.html")
    assert "<b>" not in text
    assert "&lt;b&gt;disc &amp; co&lt;/b&gt;" in text


def test_a_split_without_labels_and_one_that_is_not_there(root, tmp_path):
    spec, folder = open_dataset(DataConfig(dataset=str(root)))
    spec.splits.update(  # pyright: ignore[reportAttributeAccessIssue]
        test=Split(images="images/val/*.png"), more=Split(images="nowhere/*.png", count=3)
    )
    page = write_page(tmp_path / "page.html", spec, folder, workers=0)
    assert [row.labels for row in page.splits] == ["8", "4", "0", "0"]
    assert any(len(sample.pictures) == 1 for sample in page.samples)
    assert any("nowhere" in problem for problem in page.problems)


def test_nothing_there(root, tmp_path):
    spec, _ = open_dataset(DataConfig(dataset=str(root)))
    with pytest.raises(FileNotFoundError, match="images/train"):
        write_page(tmp_path / "page.html", spec, tmp_path / "empty", workers=0)
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(InputError, match="number of images is 0"):
        browse(root, tmp_path / "page.html", num_images=0)


def test_images_of_any_bands(tmp_path):
    root = make_shapes(
        tmp_path / "bands", yaml=YAML.replace("*.png\nlabels", "*.tif\nlabels") + "channels: 5\n"
    )
    rng = np.random.default_rng(0)
    for path in (root / "images").rglob("*.png"):
        size = np.asarray(Image.open(path)).shape[:2]
        bands = rng.integers(300, 4000, (*size, 5), dtype=np.uint16)
        tifffile.imwrite(
            path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig"
        )
    page, _ = browse(root, tmp_path / "page.html")
    assert len(page.samples) == 12
    assert len(page.views) == 3
    assert pixels(page.samples[0].pictures[0]).std() > 30


def test_displayable_keeps_rgb_and_stretches_the_rest():
    rng = np.random.default_rng(0)
    rgb = rng.integers(50, 60, (40, 40, 3), dtype=np.uint8)
    assert np.array_equal(displayable(rgb), rgb)
    grey = displayable(rgb[..., :1])
    assert np.array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    deep = displayable(rng.integers(1000, 1200, (40, 40, 3)).astype(np.uint16))
    assert (deep.min(), deep.max()) == (0, 255)


def test_command(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data(["browse", str(root), "--images", "2", "--workers", "0"]) == 0
    assert (tmp_path / "shapes.html").exists()
    assert "Open the page" in capsys.readouterr().out
    (root / "images/train/0.png").write_bytes(b"")
    arguments = ["browse", str(root), "--out", "x/y.html", "--workers", "0"]
    assert data(arguments) == 0
    assert (tmp_path / "x/y.html").exists()
    assert "1 problem, told in the page" in capsys.readouterr().out
