"""Models and pages that the tests of the page share."""

import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from ccsnet.app.server import create_app
from ccsnet.checkpoint import ClassInfo
from ccsnet.data.images import write_png
from ccsnet.predict import Predictor, load
from ccsnet.segmenter import create_segmenter
from tests.shapes import CLASSES, COLOURS, scene, tiny_model

ORIGIN = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def trained(run):
    """The model with the head ccs that has learnt the shapes."""
    return load(run.out, "cpu")


@pytest.fixture(scope="session")
def other():
    """A model of the same classes, whose head looks at nothing."""
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS)
    model = create_segmenter(tiny_model("fcn"), num_classes=3, load_weights=False)
    return Predictor(model.eval(), info)


@pytest.fixture(scope="session")
def many():
    """A model of 300 classes."""
    classes = tuple(f"class {i}" for i in range(300))
    colours = tuple((i % 256, 100 + i // 256, 50) for i in range(300))
    info = ClassInfo(dataset="many", classes=classes, colours=colours)
    model = create_segmenter(tiny_model("fcn"), num_classes=300, load_weights=False)
    return Predictor(model.eval(), info)


@pytest.fixture(scope="session")
def picture():
    """An image of 72 x 96 pixels with a disc and a box."""
    return scene(np.random.default_rng(5), (72, 96))[0]


@pytest.fixture(scope="session")
def picture_file(picture, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a picture.png"
    write_png(path, picture)
    return path


@pytest.fixture
def client(trained):
    """A browser of the page of one model, without the page."""
    with TestClient(create_app([trained], ["shapes"]), base_url=ORIGIN) as made:
        yield made


def ended(client, answer):
    """The job that an answer names, when it is over."""
    assert answer.status_code == 202, answer.text
    return outcome(client, answer.json()["job"])


def outcome(client, number, timeout=30.0):
    """The job of a number, when it is over."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        job = client.get(f"/api/jobs/{number}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.01)
    raise AssertionError("the job did not end")


def labelled(client, data, query="name=it.png"):
    """What the page is told of an image that it sends."""
    job = ended(client, client.post(f"/api/images?{query}", content=data))
    assert job["state"] == "done", job
    return job["result"]
