"""How fast the head could be here, how fast it is, and how fast the method is as it is told.

    python -m benchmarks.roofline
    python -m benchmarks.roofline --size 64 --classes 20 --rounds 1  # to try it

MiT-B1's channels, 150 classes, one image of 512x512; forward in evaluation, and forward with
backward in training, as gradients of the logits come in and those of weights and features go out
(no loss, no optimizer: they are the same for all).

The floor: the multiplications and additions of ours, counted by torch as the head runs, those of
the attention for the k classes alone that a place reads from (ours computes all, and masks the
others), at the highest rate that products of several sizes and libraries reach on this machine; or
the bytes of inputs, weights and results, each moved once (with a backward pass also those of their
gradients), at the rate of a large copy; whichever takes longer.

"literal" is the method as the paper tells it: every place of stride 16 gathers its own keys and
values, windows are cut, four maps are concatenated at stride 4 (tests/heads/literal.py). "plain" is
ours by torch's own kernels, "ours" by those that `ccsnet` runs it with. They take turns, so that a
change of the machine's speed meets all alike; ratios are medians over the rounds. Extra memory is
the peak of all allocations while the head runs; inputs and weights are there before.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peak import peak_extra_bytes
from benchmarks.turns import paired_ratio, take_turns
from ccsnet.cpu_kernels import faster_kernels
from ccsnet.heads._base import HeadConfig
from ccsnet.heads.ccs import CCSHead
from ccsnet.machine import machine
from ccsnet.memory import keep_freed_memory
from ccsnet.precision import Mode, autocast, has_bf16
from tests.heads.literal import literal_forward

CHANNELS = (64, 128, 320, 512)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = ((4096, 4096, 4096), (16384, 256, 256), (2048, 2048, 2048))
"""Places, inputs and outputs of the products whose best rate counts as the machine's."""
COPIED = 2**28
"""Bytes of the copy; far more than caches hold."""

Job = Callable[[], object]


class Peak(NamedTuple):
    """What the machine can do at best."""

    operations: float
    """Multiplications and additions a second."""
    bytes: float
    """Read and written a second."""


class Work(NamedTuple):
    """What the head has to do at least."""

    operations: int
    bytes: int

    def seconds(self, peak: Peak) -> float:
        """The floor."""
        return max(self.operations / peak.operations, self.bytes / peak.bytes)


def synchronised(job: Job, device: torch.device) -> Job:
    """The job until its end: a GPU's is over later than the call."""

    def run() -> None:
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def measured_peak(dtype: torch.dtype, device: torch.device, rounds: int) -> Peak:
    """The best of a few large products and of a large copy."""
    jobs: dict[str, Job] = {}
    operations = {}
    for places, inputs, outputs in PRODUCTS:
        left = torch.randn(places, inputs, device=device).to(dtype)
        right = torch.randn(outputs, inputs, device=device).to(dtype)
        name = f"{places}x{inputs}x{outputs}"
        jobs[f"matmul {name}"] = partial(torch.matmul, left, right.t())
        if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            onednn = torch.ops.mkldnn._linear_pointwise
            jobs[f"oneDNN {name}"] = partial(onednn, left, right, None, "none", [], "")
        operations |= {job: 2 * places * inputs * outputs for job in jobs if name in job}
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    jobs["copy"] = partial(target.copy_, source)
    jobs = {name: synchronised(job, device) for name, job in jobs.items()}
    with torch.inference_mode():
        seconds = {name: min(times) for name, times in take_turns(jobs, rounds).items()}
    rates = {name: operations[name] / seconds[name] for name in operations}
    best = max(rates, key=lambda name: rates[name])
    copied = 2 * COPIED / seconds["copy"]
    print(
        f"peak, {str(dtype).removeprefix('torch.')}: {rates[best] / 1e9:.0f} G operations/s "
        f"({best}), {copied / 1e9:.1f} GB/s"
    )
    return Peak(rates[best], copied)


def least_work(
    head: CCSHead, features: Sequence[Tensor], dtype: torch.dtype, backward: bool
) -> Work:
    """Operations, most of them as torch counts them, and the bytes of what goes in and out."""
    head = copy.deepcopy(head).cpu()  # There torch's counter leaves the attention out.
    features = [feature.detach().cpu().requires_grad_(backward) for feature in features]
    with FlopCounterMode(display=False) as counter:
        output = head(features)
        if backward:
            tensors = output[:2]
            torch.autograd.backward(tensors, [torch.ones_like(t) for t in tensors])
    batch, classes = output.logits.shape[:2]
    places = sum(f.shape[-2:].numel() for f in (*features[:3], features[2]))
    read = 2 * 2 * batch * places * min(head.top_k, classes) * head.key.out_features
    width = torch.tensor([], dtype=dtype).element_size()
    numbers = sum(t.numel() for t in (*features, *head.parameters(), *output[:2]))
    return Work(
        counter.get_total_flops() + (1 + 2 * backward) * read, (1 + backward) * width * numbers
    )


