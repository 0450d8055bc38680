import base64
import contextlib
import hashlib
import http.server
import json
import re
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import ccsnet
from ccsnet.checkpoint import load_model, read_checkpoint, save_checkpoint
from ccsnet.cli import run as run_command
from ccsnet.errors import InputError
from ccsnet.hub import HubModel, HubName, find_run, hub_name
from ccsnet.model_card import model_card
from ccsnet.predict import Predictor, predictor_of
from tests.shapes import CLASSES

COMMIT = "1" * 40


class Hub(NamedTuple):
    """A hub on this machine: what it holds, what it was asked."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    """The few answers of the hub that are needed, as its clients ask for them."""

    hub: Hub

    def answer(self, status=200, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/":
            return self.answer()
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
        if name not in self.hub.repositories:
            return self.answer(404, {}, X_Error_Code="RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.answer(404, {}, X_Error_Code="RevisionNotFound")
        files = self.hub.repositories[name]
        if api and api[2] == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, {"id": name, "sha": COMMIT, "siblings": siblings})
        if api:
            return self.answer(
                200,
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ],
            )
        content = files[file[3]]
        tag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "stranger":
                return self.answer(403, {"error": "not your own"})
            self.hub.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"{constants.ENDPOINT}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in body.splitlines():
            value = json.loads(line)
            if value["key"] == "file":
                content = base64.b64decode(value["value"]["content"])
                self.hub.repositories[name][value["value"]["path"]] = content
        url = f"{constants.ENDPOINT}/{name}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": url, "commitOid": COMMIT})

    def log_message(self, *_):
        pass


def point_at(address, monkeypatch, folder):
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.chdir(folder)


@contextlib.contextmanager
def served(hub, handler, monkeypatch, folder):
    """A hub that answers by a handler, and that the hub's clients are pointed at."""
    bound = type("Bound", (handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch, folder)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(Hub({}, []), Handler, monkeypatch, tmp_path) as found:
        yield found


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A hub that takes connections and says nothing: worse than none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path)
        yield silent


@pytest.fixture
def predictor(run):
    return Predictor.of_checkpoint(read_checkpoint(run.out), "cpu")


def push(predictor, name="me/shapes", **options):
    return predictor.push_to_hub(name, token="hf_secret", **options)


# Names


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("user/model") == HubName("user/model")
    assert hub_name("user/model@v1.0") == HubName("user/model", "v1.0")
    assert hub_name("user/model@refs/pr/1") == HubName("user/model", "refs/pr/1")
    assert hub_name("hf://user/model") == HubName("user/model")
    assert str(HubName("user/model", "v1")) == "user/model@v1"


@pytest.mark.parametrize(
    "name",
    [
        *("model", "../x", "./x/y", "/etc/passwd", "a/b/c", "a//b", "user/..", "user/model.git"),
        *("user/model@../../x", "user/model@", "us er/model", "user/model\n", "user/mo\0del"),
        *("user/\ud800", "user/" + "x" * 200, "usér/model", "user/model?x=1", "", "@v1", "a@b/c"),
    ],
)
def test_what_is_no_name_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(name) is None
    with pytest.raises(InputError, match="names no model on the Hugging Face hub"):
        hub_name(f"hf://{name}")


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    for name in ("user/model", Path("other/model"), "runs/photos", "models/best.safetensors"):
        assert hub_name(name) is None
        assert find_run(name) == Path(name)
    assert hub_name("hf://user/model") == HubName("user/model")


def test_a_hub_model_says_how_it_is_made(run):
    class Unfinished(HubModel):
        """Not made of a checkpoint."""

    with pytest.raises(TypeError, match=r"abstract method '?of_checkpoint"):
        Unfinished()

    class Small(Predictor):
        """As a user may write one."""

    assert type(Small.from_pretrained(run.out, device="cpu")) is Small


# There and back


def test_a_model_is_published_and_fetched(predictor, hub, run, tmp_path, capsys):
    url = push(predictor, licence="apache-2.0")
    assert url.startswith(constants.ENDPOINT)
    files = hub.repositories["me/shapes"]
    assert set(files) == {"best.safetensors", "config.json", "best.json", "README.md"}
    image = run.data / "images" / "val" / "0.png"
    expected = predictor.predict(image).label
    for name in ("me/shapes", "me/shapes@v1"):
        fetched = ccsnet.load(name, device="cpu")
        assert np.array_equal(fetched.predict(image).label, expected)
    again = Predictor.from_pretrained("me/shapes", revision="v1", device="cpu")
    assert again.info == predictor.info
    assert run_command(["evaluate", "me/shapes", "--dataset", str(run.data)]) == 0
    assert f"{100 * run.best.miou:.1f}" in capsys.readouterr().out


