"""`ccsnet push` against a hub on this machine: what it is asked, what it answers, what is said."""

import io
import json
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from ccsnet.cli import run as run_command
from ccsnet.errors import InputError
from ccsnet.publish import account_token
from tests import test_hub

TOKEN = "hf_of_me"


class Hub(NamedTuple):
    """What it holds, and what it was asked."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[str]
    private: dict[str, bool]
    branches: dict[str, list[str]]
    messages: list[str]


class Handler(test_hub.Handler):
    """Also asks who is there, and knows private repositories and branches."""

    hub: Hub

    def refuses(self):
        """Whether it has answered already: a repository of others, or nobody that it knows."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(401, {"error": "Invalid username or password."})
        return True

    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        if name in self.hub.private and not self.refuses():
            return self.answer(200, {"id": name, "private": self.hub.private[name]})
        return super().do_GET()

    def do_POST(self):
        path, num = self.path.partition("?")[0], int(self.headers.get("Content-Length", 0))
        if self.refuses():
            return None
        if path == "/api/validate-yaml":
            return super().do_POST()
        body = self.rfile.read(num)
        self.rfile = io.BytesIO(body)
        name = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.private:
                return self.answer(409, {"url": f"{constants.ENDPOINT}/{name}"})
            if asked["organization"] != "stranger":
                # Older clients say it otherwise.
                asked_for = asked.get("visibility") == "private" or asked.get("private", False)
                self.hub.private[name] = asked_for
                self.hub.branches[name] = ["main"]
        elif "/branch/" in path:
            branch = unquote(path.rpartition("/")[2])
            self.hub.asked.append(f"POST {path}")
            if branch in self.hub.branches[name]:
                return self.answer(409, {"error": "it is there"})
            self.hub.branches[name].append(branch)
            return self.answer(200, {})
        elif "/commit/" in path:
            header = json.loads(body.splitlines()[0])
            self.hub.messages.append(header["value"]["summary"])
            if unquote(path.rpartition("/")[2]) not in self.hub.branches[name]:
                return self.answer(404, {}, X_Error_Code="RevisionNotFound")
        return super().do_POST()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with test_hub.served(Hub({}, [], {}, {}, []), Handler, monkeypatch, tmp_path) as found:
        yield found


@pytest.fixture
def push(capsys, monkeypatch):
    """The command; returns its exit status and what it wrote to both streams."""
    monkeypatch.delenv("CCSNET_DEBUG", raising=False)

    def call(*arguments):
        status = run_command(["push", *map(str, arguments)])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def refusal(push, *arguments):
    """The one line that it ends with."""
    status, out, error = push(*arguments)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def uploads(hub):
    return [line for line in hub.asked if "/commit/" in line]


def test_a_run_is_published_and_fetched(push, hub, run, tmp_path):
    status, out, _ = push(run.out, "me/shapes", "--licence", "apache-2.0")
    assert status == 0
    assert f"Published: {constants.ENDPOINT}/me/shapes" in out
    assert "ccsnet predict me/shapes photo.jpg" in out
    assert "licence" not in out
    files = hub.repositories["me/shapes"]
    assert set(files) == {"best.safetensors", "config.json", "best.json", "README.md"}
    assert b"license: apache-2.0" in files["README.md"]
    assert not hub.private["me/shapes"]
    assert hub.messages == [hub.messages[0]]
    assert hub.messages[0].startswith("Publish with ccsnet")
    image = run.data / "images" / "val" / "0.png"
    for name, out in (("me/shapes", "fetched"), (run.out, "here")):
        command = ["predict", str(name), str(image), "--cpu", "--out", str(tmp_path / out)]
        assert run_command(command) == 0
    first, second = (tmp_path / out / "color" / "0.png" for out in ("fetched", "here"))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_is_published(push, hub, run):
    assert push(run.out / "last.safetensors", "hf://me/last")[0] == 0
    assert "best.safetensors" in hub.repositories["me/last"]


def test_a_missing_licence_is_said(push, hub, run):
    assert "Its page states no licence: --licence adds one." in push(run.out, "me/shapes")[1]


