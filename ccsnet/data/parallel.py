"""Independent pieces of work, in this process or spread over several that need no torch."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from ccsnet.errors import InputError
from ccsnet.progress import Reporter
from ccsnet.stopping import deaf_children, ignore_stop_signals

Task = TypeVar("Task")


def num_processors() -> int:
    """How many processors this program may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def start_worker(*_: int) -> None:
    """What a worker process does first; a DataLoader tells it its number."""
    # Ctrl-C reaches every process of a terminal, a scheduler's warning every process of a job.
    # Workers also end when they find the main process gone.
    ignore_stop_signals()
    cv2.setNumThreads(0)  # Workers are the parallelism; threads in each would compete.


def run_all(
    function: Callable[[Task], int],
    tasks: Sequence[Task],
    *,
    workers: int,
    reporter: Reporter,
) -> None:
    """Call the function with every task, and tell the reporter what each call returns.

    The first error ends it: tasks that are under way are finished, the others are not begun.

    Args:
        function: A module's function, so that another process can import it; returns the units of
            progress that the task was.
        tasks: Its arguments; they are sent to the processes.
        workers: How many processes; 0 or 1: this one.
        reporter: Told the progress.

    Raises:
        InputError: A process was killed.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            reporter.advance(function(task))
        return
    # "spawn" is alike everywhere, and no lock of this process's libraries is inherited.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
    )
    try:
        with deaf_children():
            done = pool.map(function, tasks, chunksize=1)
        for units in done:
            reporter.advance(units)
    except BrokenProcessPool as error:
        raise InputError(
            "A worker process was ended from outside, most often for lack of memory. What is done "
            "is kept: give the same command with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
