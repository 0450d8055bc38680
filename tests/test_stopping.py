# ruff: noqa: PT012 - how far a block gets is what is tested.

import os
import signal
import subprocess
import sys
import threading

import pytest

from ccsnet.stopping import (
    SIGNALS,
    StopRequest,
    StopSignals,
    request_flags,
    request_of,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_a_block_it_stops_at_once(number):
    with pytest.raises(StopRequest) as stopped, StopSignals():
        send(number)
        raise AssertionError("not reached")
    assert stopped.value.status == (130 if number == signal.SIGINT else 75)
    assert isinstance(stopped.value, KeyboardInterrupt)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_block_is_done_whole(number):
    done = []
    with pytest.raises(StopRequest), StopSignals() as signals:
        with signals.held():
            send(number)
            done.append("all of it")
        done.append("and no more")
    assert done == ["all of it"]


def test_pressing_twice_does_not_wait():
    with pytest.raises(StopRequest), StopSignals() as signals, signals.held():
        send(signal.SIGINT)
        send(signal.SIGINT)
        raise AssertionError("not reached")


def test_schedulers_may_repeat_themselves():
    done = []
    with pytest.raises(StopRequest) as stopped, StopSignals() as signals, signals.held():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            send(number)
        done.append("all of it")
    assert done == ["all of it"]
    assert stopped.value.number == signal.SIGTERM


def test_held_by_the_program_itself():
    with StopSignals() as signals:
        signals.hold()
        with signals.held():
            send(signal.SIGTERM)
        assert signals.asked == signal.SIGTERM


def test_what_ends_is_not_ended_again():
    with StopSignals() as signals:
        signals.ignore()
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert not signals.asked


def test_what_was_before_comes_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_error_in_the_block_is_not_hidden():
    with pytest.raises(ValueError, match="mine"), StopSignals() as signals, signals.held():
        send(signal.SIGTERM)
        raise ValueError("mine")


def test_other_threads_change_nothing():
    found = []

    def work() -> None:
        with StopSignals() as signals, signals.held():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(
    ("heard", "status"),
    [
        ((0, 0), None),
        ((0, signal.SIGINT), 130),
        ((signal.SIGUSR1, 0), 75),
        ((signal.SIGINT, signal.SIGTERM), 75),
    ],
)
def test_processes_agree(heard, status):
    flags = [sum(each) > 0 for each in zip(*map(request_flags, heard), strict=True)]
    request = request_of(*flags)
    assert (None if request is None else request.status) == status


SPAWN = """
import multiprocessing, signal
from ccsnet.stopping import SIGNALS, deaf_children

def ends(number):
    process = multiprocessing.get_context("spawn").Process(
        target=signal.raise_signal, args=(number,)
    )
    process.start()
    process.join()
    return process.exitcode

with deaf_children():
    within = [ends(number) for number in SIGNALS]
assert within == [0] * len(SIGNALS), within
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert ends(signal.SIGTERM) == -signal.SIGTERM
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no mask is inherited")
def test_a_process_is_deaf_from_its_first_moment_on():
    """Also the first one spawned, whose start starts the resource tracker, which unblocks."""
    # A new process, so that no tracker runs; "-c" is a main module that is not run again.
    process = subprocess.run(
        [sys.executable, "-c", SPAWN], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
