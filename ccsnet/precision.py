"""Which number type and memory order train fastest here: measured on the model itself."""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item", nn.Module, Tensor)

TRIAL_BATCH = 2
TRIAL_REPEATS = 3


class Mode(NamedTuple):
    """How a model computes."""

    precision: str
    """float32, bf16 or fp16."""
    channels_last: bool
    """Whether the backbone's maps keep the channels of a place side by side."""


def autocast(mode: Mode, device: torch.device) -> torch.autocast:
    """The context in which a forward pass runs in a mode."""
    dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Autocast(nn.Module):
    """A network in a mode; a module, so that it can be compiled and copied to every process."""

    def __init__(self, model: nn.Module, mode: Mode, device: torch.device) -> None:
        super().__init__()
        self.model, self.mode, self.device = model, mode, device

    def forward(self, image: Tensor) -> Any:
        """What the network makes of images."""
        with autocast(self.mode, self.device):
            return self.model(image)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def choose_mode(
    model: nn.Module,
    image: Tensor,
    loss: Callable[[nn.Module, Tensor], Tensor],
    *,
    precision: str = "auto",
    channels_last: bool | None = None,
) -> tuple[Mode, dict[Mode, float]]:
    """Settle what is left open, by timing forward and backward passes of a copy of the model.

    Args:
        model: The network, in training mode, on its device; left as it is, as is the random stream.
        image: A batch like those of the run.
        loss: Runs a network on images.
        precision: auto, or one of `Mode`; auto never takes fp16, which needs its losses scaled.
        channels_last: None to try both orders.

    Returns:
        The fastest mode, and the seconds that each candidate took; none where there was no choice.
    """
    device = image.device
    if precision == "auto":
        precisions = ["float32", "bf16"] if has_bf16(device) else ["float32"]
    else:
        precisions = [precision]
    orders = [False, True] if channels_last is None else [channels_last]
    candidates = [Mode(p, order) for p in precisions for order in orders]
    if len(candidates) == 1:
        return candidates[0], {}
    image = image[:TRIAL_BATCH]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seconds = {mode: _time(model, image, loss, mode) for mode in candidates}
    return min(candidates, key=lambda mode: seconds[mode]), seconds


def _time(
    model: nn.Module, image: Tensor, loss: Callable[[nn.Module, Tensor], Tensor], mode: Mode
) -> float:
    """The shortest of a few passes: other programs only ever make a pass longer."""
    trial = in_memory_order(copy.deepcopy(model), mode)
    image = in_memory_order(image, mode)
    times = []
    for _ in range(1 + TRIAL_REPEATS):
        start = time.perf_counter()
        with autocast(mode, image.device):
            value = loss(trial, image)
        value.backward()
        if image.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def in_memory_order(item: Item, mode: Mode) -> Item:
    """The item in the mode's memory order."""
    order = torch.channels_last if mode.channels_last else torch.contiguous_format
    return item.to(memory_format=order)  # pyright: ignore[reportCallIssue, reportReturnType]
