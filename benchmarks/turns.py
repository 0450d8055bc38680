"""Jobs that take turns, so that a change of the machine's speed meets all alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Job = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


def take_turns(
    jobs: Mapping[Name, Job],
    rounds: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds that each job takes in each round.

    Args:
        jobs: What is measured, by name.
        rounds: How often each of them runs.
        warm_up: Rounds before these that do not count: they fill what the others find filled.
        clock: Seconds since some moment, of the wall or of the processor.
    """
    times: dict[Name, list[float]] = {name: [] for name in jobs}
    for turn in range(-warm_up, rounds):
        for name, job in jobs.items():
            start = clock()
            job()
            elapsed = clock() - start
            if turn >= 0:
                times[name].append(elapsed)
    return times


def paired_ratio(these: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long one job takes as another: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(these, others, strict=True))
