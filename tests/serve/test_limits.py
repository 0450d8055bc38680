"""What the server does not do: each limit, each time-out, each wrong token; and it stays usable."""

import asyncio
import concurrent.futures
import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from ccsnet.errors import InputError
from ccsnet.serve.bodies import places_of
from ccsnet.serve.models import Failure
from ccsnet.serve.service import create_app
from ccsnet.serve.settings import ServeSettings
from tests.serve.conftest import png, until
from tests.serve.engines import TameEngine

IMAGE = png(np.zeros((20, 30, 3), np.uint8))
TOKEN = "0123456789abcdef0123"


@contextlib.contextmanager
def served(engine=None, token=None, **limits):
    engine = engine or TameEngine()
    app = create_app(engine, ServeSettings(**limits), token)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.serving = app.state.serving
        yield client
        engine.go_on()
        # Whatever happened, everything was given back.
        until(lambda: app.state.serving.places.taken == 0)
        assert app.state.serving.budget.used == 0


def status_of(client, content=IMAGE, path="/predict", **options):
    response = client.post(path, content=content, **options)
    if response.status_code != 200:
        assert set(response.json()) == {"error", "request_id"}
        assert "Traceback" not in response.text
    return response.status_code


def test_bytes_and_pixels():
    with served(max_bytes=len(IMAGE), max_pixels=600) as client:
        assert status_of(client) == 200
        assert status_of(client, IMAGE + b"\0") == 413
        assert status_of(client, png(np.zeros((20, 31, 3), np.uint8))) == 413
        form = client.post("/predict", files={"file": ("a", bytes(100_000))})
        assert form.status_code == 413


def test_files_of_a_batch():
    with served(max_files=2, max_bytes=50_000, queue=3) as client:

        def batch(*contents):
            files = [("files", ("a.png", content)) for content in contents]
            return client.post("/predict/batch", files=files)

        assert batch(IMAGE, IMAGE).status_code == 200
        many = batch(IMAGE, IMAGE, IMAGE)
        assert (many.status_code, "Too many files" in many.json()["error"]) == (400, True)
        assert batch(bytes(150_000), bytes(150_000)).status_code == 413
        found = batch(bytes(60_000), IMAGE).json()["images"]
        assert [one["status"] for one in found] == [413, 200]
    with served(max_files=9, queue=2) as client:
        files = [("files", ("a.png", IMAGE))] * 3
        assert client.post("/predict/batch", files=files).status_code == 413
    with served() as client:
        assert status_of(client, path="/predict/batch") == 415
        none = client.post("/predict/batch", data={"a": "b"}, files={})
        assert none.status_code == 415


def test_a_full_queue_turns_away_and_says_when_to_come_again():
    engine = TameEngine(waits=True)
    with served(engine, queue=2) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = [pool.submit(status_of, client) for _ in range(2)]
        until(lambda: len(engine.seen) == 2)
        assert client.get("/health").json()["queue"] == 2
        refused = client.post("/predict", content=IMAGE)
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        engine.go_on()
        assert [one.result(10) for one in held] == [200, 200]
        assert status_of(client) == 200


def test_a_batch_takes_a_place_for_every_image():
    engine = TameEngine(waits=True)
    files = [("files", ("a.png", IMAGE))] * 2
    with served(engine, queue=3) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = pool.submit(client.post, "/predict/batch", files=files)
        until(lambda: len(engine.seen) == 2)
        assert client.post("/predict/batch", files=files).status_code == 503
        engine.go_on()
        assert held.result(10).status_code == 200


@pytest.mark.parametrize(
    ("declared", "places"), [("10", 1), ("1000", 1), ("1001", 2), ("9999999", 4), (None, 4)]
)
def test_a_large_form_takes_more_places_while_it_comes(declared, places):
    headers = [] if declared is None else [(b"content-length", declared.encode())]
    request = Request({"type": "http", "headers": headers})
    assert places_of(request, ServeSettings(max_bytes=1000)) == places
    assert places_of(request, ServeSettings(max_bytes=1000, queue=1)) == 1


def test_what_takes_too_long_is_given_up_and_not_computed():
    engine = TameEngine(waits=True)
    with served(engine, timeout=0.2) as client:
        assert status_of(client) == 504
        until(lambda: engine.cancelled == 1)
        engine.go_on()
        assert status_of(client) == 200


def test_decoded_images_are_bounded():
    """Of images that are decoded, two of the largest are there at once; the others wait packed."""
    engine = TameEngine(waits=True)
    with (
        served(engine, max_pixels=600) as client,
        concurrent.futures.ThreadPoolExecutor(5) as pool,
    ):
        held = [pool.submit(status_of, client) for _ in range(5)]
        until(lambda: client.serving.places.taken == 5 and len(engine.seen) == 2)
        assert client.serving.budget.used == 2 * 600 * 3
        engine.go_on()
        assert [one.result(10) for one in held] == [200] * 5


