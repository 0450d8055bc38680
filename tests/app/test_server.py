"""What the page asks of its server, and who else may."""

import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from ccsnet.app import results, server, why
from ccsnet.app.guard import HEADERS
from ccsnet.app.jobs import MAX_WAITING
from ccsnet.app.server import create_app
from ccsnet.app.settings import AppSettings
from ccsnet.attention import attention_of
from ccsnet.data.images import read_image
from ccsnet.draw import overlay
from ccsnet.errors import InputError
from ccsnet.folders import label_folder
from ccsnet.predict import Predictor
from ccsnet.predict_config import PredictConfig
from ccsnet.segmenter import create_segmenter
from tests.app.conftest import ORIGIN, ended, labelled, outcome
from tests.shapes import COLOURS, tiny_model


def test_the_page_and_its_files_are_there(client):
    assert "<title>ccsnet</title>" in client.get("/").text
    for name in ("main.js", "style.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    for name in ("nothing.js", "..%2Fserver.py", "%2Fetc%2Fpasswd", "index.html%00.js"):
        assert client.get(f"/static/{name}").status_code == 404


def test_every_file_that_the_page_names_is_served(client):
    names = {path.name for path in server.STATIC.iterdir()}
    texts = [path.read_text("utf-8") for path in server.STATIC.iterdir()]
    assert all("http://" not in t.replace("http://www.w3.org/2000/svg", "") for t in texts)
    assert not any("https://" in text for text in texts)
    for name in names - {"index.html"}:
        assert any(name in text for text in texts), f"{name} is never used"


def test_it_says_what_the_model_knows(client, trained):
    about = client.get("/api/about").json()
    assert about["classes"] == list(trained.classes)
    assert about["models"][0]["name"] == "shapes"
    assert about["models"][0]["what"] == "ccs on test_efficientnet"
    assert about["models"][0]["silent"] is None
    assert [e["name"] for e in about["examples"]] == ["0", "1", "2", "3"]  # Its validation images.
    thumbnail = client.get("/api/examples/1/thumbnail")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert client.get("/api/examples/9/thumbnail").status_code == 404


def test_labels_are_those_of_predict(client, trained, picture, picture_file):
    facts = labelled(client, picture_file.read_bytes())
    expected = trained.predict(picture, keep_probs=True)
    raw = client.get(f"/api/results/{facts['id']}/0/label").content
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(72, 96), expected.label)
    assert facts["views"][0]["bytes"] == 1
    shares = dict(zip(trained.classes, facts["views"][0]["shares"], strict=True))
    assert {name: share for name, share in shares.items() if share} == expected.area

    assert expected.probs is not None
    greatest = expected.probs.astype(np.float32).max(0)
    raw = client.get(f"/api/results/{facts['id']}/0/confidence").content
    confidence = np.frombuffer(raw, np.uint8).reshape(facts["views"][0]["confidence"])
    assert np.abs(confidence / 255 - greatest).max() < 0.004  # Half a step of 1/255, and float16.
    assert facts["views"][0]["uncertainty"] == pytest.approx(1 - greatest.mean(), abs=1e-3)


def test_files_are_those_of_predict(client, trained, picture, picture_file, tmp_path):
    label_folder(trained, [picture_file], tmp_path, save=["index", "color", "overlay"])
    facts = labelled(client, picture_file.read_bytes())
    for kind in ("index", "color", "overlay"):
        answer = client.get(f"/api/results/{facts['id']}/0/{kind}.png")
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.content == (tmp_path / kind / "a picture.png").read_bytes()
    assert client.get(f"/api/results/{facts['id']}/0/nothing.png").status_code == 404

    query = "opacity=0.8&hidden=0,2"
    shown = tmp_path / "shown.png"
    shown.write_bytes(client.get(f"/api/results/{facts['id']}/0/overlay.png?{query}").content)
    label = trained.predict(picture).label
    only_discs = np.where(label == 1, 1, 255).astype(np.uint8)
    assert np.array_equal(read_image(shown), overlay(picture, only_discs, COLOURS, 0.8))
    for wrong in ("opacity=2", "opacity=nan", "opacity=x", "hidden=a"):
        assert client.get(f"/api/results/{facts['id']}/0/overlay.png?{wrong}").status_code == 422


def test_the_picture_is_shown_as_it_is(client, picture, picture_file, tmp_path, monkeypatch):
    facts = labelled(client, picture_file.read_bytes())
    answer = client.get(f"/api/results/{facts['id']}/image")
    (tmp_path / "a.png").write_bytes(answer.content)
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)
    monkeypatch.setattr(server, "LOSSLESS_PIXELS", 100)
    answer = client.get(f"/api/results/{facts['id']}/image")
    assert answer.headers["content-type"] == "image/jpeg"


