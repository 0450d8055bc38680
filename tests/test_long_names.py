"""Images whose names are as long as names can be: their results, records and failures."""

import os

import numpy as np
import pytest
from PIL import Image

from ccsnet.checkpoint import ClassInfo
from ccsnet.folders import RECORDS, label_folder
from ccsnet.outputs import KINDS
from ccsnet.predict import Predictor
from ccsnet.segmenter import create_segmenter
from tests.shapes import CLASSES, COLOURS, scene, tiny_model


def named(letter, suffix, size=255):
    """A name of so many bytes."""
    rest, width = size - len(suffix), len(letter.encode())
    return "x" * (rest % width) + letter * (rest // width) + suffix


@pytest.fixture(scope="module")
def predictor():
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS, channels=3)
    return Predictor(create_segmenter(tiny_model(), num_classes=3).eval(), info)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = scene(np.random.default_rng(0), (64, 80))[0]
    for letter, suffix in (("漢", ".png"), ("é", ".tif"), ("\U0001f600", ".webp"), ("y", ".jpg")):
        Image.fromarray(pixels).save(folder / f"a{suffix}")
        (folder / f"a{suffix}").rename(folder / named(letter, suffix))
    return folder


SAVE = tuple(kind for kind in KINDS if kind != "relevant")


def test_results_of_the_longest_names(predictor, images, tmp_path):
    out = tmp_path / "out"
    result = label_folder(predictor, [images], out, save=SAVE, summary=out / "all.json")
    assert (result.labelled, result.failures) == (4, ())
    for kind in ("index", "color", "prob"):
        made = [os.fsencode(file.name) for file in (out / kind).iterdir()]
        assert len(made) == 4
        assert max(map(len, made)) == 255
    again = label_folder(predictor, [images], out, save=SAVE, resume=True)
    assert (again.labelled, again.done_before) == (0, 4)
    assert not [file for file in (out / RECORDS).iterdir() if file.suffix != ".json"]


def test_a_name_that_no_result_can_have_fails_alone(predictor, images, tmp_path):
    """Named outright, an image may have any suffix, or none: its result's is longer."""
    pixels = scene(np.random.default_rng(0), (64, 80))[0]
    Image.fromarray(pixels).save(images / "a.png")
    (images / "a.png").rename(images / named("漢", ""))
    inputs = sorted(images.iterdir())
    out = tmp_path / "out"
    result = label_folder(predictor, inputs, out, save=("index", "area"))
    assert result.labelled == 4
    ((image, text),) = result.failures
    assert image == str(images / named("漢", ""))
    assert "259 bytes, and a file's name has 255 at most. Give the image a shorter name" in text
    again = label_folder(predictor, inputs, out, save=("index", "area"), resume=True)
    assert (again.done_before, len(again.failures)) == (4, 1)