async def conversation(app, receive, *headers):
    """The status that an application answers with to what a client does."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png"), *headers],
    }
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses


@pytest.mark.parametrize(("declared", "most"), [(None, 27), (b"1000000000000", 0)])
def test_no_more_is_read_than_may_be(declared, most):
    """Of a body that says how large it is, not a byte; else, and thrown away, what one may have."""
    app = create_app(TameEngine(), ServeSettings(max_bytes=5000))
    read = 0

    async def receive():
        nonlocal read
        read += 1
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    header = (b"content-length", declared) if declared else (b"transfer-encoding", b"chunked")
    assert asyncio.run(conversation(app, receive, header)) == [413]
    assert read == most


def test_who_went_away_gets_no_computing():
    engine = TameEngine(waits=True)
    app = create_app(engine, ServeSettings())

    async def talk():
        messages = [{"type": "http.request", "body": IMAGE, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not engine.seen:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        return await asyncio.wait_for(conversation(app, receive), 10)

    assert asyncio.run(talk()) == [499]
    assert engine.cancelled == 1
    assert app.state.serving.places.taken == 0


def test_who_stops_sending_is_dropped():
    app = create_app(TameEngine(), ServeSettings(timeout=0.2))

    async def talk():
        messages = [{"type": "http.request", "body": IMAGE[:50], "more_body": True}]

        async def receive():
            if messages:
                return messages.pop()
            return await asyncio.sleep(60)

        return await asyncio.wait_for(conversation(app, receive), 10)

    assert asyncio.run(talk()) == [504]
    assert app.state.serving.places.taken == 0


def test_the_token():
    paths = [("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/classes")]
    paths.append(("GET", "/metrics"))
    good = {"Authorization": f"Bearer {TOKEN}"}
    with served(token=TOKEN) as client:
        for given in (None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN):
            headers = {} if given is None else {"Authorization": given}
            for method, path in paths:
                response = client.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in response.text
        assert status_of(client, headers=good) == 200
        assert client.get("/classes", headers=good).status_code == 200
        for path in ("/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        document = client.get("/openapi.json").json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]


def test_while_there_is_no_model():
    engine = TameEngine()
    with served(engine) as client:
        engine.state = "starting"
        refused = client.post("/predict", content=IMAGE)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        engine.state = "ready"
        engine.lost = True
        lost = client.post("/predict", content=IMAGE)
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "3")
        files = [("files", ("a.png", IMAGE))] * 2
        assert client.post("/predict/batch", files=files).status_code == 503
        engine.lost = False
        assert status_of(client) == 200


def test_while_it_stops():
    with served() as client:
        client.serving.stopping = True
        refused = client.post("/predict", content=IMAGE)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")


def test_what_the_model_fails_on():
    engine = TameEngine()
    with served(engine) as client:
        engine.answer = Failure(status=500, text="The model failed.")
        response = client.post("/predict", content=IMAGE)
        assert (response.status_code, response.json()["error"]) == (500, "The model failed.")
        engine.answer = "no label map"  # Something that nobody has thought of.
        assert status_of(client) == 500
        engine.answer = None
        assert status_of(client) == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=x", 400),
        ("multipart/form-data; boundary=", 400),
        ("image/anything; charset=x", 200),
        ("IMAGE/PNG", 200),
    ],
)
def test_content_types(kind, status):
    with served() as client:
        assert status_of(client, headers={"Content-Type": kind}) == status


def test_a_packed_body():
    with served() as client:
        assert status_of(client, headers={"Content-Encoding": "gzip"}) == 415


@pytest.mark.parametrize("query", ["output=npz", "output=", "output=LABEL", "output=a"])
def test_queries(query):
    with served() as client:
        assert status_of(client, path=f"/predict?{query}") == 422


@pytest.fixture(scope="module")
def open_client():
    with served(max_bytes=20_000, max_files=3, max_pixels=10_000) as client:
        yield client


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(["/predict", "/predict/batch"]),
    kind=st.sampled_from(["image/png", "multipart/form-data; boundary=b", "image/tiff", ""]),
    start=st.sampled_from([b"", b"--b\r\n", IMAGE[:16], IMAGE, b"--b\r\nContent-Disposition: "]),
    rest=st.binary(max_size=300),
)
def test_any_body_is_answered(open_client, path, kind, start, rest):
    response = open_client.post(path, content=start + rest, headers={"Content-Type": kind})
    assert response.status_code in (200, 400, 413, 415, 422)
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": 0},
        {"max_bytes": 0},
        {"max_pixels": -1},
        {"max_files": 0},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"grace": -1.0},
        {"max_wait_ms": -0.5},
    ],
)
def test_settings_that_mean_nothing(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is .*must be"):
        ServeSettings(**wrong)
