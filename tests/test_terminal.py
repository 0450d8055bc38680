"""What a terminal of 80 columns shows, and a file."""

import io
import time

import pytest
from rich.console import Console

from ccsnet import terminal
from ccsnet.terminal import TerminalReporter

VALUES = {"loss": 0.5321, "mIoU": 0.4123, "images_s": 112.4, "wait": 0.031, "GiB": 71.25}


@pytest.fixture
def clock(monkeypatch):
    """Time as the test says."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_step_in_80_columns():
    written = io.StringIO()
    reporter = TerminalReporter(Console(file=written, force_terminal=True, width=80))
    reporter.start("training", 160_000, 120_000)
    reporter.advance(1, **VALUES)
    live = reporter._live
    assert live is not None
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(live.get_renderable())
    bar, values = console.export_text().rstrip("\n").split("\n")
    reporter.end()
    assert len(bar) <= 80
    assert "training" in bar
    assert "120001/160000" in bar
    assert " left " in bar
    assert values.strip() == "loss 0.532  mIoU 41.2 %  112 images/s  data wait 3%  71.2 GiB"
    largest = {"loss": 12345.6, "mIoU": 1.0, "images_s": 54321.0, "wait": 1.0, "GiB": 1234.5}
    assert len(terminal._line(largest)) <= 78


def test_notes_stand_above_the_bar_and_the_bar_goes():
    written = io.StringIO()
    reporter = TerminalReporter(Console(file=written, force_terminal=True, width=80))
    reporter.start("training", 10)
    reporter.note("[a] note")
    reporter.advance(1)
    reporter.end()
    reporter.end()
    assert "[a] note\n" in written.getvalue()
    assert reporter._live is None


def test_a_file_gets_a_line_now_and_then(clock):
    written = io.StringIO()
    reporter = TerminalReporter(Console(file=written, width=200))
    reporter.start("training", 1000, 200)
    for _ in range(40):
        clock[0] += 1.0
        reporter.advance(2, **VALUES)
    reporter.end()
    lines = written.getvalue().splitlines()
    assert len(lines) == 3
    # 2 steps each second.
    assert lines[0] == (
        "training 222/1000  loss 0.532  mIoU 41.2 %  112 images/s  data wait 3%  71.2 GiB  "
        "0:06:29 left"
    )


def test_what_is_not_known_is_left_out(clock):
    written = io.StringIO()
    reporter = TerminalReporter(Console(file=written, width=200))
    reporter.start("training", 10)
    clock[0] += 20
    reporter.advance(1, loss=0.25, mIoU=None)
    assert written.getvalue() == "training 1/10  loss 0.250  0:03:00 left\n"
    reporter.start("reading", 5)
    clock[0] += 20
    reporter.advance(5)
    assert written.getvalue().endswith("reading 5/5  0:00:00 left\n")


def test_names_are_folded_not_cut():
    table = terminal.table(
        "T", {"run": "left", "steps": "right"}, [["a" * 30, "160000/160000"]], compact=True
    )
    console = Console(file=io.StringIO(), width=24, record=True)
    console.print(table)
    text = console.export_text()
    assert text.count("a") == 30
    assert "160000/160000" in text
    assert "…" not in text


def test_names_in_brackets_are_no_colours():
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(terminal.table("T", {"class": "left"}, [["[red]"], ["sky [/blue]"]]))
    printed = console.export_text()
    assert "[red]" in printed
    assert "sky [/blue]" in printed
