"""Running the cells: each once, several at once, whatever fails or is stopped.

`tests/study_program.py` stands for the training; tests/test_study_end.py trains.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ccsnet import study_cells, study_runner
from ccsnet.cli import run
from ccsnet.stopping import StopRequest, StopSignals
from ccsnet.study_cells import CELL_LOCK, OUTPUT_FILE, CellLock, cells_of, check_settings
from ccsnet.study_file import read_study
from ccsnet.study_runner import run_cells
from tests import study_program

STUDY = """
title: Two rows
data: photos
recipe: own
seeds: [0, 1]
settings: {steps: 1}
baseline: base
report: test
rows:
  base: {head: segformer}
  ours: {head: ccs, top-k: 2}
"""
YAML = "classes: [a, b]\nimages: '{split}/*.jpg'\nlabels: '{split}/*.png'\n"


class Notes:
    """Hears all that a reporter is told."""

    def __init__(self):
        self.notes, self.stages, self.units = [], [], 0

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total, done=0):
        self.stages.append((stage, total, done))
        self.units = done

    def advance(self, units=1, **values):
        self.units += units

    def end(self):
        pass


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """The study's cells, which the stand-in trains."""
    monkeypatch.setattr(
        study_runner, "PROGRAM", (sys.executable, str(Path(study_program.__file__)))
    )
    monkeypatch.setattr(study_runner, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(study_cells, "commit", lambda: "abc123")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "grid.yaml").write_text(STUDY)
    (tmp_path / "out").mkdir()
    order(tmp_path / "out")
    return cells_of(read_study(tmp_path / "grid.yaml"), tmp_path / "out")


def order(out, **orders):
    (out / "orders.json").write_text(json.dumps(orders))


def calls(cells):
    path = cells[0].out.parent / "calls.txt"
    return [tuple(line.split()[:2]) for line in path.read_text().splitlines()]


def run_all(cells, jobs=1, reporter=None):
    with StopSignals() as signals:
        return run_cells(cells, jobs=jobs, reporter=reporter or Notes(), signals=signals)


def wait_for(path):
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_each_is_trained_and_evaluated_once(grid):
    reporter = Notes()
    assert [cell.state for cell in grid] == ["not run"] * 4
    assert run_all(grid, reporter=reporter) == []
    assert [cell.state for cell in grid] == ["done"] * 4
    names = ["base-0", "ours-0", "base-1", "ours-1"]
    assert calls(grid) == [(verb, name) for name in names for verb in ("train", "evaluate")]
    assert reporter.stages == [("steps", 4, 0)]
    assert [note.split(":")[0] for note in reporter.notes] == [
        f"[{i}/4] {name}" for i, name in enumerate(names, 1)
    ]
    again = Notes()
    assert run_all(grid, reporter=again) == []
    assert len(calls(grid)) == 8
    assert again.stages == [("steps", 4, 4)]


def test_several_at_once_share_the_processors(grid, monkeypatch):
    monkeypatch.setattr(study_runner, "num_processors", lambda: 7)
    order(grid[0].out.parent, **{"base-0": {"train": "wait"}, "ours-0": {"train": "wait"}})

    def release():
        for cell in grid[:2]:
            wait_for(cell.out / "waits")
        (grid[1].out / "go").touch()
        wait_for(grid[3].figures)  # One of the two places does all the others.
        (grid[0].out / "go").touch()

    helper = threading.Thread(target=release)
    helper.start()
    assert run_all(grid, jobs=2) == []
    helper.join()
    lines = (grid[0].out.parent / "calls.txt").read_text().splitlines()
    assert {line.split()[2] for line in lines} == {"3"}
    assert len(lines) == 8
    assert grid[0].state == "done"


def test_one_alone_has_all_processors(grid, monkeypatch):
    run_all(grid[:1])
    assert (grid[0].out.parent / "calls.txt").read_text().split()[2] == "None"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_all(grid[1:3], jobs=2)
    lines = (grid[0].out.parent / "calls.txt").read_text().splitlines()
    assert {line.split()[2] for line in lines[2:]} == {"5"}


