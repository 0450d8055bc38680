"""What the worker does with what comes through its pipe."""

import multiprocessing

import numpy as np
import pytest

from ccsnet.serve import worker
from ccsnet.serve.batching import Waiting
from ccsnet.serve.models import Facts

IMAGE = np.zeros((4, 4, 3), np.uint8)


class ByShape:
    """Knows which images go together, if they are images."""

    facts = Facts(name="shape", classes=("a",), colours=((1, 2, 3),), channels=3, dataset="none")

    def key(self, image):
        return image.shape

    def at_once(self, image):
        return 1

    def label(self, images):
        raise AssertionError("nothing is labelled here")


@pytest.fixture
def listen(monkeypatch):
    """Listens until nothing comes; gives what waits then, and the status with which it ended."""

    def left(status):
        raise SystemExit(status)

    monkeypatch.setattr(worker.os, "_exit", left)

    def run(*messages):
        ours, theirs = multiprocessing.Pipe()
        for message in messages:
            ours.send(message)
        ours.close()
        waiting = Waiting(0.0, at_once=lambda image: 1)
        with theirs, pytest.raises(SystemExit) as ended:
            worker._listen(theirs, ByShape(), waiting)
        waiting.close()
        numbers = []
        while (batch := waiting.next_batch()) is not None:
            numbers += [job.number for job in batch]
        return numbers, ended.value.code

    return run


def test_it_ends_with_the_server(listen):
    sent = ("label", 1, IMAGE), ("label", 2, IMAGE), ("cancel", 1)
    assert listen(*sent) == ([2], 0)


def test_it_ends_where_it_can_listen_no_longer(listen, caplog):
    """Another is started then; one that only computes would look ready, and answer nobody."""
    assert listen(("label", 1, IMAGE), ("label", 2, "no image")) == ([1], 1)
    assert "cannot take what comes" in caplog.text
