"""Runs the cells of a study, several at once, until all are finished or somebody stops it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ccsnet.data.parallel import num_processors
from ccsnet.progress import Reporter
from ccsnet.runs import summary
from ccsnet.stopping import StopRequest, StopSignals
from ccsnet.study_cells import OUTPUT_FILE, PROGRAM, Cell, CellLock, last_lines

POLL_SECONDS = 0.05
LOOK_SECONDS = 2.0
"""Between looks at how far runs are, and at cells that others have."""


class Failure(NamedTuple):
    """A cell that could not be finished."""

    cell: str
    what: str
    status: int
    said: Sequence[str]
    """Its last lines."""
    log: Path


class _Job:
    """A cell in work: its lock, and the program that runs now."""

    def __init__(self, cell: Cell, lock: CellLock, threads: int | None) -> None:
        self.cell, self.lock = cell, lock
        self.environment = dict(os.environ)
        if threads is not None:
            self.environment.setdefault("OMP_NUM_THREADS", str(threads))
        self.verb = ""
        self.process: subprocess.Popen[bytes] | None = None

    def go_on(self) -> bool:
        """Start what comes next; False when the cell is finished."""
        state = self.cell.state
        if state == "done":
            return False
        arguments = self.cell.evaluate if state == "trained" else self.cell.train
        self.verb = arguments[0]
        if self.verb == "train":
            self.cell.clear()
            self.cell.note_start()
        with (self.cell.out / OUTPUT_FILE).open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self.lock.inherited,
                # Ctrl-C in a terminal reaches this program alone, which passes it on once.
                start_new_session=True,
            )
        return True

    def failure(self, status: int) -> Failure:
        log = self.cell.out / OUTPUT_FILE
        return Failure(self.cell.name, self.verb, status, last_lines(log), log)


def run_cells(
    cells: Sequence[Cell], *, jobs: int, reporter: Reporter, signals: StopSignals
) -> list[Failure]:
    """Train and evaluate what is not finished yet.

    Cells that other programs work on are left for the end, and then waited for.

    Args:
        cells: In the order in which they are begun.
        jobs: How many at once; with several, each has its share of the processors.
        reporter: Who is told how it goes.
        signals: Entered; what is asked for is passed on to the programs.

    Returns:
        What failed; the other cells are finished.

    Raises:
        StopRequest: A signal came; what was running has saved.
    """
    return _Runner(cells, jobs, reporter, signals).run()


class _Runner:
    def __init__(
        self, cells: Sequence[Cell], jobs: int, reporter: Reporter, signals: StopSignals
    ) -> None:
        self.cells, self.num, self.reporter, self.signals = cells, jobs, reporter, signals
        self.threads = max(1, num_processors() // jobs) if jobs > 1 else None
        self.waiting = [cell for cell in cells if cell.state != "done"]
        self.jobs: list[_Job] = []
        self.failures: list[Failure] = []
        self.steps = {cell.name: 0 for cell in cells}
        self.told: set[str] = set()
        self.looked = 0.0

    def run(self) -> list[Failure]:
        self.signals.hold()
        total = sum(cell.config.train.steps for cell in self.cells)
        self._look()
        self.reporter.start("steps", total, sum(self.steps.values()))
        try:
            while self.waiting or self.jobs:
                if self.signals.asked:
                    raise StopRequest(self.signals.asked)
                self._poll()
                if time.monotonic() - self.looked > LOOK_SECONDS:
                    self._advance()
                    self._begin()
                elif self.waiting and len(self.jobs) < self.num and not self.told:
                    self._begin()
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._stop()
            raise
        finally:
            self.reporter.end()
        return self.failures

    def _begin(self) -> None:
        """Begin as many cells as there is room for."""
        for cell in list(self.waiting):
            if len(self.jobs) >= self.num:
                return
            lock = CellLock(cell)
            if not lock.take():
                lock.close()
                if cell.name not in self.told:
                    self.told.add(cell.name)
                    self.reporter.note(f"{cell.name}: another program works on it.")
                continue
            self.waiting.remove(cell)
            self.told.discard(cell.name)
            job = _Job(cell, lock, self.threads)
            self._next(job, before=cell.state)

    def _next(self, job: _Job, before: str = "") -> None:
        """Let a job do what comes next, or end it."""
        try:
            goes_on = job.go_on()
        except BaseException:
            job.lock.release()
            raise
        if goes_on:
            if job not in self.jobs:
                self.jobs.append(job)
                how = "goes on" if before == "begun" else job.verb
                self.reporter.note(f"{self._place(job.cell)} {job.cell.name}: {how}")
            return
        if job in self.jobs:
            self.jobs.remove(job)
        job.lock.release()

    def _place(self, cell: Cell) -> str:
        return f"[{list(self.cells).index(cell) + 1}/{len(self.cells)}]"

    def _poll(self) -> None:
        """See which programs have ended."""
        for job in list(self.jobs):
            assert job.process is not None, "a job that is kept has a program"
            status = job.process.poll()
            if status is None:
                continue
            expected = ("trained", "done") if job.verb == "train" else ("done",)
            if status == 0 and job.cell.state in expected:
                self._next(job)
                continue
            self.jobs.remove(job)
            job.lock.release()
            failure = job.failure(status)
            self.failures.append(failure)
            self.reporter.note(f"{self._place(job.cell)} {failure.cell}: {failure.what} failed")

    def _look(self) -> int:
        """How many steps there are more than before."""
        self.looked = time.monotonic()
        more = 0
        for cell in self.cells:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                # Early stopping leaves steps out.
                done = cell.state in ("trained", "done")
                step = cell.config.train.steps if done else summary(cell.out, time.time()).step
                more += max(step - self.steps[cell.name], 0)
                self.steps[cell.name] = max(step, self.steps[cell.name])
        return more

    def _advance(self) -> None:
        more = self._look()
        if more:
            finished = sum(cell.state == "done" for cell in self.cells)
            self.reporter.advance(more, runs_done=float(finished) if finished else None)

    def _stop(self) -> None:
        """Ask the programs to save and end, and wait for them; asked again, leave them to it."""
        number = self.signals.asked or signal.SIGTERM
        self.signals.hold()
        running = [job for job in self.jobs if job.process is not None]
        for job in running:
            assert job.process is not None, "just selected"
            if job.process.poll() is None:
                self.reporter.note(f"{job.cell.name}: stopping")
                job.process.send_signal(number)
        for job in running:
            assert job.process is not None, "just selected"
            job.process.wait()
            job.lock.release()
