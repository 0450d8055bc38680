"""`ccsnet app`: what it says of mistakes, and that it serves until Ctrl-C."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ccsnet.app import launch
from ccsnet.app.server import STATIC
from ccsnet.errors import InputError


@pytest.fixture
def served(monkeypatch):
    """What would be served, without serving it."""
    seen = []
    monkeypatch.setattr(launch, "serve", lambda app, on, **options: seen.append((app, options)))
    return seen


def test_a_run_is_shown(call, run, served):
    assert call("app", run.out, "--cpu", "--no-browser") == (0, "", "")
    app, options = served[0]
    assert app.state.app.names == ("shapes-ccs",)
    assert options["browser"] is False
    call("app", run.out / "best.safetensors", "--compare", run.out, "--images", run.data)
    app, _ = served[1]
    assert len(app.state.app.predictors) == 2
    assert len(app.state.app.folder) == 24  # Its images and labels.
    call("app", run.out, "--window", "64", "--max-megapixels", "2")
    app, _ = served[2]
    assert app.state.app.config.window == 64
    assert app.state.app.limits.max_pixels == 2_000_000


def test_without_a_model_it_is_the_demo(call, run, served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, told = call("app")
    assert status == 2
    assert "ccsnet demo" in told
    assert "make demo" in told
    shutil.copytree(run.out, tmp_path / launch.DEMO)
    assert call("app")[0] == 0
    assert served[0][0].state.app.names == ("demo",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/nowhere/at-all"], "No run or checkpoint runs/nowhere/at-all"),
        (["RUN", "RUN"], "A second is named by --compare"),
        (["RUN", "--port", "99999"], "from 0, any that is free, to 65535"),
        (["RUN", "--images", "nowhere"], "nowhere"),
        (["RUN", "--max-megapixels", "0"], "must be above 0"),
        (["RUN", "--keep-megabytes", "nan"], "must be above 0"),
        (["RUN", "--max-megabytes", "inf"], "it must be a number"),
        (["RUN", "--prot", "1"], "--port"),
        (["RUN", "--compare", "runs/nowhere/at-all"], "runs/nowhere/at-all"),
        (["RUN", "--window", "30"], "multiple of 32"),
    ],
)
def test_mistakes_are_said_in_one_message(call, run, served, arguments, said):
    given = [str(run.out) if word == "RUN" else word for word in arguments]
    status, _, told = call("app", *given)
    assert status == 2
    assert said in told
    assert not served


def test_a_taken_port_is_said(call, run, served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, told = call("app", run.out, "--port", port)
    assert status == 2
    assert f"Port {port} is taken by another program" in told
    assert not served


def test_a_missing_package_names_the_extra(call, run, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    status, _, told = call("app", run.out)
    assert status == 2
    assert "pip install 'ccsnet[app]'" in told


def test_folders_of_too_many_images_are_refused(run, monkeypatch):
    monkeypatch.setattr(launch, "MAX_FOLDER", 3)
    with pytest.raises(InputError, match="more than 3 images"):
        launch.images_in(run.data)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_it_serves_until_ctrl_c(run):
    command = [sys.executable, "-m", "ccsnet", "app", run.out, "--no-browser", "--cpu"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=10) as answer:
            assert b"<title>ccsnet</title>" in answer.read()
        elsewhere = urllib.request.Request(address[0], headers={"Host": "example.org"})
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(elsewhere, timeout=10)
        refused.value.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert out in ("", "Ctrl-C ends it.\n")  # The first lines may have been read together.
    assert err == "Stopped.\n"


def test_it_listens_on_this_machine_alone():
    with launch.listen(0) as on:
        assert on.getsockname()[0] == "127.0.0.1"
        assert launch.address(on).startswith("http://127.0.0.1:")


def test_the_extra_is_in_the_project():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^app = \["starlette>=.*", "uvicorn>=.*"\]$', text, re.MULTILINE)
    packed = re.search(r"^ccsnet = \[(.*)\]$", text, re.MULTILINE)
    assert packed is not None
    for suffix in {path.suffix for path in STATIC.iterdir()}:
        assert f'"**/*{suffix}"' in packed[1]
