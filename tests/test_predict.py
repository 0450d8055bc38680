import dataclasses
import inspect
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ccsnet
from ccsnet.data.transforms import aligned_size
from ccsnet.errors import InputError
from ccsnet.heads._base import Output
from ccsnet.predict import (
    PredictConfig,
    Prediction,
    Predictor,
    find_images,
    predict_files,
)
from tests.shapes import CLASSES, COLOURS


@pytest.fixture(scope="module")
def predictor(run):
    return ccsnet.load(run.out, device="cpu")


@pytest.fixture
def prediction():
    label = np.array([[0, 0, 2], [0, 2, 2]], np.uint8)
    image = np.full((2, 3, 3), 100, np.uint8)
    return Prediction(label=label, classes=CLASSES, colours=COLOURS, image=image)


# One image


def test_shapes_are_found(run, predictor):
    right = total = 0
    for path in sorted((run.data / "images" / "val").iterdir()):
        found = predictor.predict(path)
        label = np.asarray(Image.open(str(path).replace("images", "labels")))
        assert found.label.shape == label.shape
        assert found.label.dtype == np.uint8
        right += (found.label == label)[label != 255].sum()
        total += (label != 255).sum()
    assert right / total == pytest.approx(run.result.metrics.pixel_accuracy, abs=1e-3)


def test_a_path_its_text_and_its_pixels_are_the_same(run, predictor):
    path = run.data / "images" / "val" / "1.png"
    ways = [path, str(path), np.asarray(Image.open(path))]
    labels = [predictor.predict(way).label for way in ways]
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2])


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (33, 65), (100, 31)])
@pytest.mark.parametrize("window", [None, 64])
def test_any_size(predictor, size, window):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = predictor.predict(image, PredictConfig(window=window))
    assert found.label.shape == size


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (8, 8, 1), (2, 8, 8, 3)])
def test_another_number_of_channels(predictor, shape):
    read = inspect.unwrap(Predictor.read)  # Without the tests' check of shapes.
    with pytest.raises(InputError, match="this model takes height x width x 3 channels"):
        read(predictor, np.zeros(shape, np.uint8))


