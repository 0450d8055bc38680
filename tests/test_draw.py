import numpy as np
import pytest

from ccsnet.draw import colourise, error_map, legend, overlay, rgb_of
from tests.shapes import CLASSES, COLOURS


def test_colourise():
    label = np.array([[0, 1], [2, 255]], np.uint8)
    expected = [[COLOURS[0], COLOURS[1]], [COLOURS[2], (0, 0, 0)]]
    assert colourise(label, COLOURS).tolist() == np.array(expected).tolist()


def test_many_classes():
    colours = [(i % 256, i // 256, 7) for i in range(1000)]
    label = np.array([[999, 300, 65535]], np.uint16)
    assert colourise(label, colours).tolist() == [[[231, 3, 7], [44, 1, 7], [0, 0, 0]]]


def test_overlay_leaves_unlabelled_pixels():
    image = np.full((1, 2, 3), 200, np.uint8)
    shown = overlay(image, np.array([[1, 255]], np.uint8), COLOURS, opacity=0.25)
    expected = 0.75 * 200 + 0.25 * np.array(COLOURS[1])
    assert np.abs(shown[0, 0] - expected).max() <= 0.5
    assert shown[0, 1].tolist() == [200, 200, 200]


def test_legend_shows_every_colour():
    for columns in (1, 2, 3):
        picture = legend(CLASSES, COLOURS, columns=columns)
        assert picture.dtype == np.uint8
        pixels = {tuple(p) for p in picture.reshape(-1, 3).tolist()}
        assert set(COLOURS) <= pixels
        assert (255, 255, 255) in pixels
    tall, wide = legend(CLASSES, COLOURS), legend(CLASSES, COLOURS, columns=3)
    assert tall.shape[0] > wide.shape[0]
    assert tall.shape[1] < wide.shape[1]


def test_error_map():
    label, prediction = np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 1]], np.uint8)
    right, wrong, ignored = error_map(label, prediction)[0].tolist()
    assert len({tuple(right), tuple(wrong), tuple(ignored)}) == 3
    assert ignored == [255, 255, 255]
    assert wrong[0] > wrong[1] + 100


@pytest.mark.parametrize("bands", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_any_bands_are_stretched_to_a_screens(bands, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(20, 80, (30, 40, bands)).astype(dtype)
    shown = rgb_of(image)
    assert (shown.shape, shown.dtype) == ((30, 40, 3), np.uint8)
    assert shown.min() == 0
    assert shown.max() == 255
    grey = np.array_equal(shown[..., 0], shown[..., 1])
    assert grey == (bands < 3)
    assert rgb_of(image, (15, 20)).shape == (15, 20, 3)


def test_rgb_is_shown_as_it_is_and_deep_rgb_is_stretched():
    image = np.random.default_rng(0).integers(100, 120, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(rgb_of(image), image)
    deep = image.astype(np.uint16) * 100
    assert rgb_of(deep).max() == 255
    assert rgb_of(np.full((4, 4, 1), 7, np.uint16)).max() == 0


def test_fractions_are_shown():
    """Such as reflectances: they are stretched like all others."""
    steps = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10, 1)
    shown = rgb_of(steps, (10, 5))
    assert shown.min() == 0
    assert shown.max() == 255
    assert (np.diff(rgb_of(steps)[..., 0].ravel().astype(int)) >= 0).all()
