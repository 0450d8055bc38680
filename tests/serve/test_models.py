"""The model inside a worker: what goes together, and failures that take nothing with them."""

import dataclasses
import logging
import subprocess
import sys

import numpy as np
import pytest

from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig
from ccsnet.serve.models import Facts, Failure, Trained, label_each, open_model
from ccsnet.serve.settings import Source


def trained(checkpoint, sides=None, **config):
    """The model, tested at a short side where one is given."""
    model = Trained(Source(run=str(checkpoint), config=PredictConfig(**config), cpu=True))
    if sides is not None:
        predictor = model.predictor
        predictor.info = dataclasses.replace(predictor.info, short_side=sides[0])
        model.pipeline = predictor.pipeline(dataclasses.replace(model.config, overlap=0.3))
        model.config = model.pipeline.config
    return model


def noise(*size, bands=3, dtype=np.uint8):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, bands), dtype)


def test_images_of_two_sizes_that_the_network_sees_alike_go_together(checkpoint):
    """Each gets its own label map, at its own size, and it is that of the image alone."""
    model = trained(checkpoint, sides=(64,))
    images = [noise(128, 160), noise(64, 80), noise(96, 120)]
    assert len({model.key(image) for image in images}) == 1
    assert model.key(noise(160, 128)) != model.key(images[0])
    assert model.key(noise(128, 160, dtype=np.uint16)) != model.key(images[0])
    together = model.label(images)
    for image, label in zip(images, together, strict=True):
        alone = model.predictor.predict(image, model.config).label
        assert (label.shape, label.dtype) == (image.shape[:2], alone.dtype)
        np.testing.assert_array_equal(label, alone)


@pytest.mark.parametrize(
    "config", [{}, {"flip": True}, {"window": 64}, {"scales": (0.5, 1.0)}, {"precision": "bf16"}]
)
def test_in_every_way_of_seeing(checkpoint, config):
    model = trained(checkpoint, **config)
    images = [noise(70, 90), noise(70, 90)[::-1].copy()]
    assert model.key(images[0]) == model.key(images[1])
    together = model.label(images)
    alone = [model.predictor.predict(image, model.config).label for image in images]
    np.testing.assert_array_equal(together, alone)


def test_as_many_as_predict_takes_together(checkpoint):
    assert trained(checkpoint).at_once(noise(64, 64)) == 4
    assert trained(checkpoint, batch_size=7).at_once(noise(64, 64)) == 7
    assert trained(checkpoint, window=64).at_once(noise(640, 640)) == 1
    # It does not fit at all: labelling it says so.
    assert trained(checkpoint, max_memory=0.01).at_once(noise(64, 64)) == 1


ERRORS = {
    1: InputError("too dark"),
    2: MemoryError(),
    3: RuntimeError("[enforce fail] can't allocate memory: you tried 9 bytes"),
    4: ZeroDivisionError("a secret path"),
}


class Broken:
    """Labels no image with a pixel of these values."""

    facts = Facts(name="broken", classes=("a",), colours=((1, 2, 3),), channels=1, dataset="none")

    def key(self, image):
        return 0

    def at_once(self, image):
        return 4

    def label(self, images):
        for image in images:
            if image[0, 0, 0]:
                raise ERRORS[image[0, 0, 0]]
        return [np.zeros(image.shape[:2], np.uint8) for image in images]


def test_one_that_fails_takes_no_other_with_it(caplog):
    images = [np.full((2, 2, 1), value, np.uint8) for value in (0, 1, 2, 0, 3, 4)]
    with caplog.at_level(logging.ERROR, "ccsnet.serve"):
        found = label_each(Broken(), images)
    assert [one.status if isinstance(one, Failure) else 200 for one in found] == [
        *(200, 422, 413, 200, 413, 500)
    ]
    assert found[1].text == "too dark"
    assert "secret" not in found[5].text
    assert "a secret path" in caplog.text


def test_other_bands_than_the_models(checkpoint):
    (found,) = label_each(trained(checkpoint), [noise(64, 64, bands=4)])
    assert found.status == 422
    assert "3 channels" in found.text


def test_an_exported_file_is_served_alone(tmp_path):
    file = tmp_path / "model.onnx"
    with pytest.raises(InputError, match="served alone"):
        open_model(Source(run=str(file), also=("runs/b",), config=PredictConfig()))
    with pytest.raises(InputError, match="takes --batch-size alone"):
        open_model(Source(run=str(file), config=PredictConfig(flip=True)))
    with pytest.raises(FileNotFoundError):
        open_model(Source(run=str(file), config=PredictConfig(batch_size=2)))


def test_strangers_hear_a_name_and_no_path(checkpoint):
    assert trained(checkpoint).facts.name == "tiny.safetensors"
    assert Source(run="someone/model@v1", config=PredictConfig()).name == "someone/model@v1"


def test_the_server_itself_needs_no_torch():
    code = "import sys, ccsnet.cli_serve, ccsnet.serve.launch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