def test_missing_and_damaged_images(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        predictor.predict(tmp_path / "nowhere.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"cut\.png"):
        predictor.predict(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"window": 33}, "window is 33; it must be a multiple of 32"),
        ({"window": -32}, "window is -32"),
        ({"window": 16}, "window is 16"),
        ({"scales": ()}, "each must be from 0.1 to 10"),
        ({"scales": (1.0, float("nan"))}, "each must be from 0.1 to 10"),
        ({"scales": (1.0, 1.0)}, "name each once"),
        ({"max_memory": 0.0}, "max_memory is 0.0; it must be above 0 GiB"),
        ({"overlap": 0.9}, "overlap is 0.9; it must be from 0 to 0.75"),
        ({"overlap": -0.1}, "overlap"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(InputError, match=text):
        PredictConfig(**settings)


def test_whole_image_uses_the_size_of_evaluation(predictor):
    """An image is tested at the sides that the run's data set says."""
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, image):
            seen.append(tuple(image.shape[-2:]))
            return Output(torch.zeros(1, 3, image.shape[-2] // 4, image.shape[-1] // 4))

    info = dataclasses.replace(predictor.info, short_side=128, long_side=256)
    watched = Predictor(predictor.model, info)
    watched.model = Watched()
    assert watched.predict(np.zeros((50, 70, 3), np.uint8)).label.shape == (50, 70)
    assert seen == [aligned_size((50, 70), 128, 256)]


# What a prediction tells


def test_area(prediction):
    assert prediction.area == {"ground": 0.5, "box": 0.5}
    assert list(prediction.area) == ["ground", "box"]
    more = dataclasses.replace(prediction, label=np.array([[2, 2, 1]] * 2, np.uint8))
    assert list(more.area.items()) == [("box", 2 / 3), ("disc", 1 / 3)]


def test_overlay_paints_over_the_image(prediction):
    half = prediction.overlay()
    assert half.dtype == np.uint8
    assert np.abs(half[0, 0] - (100 + np.array(COLOURS[0])) / 2).max() <= 0.5
    assert np.array_equal(prediction.overlay(0.0), prediction.image)
    assert np.array_equal(prediction.overlay(1.0)[1, 1], COLOURS[2])


def test_overlay_of_other_images_than_rgb(prediction):
    for bands, dtype in ((1, np.uint8), (2, np.uint16), (5, np.uint16)):
        image = np.zeros((2, 3, bands), dtype)
        image[0] = 200
        shown = dataclasses.replace(prediction, image=image).overlay(0.0)
        assert shown.shape == (2, 3, 3)
        assert (shown[0] > shown[1]).all()


def test_palette_png_shows_colours_and_keeps_indices(prediction, tmp_path):
    prediction.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as png:
        assert png.mode == "P"
        assert np.array_equal(np.asarray(png), prediction.label)
        shown = np.asarray(png.convert("RGB"))
    assert np.array_equal(shown, np.array(COLOURS)[prediction.label])


def test_index_png_is_grey(prediction, tmp_path):
    prediction.save(str(tmp_path / "index.png"), "index")
    with Image.open(tmp_path / "index.png") as png:
        assert png.mode == "L"
        assert np.array_equal(np.asarray(png), prediction.label)


def test_overlay_png(prediction, tmp_path):
    prediction.save(tmp_path / "deep" / "er" / "overlay.png", "overlay")
    with Image.open(tmp_path / "deep" / "er" / "overlay.png") as png:
        assert np.array_equal(np.asarray(png), prediction.overlay())


# Files


@pytest.fixture
def photos(run, tmp_path):
    """Two images in a folder, one more in a folder of it, and a text."""
    for source, target in (("0", "a.png"), ("1", "B.PNG"), ("2", "deep/c.png")):
        path = tmp_path / "photos" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run.data / "images" / "val" / f"{source}.png", path)
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path / "photos"


def test_images_are_found(photos, monkeypatch):
    def names(*inputs):
        return [str(p.relative_to(photos)) for p in find_images(inputs)]

    assert names(photos) == ["B.PNG", "a.png", "deep/c.png"]
    assert names(str(photos / "a.png"), photos) == ["a.png", "B.PNG", "deep/c.png"]
    assert names(str(photos / "*.png")) == ["a.png"]
    assert names(str(photos / "**" / "*.png")) == ["a.png", "deep/c.png"]
    assert names(f"{photos}/[ab].png") == ["a.png"]
    odd = photos / "x[1].png"  # A file is a file, whatever it is called.
    shutil.copy(photos / "a.png", odd)
    assert names(odd) == ["x[1].png"]
    monkeypatch.chdir(photos.parent)
    assert [str(p) for p in find_images(["photos/a.png"])] == ["photos/a.png"]


def test_nothing_is_found(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file, folder or pattern .*nowhere\.jpg"):
        find_images([tmp_path / "nowhere.jpg"])
    (tmp_path / "empty").mkdir()
    for item in (tmp_path / "empty", str(photos / "*.jpg"), str(photos / "*.txt")):
        with pytest.raises(InputError, match=r"No image in .*: looked for files ending in \.jpg"):
            find_images([item])


def test_files_are_written_below_their_kind(predictor, photos, tmp_path):
    out = tmp_path / "out"
    images = find_images([photos])
    done = list(predict_files(predictor, images, out, save=("index", "color", "overlay")))
    assert [saved.image for saved in done] == images
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))
    assert written == sorted(
        f"{kind}/{n}"
        for kind in ("index", "color", "overlay")
        for n in ("B.png", "a.png", "deep/c.png")
    )
    assert {str(f.relative_to(out)) for saved in done for f in saved.files} == set(written)
    assert np.array_equal(np.asarray(Image.open(out / "index" / "a.png")), done[1].prediction.label)


def test_two_images_of_one_name(predictor, photos, tmp_path):
    Image.open(photos / "a.png").save(photos / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png would both be written to .*a\.png"):
        list(predict_files(predictor, find_images([photos]), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    shutil.copy(photos / "a.png", photos / "deep" / "a.png")  # Another folder: no clash.
    images = find_images([photos / "a.png", photos / "deep"])
    assert len(list(predict_files(predictor, images, tmp_path / "out"))) == 3


def test_existing_results_are_kept(predictor, photos, tmp_path):
    images = [photos / "a.png"]
    list(predict_files(predictor, images, tmp_path / "out"))
    file = tmp_path / "out" / "color" / "a.png"
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"color/a\.png is there already.*--overwrite"):
        list(predict_files(predictor, images, tmp_path / "out"))
    assert file.read_bytes() == b"mine"
    list(predict_files(predictor, images, tmp_path / "out", overwrite=True))
    assert file.read_bytes() != b"mine"


def test_images_named_absolutely_and_relatively(predictor, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    images = find_images(["a.png", str(photos / "deep" / "c.png")])
    saved = list(predict_files(predictor, images, tmp_path / "out"))
    assert len({file for one in saved for file in one.files}) == 2


def test_an_image_that_is_named_twice(predictor, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    images = find_images(["a.png", "./a.png", str(photos / "a.png")])
    assert len(images) == 1
    assert len(list(predict_files(predictor, images, tmp_path / "out"))) == 1
