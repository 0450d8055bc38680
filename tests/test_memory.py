import ctypes
import subprocess
import sys

from ccsnet import memory
from ccsnet.memory import keep_freed_memory


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