def test_a_name_that_is_no_text(trained, picture_file, tmp_path):
    path, gone = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.png", b"\xe9.png"))
    shutil.copy(picture_file, path)
    with TestClient(create_app([trained], folder=[path, gone]), base_url=ORIGIN) as client:
        names = client.get("/api/about").json()["folder"]
        assert [os.fsencode(name) for name in names] == [b"caf\xe9.png", b"\xe9.png"]
        brief = ended(client, client.post("/api/folder/0?brief=1"))["result"]
        assert os.fsencode(brief["name"]) == b"caf\xe9.png"
        assert ended(client, client.post("/api/folder/1"))["state"] == "failed"


def test_examples_and_the_folder_are_opened_by_number(trained, picture_file):
    app = create_app([trained], folder=[picture_file, picture_file.with_name("gone.png")])
    with TestClient(app, base_url=ORIGIN) as client:
        assert client.get("/api/about").json()["folder"] == ["a picture.png", "gone.png"]
        assert ended(client, client.post("/api/examples/0"))["result"]["width"] == 96
        brief = ended(client, client.post("/api/folder/0?brief=1"))["result"]
        assert brief["name"] == "a picture.png"
        assert brief["thumbnail"].startswith("data:image/jpeg;base64,")
        assert 0 <= brief["uncertainty"] <= 1
        gone = ended(client, client.post("/api/folder/1"))
        assert (gone["state"], gone["status"]) == ("failed", 422)
        for path in ("/api/folder/2", "/api/examples/99", "/api/folder/x", "/api/folder/..%2F0"):
            assert client.post(path).status_code == 404


