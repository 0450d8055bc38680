"""Which number type and memory order are fastest here: measured on the model itself, and kept.

A trial takes about a second, so it runs passes of small images where those of the run's size take
longer. What is given up: small maps stay in the processor's caches, where half the bytes of bf16
count for less than they do at full size. So modes that are close in a trial may be the other way
round in the run; those that are far apart are not.
"""

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccsnet.files import cache_folder
from ccsnet.machine import Cache, machine
from ccsnet.precision import Mode, autocast, has_bf16, in_memory_order

try:
    import fcntl
except ImportError:  # Windows: two programs may measure at the same time.
    fcntl = None

TRIAL_SECONDS = 1.0
TRIAL_BATCH = 2
"""Images of a training pass; of one alone, batch norms of a single place have no variance."""
SMALLEST_SIDE = 128
"""Pixels; of smaller images a pass is mostly overhead. Where two passes of these in each mode are
more than `TRIAL_SECONDS`, the trial takes longer."""
MAX_ROUNDS = 10
INFERENCE_SIDE = 512
WAIT_SECONDS = 60.0
"""How long a program waits for another's trial."""


class Trial(NamedTuple):
    """How a trial ended."""

    precision: str
    channels_last: bool
    tried: str
    """The times of all modes, as they are shown."""


def choose_mode(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    precision: str = "auto",
    channels_last: bool | None = None,
    key: str = "",
) -> tuple[Mode, str]:
    """Settle what is left open for training, by timing forward and backward passes of copies.

    Args:
        model: The network, in training mode, on its device; left as it is, as is the random stream.
        image: A batch like those of the run.
        label: Its labels, of the same height and width.
        loss: Runs a network on images and labels.
        precision: auto, or one of `Mode`; auto never takes fp16, which needs its losses scaled.
        channels_last: None to try both orders.
        key: What else the outcome depends on; with the model and the batch's shape, the name that
            it is kept under.

    Returns:
        The fastest mode, and what to tell the user of how it was found.
    """
    device, modes = image.device, modes_of(precision, channels_last, image.device)
    image, label = image[:TRIAL_BATCH], label[:TRIAL_BATCH]
    copies: dict[bool, nn.Module] = {}

    def run(mode: Mode, side: int) -> None:
        order = mode.channels_last
        if order not in copies:  # Autocast leaves the weights alone: one copy serves all types.
            copies[order] = copy.deepcopy(model)
            in_memory_order(getattr(copies[order], "backbone", copies[order]), mode)
        seen = in_memory_order(middle(image, side), mode)
        with autocast(mode, device):
            value = loss(copies[order], seen, middle(label, side))
        value.backward()
        copies[order].zero_grad(set_to_none=True)

    longest = max(image.shape[-2:])
    about = f"training, batch of {tuple(image.shape)}, {key}"
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _settle(modes, run, longest, device, f"{about}, {fingerprint(model)}")


def choose_inference_mode(
    network: Callable[[Mode], nn.Module],
    model: nn.Module,
    in_channels: int,
    *,
    precision: str = "auto",
    channels_last: bool = False,
) -> tuple[Mode, str]:
    """The same for predicting: one image, forward alone, in the memory order that is given.

    Args:
        network: What predicts in a mode.
        model: The network within, on its device, in evaluation mode.
        in_channels: Bands of its images.
        precision: auto, float32 or bf16.
        channels_last: As it is noted in the mode.
    """
    device = next(model.parameters()).device
    modes = modes_of(precision, channels_last, device)
    made = cache(network)
    random = torch.Generator().manual_seed(0)
    shape = (1, in_channels, INFERENCE_SIDE, INFERENCE_SIDE)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random).to(device)

    @torch.inference_mode()
    def run(mode: Mode, side: int) -> None:
        made(mode)(middle(image, side))

    about = f"predicting, channels-last {channels_last}, {fingerprint(model)}"
    return _settle(modes, run, INFERENCE_SIDE, device, about)


