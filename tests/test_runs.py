"""`ccsnet runs`: what runs there are, what each has reached, and what is no run."""

import json
import os

import pytest

from ccsnet import run_folder, runs
from ccsnet.cli_runs import SORTED_BY, RunsArguments
from ccsnet.cli_runs import runs as runs_verb
from ccsnet.runlog import COLUMNS, LOG_FILE, VALIDATION_FILE

NOW = 2_000_000_000.0


def make_run(out, *, step=4, steps=4, mious=(0.25, 0.5), metrics_step=None, seconds=3600.0):
    """A run's small files."""
    out.mkdir(parents=True)
    config = {
        "data": {"dataset": "data/shapes"},
        "model": {"backbone": "mit_b0", "head": "ccs"},
        "train": {"steps": steps},
    }
    (out / runs.CONFIG_FILE).write_text(json.dumps(config))
    rows = [",".join(COLUMNS[LOG_FILE])]
    rows += [
        f"{i},0.5,{seconds * i / step},0.1,0.7,0.1,{10 * i},nan,nan" for i in range(1, step + 1)
    ]
    (out / LOG_FILE).write_text("\r\n".join(rows) + "\r\n", newline="")
    os.utime(out / LOG_FILE, (NOW - 60, NOW - 60))
    rows = [",".join(COLUMNS[VALIDATION_FILE])]
    rows += [f"{i},{miou},0.9" for i, miou in enumerate(mious, start=1)]
    (out / VALIDATION_FILE).write_text("\n".join(rows) + "\n")
    if metrics_step is not None:
        (out / runs.METRICS_FILE).write_text(json.dumps({"step": metrics_step}))
    return out


def lock(out, age):
    (out / runs.LOCK_FILE).touch()
    for name in (runs.LOCK_FILE, LOG_FILE):
        os.utime(out / name, (NOW - age, NOW - age))


def only(folder):
    (found,), notes = runs.find_runs(folder, NOW)
    assert notes == []
    return found


def test_files_are_those_of_a_run():
    ours = (runs.CONFIG_FILE, runs.METRICS_FILE, runs.LOCK_FILE)
    assert ours == (run_folder.CONFIG_FILE, run_folder.METRICS_FILE, run_folder.LOCK_FILE)


def test_a_real_run(run):
    found = only(run.out)
    assert (found.dataset, found.backbone, found.head) == ("shapes", "test_efficientnet", "ccs")
    assert (found.step, found.steps, found.state) == (60, 60, "finished")
    assert found.best_miou == pytest.approx(run.result.best_miou)
    assert found.hours == pytest.approx(run.result.seconds / 3600, rel=1e-2)


def test_a_run_in_a_line(tmp_path):
    make_run(tmp_path / "a", metrics_step=4, mious=(0.25, 0.5, 0.375, "nan"))
    found = only(tmp_path)
    assert (found.best_miou, found.best_step) == (0.5, 2)
    assert found.images_per_second == 25
    assert found.hours == 1


def test_states(tmp_path):
    make_run(tmp_path / "finished", metrics_step=4)
    make_run(tmp_path / "stopped early", steps=9, metrics_step=4)
    make_run(tmp_path / "prolonged", step=6, steps=9, metrics_step=4)
    make_run(tmp_path / "stopped")
    for name, age in (("alive", 60), ("killed", 3600)):
        lock(make_run(tmp_path / name), age)
    found, notes = runs.find_runs(tmp_path, NOW)
    assert notes == []
    assert {run.path.name: run.state for run in found} == {
        "finished": "finished",
        "stopped early": "finished",
        "prolonged": "interrupted",
        "stopped": "interrupted",
        "alive": "running?",
        "killed": "interrupted",
    }


def test_a_run_that_has_just_begun(tmp_path):
    out = make_run(tmp_path / "new", mious=())
    (out / LOG_FILE).write_text(",".join(COLUMNS[LOG_FILE]) + "\n")
    found = only(tmp_path)
    assert (found.step, found.best_miou, found.images_per_second, found.hours) == (0, None, None, 0)
    (out / LOG_FILE).unlink()
    assert only(tmp_path).step == 0