def test_what_fails_does_not_stop_the_others(grid):
    out = grid[0].out.parent
    order(out, **{"base-0": {"train": "fail"}, "ours-1": {"evaluate": "fail"}})
    first, second = run_all(grid)
    assert first[:3] == ("base-0", "train", 2)
    assert first.said == ["first line", "The loss of step 2 is not a number"]
    assert first.log == grid[0].out / OUTPUT_FILE
    assert second[:3] == ("ours-1", "evaluate", 2)
    assert [cell.state for cell in grid] == ["not run", "done", "done", "trained"]
    order(out)
    assert run_all(grid) == []
    assert calls(grid)[-3:] == [
        *(("train", "base-0"), ("evaluate", "base-0"), ("evaluate", "ours-1")),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once(grid, number):
    order(grid[0].out.parent, **{"base-0": {"train": "wait"}})

    def press():
        wait_for(grid[0].out / "waits")
        os.kill(os.getpid(), number)

    helper = threading.Thread(target=press)
    helper.start()
    with pytest.raises(StopRequest) as stop:
        run_all(grid)
    helper.join()
    assert stop.value.status == {signal.SIGINT: 130, signal.SIGTERM: 75}[number]
    assert (grid[0].out / "heard").read_text() == f"[{int(number)}]"
    assert [cell.state for cell in grid] == ["begun", "not run", "not run", "not run"]
    reporter = Notes()
    (grid[0].out / "go").touch()
    assert run_all(grid, reporter=reporter) == []
    assert reporter.notes[0] == "[1/4] base-0: goes on"


def test_others_cells_are_left_for_the_end(grid):
    """And finished, should the other program have ended without that."""
    grid[0].out.mkdir()
    lock = CellLock(grid[0])
    assert lock.take()
    reporter = Notes()

    def release():
        wait_for(grid[3].figures)
        assert not grid[0].figures.exists()
        lock.release()

    helper = threading.Thread(target=release)
    helper.start()
    assert run_all(grid, reporter=reporter) == []
    helper.join()
    assert reporter.notes[0] == "base-0: another program works on it."
    assert calls(grid)[-2:] == [("train", "base-0"), ("evaluate", "base-0")]


@pytest.mark.slow
def test_a_training_that_outlives_its_study_keeps_the_cell(grid, tmp_path):
    order(grid[0].out.parent, **{"base-0": {"train": "wait"}})
    code = (
        "import sys; from pathlib import Path; from ccsnet import study_runner, study_cells\n"
        "from ccsnet.study_file import read_study; from ccsnet.stopping import StopSignals\n"
        "from ccsnet.progress import Silent\n"
        f"study_runner.PROGRAM = {study_runner.PROGRAM!r}\n"
        f"cells = study_cells.cells_of(read_study(Path({str(tmp_path / 'grid.yaml')!r})), "
        f"Path({str(tmp_path / 'out')!r}))\n"
        "with StopSignals() as signals:\n"
        "    study_runner.run_cells(cells, jobs=1, reporter=Silent(), signals=signals)\n"
    )
    study = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(grid[0].out / "waits")
    finally:
        study.kill()
        study.wait()
    lock = CellLock(grid[0])
    assert not lock.take()
    (grid[0].out / "go").touch()
    assert run_all(grid) == []
    assert calls(grid).count(("train", "base-0")) == 1
    assert lock.take()
    lock.release()
    assert (grid[0].out / CELL_LOCK).exists()


def test_a_run_that_was_killed_between_best_and_last(grid):
    cell = grid[0]
    cell.out.mkdir()
    (cell.out / "best.safetensors").touch()
    cell.clear()
    assert (cell.out / "best.safetensors").exists()  # Not ours.
    cell.note_start()
    (cell.out / "last.safetensors").touch()
    cell.clear()
    assert (cell.out / "best.safetensors").exists()  # The training can go on.
    (cell.out / "last.safetensors").unlink()
    cell.clear()
    assert not (cell.out / "best.safetensors").exists()


def test_every_commit_and_machine_is_noted(grid, monkeypatch):
    cell = grid[0]
    cell.note_start()
    cell.note_start()
    assert len(cell.record()["origins"]) == 1
    monkeypatch.setattr(study_cells, "commit", lambda: "later")
    cell.note_start()
    assert [one["commit"] for one in cell.record()["origins"]] == ["abc123", "later"]


def test_runs_of_other_settings_are_refused(grid, tmp_path):
    run_all(grid)
    check_settings(grid)
    changed = STUDY.replace("top-k: 2", "top-k: 3").replace("recipe: own", "recipe: retina")
    (tmp_path / "grid.yaml").write_text(changed)
    other = cells_of(read_study(tmp_path / "grid.yaml"), tmp_path / "out")
    with pytest.raises(study_cells.InputError, match="another --out") as caught:
        check_settings(other)
    assert "ours-1 was trained with " in str(caught.value)
    assert "model.head_config.top_k 2, now 3" in str(caught.value)
    assert "optim.lr 0.0003, now 0.0005" in str(caught.value)


def test_runs_on_other_data_are_refused(grid, tmp_path):
    grid[0].note_start()
    (tmp_path / "grid.yaml").write_text(STUDY.replace("data: photos", "data: roads"))
    other = cells_of(read_study(tmp_path / "grid.yaml"), tmp_path / "out")
    with pytest.raises(study_cells.InputError, match="the data 'photos', now 'roads'"):
        check_settings(other)
    record = grid[0].record()
    del record["data"]  # As it was noted before it was known to matter.
    (grid[0].out / study_cells.RECORD_FILE).write_text(json.dumps(record))
    check_settings(other)


def test_a_run_that_no_study_began_is_refused(grid):
    grid[0].out.mkdir()
    (grid[0].out / "last.safetensors").touch()
    with pytest.raises(study_cells.InputError, match="holds a run that no study has begun"):
        check_settings(grid)


def test_settings_that_came_later_change_nothing(grid):
    cell = grid[0]
    cell.note_start()
    record = cell.record()
    del record["settings"]["model"]["head_config"]["dropout"]
    (cell.out / study_cells.RECORD_FILE).write_text(json.dumps(record))
    check_settings(grid)


def test_the_commit_of_this_checkout():
    folder = Path(__file__).parent
    asked = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    found = study_cells.commit()
    if asked.returncode:
        assert found == study_cells.ccsnet.__version__
    else:
        assert asked.stdout.startswith(found.removesuffix("-dirty"))


@pytest.fixture
def photos(tmp_path):
    data = tmp_path / "photos"
    data.mkdir()
    (data / "dataset.yaml").write_text(YAML + "splits: [train, val, test]\n")
    return data


def verb(grid, tmp_path, photos, *words):
    place = ("--data", f"photos={photos}", "--out", str(tmp_path / "out"))
    return run(["study", str(tmp_path / "grid.yaml"), *place, *words])


def test_the_verb(grid, tmp_path, photos, capsys, monkeypatch):
    """From the file to the tables, and into a page."""
    monkeypatch.setattr("ccsnet.study_cost.SIDE", 64)
    orders = {"base-0": 0.5, "base-1": 0.6, "ours-0": 0.63, "ours-1": 0.65}
    order(tmp_path / "out", **{name: {"evaluate": miou} for name, miou in orders.items()})
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nProse.\n<!-- study: grid -->\n<!-- end -->\nMore.\n")
    assert verb(grid, tmp_path, photos, "--table-only") == 0
    table = capsys.readouterr().out
    assert table.count("| not run |") == 2
    assert verb(grid, tmp_path, photos, "--markdown", str(page)) == 0
    said = capsys.readouterr()
    text = (tmp_path / "out/results.md").read_text()
    assert said.out == text
    assert "[4/4] ours-1: train" in said.err
    assert page.read_text() == (
        f"# Results\n\nProse.\n<!-- study: grid -->\n\n{text}\n<!-- end -->\nMore.\n"
    )
    (ours,) = [line for line in text.splitlines() if line.startswith("| `ours` | 2")]
    # Differences 0.13 and 0.05: 0.09 +- 12.706 x 0.056569 / sqrt(2).
    assert "| **64.0** (63.0 to 65.0) | +9.0 | -41.8 to +59.8 | +9.0 to +9.0 | 25.0 |" in ours
    assert "| not measured | 1.0 | abc123 |" in ours
    assert "| `ours` | 50.0 | 78.0 |" in text
    assert str(tmp_path) not in text
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["rows"]["ours"]["difference"]["each"] == [0.13, 0.05]
    assert found["cells"]["ours-1"]["miou"] == 0.65
    assert found["rows"]["ours"]["parameters"] > 1e6
    assert verb(grid, tmp_path, photos, "--dry-run") == 0
    assert capsys.readouterr().out.count("2 done") == 2


def test_a_failure_is_told_at_the_end(grid, tmp_path, photos, capsys, monkeypatch):
    monkeypatch.setattr("ccsnet.study_cost.SIDE", 64)
    order(tmp_path / "out", **{"base-0": {"train": "fail"}})
    assert verb(grid, tmp_path, photos) == 1
    said = capsys.readouterr()
    log = tmp_path / "out/base-0" / OUTPUT_FILE
    assert f"failed: base-0 (train, exit status 2; all it said is in {log})" in said.err
    assert "The loss of step 2 is not a number" in said.err
    (base,) = [line for line in said.out.splitlines() if line.startswith("| `base` | 1")]
    assert base.startswith("| `base` | 1 of 2 | **50.0** | - |")


def test_ctrl_c_says_how_to_go_on(grid, tmp_path, photos, capsys):
    order(tmp_path / "out", **{"base-0": {"train": "wait"}})

    def press():
        wait_for(grid[0].out / "waits")
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=press)
    helper.start()
    assert verb(grid, tmp_path, photos) == 130
    helper.join()
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out/results.md").exists()


def test_a_damaged_file_is_named(grid, tmp_path, photos, capsys):
    run_all(grid)
    grid[0].figures.write_text("{")
    assert verb(grid, tmp_path, photos, "--table-only") == 2
    assert f"{grid[0].figures} of the finished cell base-0" in capsys.readouterr().err