def test_what_cannot_be_used_is_said(trained, picture_file):
    settings = AppSettings(max_megabytes=0.05, max_megapixels=0.008)
    app = create_app([trained], settings=settings, folder=[picture_file])
    with TestClient(app, base_url=ORIGIN) as client:
        job = ended(client, client.post("/api/images?name=x", content=b"no image at all"))
        assert (job["state"], job["status"]) == ("failed", 415)
        assert "no image that can be read" in job["error"]
        whole = picture_file.read_bytes()
        job = ended(client, client.post("/api/images", content=whole[: len(whole) // 2]))
        assert (job["state"], job["status"]) == ("failed", 422)
        assert ended(client, client.post("/api/images", content=whole))["state"] == "done"
        too_large = client.post("/api/images", content=b"x" * 60_000)
        assert too_large.status_code == 413

        def parts():  # Their number of bytes is not said before.
            for _ in range(60):
                yield b"x" * 1000

        assert client.post("/api/images", content=parts()).status_code == 413
        assert client.post("/api/images?seen=never", content=whole).status_code == 422


def test_images_of_too_many_pixels_are_refused(trained, picture_file):
    app = create_app([trained], settings=AppSettings(max_megapixels=0.005), folder=[picture_file])
    with TestClient(app, base_url=ORIGIN) as client:
        sent = client.post("/api/images", content=picture_file.read_bytes())
        for answer in (sent, client.post("/api/examples/0"), client.post("/api/folder/0")):
            job = ended(client, answer)
            assert (job["state"], job["status"]) == ("failed", 413)
            assert "pixels" in job["error"]


def test_why_says_what_the_head_weighed(client, trained, picture, picture_file):
    facts = labelled(client, picture_file.read_bytes())
    found = client.get(f"/api/results/{facts['id']}/0/why?row=40&column=50").json()
    seen = attention_of(trained, picture)
    label = trained.predict(picture).label
    assert found["label"] == found["winner"] == label[40, 50]
    relevant = [one["index"] for one in found["classes"] if one["relevant"]]
    coarse = seen.coarse.softmax(0)
    y, x = (
        int((p + 0.5) * g / s)
        for p, g, s in zip((40, 50), coarse.shape[1:], seen.size, strict=True)
    )
    assert relevant == seen.ranked()[:, y, x].tolist()
    for one in found["classes"]:
        index = one["index"]
        assert one["coarse"] == pytest.approx(float(coarse[index, y, x]), abs=1e-3)
        assert one["read"] == pytest.approx(float(seen.read_at(40, 50)[index]), abs=1e-3)
        weights = seen.sources[index] / seen.sources[index].max()
        assert np.allclose(np.array(one["centre"]) / 1000, weights.flatten(), atol=2e-3)
    assert found["grid"] == list(seen.sources.shape[1:])
    assert max(found["everything"]) == 1000
    for wrong in ("row=72&column=0", "row=-1&column=0", "row=1", "row=a&column=b"):
        answer = client.get(f"/api/results/{facts['id']}/0/why?{wrong}")
        assert answer.status_code == 422
        assert answer.json()["error"]


def test_the_class_of_all_seen_at_once_is_that_of_the_label_map(client, trained, picture_file):
    """So that the page says that they differ only where an image was seen in windows."""
    facts = labelled(client, picture_file.read_bytes())
    app = client.app.state.app
    look = why.look_at(app.shelf.get(facts["id"]), 0, trained)
    assert np.array_equal(look.label, app.shelf.get(facts["id"]).views[0].label)


def test_large_images_are_made_smaller_to_look_at_them(trained, picture, monkeypatch):
    monkeypatch.setattr(why, "MAX_PIXELS", 1000)
    view = results.view_of(trained, picture, PredictConfig(), lambda *_: None)
    result = results.Result(number="1", name="x", image=picture, views=(view,))
    look = why.look_at(result, 0, trained)
    height, width = look.attention.size
    assert height * width <= 1000
    assert why.explain(look, result, 0, 71, 95)["seen"] == [32, 64]  # Multiples of 32.
    fixed = Predictor(trained.model, replace(trained.info, short_side=64))
    result.looks.clear()
    with pytest.raises(InputError, match="too many to look"):
        why.look_at(result, 0, fixed)


def test_a_model_with_another_head_is_silent(other, picture_file):
    with TestClient(create_app([other]), base_url=ORIGIN) as client:
        about = client.get("/api/about").json()
        assert "models with the head ccs" in about["models"][0]["silent"]
        assert "--save" not in about["models"][0]["silent"]
        assert [e["name"] for e in about["examples"]] == ["Drawn 1", "Drawn 2", "Drawn 3"]
        assert ended(client, client.post("/api/examples/2"))["state"] == "done"
        facts = labelled(client, picture_file.read_bytes())
        answer = client.get(f"/api/results/{facts['id']}/0/why?row=1&column=1")
        assert answer.status_code == 422


def test_many_classes_have_sixteen_bits(many, picture, picture_file):
    with TestClient(create_app([many]), base_url=ORIGIN) as client:
        facts = labelled(client, picture_file.read_bytes())
        raw = client.get(f"/api/results/{facts['id']}/0/label").content
        assert facts["views"][0]["bytes"] == 2
        label = np.frombuffer(raw, "<u2").reshape(72, 96)
        assert np.array_equal(label, many.predict(picture).label)
        hidden = ",".join(map(str, range(300)))
        answer = client.get(f"/api/results/{facts['id']}/0/overlay.png?hidden={hidden}")
        assert answer.content == client.get(f"/api/results/{facts['id']}/image").content


def test_two_models_stand_side_by_side(trained, other, picture, picture_file):
    with TestClient(create_app([trained, other], ["a", "b"]), base_url=ORIGIN) as client:
        facts = labelled(client, picture_file.read_bytes())
        labels = [one.predict(picture).label for one in (trained, other)]
        assert facts["differing"] == pytest.approx((labels[0] != labels[1]).mean())
        for index, label in enumerate(labels):
            raw = client.get(f"/api/results/{facts['id']}/{index}/label").content
            assert raw == label.tobytes()
        assert client.get(f"/api/results/{facts['id']}/2/label").status_code == 404


def test_models_of_other_classes_are_not_compared(trained, other):
    renamed = Predictor(other.model, replace(other.info, classes=("a", "b", "c")))
    with pytest.raises(InputError, match="cannot be compared"):
        create_app([trained, renamed])
    with pytest.raises(InputError, match="one model or two, not 3"):
        create_app([trained, other, other])


def test_large_images_are_seen_in_windows_with_progress(trained, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (200, 330, 3), np.uint8)
    monkeypatch.setattr(results, "TOGETHER", 10_000)
    monkeypatch.setattr(results, "LARGE_WINDOW", 96)
    monkeypatch.setattr(results, "CONFIDENCE_PIXELS", 1000)
    told = []
    view = results.view_of(trained, image, PredictConfig(), lambda *done: told.append(done))
    assert told[-1][0] == told[-1][1] > 1
    assert f"{told[-1][1]} windows of 96" in view.seen
    expected = trained.predict(image, PredictConfig(window=96))
    assert np.array_equal(view.label, expected.label)
    assert view.confidence.size <= 1000
    config = PredictConfig(window=96, flip=True, scales=(0.5, 1.0))
    told = results.view_of(trained, image, config, lambda *_: None).seen
    assert told == "Seen in 15 windows of 96, in 4 passes, at most 332 × 200"
    asked = results.config_for(PredictConfig(), "windows")
    assert (asked.window, asked.own_size) == (512, True)
    for already in (PredictConfig(window=96), PredictConfig(window=96, own_size=True)):
        assert results.config_for(already, "windows") == already
    resized = PredictConfig(window=96, own_size=False)
    assert results.config_for(resized, "windows") == PredictConfig(window=96, own_size=True)


def test_jobs_are_cancelled_between_windows(trained, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()

    def slow(predictor, image, config, progress):
        for done in range(100):
            progress(done, 100)
            reached.set()
            go_on.wait(10)
        raise AssertionError("it was not cancelled")

    monkeypatch.setattr("ccsnet.app.state.view_of", slow)
    with TestClient(create_app([trained]), base_url=ORIGIN) as client:
        running = client.post("/api/examples/0").json()["job"]
        assert reached.wait(10)
        waiting = client.post("/api/examples/1").json()["job"]
        assert client.get(f"/api/jobs/{waiting}").json()["state"] == "waiting"
        client.post(f"/api/jobs/{waiting}/cancel")
        state = client.get(f"/api/jobs/{running}").json()
        assert state == {"state": "running", "done": 0, "total": 100}
        client.post(f"/api/jobs/{running}/cancel")
        go_on.set()
        for job in (running, waiting):
            assert outcome(client, job)["state"] == "cancelled"
        assert client.get("/api/jobs/77").status_code == 404


def test_a_full_queue_says_so(trained, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr("ccsnet.app.state.view_of", lambda *_: go_on.wait(10))
    with TestClient(create_app([trained]), base_url=ORIGIN) as client:
        answers = [client.post("/api/examples/0") for _ in range(MAX_WAITING + 3)]
        assert answers[0].status_code == 202
        assert answers[-1].status_code == 503
        assert "wait already" in answers[-1].json()["error"]
        go_on.set()


def test_old_results_are_dropped(trained, picture_file):
    app = create_app([trained], settings=AppSettings(keep_megabytes=0.08))
    with TestClient(app, base_url=ORIGIN) as client:
        made = [labelled(client, picture_file.read_bytes())["id"] for _ in range(4)]
        codes = [client.get(f"/api/results/{one}/0/label").status_code for one in made]
        assert codes == [404, 404, 200, 200]
        assert "no longer kept" in client.get(f"/api/results/{made[0]}/image").json()["error"]


def test_a_failing_model_does_not_end_the_page(client, trained, monkeypatch):
    monkeypatch.setattr(trained.model, "forward", lambda *_: torch.zeros(1) / "x")
    job = ended(client, client.post("/api/examples/0"))
    assert (job["state"], job["status"]) == ("failed", 500)
    assert "TypeError" in job["error"]
    monkeypatch.undo()
    assert ended(client, client.post("/api/examples/0"))["state"] == "done"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "example.org"},
        {"host": "127.0.0.1.example.org:8000"},
        {"host": "example.org:127"},
        {"host": ""},
        {"origin": "http://example.org"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_are_refused(client, headers):
    for answer in (
        client.get("/api/about", headers=headers),
        client.get("/", headers=headers),
        client.post("/api/examples/0", headers=headers),
    ):
        assert answer.status_code == 403
        assert answer.headers["content-security-policy"]
        assert set(answer.json()) == {"error"}


def test_own_names_are_answered(client):
    for host in ("127.0.0.1:1234", "localhost:80", "localhost", "[::1]:8000"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert client.get("/api/about", headers=headers).status_code == 200


def test_every_answer_carries_the_headers(client):
    for path in ("/", "/static/main.js", "/api/about", "/api/jobs/none", "/nowhere"):
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "*" not in HEADERS["Content-Security-Policy"]


def test_sixteen_bits_and_other_bands(tmp_path):
    import tifffile

    from ccsnet.checkpoint import ClassInfo

    info = ClassInfo(dataset="x", classes=("a", "b"), colours=((1, 2, 3), (4, 5, 6)), channels=4)
    config = replace(tiny_model(), mean=(0.5,) * 4, std=(0.3,) * 4)
    model = create_segmenter(config, num_classes=2, in_channels=4, load_weights=False)
    app = create_app([Predictor(model.eval(), info)])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 4)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig")
    with TestClient(app, base_url=ORIGIN) as client:
        facts = labelled(client, (tmp_path / "a.tif").read_bytes())
        assert client.get(f"/api/results/{facts['id']}/image").status_code == 200
        assert ended(client, client.post("/api/examples/0"))["state"] == "done"
