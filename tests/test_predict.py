import dataclasses
import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ccsnet
from ccsnet.data.transforms import aligned_size
from ccsnet.errors import InputError
from ccsnet.folders import label_folder
from ccsnet.heads._base import Output
from ccsnet.predict import PredictConfig, Prediction, Predictor
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
    assert right / total == pytest.approx(run.best.pixel_accuracy, abs=1e-3)


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


def test_a_kind_that_is_none(prediction, tmp_path):
    with pytest.raises(InputError, match="No output is called 'colour'"):
        inspect.unwrap(Prediction.save)(prediction, tmp_path / "map.png", "colour")
    assert not list(tmp_path.iterdir())


# Images of more bits than the model knows


def deep_images(folder, highest, num=2):
    """Images of 16 bits with values up to the highest."""
    folder.mkdir()
    for i in range(num):
        pixels = np.random.default_rng(i).integers(0, 200, (40, 56), dtype=np.uint16)
        pixels[5, 5] = highest
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


DEEP = r"deep/0\.png has values up to 256, .* 8 bits, .* 123\.675, 116\.28, 103\.53\. .*--mean"


def test_deeper_images_are_told_of_once(run, tmp_path):
    images = deep_images(tmp_path / "deep", 256)
    predictor = ccsnet.load(run.out, device="cpu")
    with pytest.warns(UserWarning, match=DEEP) as told:
        list(predictor.predict_many([images / "0.png", images / "1.png"]))
    assert len(told) == 1
    predictor.predict(images / "0.png")
    with pytest.warns(UserWarning, match="An image has values up to 65535, but"):
        ccsnet.load(run.out, device="cpu").predict(np.full((32, 32, 3), 65535, np.uint16))


def test_a_folder_of_deeper_images_is_told_of_once(run, tmp_path):
    images = deep_images(tmp_path / "deep", 40_000, num=5)
    predictor = ccsnet.load(run.out, device="cpu")
    with pytest.warns(UserWarning, match=r"deep/\d\.png has values up to 40000,") as told:
        assert label_folder(predictor, [images], tmp_path / "out").labelled == 5
    assert len(told) == 1


def test_nothing_is_told_of_images_that_fit(run, tmp_path):
    """16 bits whose values are those of 8, and models whose statistics are those of 16."""
    predictor = ccsnet.load(run.out, device="cpu")
    predictor.predict(deep_images(tmp_path / "flat", 255, num=1) / "0.png")
    deep = deep_images(tmp_path / "deep", 4000, num=1) / "0.png"
    for mean, std in ((1200.0, 600.0), (100.0, 150.0)):  # No 8 bits have the second either.
        predictor = ccsnet.load(run.out, device="cpu")
        predictor.model.mean.fill_(mean)
        predictor.model.std.fill_(std)
        predictor.predict(deep)
