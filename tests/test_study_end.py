"""A real study from end to end: killed and gone on with, it ends as one that was not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, descendants
from tests.shapes import BACKBONE

ROOT = Path(__file__).parents[1]
STUDY = f"""
title: Shapes
data: shapes
recipe: own
seeds: [0, 1]
settings:
  backbone: {BACKBONE}
  backbone-weights: none
  coarse-dim: 16
  top-k: 2
  batch-size: 2
  workers: 0
  precision: float32
  channels-last: true
  cpu: true
  steps: 30
  validate-every: 7
  save-every: 4
  lr: 3.0e-3
  trackers: []
baseline: segformer
report: val
match: {{by: gmacs, dims: [8, 16, 24]}}
rows:
  ccs: {{head: ccs, dim: 16}}
  segformer: {{head: segformer, dim: 16}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "shapes.yaml"
    path.write_text(STUDY)
    return path


def command(file: Path, shapes: Path, out: Path, *options: str) -> list[str]:
    words = (str(file), "--data", f"shapes={shapes}", "--out", str(out), *options)
    return [sys.executable, "-m", "ccsnet", "study", *words]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(words: list[str]) -> str:
    process = start(words)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said


@pytest.fixture(scope="module")
def straight(file, shapes, tmp_path_factory) -> Path:
    """The study that nobody kills, and whose models are timed."""
    out = tmp_path_factory.mktemp("study") / "straight"
    said = finish(command(file, shapes, out, "--timing"))
    assert said == (out / "results.md").read_text()
    return out


def figures(out: Path) -> dict:
    """All results but for what depends on the clock."""
    found = json.loads((out / "results.json").read_text())
    found["timing"] = None
    for one in (*found["rows"].values(), *found["cells"].values()):
        for clock in ("minutes", "milliseconds", "origins"):
            one.pop(clock, None)
    return found


def test_what_it_leaves(straight):
    found = json.loads((straight / "results.json").read_text())
    assert [cell["state"] for cell in found["cells"].values()] == ["done"] * 4
    for row in found["rows"].values():
        assert row["seeds"] == [0, 1]
        assert 0 < row["miou"] < 1
        assert row["milliseconds"] > 0
        assert row["minutes"] > 0
        assert row["gmacs"] > 0.1
        assert list(row["iou"]) == ["ground", "disc", "box"]
    difference = found["rows"]["ccs"]["difference"]
    assert len(difference["each"]) == 2
    low, high = difference["over_images"]
    assert low <= difference["mean"] <= high
    for name, cell in found["cells"].items():
        config = json.loads((straight / name / "config.json").read_text())
        assert config["train"]["seed"] == cell["seed"]
        best = json.loads((straight / name / "best.json").read_text())
        # The data set has two splits: what was chosen on val is reported on val.
        assert cell["miou"] == pytest.approx(best["miou"], abs=2e-6)


def test_a_finished_study_does_nothing_again(file, shapes, straight):
    before = {path: path.stat().st_mtime_ns for path in straight.glob("*/*")}
    finish(command(file, shapes, straight))
    assert {path: path.stat().st_mtime_ns for path in straight.glob("*/*")} == before


def killed(words: list[str], seconds: float, *, whole: bool) -> bool:
    """Start a study and kill it; whether it still ran.

    Args:
        words: The command.
        seconds: Until it is killed.
        whole: With all that it has started; else its training goes on without it.
    """
    process = start(words)
    time.sleep(seconds)
    ran = process.poll() is None
    for pid in [process.pid, *(descendants(process.pid) if whole else [])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return ran


@pytest.mark.parametrize("whole", [True, False])
def test_killed_at_any_moment(file, shapes, straight, tmp_path, whole):
    rng = random.Random(whole)
    words = command(file, shapes, tmp_path / "out", "--jobs", "2")
    kills = sum(killed(words, rng.uniform(6, 14), whole=whole) for _ in range(3))
    assert kills > 0
    finish(words)
    assert figures(tmp_path / "out") == figures(straight)


def test_ctrl_c_and_go_on(file, shapes, straight, tmp_path):
    out = tmp_path / "out"
    words = command(file, shapes, out)
    process = start(words)
    until = time.monotonic() + 60
    while not (out / "ccs-0/last.safetensors").exists():
        time.sleep(0.02)
        assert time.monotonic() < until
    children = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert "all is saved" in (out / "ccs-0/study.log").read_text()
    finish(words)
    assert figures(out) == figures(straight)


def test_two_at_once_share_the_work(file, shapes, straight, tmp_path):
    out = tmp_path / "out"
    both = [start(command(file, shapes, out)) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert figures(out) == figures(straight)
    logs = [path.read_text() for path in out.glob("*/study.log")]
    assert all(log.count("Checkpoints, logs, settings") == 1 for log in logs)


def test_a_training_that_fails(file, shapes, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        file.read_text()
        .replace("top-k: 2", "top-k: 2\n  lr: 1.0e+30\n", 1)
        .replace("  lr: 3.0e-3\n", "")
    )
    process = start(command(bad, shapes, tmp_path / "out"))
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "failed: ccs-0 (train, exit status 2" in errors
    assert "not a number" in errors or "NaN" in errors
    assert "not run" in said
