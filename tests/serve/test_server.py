"""A real server: equal to the library under load, killed, stopped, started wrongly."""

import concurrent.futures
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccsnet.predict import load
from tests.processes import descendants
from tests.serve.conftest import png
from tests.serve.live import ROOT, serving, until

TOKEN = "0123456789abcdef0123"


def label(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def live(checkpoint):
    with serving(checkpoint, "--timeout", "120", "--max-wait-ms", "20") as made:
        yield made


@pytest.fixture(scope="module")
def large():
    """A picture that takes the model a while."""
    rng = np.random.default_rng(0)
    return png(rng.integers(0, 256, (1500, 2000, 3), np.uint8))


@pytest.mark.slow
def test_together_as_one_by_one(live, checkpoint, images, pictures):
    """Whatever is batched with what, every label map is that of the image alone."""
    predictor = load(checkpoint, "cpu")
    expected = [predictor.predict(image).label for image in images]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(live.predict, pictures * 12))
    for (status, content), wanted in zip(found, expected * 12, strict=True):
        assert status == 200
        np.testing.assert_array_equal(label(content), wanted)
    metrics = live.get("/metrics")[2].decode().splitlines()
    sizes = {line.split()[0]: float(line.split()[1]) for line in metrics if line[0] != "#"}
    assert sizes["ccsnet_batch_images_sum"] == 48
    assert sizes["ccsnet_batch_images_count"] < 48  # Some did go together.


@pytest.mark.slow
def test_a_killed_worker(checkpoint, pictures, large):
    """What it was at work on gets 503 at once; another starts, and the service goes on."""
    with serving(checkpoint) as live, concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert live.predict(pictures[0])[0] == 200
        held = [pool.submit(live.predict, large) for _ in range(3)]
        until(lambda: b'"queue":3' in live.get("/health")[2])
        first = live.worker()
        os.kill(first, signal.SIGKILL)
        started = time.monotonic()
        assert [one.result(30)[0] for one in held] == [503] * 3
        assert time.monotonic() - started < 5
        assert live.health() == "starting"
        until(lambda: live.health() == "ready")
        assert live.worker() != first
        assert live.predict(pictures[0])[0] == 200
        assert b"ccsnet_worker_restarts_total 1.0" in live.get("/metrics")[2]
        assert live.stop() == (0, ANSWERED)
        assert any("ended with status -9" in line for line in live.log)


ANSWERED = "Stopped; all that was taken is answered.\n"