def test_private_branch_and_message(push, hub, run):
    more = ("--private", "--revision", "try/2", "--message", "Second try")
    for _ in range(2):  # The second time all is there already.
        status, out, error = push(run.out, "me/shapes", *more)
        assert status == 0, error
        assert "ccsnet predict me/shapes@try/2 photo.jpg" in out
    assert hub.private["me/shapes"] is True
    assert hub.branches["me/shapes"] == ["main", "try/2"]
    assert hub.messages == ["Second try"] * 2
    assert uploads(hub) == ["POST /api/models/me/shapes/commit/try%2F2"] * 2
    assert push(run.out, "me/shapes@v3")[0] == 0
    assert hub.branches["me/shapes"] == ["main", "try/2", "v3"]


def test_what_is_public_is_not_taken_for_private(push, hub, run):
    """The hub would leave it public without a word."""
    assert push(run.out, "me/shapes")[0] == 0
    before = uploads(hub)
    said = refusal(push, run.out, "me/shapes", "--private")
    assert "me/shapes is on the Hugging Face hub already, and public; nothing was pub" in said
    assert f"{constants.ENDPOINT}/me/shapes/settings" in said
    assert uploads(hub) == before


# What goes wrong


def test_nobody_is_logged_in(push, hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "nobody is logged in here. `hf auth login` once" in refusal(push, run.out, "me/shapes")
    assert hub.asked == []


def test_a_login_is_used(push, hub, run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    assert push(run.out, "me/shapes")[0] == 0
    assert account_token("another") == "another"
    with pytest.raises(InputError, match="nobody is logged in"):
        account_token(False)


def test_a_token_that_has_ended(push, hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    said = refusal(push, run.out, "me/shapes")
    assert "could not be published as me/shapes" in said
    assert "does not know your token, or it has ended: `hf auth login`" in said
    assert "hf_old" not in said
    assert hub.repositories == {}


def test_a_name_of_somebody_else(push, hub, run):
    said = refusal(push, run.out, "stranger/shapes")
    assert "as stranger/shapes on the Hugging Face hub. Is your account in it, and may" in said


def test_no_network(push, run, monkeypatch, tmp_path):
    test_hub.point_at("http://127.0.0.1:9", monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = refusal(push, run.out, "me/shapes")
    assert "could not be published as me/shapes" in said
    assert "http://127.0.0.1:9 does not answer; is there a network?" in said


@pytest.mark.parametrize("name", ["shapes", "a/b/c", "me/sha pes", "../x", "me/x@", "hf://me"])
def test_names_of_the_wrong_form(push, hub, run, name):
    said = refusal(push, run.out, name)
    assert f"{name.removeprefix('hf://')!r} names no model on the Hugging Face hub" in said
    assert "Allowed: USER/MODEL, and @REVISION behind it" in said
    assert hub.asked == []


def test_runs_that_are_none(push, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, text in (("empty", "holds no checkpoint"), ("nowhere", "No run or checkpoint")):
        assert text in refusal(push, tmp_path / name, "me/shapes")
    (tmp_path / "notes.safetensors").write_text("none")
    assert "notes.safetensors" in refusal(push, tmp_path / "notes.safetensors", "me/shapes")
    assert hub.repositories == {}


def test_the_arguments_in_another_order(push, hub, run):
    said = refusal(push, "me/shapes", run.out)
    assert f"First comes the run, then its name: ccsnet push {run.out} me/shapes" in said
    assert "Publish it as what? ccsnet push runs/x USER/MODEL" in refusal(push, "runs/x")
    assert "Publish it as what?" in refusal(push, "runs/x", "--private")
    assert "First comes the run" in refusal(push, "--private")
    for arguments in (["--help"], ["runs/x", "--help"]):
        status, out, _ = push(*arguments)
        assert status == 0
        assert "ccsnet push RUN USER/MODEL" in out


def test_nothing_of_this_machine_is_published(push, hub, run):
    push(run.out, "me/shapes")
    for content in hub.repositories["me/shapes"].values():
        for private in (run.data, run.out, Path.home(), TOKEN):
            assert str(private).encode() not in content
