"""The logs of a run: whole rows, each step once, errors where they happen."""

import math
from pathlib import Path

import pytest

from ccsnet.errors import InputError
from ccsnet.runlog import (
    COLUMNS,
    LOG_FILE,
    VALIDATION_FILE,
    RunLog,
    bottleneck_note,
    parse_log,
    read_log,
)


def open_log(out, resume_at=0):
    return RunLog(out, resume_at=resume_at, trackers=())


def add(log, *steps, **more):
    for step in steps:
        log.step(
            step=step,
            epoch=step / 8,
            seconds=1.5 * step,
            lr=0.1 / step,
            loss=1 / step,
            coarse_loss=0.1,
            images_per_second=4.0,
            **more,
        )


def steps_of(path):
    return [row["step"] for row in read_log(path)]


def test_a_row_for_each_step(tmp_path):
    log = open_log(tmp_path)
    assert log.seconds == 0
    add(log, 1, wait=0.25, memory_gib=1.5)
    add(log, 2)
    log.validation(step=2, miou=0.5, pixel_accuracy=0.75)
    first, second = read_log(tmp_path / LOG_FILE)  # Before it is closed.
    log.close()
    log.close()
    assert tuple(first) == COLUMNS[LOG_FILE]
    assert first["lr"] == 0.1
    assert (first["wait"], first["memory_gib"]) == (0.25, 1.5)
    assert math.isnan(second["wait"])
    assert read_log(tmp_path / VALIDATION_FILE) == [
        {"step": 2, "miou": 0.5, "pixel_accuracy": 0.75}
    ]


def test_what_is_done_again_stands_there_once(tmp_path):
    log = open_log(tmp_path)
    add(log, 1, 2, 3, 4)
    for step in (2, 4):
        log.validation(step=step, miou=step / 10, pixel_accuracy=0.5)
    log.close()
    straight = (tmp_path / LOG_FILE).read_bytes()
    log = open_log(tmp_path, resume_at=3)
    assert log.seconds == 4.5
    assert steps_of(tmp_path / LOG_FILE) == [1, 2, 3]
    assert steps_of(tmp_path / VALIDATION_FILE) == [2]
    add(log, 4)
    log.close()
    assert (tmp_path / LOG_FILE).read_bytes() == straight


def test_a_validation_that_is_measured_again_replaces_the_first(tmp_path):
    """Killed after the row was written and before the checkpoint was."""
    for resume_at, miou in ((0, 0.25), (2, 0.5)):
        log = open_log(tmp_path, resume_at)
        if not resume_at:
            log.validation(step=1, miou=0.125, pixel_accuracy=0.5)
        log.validation(step=2, miou=miou, pixel_accuracy=0.5)
        log.close()
    assert [row["miou"] for row in read_log(tmp_path / VALIDATION_FILE)] == [0.125, 0.5]


@pytest.mark.parametrize("cut", [2, 5, 20, 40])
def test_a_torn_last_row_is_no_row(tmp_path, cut):
    log = open_log(tmp_path)
    add(log, 1, 2, 3)
    log.close()
    file = tmp_path / LOG_FILE
    file.write_bytes(file.read_bytes()[:-cut])
    assert steps_of(file) == [1, 2]
    log = open_log(tmp_path, resume_at=2)
    add(log, 3)
    log.close()
    assert steps_of(file) == [1, 2, 3]


def test_logs_of_a_version_with_fewer_columns(tmp_path):
    (tmp_path / LOG_FILE).write_text("step,epoch,seconds,lr,loss\n1,0.5,2.0,0.1,0.7\n")
    log = open_log(tmp_path, resume_at=1)
    add(log, 2)
    log.close()
    assert log.seconds == 2
    first, _ = read_log(tmp_path / LOG_FILE)
    assert first["loss"] == 0.7
    assert math.isnan(first["images_per_second"])


@pytest.mark.parametrize("text", ["step,loss\n1,green\n", "step,loss\n1\n2,1\n", "a,b\n1,2\n"])
def test_a_damaged_log_is_refused(tmp_path, text):
    file = tmp_path / LOG_FILE
    file.write_text(text)
    with pytest.raises(InputError, match=r"log\.csv is not as .* wrote it .* or remove it"):
        open_log(tmp_path, resume_at=2)
    assert file.read_text() == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    log = open_log(tmp_path)
    add(log, 1)
    table = log._tables[LOG_FILE]
    table.close()
    table._file = Path("/dev/full").open("a", newline="", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*log\.csv"):
        add(log, 2)
    with pytest.raises(OSError, match="No space left"):
        log.close()
    assert log._tables[VALIDATION_FILE]._file is None
    assert steps_of(tmp_path / LOG_FILE) == [1]


def test_an_empty_log_has_no_rows():
    assert parse_log("") == parse_log("step,loss\r\n") == []


def test_waiting_for_data_is_worth_a_word():
    assert bottleneck_note(1 / 3, 4, 8) is None
    assert bottleneck_note(math.nan, 4, 8) is None
    note = bottleneck_note(0.5, 2, 8)
    assert note is not None
    assert note.startswith("Training waits for data 50% of the time. Try more --workers: there are")
    full = bottleneck_note(0.5, 8, 8)
    assert full is not None
    assert "More --workers will hardly help" in full
    assert "ccsnet data shard" in full
    assert bottleneck_note(0.5, 0)
