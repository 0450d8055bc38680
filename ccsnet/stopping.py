"""Signals that end a run: Ctrl-C, and the warnings that schedulers send before they kill."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

RESUME_STATUS = 75
"""Exit status that means "start me again with --resume". Source: EX_TEMPFAIL of sysexits.h."""

INTERRUPTED_STATUS = 130
"""Exit status of shells for a program that Ctrl-C ended."""

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class StopRequest(KeyboardInterrupt):
    """Somebody wants the run to end; `status` is what the program should then exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.status = INTERRUPTED_STATUS if number == signal.SIGINT else RESUME_STATUS


def request_flags(asked: int) -> tuple[int, int]:
    """Whether a signal is Ctrl-C, and whether it is another: to be summed over processes."""
    return int(asked == signal.SIGINT), int(asked not in (0, signal.SIGINT))


def request_of(interrupted: bool, terminated: bool) -> StopRequest | None:
    """What the processes have heard between them."""
    if terminated:
        return StopRequest(signal.SIGTERM)
    return StopRequest(signal.SIGINT) if interrupted else None


class StopSignals:
    """While entered, a signal raises `StopRequest` where the program is, or waits where it must.

    Outside the main thread, which signals never reach, nothing is changed.

    Attributes:
        asked: The signal that waits, 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._holding = self._deaf = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._deaf:
            return
        again = self.asked == number == signal.SIGINT
        self.asked = number
        # Who presses Ctrl-C twice does not want to wait. Schedulers do repeat themselves.
        if again or not self._holding:
            raise StopRequest(number)

    def hold(self) -> None:
        """From now on signals wait: the program looks at `asked` by itself."""
        self._holding = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal waits for the end of the block, so that what is in it happens whole.

        Raises:
            StopRequest: One came, and nothing holds beyond the block.
        """
        before, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = before
        if self.asked and not before:
            raise StopRequest(self.asked)

    def ignore(self) -> None:
        """From now on the program is ending already."""
        self._deaf = True


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are spawned in the block hear no stop signal, from their first moment on.

    Ctrl-C reaches every process of a terminal. One that is still starting Python itself would die
    of it with a traceback, before it can ask to be left alone with `ignore_stop_signals`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no mask is inherited.
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # Started in the block, it would unblock the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """For a process that the main one ends: it saves first, then ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
