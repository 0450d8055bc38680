"""Work in one thread, one piece after the other, that can be watched and cancelled."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ccsnet.errors import InputError

MAX_WAITING = 8
"""Jobs that wait; more are refused."""
MAX_KNOWN = 256
"""Jobs whose end is remembered."""

Found = TypeVar("Found")


class BusyError(InputError):
    """Too much work waits already."""


class CancelledError(Exception):
    """The job was told to stop."""


class Job:
    """A piece of work: how far it is, and how it ended.

    Attributes:
        number: Its name.
        state: waiting, running, done, failed or cancelled.
        done: Units of work that are done, of `total`; 0 of 0 where it cannot be told.
        error: What a user is told, where it failed.
        status: HTTP's number for that.
        value: What came of it.
    """

    def __init__(self, number: str) -> None:
        self.number = number
        self.state = "waiting"
        self.done = self.total = 0
        self.error = ""
        self.status = 200
        self.value: Any = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop at the next chance; what is over stays so."""
        self._cancelled.set()
        if self.state == "waiting":
            self.state = "cancelled"

    def progress(self, done: int, total: int) -> None:
        """Note how far it is.

        Raises:
            CancelledError: It was told to stop.
        """
        self.done, self.total = done, total
        if self._cancelled.is_set():
            raise CancelledError

    def run(self, work: Callable[["Job"], Any]) -> None:
        """Do the work; nothing is raised."""
        if self._cancelled.is_set():
            self.state = "cancelled"
            return
        self.state = "running"
        try:
            self.value = work(self)
            self.state = "done"
        except CancelledError:
            self.state = "cancelled"
        except (InputError, OSError) as error:
            self._fail(str(error), getattr(error, "status", 422))
        except MemoryError:
            self._fail("The image takes more memory than there is. Try a smaller one.", 413)
        except Exception as error:
            self._fail(f"The model failed: {type(error).__name__}: {error}", 500)

    def _fail(self, text: str, status: int) -> None:
        self.state, self.error, self.status = "failed", text, status


class Jobs:
    """The one thread, and the jobs that it has, had and will have."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ccsnet-model")
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Put work at the end of the queue.

        Raises:
            BusyError: The queue is full.
        """
        with self._lock:
            waiting = sum(job.state == "waiting" for job in self._known.values())
            if waiting >= MAX_WAITING:
                raise BusyError(f"{waiting} images wait already. Try again when some are done.")
            job = Job(str(next(self._numbers)))
            self._known[job.number] = job
            over = [n for n, j in self._known.items() if j.state not in ("waiting", "running")]
            for number in over[: max(0, len(self._known) - MAX_KNOWN)]:
                del self._known[number]
        self._thread.submit(job.run, work)
        return job

    def call(self, function: Callable[[], Found]) -> "Future[Found]":
        """What a function gives, run in the thread; errors are raised to who asks for it."""
        return self._thread.submit(function)

    def get(self, number: str) -> Job | None:
        """The job of a name, if it is remembered."""
        return self._known.get(number)

    def close(self) -> None:
        """Cancel all jobs and end the thread."""
        for job in list(self._known.values()):
            job.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
