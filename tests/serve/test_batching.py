"""Which images go into the network together, and how long they wait for that."""

import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.serve.batching import Job, Waiting

IMAGE = np.zeros((4, 4, 3), np.uint8)


def job(number, key="a", came=0.0, image=IMAGE):
    return Job(number=number, image=image, key=key, came=came)


def three(image):
    return 3


def waiting(*jobs, now=100.0, max_wait=1.0, at_once=three):
    made = Waiting(max_wait, at_once, clock=lambda: now)
    for one in jobs:
        made.put(one)
    return made


def numbers(batch):
    return [one.number for one in batch]


def test_those_of_one_kind_go_together_oldest_first():
    queue = waiting(job(1), job(2, "b"), job(3), job(4), job(5), job(6, "b"))
    assert numbers(queue.next_batch()) == [1, 3, 4]
    assert numbers(queue.next_batch()) == [2, 6]
    assert numbers(queue.next_batch()) == [5]


def test_what_is_cancelled_is_not_computed():
    queue = waiting(job(1), job(2))
    queue.cancel(1)
    queue.cancel(7)
    assert numbers(queue.next_batch()) == [2]


def test_a_full_batch_does_not_wait():
    queue = Waiting(60.0, three)
    for number in range(3):
        queue.put(job(number, came=queue.clock()))
    started = time.monotonic()
    assert len(queue.next_batch()) == 3
    assert time.monotonic() - started < 5


def test_the_oldest_waits_no_longer_than_it_may():
    queue = Waiting(0.2, three)
    queue.put(job(1, came=queue.clock()))
    started = time.monotonic()
    assert numbers(queue.next_batch()) == [1]
    assert 0.15 < time.monotonic() - started < 5


def test_companions_that_come_in_time_join():
    queue = Waiting(5.0, lambda image: 2)
    queue.put(job(1, came=queue.clock()))
    later = threading.Timer(0.1, lambda: queue.put(job(2, came=queue.clock())))
    later.start()
    started = time.monotonic()
    assert numbers(queue.next_batch()) == [1, 2]
    assert time.monotonic() - started < 4
    later.join()


def test_what_goes_together_is_asked_where_the_network_runs():
    """To plan it the network may be run with other weights: no other thread may do so meanwhile."""
    asked = []
    queue = waiting(at_once=lambda image: asked.append(threading.get_ident()) or 2)
    putter = threading.Thread(target=lambda: [queue.put(job(number)) for number in range(4)])
    putter.start()
    putter.join()
    assert [numbers(queue.next_batch()), numbers(queue.next_batch())] == [[0, 1], [2, 3]]
    assert asked == [threading.get_ident()] * 2


def test_after_the_end_all_that_waits_is_given_out():
    queue = waiting(job(1), job(2, "b"), max_wait=1e9)
    queue.close()
    assert [numbers(queue.next_batch()), numbers(queue.next_batch())] == [[1], [2]]
    assert queue.next_batch() is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=20))
def test_everything_comes_out_once_and_in_order_of_its_kind(kinds):
    at_once = dict(kinds)
    # An image tells by its height how many like it go together.
    jobs = [job(n, key, image=IMAGE[: at_once[key]]) for n, (key, _) in enumerate(kinds)]
    queue = waiting(*jobs, at_once=len)
    queue.close()
    batches = []
    while (batch := queue.next_batch()) is not None:
        batches.append(batch)
    for batch in batches:
        assert len({one.key for one in batch}) == 1
        assert len(batch) <= len(batch[0].image)
    assert sorted(n for batch in batches for n in numbers(batch)) == list(range(len(jobs)))
    for key in at_once:
        found = [one.number for batch in batches for one in batch if one.key == key]
        assert found == sorted(found)
