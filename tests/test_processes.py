"""Training in several processes, by the command line, and what becomes of it when one is lost."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ccsnet.checkpoint import LAST
from ccsnet.cli import run as run_command
from ccsnet.lost_process import explain_timeout
from ccsnet.runlog import LOG_FILE, VALIDATION_FILE, read_log
from tests.processes import descendants, launch, start
from tests.shapes import OPTIONS

# Nothing random but what data and initial weights are drawn from. Not AdamW: in float32 its steps
# follow the sign of rounding where a gradient is 0.
SAME = (
    *OPTIONS,
    *("--batch-size", "4", "--dropout", "0", "--drop-path", "0", "--clip-norm", "1"),
    *("--optimizer", "sgd", "--lr", "0.01", "--steps", "3", "--validate-every", "3"),
)
LONG = (*SAME, "--steps", "40", "--validate-every", "40", "--save-every", "1")


def arguments(data: Path, out: Path, *options: str) -> list[str]:
    return ["train", str(data), "--out", str(out), *options]


def train_in(num: int, data: Path, out: Path, *options: str) -> Path:
    """A run in so many processes; returns its folder."""
    if num == 1:
        assert run_command(arguments(data, out, *options)) == 0
    else:
        ended = launch(["-m", "ccsnet", *arguments(data, out, *options)], num, timeout=150)
        assert ended.returncode == 0, ended.stderr
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(run / LAST)
    return {name: t for name, t in tensors.items() if not name.startswith("training/")}


@pytest.fixture(scope="module")
def alone(shapes, tmp_path_factory) -> Path:
    """What one process learns."""
    return train_in(1, shapes, tmp_path_factory.mktemp("runs") / "alone", *SAME)


@pytest.mark.parametrize(
    ("num", "options"),
    [
        (2, ()),
        pytest.param(4, (), marks=pytest.mark.slow),
        pytest.param(2, ("--shard",), marks=pytest.mark.slow),
        pytest.param(2, ("--batch-norm", "frozen"), marks=pytest.mark.slow),
        pytest.param(2, ("--ema", "0.9", "--shard"), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_learns_the_same(shapes, alone, tmp_path, num, options):
    if set(options) - {"--shard"}:
        changed = [option for option in options if option != "--shard"]
        alone = train_in(1, shapes, tmp_path / "alone", *SAME, *changed)
    several = train_in(num, shapes, tmp_path / "several", *SAME, *options)
    expected = weights(alone)
    got = weights(several)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    rows, others = read_log(several / LOG_FILE), read_log(alone / LOG_FILE)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for column in ("loss", "coarse_loss", "lr"):
        for row, other in zip(rows, others, strict=True):
            assert row[column] == pytest.approx(other[column], rel=1e-5)
    (validation,), (other,) = (read_log(run / VALIDATION_FILE) for run in (several, alone))
    assert validation["miou"] == pytest.approx(other["miou"], abs=1e-3)


# Lost processes


def process_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process that has a number."""
    for pid in descendants(launcher.pid):
        with contextlib.suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    raise AssertionError(f"no process has the number {rank}")


def wait_for_steps(launcher: subprocess.Popen[str], out: Path, num: int) -> None:
    """Until so many steps are saved."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert launcher.poll() is None, launcher.communicate()
        if (out / LAST).exists() and len(read_log(out / LOG_FILE)) >= num:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {num} steps in 120 s")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_nothing(shapes, tmp_path, rank):
    """Torchrun starts all of them again, and they end with the weights of a run never killed."""
    expected = weights(train_in(2, shapes, tmp_path / "whole", *LONG))
    out = tmp_path / "killed"
    command = ["-m", "ccsnet", *arguments(shapes, out, *LONG, "--resume", "auto")]
    with start(command, 2, options=["--max-restarts=1"]) as launcher:
        wait_for_steps(launcher, out, 5)
        os.kill(process_of(launcher, rank), signal.SIGKILL)
        _, said = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, said
    assert "SIGKILL" in said or "exitcode: -9" in said
    assert [row["step"] for row in read_log(out / LOG_FILE)] == list(range(1, 41))
    got = weights(out)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_run(shapes, tmp_path, rank):
    """With a message that names it, in the time that was set."""
    out = tmp_path / "run"
    command = ["-m", "ccsnet", *arguments(shapes, out, *LONG, "--steps", "2000", "--timeout", "5")]
    with start(command, 2) as launcher:
        wait_for_steps(launcher, out, 3)
        stopped, other = process_of(launcher, rank), process_of(launcher, 1 - rank)
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        while other in descendants(launcher.pid) and time.monotonic() - began < 60:
            time.sleep(0.1)
        assert 4 < time.monotonic() - began < 20
        os.kill(stopped, signal.SIGKILL)  # As torchrun does, but only 30 seconds later.
        _, said = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert f"Process {rank} of 2" in said
    assert f"process {stopped}) has not answered for 5 seconds" in said
    assert "--resume auto" in said
    steps = len(read_log(out / LOG_FILE))
    assert train_in(2, shapes, out, *LONG, "--steps", str(steps + 1), "--resume", "auto")


PARTED = """
import pathlib
from ccsnet.parallel import Processes, part
Processes(cpu=True).wait()
import ccsnet.train, torch.distributed.fsdp, torch.distributed.nn.functional
part()
names = [task.joinpath("comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.slow
def test_no_thread_outlives_parting(tmp_path):
    """One that does aborts the interpreter's end, now and then."""
    program = tmp_path / "program.py"
    program.write_text(PARTED)
    ended = launch([str(program)], 2)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "error",
    [
        ValueError("gloo: Timed out waiting 5000ms"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("[gloo] Timed out waiting 5000ms for recv"),  # But nobody else is there.
    ],
)
def test_other_errors_are_not_explained(error):
    assert explain_timeout(error) is None


@pytest.mark.slow
@pytest.mark.parametrize("heard_by", [(0, 1), (1,)])
def test_a_warning_that_some_processes_hear(shapes, tmp_path, heard_by):
    """All of them save together, at one step, and the run goes on from there."""
    expected = weights(train_in(2, shapes, tmp_path / "whole", *LONG))
    out = tmp_path / "warned"
    command = ["-m", "ccsnet", *arguments(shapes, out, *LONG, "--resume", "auto")]
    with start(command, 2) as launcher:
        wait_for_steps(launcher, out, 5)
        for rank in heard_by:
            os.kill(process_of(launcher, rank), signal.SIGUSR1)
        said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "all is saved. Go on with: ccsnet train --resume" in said
    assert 'Traceback (most recent call last):\n  File "/' not in said
    ended = launch(command, 2, timeout=150)
    assert ended.returncode == 0, ended.stderr
    got = weights(out)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