@pytest.mark.slow
def test_a_model_that_is_gone_when_it_is_needed_again(checkpoint, pictures, tmp_path):
    """The server says that it is starting, tries again, and goes on when the file is back."""
    path, aside = tmp_path / "model.safetensors", tmp_path / "aside"
    shutil.copy(checkpoint, path)
    with serving(path) as live:
        path.rename(aside)
        os.kill(live.worker(), signal.SIGKILL)
        until(lambda: any("No worker: No run or checkpoint" in line for line in live.log))
        assert live.health() == "starting"
        assert live.predict(pictures[0])[0] == 503
        aside.rename(path)
        until(lambda: live.health() == "ready")
        assert live.predict(pictures[0])[0] == 200
        aside.write_bytes(b"")
        os.kill(live.worker(), signal.SIGKILL)
        until(lambda: live.health() == "starting")
        assert live.stop()[0] == 0  # Also while a worker starts.


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_opened(checkpoint):
    """The command ends as any other does, and leaves no process."""
    command = [sys.executable, "-m", "ccsnet", "serve", checkpoint, "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until(lambda: any(_is_worker(pid) for pid in descendants(process.pid)))
        (worker,) = filter(_is_worker, descendants(process.pid))
        assert _is_deaf(worker)  # Or Python itself dies of it while it starts, and says so.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (130, "Stopped.\n")
        until(lambda: not _group_lives(process.pid))
    finally:
        process.kill()
        process.communicate()


def _group_lives(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_worker(pid):
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _is_deaf(pid):
    """Whether Ctrl-C does nothing to a process; one bit for each signal, from the first."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    masks = int(status["SigBlk"], 16) | int(status["SigIgn"], 16)
    return bool(masks & 1 << signal.SIGINT - 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_it_took(checkpoint, large, number):
    """Asked to stop, it takes nothing more, answers what it has, and exits with status 0."""
    with serving(checkpoint) as live, concurrent.futures.ThreadPoolExecutor(4) as pool:
        worker = live.worker()
        held = [pool.submit(live.predict, large) for _ in range(3)]
        until(lambda: b'"queue":3' in live.get("/health")[2])
        # As a service manager does, and a terminal: all processes of the group are told.
        os.killpg(live.process.pid, number)
        until(lambda: live.health() == "stopping")
        assert live.predict(large)[0] == 503
        assert [one.result(60)[0] for one in held] == [200] * 3
        assert live.process.wait(30) == 0
        assert live.process.stdout.read() == ANSWERED
        until(lambda: not _lives(worker))


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_it_stops_within_its_grace(checkpoint, large):
    with serving(checkpoint, "--grace", "0.5", "--timeout", "600") as live:
        many = [threading.Thread(target=_quietly, args=(live, large)) for _ in range(8)]
        for one in many:
            one.start()
        until(lambda: b'"queue":8' in live.get("/health")[2])
        started = time.monotonic()
        status, printed = live.stop()
        assert status == 0
        assert time.monotonic() - started < 10
        assert printed == "Stopped; 8 images were not finished in time.\n"
        for one in many:
            one.join(30)


def _quietly(live, picture):
    try:
        live.predict(picture)
    except OSError:
        return  # Its connection was closed.


@pytest.mark.slow
def test_its_worker_does_not_outlive_it(checkpoint):
    with serving(checkpoint) as live:
        worker = live.worker()
        live.process.kill()
        until(lambda: not _lives(worker))


@pytest.mark.slow
def test_an_exported_file(checkpoint, images, pictures, tmp_path):
    """Served without torch, by onnxruntime."""
    from ccsnet.runtime import load as load_exported

    path = tmp_path / "model.onnx"
    # In another process: the check of shapes that the tests run under is in the exporter's way.
    export = [sys.executable, "-m", "ccsnet", "export", checkpoint, "--to", "onnx", "--out", path]
    subprocess.run(export, cwd=ROOT, check=True, capture_output=True)
    model = load_exported(path)
    with serving(path, "--quiet") as live:
        for image, picture in zip(images, pictures, strict=True):
            status, content = live.predict(picture)
            assert status == 200
            np.testing.assert_array_equal(label(content), model.predict(image))
        assert live.stop()[0] == 0
        assert live.log == []


@pytest.fixture
def refused(call):
    """The one line that is said of a mistake."""
    return lambda *arguments: _refused(*call("serve", *arguments))


def _refused(status, _, said):
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_a_taken_port(checkpoint, refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(str(checkpoint), "--port", str(port))
    assert f"Port {port} of 127.0.0.1 is taken" in said
    assert "another --port" in said


def test_addresses_that_are_none(checkpoint, refused):
    assert "must be from 0 to 65535" in refused(str(checkpoint), "--port", "70000")
    said = refused(str(checkpoint), "--host", "192.0.2.1", "--allow-anonymous")
    assert "not an address of this machine" in said
    said = refused(str(checkpoint), "--host", "no such name", "--allow-anonymous")
    assert "No address 'no such name'" in said


def test_strangers_need_a_token(checkpoint, refused, monkeypatch, tmp_path):
    monkeypatch.delenv("CCSNET_TOKEN", raising=False)
    assert "--allow-anonymous" in refused(str(checkpoint), "--host", "0.0.0.0")
    monkeypatch.setenv("CCSNET_TOKEN", "short")
    said = refused(str(checkpoint))
    assert "CCSNET_TOKEN has 5 characters" in said
    monkeypatch.setenv("CCSNET_TOKEN", "two words that are long enough")
    said = refused(str(checkpoint))
    assert "two words" not in said
    missing = tmp_path / "token"
    assert f"No file {missing}" in refused(str(checkpoint), "--token-file", str(missing))
    missing.write_text("\n")
    assert "has 0 characters" in refused(str(checkpoint), "--token-file", str(missing))


def test_without_the_extra(checkpoint, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refused(str(checkpoint))
    assert "pip install 'ccsnet[serve]'" in said


@pytest.mark.slow
def test_a_model_that_is_none(tmp_path):
    """The process that opens it says why, and the command ends with it."""
    file = tmp_path / "text.safetensors"
    file.write_text("no model")
    for name, text in ((tmp_path / "none", "none"), (file, "text.safetensors")):
        command = [sys.executable, "-m", "ccsnet", "serve", name, "--port", "0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert text in done.stderr
