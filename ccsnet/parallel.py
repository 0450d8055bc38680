"""The processes that train one model together; alone, everything here does nothing."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ccsnet.lost_process import sign_in

if torch.distributed.is_available():
    # Its default arguments are the group of the moment of the import. Were that one's threads kept
    # alive by them, `part` could not end them, and now and then the interpreter's end is aborted.
    import torch.distributed.nn.functional


class Processes:
    """This process among those that were started with it, by torchrun or accelerate.

    Args:
        cpu: Use the processor even where there is a GPU.
        timeout: Seconds until a process that does not answer ends the run.

    Attributes:
        rank: Its number, from 0.
        num: How many there are.
        num_here: How many of them share this machine.
        device: Where it computes.
        is_main: Whether it is the one that writes and speaks.
    """

    def __init__(self, *, cpu: bool = False, timeout: float = 1800.0) -> None:
        self._state = PartialState(cpu=cpu, timeout=timedelta(seconds=timeout))
        self.rank: int = self._state.process_index
        self.num: int = self._state.num_processes
        self.num_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.num))
        assert self._state.device is not None, "accelerate chooses one"
        self.device: torch.device = self._state.device
        self.is_main: bool = self._state.is_main_process
        sign_in()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor, in all of them."""
        if self.num > 1:
            tensor = tensor.to(self.device).clone()
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by their numbers."""
        return gather_object(items) if self.num > 1 else items

    def main_says(self, question: Callable[[], bool]) -> bool:
        """What the main process answers, in all of them."""
        answer = self.is_main and question()
        return bool(self.sum(torch.tensor(int(answer))).item())

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The others run the block when the main one has; they find what it left."""
        with self._state.main_process_first():
            yield

    def copied(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.num == 1:
            return network
        # Of 1x1 kernels torch cannot tell the memory orders apart, and warns; nothing is slower.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=device_ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradients_kept_back(network: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients of all passes but the last stay in their process; they are averaged with it."""
    with contextlib.ExitStack() as stack:
        if isinstance(network, DistributedDataParallel) and not last:
            stack.enter_context(network.no_sync())
        yield


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return PartialState().is_main_process


def part() -> None:
    """Let go of the other processes, at the end of the program.

    Without it the interpreter may end while a thread still speaks to them, and is aborted.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
