"""Images that wait for the network, and which of them go into it together."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Num


@dataclass(frozen=True, kw_only=True)
class Job:
    """An image that waits."""

    number: int
    image: Num[np.ndarray, "H W C"] = field(repr=False)
    key: Hashable
    """Images with equal keys can go into one forward pass."""
    came: float
    """When, by the clock of the `Waiting`."""


class Waiting:
    """Jobs, oldest first: some threads put them in, one takes batches out.

    Args:
        max_wait: Seconds that the oldest job waits for others that go with it.
        at_once: How many images like one go into a forward pass. It is asked in the thread that
            takes: to plan it, the network may be run, and it can be run by one thread only.
        clock: Seconds since some moment.
    """

    def __init__(
        self,
        max_wait: float,
        at_once: Callable[[Num[np.ndarray, "H W C"]], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_wait, self.at_once, self.clock = max_wait, at_once, clock
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job behind the others."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, number: int) -> None:
        """Forget a job; one that is no longer there is at work, and nothing happens."""
        with self._changed:
            self._jobs = [job for job in self._jobs if job.number != number]

    def close(self) -> None:
        """No more jobs come: batches wait for nothing any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next_batch(self) -> list[Job] | None:
        """The oldest job and those that go with it; waits for one; None after the last.

        It waits for companions only until the oldest job has waited for `max_wait`, and not at all
        where enough are there.
        """
        asked, most = None, 1
        with self._changed:
            while True:
                if not self._jobs:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                first = self._jobs[0]
                if first is not asked:
                    asked, most = first, self.at_once(first.image)
                batch = [job for job in self._jobs if job.key == first.key][:most]
                left = first.came + self.max_wait - self.clock()
                if self._closed or len(batch) >= most or left <= 0:
                    taken = {job.number for job in batch}
                    self._jobs = [job for job in self._jobs if job.number not in taken]
                    return batch
                self._changed.wait(left)