def test_a_folder_is_written_and_read(predictor, run, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    loaded = Predictor.from_pretrained(tmp_path / "model", device="cpu")
    image = run.data / "images" / "val" / "1.png"
    assert np.array_equal(loaded.predict(image).label, predictor.predict(image).label)
    small, whole = tmp_path / "model" / "best.safetensors", run.out / "best.safetensors"
    assert small.stat().st_size < 1.1 * whole.stat().st_size
    predictor.save_pretrained(tmp_path / "model")  # Over itself.


def test_a_runs_own_folder_is_left_alone(predictor, run):
    """What is published says less than a run needs, and its best is not always what was loaded."""
    before = {path.name: path.read_bytes() for path in run.out.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"is the folder of a training run.*another folder"):
        predictor.save_pretrained(run.out)
    after = {path.name: path.read_bytes() for path in run.out.iterdir() if path.is_file()}
    assert after == before


def test_nothing_of_this_machine_is_published(predictor, hub, run):
    push(predictor)
    for content in hub.repositories["me/shapes"].values():
        for private in (str(run.data), str(run.out), str(Path.home()), "0.png"):
            assert private.encode() not in content


def test_a_fetched_model_is_published_again(predictor, hub):
    push(predictor)
    push(Predictor.from_pretrained("me/shapes", device="cpu"), "me/copy")
    first, second = hub.repositories["me/shapes"], hub.repositories["me/copy"]
    assert first["best.json"] == second["best.json"]
    assert first["config.json"] == second["config.json"]


def test_only_known_files_are_fetched(predictor, hub):
    push(predictor)
    files = hub.repositories["me/shapes"]
    files |= {
        "pytorch_model.bin": b"\x80",
        "setup.py": b"raise SystemExit",
        "last.safetensors": b"",
    }
    folder = find_run("me/shapes")
    assert {path.name for path in folder.iterdir()} == {
        *("best.safetensors", "config.json", "best.json", "README.md")
    }


def test_a_repository_that_has_the_last_checkpoint_alone(predictor, hub):
    push(predictor)
    files = hub.repositories["me/shapes"]
    files["last.safetensors"] = files.pop("best.safetensors")
    assert (find_run("me/shapes") / "last.safetensors").is_file()


def test_a_model_made_by_hand(run, hub):
    made = predictor_of(read_checkpoint(run.out), "cpu")
    with pytest.raises(InputError, match="put together by hand"):
        push(Predictor(made.model, made.info))
    with pytest.raises(InputError, match="the mean of several"):
        push(ccsnet.load(run.out, "cpu", also=[run.out]))
    assert hub.asked == []


# What goes wrong


def test_no_such_model(hub):
    with pytest.raises(FileNotFoundError, match="the Hugging Face hub has no model of that name"):
        find_run("me/nothing")


def test_no_such_revision(predictor, hub):
    push(predictor)
    with pytest.raises(FileNotFoundError, match="has no revision 'v2'"):
        find_run("me/shapes@v2")


def test_a_model_of_another_program(hub):
    hub.repositories["me/other"] = {"model.safetensors": b"x", "config.json": b"{}"}
    with pytest.raises(FileNotFoundError, match=r"me/other .* holds no best\.safetensors"):
        find_run("me/other")
    hub.repositories["me/damaged"] = {"best.safetensors": b"\x08\0\0\0\0\0\0\0nonsense"}
    with pytest.raises(InputError, match="not a whole safetensors file"):
        find_run("me/damaged")


@pytest.mark.parametrize("part", ["head", "data set"])
def test_a_model_that_names_code(part, run, hub, tmp_path):
    """A stranger does not choose what is imported and called."""
    import dataclasses

    checkpoint = read_checkpoint(run.out)
    config = checkpoint.config
    if part == "head":
        model = dataclasses.replace(config.model, head="os:system")
        config = dataclasses.replace(config, model=model)
    else:
        data = dataclasses.replace(config.data, dataset="antigravity:SPEC")
        config = dataclasses.replace(config, data=data)
    weights = load_model(checkpoint).state_dict()
    save_checkpoint(tmp_path / "x", weights, config, checkpoint.info, step=1)
    hub.repositories["me/code"] = {"best.safetensors": (tmp_path / "x").read_bytes()}
    with pytest.raises(InputError, match=f"names as its {part} '.*not run at the word of"):
        find_run("me/code")


def test_not_ones_own_repository(predictor, hub):
    with pytest.raises(InputError, match=r"could not be published as stranger/shapes .*auth login"):
        push(predictor, "stranger/shapes")


@pytest.mark.parametrize("name", ["../x", "shapes", "me/shapes@v1", "me/sha pes", "/me/x"])
def test_names_that_nothing_is_published_as(predictor, hub, name):
    with pytest.raises(InputError, match=r"names no model|names a revision"):
        push(predictor, name)
    assert hub.asked == []


def test_a_hub_that_does_not_answer(predictor, offline, monkeypatch):
    monkeypatch.setattr("ccsnet.backbones._files.PATIENCE", 0.3)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"cannot be downloaded .* does not answer; is there"):
        find_run("me/shapes")
    with pytest.raises(InputError, match=r"could not be published .* does not answer"):
        push(predictor)
    assert time.monotonic() - start < 5