def modes_of(precision: str, channels_last: bool | None, device: torch.device) -> list[Mode]:
    """What is to be tried."""
    if precision == "auto":
        precisions = ["float32", "bf16"] if has_bf16(device) else ["float32"]
    else:
        precisions = [precision]
    orders = [False, True] if channels_last is None else [channels_last]
    return [Mode(p, order) for p in precisions for order in orders]


def middle(maps: Tensor, side: int) -> Tensor:
    """The middle of images or labels, at most so high and so wide."""
    for dim in (-2, -1):
        length = min(side, maps.shape[dim])
        maps = maps.narrow(dim, (maps.shape[dim] - length) // 2, length)
    return maps


def fingerprint(model: nn.Module) -> str:
    """A text that changes with the network's form, not with its weights."""
    shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    text = f"{model!r} {shapes}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _settle(
    modes: Sequence[Mode],
    run: Callable[[Mode, int], object],
    longest: int,
    device: torch.device,
    name: str,
) -> tuple[Mode, str]:
    """The only mode, or the one that was the fastest once, or the one that is now."""
    if len(modes) == 1:
        return modes[0], f"Precision {shown(modes[0])}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kept = Cache("trials.json", machine(), Trial("", False, ""))
    name = f"{where}, {name}, of {', '.join(map(shown, modes))}"
    with _one_at_a_time():
        found = kept.read(name)
        if found is not None and Mode(*found[:2]) in modes:
            mode = Mode(*found[:2])
            told = f"kept from an earlier trial; delete {kept.path} to try again; {found.tried}"
            return mode, f"Precision {shown(mode)} ({told})"
        mode, tried = _measure(modes, run, longest, device)
        kept.write(name, Trial(*mode, tried))
    return mode, f"Precision {shown(mode)} ({tried})"


def _measure(
    modes: Sequence[Mode],
    run: Callable[[Mode, int], object],
    longest: int,
    device: torch.device,
) -> tuple[Mode, str]:
    """The fastest mode and the times of all, on the largest images for which there is time."""

    def seconds(mode: Mode, side: int) -> float:
        start = time.perf_counter()
        run(mode, side)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    side = min(SMALLEST_SIDE, longest)
    seconds(modes[0], side)  # The very first pass may load libraries.
    until = time.perf_counter() + TRIAL_SECONDS
    last = seconds(modes[0], side)
    while side < longest:
        larger = min(2 * side, longest)
        needed = 2 * len(modes) * last * (larger / side) ** 2
        if time.perf_counter() + needed > until:
            break
        side = larger
        seconds(modes[0], side)  # The first of a mode and size fills caches, and does not count.
        last = seconds(modes[0], side)
    # They take turns, so that a change of the machine's speed meets all alike; the shortest pass
    # counts, as other programs only ever make one longer.
    for mode in modes[1:]:
        seconds(mode, side)
    best = dict.fromkeys(modes, math.inf)
    for _ in range(MAX_ROUNDS):
        for mode in modes:
            best[mode] = min(best[mode], seconds(mode, side))
        if time.perf_counter() > until:
            break
    times = ", ".join(f"{shown(mode)} {1e3 * value:.0f} ms" for mode, value in best.items())
    return min(modes, key=best.__getitem__), f"tried: {times}, on {side} pixels"


def shown(mode: Mode) -> str:
    """A mode's name."""
    return f"{mode.precision} channels-last" if mode.channels_last else mode.precision


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Programs that measure at the same time slow each other down, and might differ."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # A folder that cannot be written to.
            cache_folder().mkdir(parents=True, exist_ok=True)
            _lock(stack, cache_folder() / "trials.lock")
        yield


def _lock(stack: contextlib.ExitStack, path: Path) -> None:
    file = stack.enter_context(path.open("a"))  # Closed, it is unlocked.
    until = time.monotonic() + WAIT_SECONDS
    while fcntl is not None and time.monotonic() < until:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):  # Another program has it.
            time.sleep(0.05)
