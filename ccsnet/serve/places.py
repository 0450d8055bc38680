"""Room for what is taken: so many images, and so many decoded pixels, at once."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

LONGEST, MEMORY = 60, 64
"""Seconds that anybody is told to stay away at most; answers from which their rate is known."""


class FullError(Exception):
    """All places are taken.

    Attributes:
        retry_after: Seconds after which one is probably free.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after


class Places:
    """Places for images that are taken and not answered yet; used from one thread.

    Args:
        total: How many there are.
        clock: Seconds since some moment.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock = total, clock
        self.taken = 0
        self._left: deque[float] = deque(maxlen=MEMORY)

    @contextlib.contextmanager
    def take(self, num: int = 1) -> Iterator[None]:
        """Hold places for the block.

        Raises:
            FullError: There are not so many.
        """
        if self.taken + num > self.total:
            raise FullError(self.retry_after)
        self.taken += num
        try:
            yield
        finally:
            self.taken -= num
            self._left.extend([self.clock()] * num)

    @property
    def retry_after(self) -> int:
        """Seconds in which those who are here have left, at the rate of the last minute."""
        now = self.clock()
        recent = [moment for moment in self._left if now - moment <= LONGEST]
        if len(recent) < 2:
            return 1
        each = (now - recent[0]) / len(recent)
        return min(LONGEST, max(1, math.ceil(self.taken * each)))


class Budget:
    """An amount of which everybody takes a part and gives it back, in the order of coming.

    Args:
        total: The amount; who needs more than that has to be alone.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._turn = asyncio.Lock()  # Fair: else a large image would wait for ever.
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Hold a part for the block, after waiting until it is there."""
        async with self._turn:
            while self.used and self.used + amount > self.total:
                self._freed.clear()
                await self._freed.wait()
            self.used += amount
        try:
            yield
        finally:
            self.used -= amount
            self._freed.set()
