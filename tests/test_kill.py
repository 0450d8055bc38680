"""A training process is killed at any moment, resumed, and ends as if nothing had happened."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from ccsnet.checkpoint import BEST, LAST, read_checkpoint
from ccsnet.run_folder import METRICS_FILE, kept, newest
from ccsnet.runlog import LOG_FILE, VALIDATION_FILE, read_log
from tests.shapes import OPTIONS

STEPS = 60
COMMAND = (
    *("--steps", str(STEPS), "--validate-every", "7", "--save-every", "2", "--seed", "3"),
    *("--ema", "0.9", "--trackers"),
)


def command(shapes: Path, out: Path, *options: str) -> list[str]:
    """The same for the first start and for every other: a scheduler's script does not change."""
    arguments = (str(shapes), *OPTIONS, *COMMAND, *options, "--out", str(out), "--resume", "auto")
    return [sys.executable, "-m", "ccsnet", "train", *arguments]


def state_of(path: Path) -> str:
    """A hash of all that a checkpoint holds: weights, optimizer, and what it says of the run."""
    digest = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        digest.update(metadata["state"].encode())
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
    return digest.hexdigest()


def ends_alike(one: Path, other: Path) -> None:
    for name in (LAST, BEST):
        assert state_of(one / name) == state_of(other / name)
    assert read_log(one / VALIDATION_FILE) == read_log(other / VALIDATION_FILE)
    kept_columns = ("step", "epoch", "lr", "loss", "coarse_loss")
    logs = [
        [[row[c] for c in kept_columns] for row in read_log(out / LOG_FILE)] for out in (one, other)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def straight(shapes, tmp_path_factory) -> Path:
    """The run that nobody kills."""
    out = tmp_path_factory.mktemp("kill") / "straight"
    subprocess.run(command(shapes, out), check=True, capture_output=True)
    return out


def steps_done(out: Path) -> int:
    """As far as the log tells, which is ahead of the checkpoints."""
    log = out / LOG_FILE
    return max(log.read_bytes().count(b"\n") - 1, 0) if log.is_file() else 0


def kill_and_resume(shapes: Path, out: Path, kills: int, *options: str) -> None:
    """Kill a run so often, each time somewhere in what is left, and let it end at last."""
    rng = random.Random(kills)
    for left in range(kills, 0, -1):
        done = steps_done(out)
        further = rng.randint(0, 2 * (STEPS - 1 - done) // (left + 1))
        process = subprocess.Popen(
            command(shapes, out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if further:
            while steps_done(out) < min(done + further, STEPS - 1):
                time.sleep(0.001)
                assert process.poll() is None
            time.sleep(rng.uniform(0, 0.08))  # Into a step, a validation, a checkpoint's writing.
        else:
            time.sleep(rng.uniform(0.5, 3))  # While it imports, or reads what to go on from.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = subprocess.run(command(shapes, out, *options), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr


@pytest.mark.slow
def test_killed_at_any_moment(shapes, straight, tmp_path):
    out = tmp_path / "run"
    kill_and_resume(shapes, out, kills=20)
    ends_alike(out, straight)
    assert newest(out)[1] == []
    assert len(kept(out, LAST)) <= 2


@pytest.mark.slow
def test_killed_while_workers_read(shapes, straight, tmp_path):
    kill_and_resume(shapes, tmp_path / "run", 3, "--workers", "2")
    ends_alike(tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_schedulers_warning(shapes, straight, tmp_path, number, status):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(shapes, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (out / LAST).exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == status, said
    assert "all is saved. Go on with: ccsnet train --resume" in said
    assert "Traceback" not in said
    assert not (out / METRICS_FILE).exists()
    assert 0 < read_checkpoint(out / LAST).step < STEPS
    subprocess.run(command(shapes, out), check=True, capture_output=True)
    ends_alike(out, straight)


@pytest.mark.slow
def test_a_warning_before_the_first_step(shapes, tmp_path):
    process = subprocess.Popen(
        command(shapes, tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "run").exists():
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_programs_in_one_folder(shapes, tmp_path):
    out = tmp_path / "run"
    first = subprocess.Popen(command(shapes, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (out / LAST).exists():
        time.sleep(0.02)
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run(command(shapes, out), capture_output=True, text=True)
        assert second.returncode == 2
        assert f"(process {first.pid}) is training in {out} right now" in second.stderr
    finally:
        first.kill()
        first.communicate()
    # The lock ended with the program that had it.
    again = subprocess.run(command(shapes, out), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_the_newest_checkpoint_is_damaged(shapes, straight, tmp_path):
    out = tmp_path / "run"
    subprocess.run(command(shapes, out), check=True, capture_output=True)
    newest_file, *_ = kept(out, LAST)
    data = bytearray(newest_file.read_bytes())
    data[-1000] ^= 1  # One bit, in the values: the file's form is as it was.
    newest_file.write_bytes(data)
    again = subprocess.run(command(shapes, out), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Going on from an older checkpoint" in again.stdout
    assert "is damaged" in again.stdout
    ends_alike(out, straight)
    for path in kept(out, LAST):
        path.write_bytes(b"")
    hopeless = subprocess.run(command(shapes, out), capture_output=True, text=True)
    assert hopeless.returncode == 2
    assert "No checkpoint can be resumed from." in hopeless.stderr


@pytest.mark.slow
def test_a_disk_that_fills(shapes, straight, tmp_path):
    """Files may not grow beyond what a checkpoint takes; later there is room again."""
    out = tmp_path / "run"
    kill_once = subprocess.Popen(command(shapes, out), stdout=subprocess.PIPE)
    while steps_done(out) < 10:
        time.sleep(0.001)
        assert kill_once.poll() is None
    kill_once.kill()
    kill_once.communicate()
    before = {path: path.read_bytes() for path in kept(out, LAST)}
    limit = 200_000

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = subprocess.run(
        command(shapes, out), capture_output=True, text=True, preexec_fn=no_room, check=False
    )
    assert full.returncode == 2, full.stderr
    assert "could not be written" in full.stderr
    assert "Make room on the disk, then resume the run." in full.stderr
    assert "Traceback" not in full.stderr
    assert {path: path.read_bytes() for path in kept(out, LAST)} == before
    subprocess.run(command(shapes, out), check=True, capture_output=True)
    ends_alike(out, straight)
