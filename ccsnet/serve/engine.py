"""What labels images for the server: a worker process, watched, and started again when it ends."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num

from ccsnet.errors import InputError
from ccsnet.serve.models import Facts, Failure, Label
from ccsnet.serve.settings import Source
from ccsnet.serve.worker import work
from ccsnet.stopping import deaf_children

LOG = logging.getLogger("ccsnet.serve")
State = Literal["starting", "ready", "stopped"]

LONGEST_PAUSE = 30.0
"""Seconds between attempts to start a worker that ends again and again; the first is at once."""
LAST_WORDS = 5.0  # Seconds for a worker to end by itself.


class WorkerLostError(Exception):
    """The process that computed has ended, and what it was at work on with it."""


@runtime_checkable
class Engine(Protocol):
    """Labels images; what the routes need."""

    facts: Facts
    on_batch: Callable[[int, float], None]
    """Told the size and the seconds of every forward pass."""
    on_restart: Callable[[], None]

    @property
    def state(self) -> State:
        """Whether images are taken."""
        ...

    async def label(self, image: Num[np.ndarray, "H W C"]) -> Label | Failure:
        """The class of every pixel; one that is cancelled is not computed if it still waits.

        Raises:
            WorkerLostError: What computed it is gone.
        """
        ...


class WorkerEngine:
    """A process that owns the model.

    Args:
        source: The model, opened in the process.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.facts: Facts
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self.on_restart: Callable[[], None] = lambda: None
        self._state: State = "starting"
        self._context = multiprocessing.get_context("spawn")  # Threads of torch do not fork.
        self._process: SpawnProcess
        self._connection: Connection
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, concurrent.futures.Future[Label | Failure]] = {}
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()

    @property
    def state(self) -> State:
        """Whether images are taken."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process that computes."""
        return self._process.pid

    def start(self) -> None:
        """Open the model; returns when it is ready.

        Raises:
            InputError: It cannot be opened.
        """
        try:
            self._launch()
        except BaseException:  # Ctrl-C as well: a model takes a while to open.
            self.stop()
            raise
        threading.Thread(target=self._watch, name="ccsnet-watch", daemon=True).start()
        threading.Thread(target=self._post, name="ccsnet-post", daemon=True).start()

    def stop(self) -> None:
        """End the process; images that it has not finished are lost."""
        with self._lock:
            was, self._state = self._state, "stopped"
        self._outbox.put(("stop", 0))
        self._outbox.put(None)
        if not hasattr(self, "_process"):
            return
        if was == "ready":
            self._process.join(LAST_WORDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._fail_pending()

    async def label(self, image: Num[np.ndarray, "H W C"]) -> Label | Failure:
        """The class of every pixel; one that is cancelled is not computed if it still waits.

        Raises:
            WorkerLostError: The process has ended.
        """
        number, future = next(self._numbers), concurrent.futures.Future()
        with self._lock:
            if self._state != "ready":
                raise WorkerLostError
            self._pending[number] = future
        self._outbox.put(("label", number, image))
        try:
            return await asyncio.wrap_future(future)
        finally:
            with self._lock:
                waits = self._pending.pop(number, None) is not None
            if waits:
                self._outbox.put(("cancel", number))

    def _launch(self) -> None:
        """Start a process and wait until its model is open.

        Raises:
            InputError: It cannot be opened.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(theirs, self.source), name="ccsnet-worker", daemon=True
        )
        with self._lock:  # What is started here, `stop` must find.
            if self._state == "stopped":
                raise InputError("The server stops.")
            self._connection, self._process = ours, process
            with deaf_children():
                process.start()
        theirs.close()
        try:
            what, value = ours.recv()
        except (EOFError, OSError) as error:
            process.join()
            raise InputError(
                f"The process that opens {self.source.run} ended with status {process.exitcode} "
                "before the model was ready. A negative number is the signal that ended it: -9 "
                "mostly means that the memory did not suffice."
            ) from error
        if what == "failed":
            process.join()
            raise InputError(value)
        self.facts = value
        with self._lock:
            if self._state != "stopped":
                self._state = "ready"

    def _watch(self) -> None:
        """Hand out what the process says; when it ends, start another."""
        pause, served = 0.0, False
        while self._state != "stopped":
            try:
                what, *rest = self._connection.recv()
            except (EOFError, OSError):
                pause = 0.0 if served else min(LONGEST_PAUSE, max(1.0, 2 * pause))
                served = False
                self._restart(pause)
                continue
            if what == "batch":
                served = True
                self.on_batch(*rest)
                continue
            number, result = rest
            with self._lock:
                future = self._pending.pop(number, None)
            # Whoever asked may have gone just now.
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                if future is not None:
                    future.set_result(result)

    def _restart(self, pause: float) -> None:
        with self._lock:
            if self._state == "stopped":
                return
            self._state = "starting"
        self._fail_pending()
        self._process.join(LAST_WORDS)
        LOG.error(
            "The worker (process %s) ended with status %s; starting another.",
            *(self._process.pid, self._process.exitcode),
        )
        self.on_restart()
        while self._state != "stopped":
            time.sleep(pause)
            try:
                self._launch()
                return
            except (InputError, OSError) as error:
                if self._state == "stopped":
                    return
                pause = min(LONGEST_PAUSE, max(1.0, 2 * pause))
                LOG.error("No worker: %s Trying again in %g s.", error, pause)

    def _fail_pending(self) -> None:
        with self._lock:
            lost, self._pending = self._pending, {}
        for future in lost.values():
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(WorkerLostError())

    def _post(self) -> None:
        """Send what is to be sent; the pipe may be full, and nobody else waits for it."""
        while (message := self._outbox.get()) is not None:
            what, number, *_ = message
            with self._lock:
                wanted = what != "label" or number in self._pending
            # A process that has ended is seen by `_watch`.
            with contextlib.suppress(OSError):
                if wanted:
                    self._connection.send(message)
