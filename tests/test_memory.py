import ctypes
import subprocess
import sys

import pytest
import torch

from ccsnet import memory
from ccsnet.memory import keep_freed_memory, peak_memory


def test_says_whether_it_could():
    # In a process of its own: the setting lasts as long as the process.
    code = "from ccsnet.memory import keep_freed_memory; print(keep_freed_memory())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found in ("True", "False")
    if sys.platform == "darwin":
        assert found == "False"


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # A C library without mallopt.
    assert keep_freed_memory() is False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is not handed on")
def test_the_peak_is_not_that_of_the_parent():
    # Through fork or vfork and exec, getrusage's peak stays: a notebook's would count as ours.
    code = (
        "import torch; from ccsnet.memory import peak_memory\n"
        "small = peak_memory(torch.device('cpu')); filled = bytes([1]) * 2**29\n"
        "print(small, peak_memory(torch.device('cpu')))"
    )
    filled = bytes([1]) * 2**30
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert len(filled) == 2**30
    assert small < 0.8
    assert 0.4 < large - small < 0.6


def test_a_system_that_tells_less_is_asked_otherwise(monkeypatch, tmp_path):
    known = peak_memory(torch.device("cpu"))
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t1 kB\n")
    assert peak_memory(torch.device("cpu")) >= 0.9 * known
