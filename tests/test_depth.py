"""Images of more bits than a model was made for."""

import numpy as np
import pytest
import torch
from torch import nn

from ccsnet.depth import depth_warning
from ccsnet.segmenter import IMAGENET_MEAN, IMAGENET_STD


def model_of(mean, std):
    """A network of which nothing but the statistics is looked at."""
    model = nn.Identity()
    model.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
    model.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
    return model


EIGHT = model_of(IMAGENET_MEAN, IMAGENET_STD)
DEEP = model_of((900.0, 100.0), (400.0, 20.0))


def image_of(highest, dtype=np.uint16):
    image = np.zeros((4, 5, 3), dtype)
    image[1, 2, 0] = highest
    return image


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_beyond_255_are_told_of(dtype):
    text = depth_warning([EIGHT], image_of(4095, dtype), "a/b.tif")
    assert text is not None
    assert "The image a/b.tif has values up to 4095, " in text
    assert "means are 123.675, 116.28, 103.53." in text
    assert depth_warning([EIGHT], image_of(255, dtype)) is None
    assert depth_warning([DEEP, EIGHT], image_of(256, dtype)) is not None


@pytest.mark.parametrize(
    "models",
    [
        [],
        [nn.Identity()],
        [DEEP],
        [model_of((300.0,), (50.0,))],
        [model_of((100.0,), (130.0,))],  # Of values up to 255 at most 124.5.
        [model_of((0.0,), (1.0,))],
    ],
)
def test_other_models_are_not(models):
    assert depth_warning(models, image_of(65535)) is None


def test_all_that_8_bits_can_have_is_known():
    """The statistics of any 8-bit values, the most spread out included, are taken for theirs."""
    rng = np.random.default_rng(0)
    examples = [rng.integers(0, high, 100) for high in (2, 60, 256)]
    for values in (*examples, np.array([0, 255, 255, 255])):
        model = model_of((float(values.mean()),), (float(values.std()) * 0.9999,))
        assert depth_warning([model], image_of(300)) is not None
    assert depth_warning([EIGHT], np.zeros((0, 5, 3), np.uint16)) is None