def test_of_a_long_log_the_end_is_read(tmp_path, monkeypatch):
    make_run(tmp_path / "long", step=500)
    monkeypatch.setattr(runs, "TAIL_BYTES", 300)
    found = only(tmp_path)
    assert found.step == 500
    assert 4900 < found.images_per_second < 5000
    for tail in range(250, 300):  # The cut may come anywhere in a line.
        monkeypatch.setattr(runs, "TAIL_BYTES", tail)
        assert only(tmp_path).step == 500


def test_what_is_no_run_is_noted(tmp_path):
    make_run(tmp_path / "group" / "good")
    make_run(tmp_path / "group" / "good" / "tensorboard" / "inner")  # Its own business.
    make_run(tmp_path / ".hidden" / "run")
    for name, text in (
        ("torn", '{"data":'),
        ("foreign", '{"model_type": "bert"}'),
        ("list", "[1]"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.CONFIG_FILE).write_text(text)
    (tmp_path / "no config").mkdir()
    (tmp_path / "no config" / LOG_FILE).touch()
    make_run(tmp_path / "bad log").joinpath(LOG_FILE).write_text("step,seconds\n1,green\n")
    found, notes = runs.find_runs(tmp_path, NOW)
    assert [run.path.name for run in found] == ["good"]
    text = "\n".join(notes)
    assert len(notes) == 5
    assert "foreign is no run that can be read (it says no 'data')" in text
    assert "no config is no run that can be read (no config.json)" in text
    for name in ("torn", "list", "bad log"):
        assert f"{name} is no run that can be read" in text


# The verb


@pytest.fixture
def three(tmp_path):
    make_run(tmp_path / "runs" / "b", mious=(0.25,), metrics_step=4, seconds=7200.0)
    make_run(tmp_path / "runs" / "a", mious=(0.5,), steps=160_000)
    make_run(tmp_path / "runs" / "new", mious=())
    return tmp_path


def names_in(printed):
    lines = [line.split() for line in printed.splitlines()]
    rule = next(i for i, words in enumerate(lines) if words and set(words[0]) == {"─"})
    return [words[0] for words in lines[rule:] if words][1:]


@pytest.mark.parametrize(
    ("arguments", "order"),
    [([], "a b new"), (["--sort", "name"], "a b new"), (["--sort", "hours"], "b a new")],
)
def test_table(three, capsys, monkeypatch, arguments, order):
    monkeypatch.chdir(three)
    monkeypatch.setenv("COLUMNS", "80")
    assert runs_verb(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3 runs in runs")
    lines = [line.rstrip() for line in printed.splitlines()]
    assert max(map(len, lines)) <= 80
    assert names_in(printed) == order.split()
    assert "4/160000" in printed
    assert "interrupted" in printed


def test_json_and_notes(three, capsys):
    (three / "runs" / "torn").mkdir()
    (three / "runs" / "torn" / runs.CONFIG_FILE).write_text("{")
    assert runs_verb([str(three / "runs"), "--json", str(three / "x" / "runs.json")]) == 0
    assert "note: " in capsys.readouterr().err
    first, *_ = json.loads((three / "x" / "runs.json").read_text())
    assert first["path"] == str(three / "runs" / "a")
    assert (first["best_miou"], first["state"]) == (0.5, "interrupted")


def test_one_run_and_none(three, capsys):
    runs_verb([str(three / "runs" / "a")])
    assert names_in(capsys.readouterr().out) == ["a"]
    (three / "empty").mkdir()
    assert runs_verb([str(three / "empty")]) == 0
    assert capsys.readouterr().out.strip() == f"No run in {three / 'empty'}."
    with pytest.raises(FileNotFoundError, match="No folder nowhere"):
        runs_verb(["nowhere"])


def test_every_way_to_sort_exists(run):
    summary = only(run.out)
    assert set(RunsArguments.__annotations__["sort"].__args__) == set(SORTED_BY)
    for attribute in SORTED_BY.values():
        assert runs.sort_runs([summary], attribute) == [summary]
