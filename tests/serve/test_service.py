"""Each route over a real model: what is answered equals what the library says of the file."""

import io
import json
import re
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

import ccsnet
from ccsnet.predict import load
from ccsnet.serve.docs_page import docs_page
from tests.shapes import CLASSES, COLOURS

PNG = {"Content-Type": "image/png"}


def read(response):
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return load(checkpoint, "cpu")


@pytest.fixture(scope="module")
def written(predictor, images, tmp_path_factory):
    """What `ccsnet predict` writes of the first picture."""
    folder = tmp_path_factory.mktemp("written")
    prediction = predictor.predict(images[0])
    for kind in ("index", "color", "overlay"):
        prediction.save(folder / kind, kind)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_label_map_is_the_models(client, predictor, images, pictures):
    for image, picture in zip(images, pictures, strict=True):
        response = client.post("/predict", content=picture, headers=PNG)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
        np.testing.assert_array_equal(read(response), predictor.predict(image).label)


@pytest.mark.parametrize(
    ("output", "kind"), [("label", "index"), ("palette", "color"), ("overlay", "overlay")]
)
def test_pictures_are_those_that_predict_writes(client, written, pictures, output, kind):
    response = client.post(f"/predict?output={output}", content=pictures[0], headers=PNG)
    assert response.content == written[kind]


def test_a_form_a_body_without_type_and_a_jpeg(client, pictures):
    whole = client.post("/predict", content=pictures[0], headers=PNG).content
    form = client.post("/predict", files={"file": ("any name.png", pictures[0], "image/png")})
    bare = client.post("/predict", content=pictures[0])
    assert form.content == bare.content == whole
    overlay = client.post("/predict?output=overlay-jpeg", content=pictures[0], headers=PNG)
    assert (overlay.headers["content-type"], overlay.content[:3]) == ("image/jpeg", b"\xff\xd8\xff")


def test_what_is_too_long_for_a_jpeg(client, pictures):
    """Is said of it alone; a PNG of it can be had."""
    done, strip = cv2.imencode(".png", np.zeros((1, 65_600, 3), np.uint8))
    assert done
    response = client.post("/predict?output=overlay-jpeg", content=strip.tobytes(), headers=PNG)
    assert response.status_code == 422
    assert "Ask for output=overlay" in response.json()["error"]
    assert client.post("/predict?output=overlay", content=strip.tobytes()).status_code == 200
    files = [
        ("files", (n, d, "image/png")) for n, d in (("a", strip.tobytes()), ("b", pictures[0]))
    ]
    found = client.post("/predict/batch?output=overlay-jpeg", files=files)
    assert found.status_code == 200


def test_areas(client, predictor, images, pictures):
    found = client.post("/predict?output=areas", content=pictures[1], headers=PNG).json()
    expected = predictor.predict(images[1])
    assert (found["height"], found["width"], found["model"]) == (64, 80, "tiny.safetensors")
    assert {area["name"]: area["share"] for area in found["areas"]} == expected.area
    assert [area["name"] for area in found["areas"]] == list(expected.area)
    assert sum(area["pixels"] for area in found["areas"]) == expected.label.size
    for area in found["areas"]:
        assert CLASSES[area["index"]] == area["name"]


def test_several_images(client, pictures):
    """One that is none has its error, and the others go on; names are only shown."""
    names = ["a.png", "../../etc/passwd", "b.png"]
    contents = [pictures[0], b"hello", pictures[1]]
    files = [("files", (name, data)) for name, data in zip(names, contents, strict=True)]
    found = client.post("/predict/batch", files=files).json()["images"]
    assert [(one["name"], one["status"]) for one in found] == list(
        zip(names, [200, 415, 200], strict=True)
    )
    assert "no known image" in found[1]["error"]
    alone = [client.post("/predict?output=areas", content=pictures[i]).json() for i in (0, 1)]
    assert [found[0]["result"], found[2]["result"]] == alone


def test_an_archive_of_several(client, pictures):
    files = [("files", (name, pictures[0])) for name in ("../x/y.png", ".png", "a.png")]
    files.insert(1, ("files", ("bad.png", b"no image")))
    response = client.post("/predict/batch?output=label", files=files)
    assert response.headers["content-type"] == "application/zip"
    alone = client.post("/predict", content=pictures[0]).content
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        told = json.loads(archive.read("areas.json"))["images"]
        names = ["0000_x_y.png", None, "0002.png", "0003_a.png"]
        assert [one.get("file") for one in told] == names
        assert sorted(archive.namelist()) == sorted([*filter(None, names), "areas.json"])
        assert all(archive.read(name) == alone for name in names if name)
        assert [one["status"] for one in told] == [200, 415, 200, 200]


def test_the_classes(client):
    found = client.get("/classes").json()
    assert (found["dataset"], found["channels"]) == ("shapes", 3)
    assert [one["name"] for one in found["classes"]] == list(CLASSES)
    assert [tuple(one["colour"]) for one in found["classes"]] == list(COLOURS)


def test_health_and_metrics(client, pictures):
    assert client.get("/health").json() == {
        "status": "ready",
        "model": "tiny.safetensors",
        "queue": 0,
    }
    client.post("/predict", content=pictures[0])
    client.post("/predict", content=b"no image")
    client.get("/no/such/path")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    for line in (
        'ccsnet_requests_total{route="/predict",status="200"} 1.0',
        'ccsnet_requests_total{route="/predict",status="415"} 1.0',
        'ccsnet_requests_total{route="other",status="404"} 1.0',
        'ccsnet_request_seconds_count{route="/predict"} 2.0',
        "ccsnet_queue_images 0.0",
        "ccsnet_batch_images_count 1.0",
        "ccsnet_worker_restarts_total 0.0",
        "ccsnet_ready 1.0",
    ):
        assert line in lines


def test_every_answer_has_an_id(client):
    given = client.get("/health", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    bad = client.get("/health", headers={"X-Request-Id": "two\twords"})
    assert bad.headers["x-request-id"].isalnum()
    refused = client.post("/predict", content=b"no image")
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_the_document_and_its_page(client):
    document = client.get("/openapi.json").json()
    assert document["info"]["version"] == ccsnet.__version__
    assert set(document["paths"]) == {
        "/predict",
        "/predict/batch",
        "/classes",
        "/health",
        "/metrics",
    }
    response = client.get("/")
    assert response.url.path == "/docs"
    page = response.text
    assert page == docs_page(document, "http://testserver/")
    # Nothing of it comes from elsewhere, and a browser would not load it if it did.
    assert set(re.findall(r"\w+://[\w.]+", page)) == {"http://testserver"}
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import", page)
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/predict", 405, "GET is not taken here: send POST. /docs says how."),
        ("POST", "/health", 405, "POST is not taken here: send GET. /docs says how."),
        ("GET", "/etc/passwd", 404, "nothing at this address"),
    ],
)
def test_what_is_not_there(client, method, path, status, told):
    response = client.request(method, path)
    assert response.status_code == status
    assert told in response.json()["error"]
    assert set(response.json()) == {"error", "request_id"}
