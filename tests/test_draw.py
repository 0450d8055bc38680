import numpy as np

from ccsnet.draw import colourise, error_map, legend, overlay
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
