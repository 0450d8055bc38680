"""A tiny checkpoint, pictures as bytes, and applications over them."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ccsnet.checkpoint import ClassInfo, save_checkpoint
from ccsnet.segmenter import create_segmenter
from ccsnet.serve.service import create_app
from tests.serve.engines import HereEngine
from tests.shapes import CLASSES, COLOURS, SIZES, scene, tiny_config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """An untrained model of three classes."""
    import torch

    folder = tmp_path_factory.mktemp("served")
    config = tiny_config(folder)
    torch.manual_seed(0)
    network = create_segmenter(config.model, num_classes=3, in_channels=3)
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS, channels=3)
    path = folder / "tiny.safetensors"
    save_checkpoint(path, network.state_dict(), config, info, step=1)
    return path


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def images():
    """Of several sizes, two of one."""
    rng = np.random.default_rng(0)
    return [scene(rng, size)[0] for size in SIZES]


@pytest.fixture(scope="session")
def pictures(images):
    """The same as files."""
    return [png(image) for image in images]


@pytest.fixture(scope="session")
def here(checkpoint):
    """The engine that has the checkpoint in this process."""
    return HereEngine(checkpoint)


@pytest.fixture
def client(here):
    """Of the application over the checkpoint."""
    with TestClient(create_app(here)) as made:
        yield made


def until(condition, seconds=10):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