def test_what_was_fetched_before_needs_no_network(predictor, hub, monkeypatch):
    push(predictor)
    folder = find_run("me/shapes")
    monkeypatch.setattr("ccsnet.hub._answers", lambda: False)
    asked = len(hub.asked)
    assert find_run("me/shapes") == folder
    loaded = Predictor.from_pretrained("me/shapes", device="cpu", local_files_only=True)
    assert loaded.classes == CLASSES
    assert len(hub.asked) == asked


# The page


def page(run, **options) -> tuple[dict, str]:
    text = model_card(read_checkpoint(run.out), "me/shapes", **options)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_the_hub_searches_by(run):
    head, _ = page(run, licence="cc-by-4.0")
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "ccsnet"
    assert head["pipeline_tag"] == "image-segmentation"
    assert "semantic-segmentation" in head["tags"]
    assert head["datasets"] == ["shapes"]
    assert head["metrics"] == ["mean_iou", "accuracy", "mean_accuracy", "dice"]
    result = head["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "shapes", "type": "shapes", "split": "val"}
    assert result["metrics"][0]["value"] == pytest.approx(run.result.best_miou, abs=1e-6)
    assert "license" not in page(run)[0]


def test_what_a_reader_is_told(run):
    _, body = page(run)
    metrics = run.best
    assert f"| mIoU | {100 * metrics.miou:.1f} |" in body
    for name, iou in zip(metrics.classes, metrics.iou, strict=True):
        assert re.search(rf"\| {name} \| #\w{{6}} \| {100 * iou:.1f} \|", body)
    for text in ('ccsnet.load("me/shapes")', "ccsnet evaluate me/shapes", "## Limits", "torch 2"):
        assert text in body
    assert "| optim.lr | 0.003 |" in body


def test_without_figures(run, tmp_path):
    shutil.copy(run.out / "best.safetensors", tmp_path)
    text = model_card(read_checkpoint(tmp_path), "me/shapes")
    assert "| mIoU |" in text  # The checkpoint knows its own.
    assert "has not been recorded" in text
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(InputError, match=r"best\.json does not hold the figures"):
        model_card(read_checkpoint(tmp_path), "me/shapes")


def test_figures_of_another_checkpoint_are_not_taken(run, tmp_path):
    shutil.copy(run.out / "best.safetensors", tmp_path)
    figures = json.loads((run.out / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps(figures | {"step": 1}))
    assert "has not been recorded" in model_card(read_checkpoint(tmp_path), "me/shapes")


def test_names_that_would_break_the_page(run):
    import dataclasses

    checkpoint = read_checkpoint(run.out)
    odd = ("a|b", "c\n# d", "<script>alert()</script>")
    info = dataclasses.replace(checkpoint.info, classes=odd, dataset="x\n---\ny: [")
    text = model_card(dataclasses.replace(checkpoint, info=info), "me/shapes")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["datasets"] == ["x-----y"]
    assert "\n# d" not in body
    assert "| a\\|b |" in body
    assert "\\<script\\>" in body