def make_jobs(
    head: CCSHead, features: Sequence[Tensor], precision: str, backward: bool
) -> dict[str, Job]:
    """The contenders, in one precision."""
    device = features[0].device
    mode = Mode(precision, channels_last=True)
    gradients: list[Tensor] = []

    def run(forward: Callable[[Sequence[Tensor]], Sequence[Tensor]], *, ours: bool) -> None:
        with torch.set_grad_enabled(backward), autocast(mode, device):
            if ours:
                with faster_kernels(device):
                    outputs = [t for t in forward(features) if t is not None]
            else:
                outputs = [t for t in forward(features) if t is not None]
        if backward:
            if not gradients:
                gradients.extend(map(torch.randn_like, outputs))
            torch.autograd.backward(outputs, gradients)
            head.zero_grad(set_to_none=True)
            for feature in features:
                feature.grad = None

    def literal(features: Sequence[Tensor]) -> Sequence[Tensor]:
        return literal_forward(head, list(features))

    jobs = {
        "literal": partial(run, literal, ours=False),
        "plain": partial(run, head, ours=False),
        "ours": partial(run, head, ours=True),
    }
    return {name: synchronised(job, device) for name, job in jobs.items()}


COLUMNS = ("pass", "precision", "", "ms", "literal / this", "this / floor", "MiB", "this / literal")


def rows(
    head: CCSHead, features: Sequence[Tensor], rounds: int, peaks: dict[str, Peak]
) -> list[list[str]]:
    """What is printed: for each pass and precision the floor and the contenders."""
    jobs: dict[tuple[str, str, str], Job] = {}
    floors: dict[tuple[str, str], float] = {}
    found: list[list[str]] = []
    for name, backward in (("forward", False), ("forward+backward", True)):
        head.train(backward)
        for feature in features:
            feature.requires_grad_(backward)
        jobs = {}
        for precision, peak in peaks.items():
            work = least_work(head, features, DTYPES[precision], backward)
            floors[name, precision] = work.seconds(peak)
            print(
                f"{name}, {precision}: {work.operations / 1e9:.2f} G operations, "
                f"{work.bytes / 2**20:.0f} MiB"
            )
            for contender, job in make_jobs(head, features, precision, backward).items():
                jobs[name, precision, contender] = job
        times = take_turns(jobs, rounds)
        memory = {key: peak_extra_bytes(job) for key, job in jobs.items()}
        slowest = times[name, "float32", "literal"]
        most = memory[name, "float32", "literal"]
        for precision in peaks:
            floor = floors[name, precision]
            found.append([name, precision, "floor", f"{1e3 * floor:.1f}", *[""] * 4])
            for contender in ("literal", "plain", "ours"):
                key = name, precision, contender
                median = statistics.median(times[key])
                found.append(
                    [
                        *key,
                        f"{1e3 * median:.1f} ({1e3 * min(times[key]):.1f} to "
                        f"{1e3 * max(times[key]):.1f})",
                        f"{paired_ratio(slowest, times[key]):.2f}",
                        f"{median / floor:.2f}",
                        f"{memory[key] / 2**20:.0f}",
                        f"{memory[key] / most:.3f}",
                    ]
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Floor, ours and the literal method.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--keep-memory", action="store_true", help="all keep the memory that they free"
    )
    arguments = parser.parse_args()

    if arguments.keep_memory:
        keep_freed_memory()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    head = CCSHead(CHANNELS, arguments.classes, HeadConfig(dropout=0.0))
    torch.nn.init.normal_(head.coarse.get_parameter("2.weight"))  # A coarse map with a choice.
    head = head.to(device)
    sides = [arguments.size // stride for stride in (4, 8, 16, 32)]
    features = [
        torch.randn(arguments.batch, width, side, side, device=device)
        for width, side in zip(CHANNELS, sides, strict=True)
    ]
    print(
        f"The head: {arguments.classes} classes, {arguments.size}x{arguments.size}, batch "
        f"{arguments.batch}; ratios to the literal method in float32.\n{machine()}"
    )
    precisions = ["float32", "bf16"] if has_bf16(device) else ["float32"]
    peaks = {p: measured_peak(DTYPES[p], device, rounds=5) for p in precisions}
    table = rows(head, features, arguments.rounds, peaks)
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
