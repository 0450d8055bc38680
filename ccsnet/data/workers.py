"""Processes that read files: one result per item, in order, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ccsnet.data.parallel import num_processors, start_worker
from ccsnet.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8  # Items handed to a process at once; each process has two such waiting.


class Failure(NamedTuple):
    """An error of a worker process, handed over as a value.

    A DataLoader would wrap the exception in its own text with a traceback.
    """

    error: Exception


class _Chunks(Dataset, Generic[Item, Result]):
    """The results of so many items at a time."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.work, self.items = work, items

    def __len__(self) -> int:
        return -(-len(self.items) // CHUNK)

    def __getitem__(self, index: int) -> list[Result] | Failure:
        try:
            return [self.work(item) for item in self.items[index * CHUNK : (index + 1) * CHUNK]]
        except (InputError, OSError) as error:
            return Failure(error)


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int = -1
) -> Iterator[Result]:
    """What `work` makes of each item, in the items' order.

    Args:
        work: A module's function or a `partial` of one.
        items: What it is given, one at a time.
        workers: Processes; 0 works in this one, -1 takes as many as there are processors.

    Raises:
        InputError: What `work` raises; so with OSError.
    """
    chunks = _Chunks(work, items)
    workers = min(num_processors() if workers < 0 else workers, len(chunks))
    if workers <= 1:
        yield from map(work, items)
        return
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
        collate_fn=_as_is,
        # Without its own, it would draw from the generator that initial weights come from.
        generator=torch.Generator(),
    )
    for results in loader:
        if isinstance(results, Failure):
            raise results.error
        yield from results


def _as_is(results: Any) -> Any:
    return results
