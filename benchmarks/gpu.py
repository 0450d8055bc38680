"""CCSNet against SegFormer of two other libraries on a GPU, and ways to compute its attention.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --parts attention
    python -m benchmarks.gpu --device cpu --size 64 --batch 1 --classes 20 --rounds 1  # to try it

Batch 32, 512x512, 150 classes, MiT-B1, random weights, bf16 by torch's autocast. A training step is
the forward pass, the loss at the label's size, the backward pass and AdamW; predicting ends with
the label maps at the images' size, on the device. Each model runs as it is and after torch.compile
with the same settings for all: the default mode for training, "reduce-overhead" (CUDA graphs) for
predicting; only the network is compiled. segmentation_models_pytorch (smp) and transformers (hf,
`pip install transformers`) get images that are normalised already, ours get bytes, and are there
on the device. The contenders take turns; times are medians of the rounds, each ended by a
synchronisation, ratios medians of the rounds' ratios: above 1, the first is faster. Memory is the
peak of the first runs above what was there: the weights, the moments of AdamW and the images. What
is not ready after `--minutes`, most of which go into compiling, is left out with a word: all of it
is to take less than ten. How far the ways to compute the attention agree is said at the end.

The table is Markdown. On a processor the compiled columns need `--modes eager compiled`.
"""

import argparse
import importlib.metadata
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_attention import agreement, attention_jobs
from benchmarks.pages import commit
from benchmarks.peak import peak_extra_bytes
from benchmarks.train_step import (
    ENCODERS,
    IGNORED,
    Data,
    hf_segformer,
    make_data,
    normalised,
    refusal,
    with_moments,
)
from benchmarks.turns import paired_ratio, take_turns
from ccsnet.backbones import make_torchvision_importable
from ccsnet.compiled import Compiled
from ccsnet.loss import SegmentationLoss
from ccsnet.machine import machine
from ccsnet.optim import OptimConfig, create_optimizer
from ccsnet.precision import Autocast, Mode, in_memory_order
from ccsnet.segmenter import ModelConfig, create_segmenter
from ccsnet.upsample import upsample_argmax

BACKBONE = "mit_b1"
MODES = ("eager", "compiled")
Job = Callable[[], object]


class Contender(NamedTuple):
    """A model, and what its library does around it."""

    network: nn.Module
    """On the device."""
    image: Tensor
    """As it takes them."""
    logits: Callable[[Any], Tensor]
    """Of what it returns."""
    loss: Callable[[Any, Tensor], Tensor]
    label: Callable[[Any, tuple[int, int]], Tensor]
    """What it returns as label maps of a size."""
    optimizer: Callable[[], torch.optim.Optimizer]


def ours(head: str, data: Data) -> Contender:
    """What our loop and our predictor do."""
    model = create_segmenter(ModelConfig(backbone=BACKBONE, head=head), num_classes=data.classes)
    model = model.to(data.image.device)
    loss = SegmentationLoss(ignore_index=IGNORED)
    return Contender(
        model,
        data.image,
        lambda output: output.logits,
        lambda output, label: torch.stack(list(loss(output, label).values())).sum(),
        lambda output, size: upsample_argmax(output.logits, size),
        lambda: create_optimizer(model, OptimConfig()),
    )


def of_smp(data: Data) -> Contender:
    """Its Segformer, which ends at the images' size."""
    make_torchvision_importable()
    import segmentation_models_pytorch as smp

    model = smp.Segformer(ENCODERS[BACKBONE], encoder_weights=None, classes=data.classes)
    model = model.to(data.image.device)
    return Contender(
        model,
        normalised(data.image),
        lambda logits: logits,
        lambda logits, label: F.cross_entropy(logits.float(), label, ignore_index=IGNORED),
        lambda logits, size: logits.argmax(1),
        lambda: torch.optim.AdamW(model.parameters(), lr=6e-5),
    )


def of_hf(data: Data) -> Contender:
    """Its Segformer, whose logits have stride 4; its post-processing interpolates them."""
    model = hf_segformer(data.classes).to(data.image.device)

    def full(output: Any, size: tuple[int, int]) -> Tensor:
        return F.interpolate(output.logits, size=size, mode="bilinear", align_corners=False)

    return Contender(
        model,
        normalised(data.image),
        lambda output: output.logits,
        lambda output, label: F.cross_entropy(
            full(output, (label.shape[-2], label.shape[-1])).float(), label, ignore_index=IGNORED
        ),
        lambda output, size: full(output, size).argmax(1),
        lambda: torch.optim.AdamW(model.parameters(), lr=6e-5),
    )


CONTENDERS: dict[str, Callable[[Data], Contender]] = {
    "ccs": partial(ours, "ccs"),
    "smp Segformer": of_smp,
    "hf Segformer": of_hf,
    "segformer": partial(ours, "segformer"),
}


def training_job(build: Callable[[Data], Contender], mode: str, how: Mode, data: Data) -> Job:
    """A training step."""
    contender, device = build(data), data.image.device
    in_memory_order(contender.network.train(), how)
    image = in_memory_order(contender.image, how)
    optimizer = with_moments(contender.optimizer())
    network = Autocast(contender.network, how, device)
    network = torch.compile(network) if mode == "compiled" else network

    def step() -> None:
        contender.loss(network(image), data.label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def predicting_job(build: Callable[[Data], Contender], mode: str, how: Mode, data: Data) -> Job:
    """Images to label maps."""
    contender, device = build(data), data.image.device
    in_memory_order(contender.network.eval(), how)
    image = in_memory_order(contender.image, how)
    network: nn.Module = Autocast(contender.network, how, device)
    if mode == "compiled":
        network = Compiled(network, device)
    size = (data.label.shape[1], data.label.shape[2])

    @torch.inference_mode()
    def predict() -> Tensor:
        return contender.label(network(image), size)

    return predict


JOBS = {"train": ("training step", training_job), "predict": ("predicting", predicting_job)}
PARTS = {"train": 4, "predict": 2, "attention": 2}
"""Shares of the time: most goes to compiling, and gradients make twice the code."""


class Measured(NamedTuple):
    """A job's times and memory."""

    seconds: list[float]
    bytes: int


Key = tuple[str, str, str]
"""What is done, by whom, in which mode."""


def synchronised(job: Job, device: torch.device) -> Job:
    """The job, with what it has started ended."""

    def run() -> None:
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def warmed_up(job: Job, device: torch.device) -> int:
    """The most that the first runs allocate above what was there: a CUDA graph keeps its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(3):  # Compiled, recorded, replayed.
            job()
        return torch.cuda.max_memory_allocated(device) - before
    job()
    return peak_extra_bytes(job)


def measure(
    jobs: Mapping[Key, Callable[[], Job]],
    rounds: int,
    device: torch.device,
    until: float = math.inf,
) -> tuple[dict[Key, Measured], dict[Key, str]]:
    """All jobs in turns, and the reasons of those that refused or were not ready in time.

    Args:
        jobs: What makes each of them.
        rounds: How often each is timed.
        device: Where they run.
        until: No more jobs are made ready after this, in seconds of `time.perf_counter`.
    """
    ready: dict[Key, Job] = {}
    memory: dict[Key, int] = {}
    refused: dict[str, str] = {}
    reasons: dict[Key, str] = {}
    for key, make in jobs.items():
        torch.manual_seed(0)
        if time.perf_counter() > until:
            reasons[key] = "no time left"
            continue
        with refusal(key[1], refused):
            job = synchronised(make(), device)
            memory[key] = warmed_up(job, device)
            ready[key] = job
        if refused:
            reasons[key] = refused.popitem()[1]
    times = take_turns(ready, rounds)
    return {key: Measured(times[key], memory[key]) for key in ready}, reasons


def model_jobs(
    part: str, arguments: argparse.Namespace, data: Data
) -> dict[Key, Callable[[], Job]]:
    """A model for each job, made as the job is."""
    what, make = JOBS[part]
    how = Mode(arguments.precision, arguments.channels_last)
    return {
        (what, name, mode): partial(make, CONTENDERS[name], mode, how, data)
        for mode in arguments.modes
        for name in arguments.models
    }


def rows(
    found: Mapping[Key, Measured], refused: Mapping[Key, str], modes: Sequence[str]
) -> Iterator[list[str]]:
    """The lines of the table: the first model or way is the one that others are held against."""
    keys = [*found, *refused]
    for what in dict.fromkeys(key[0] for key in keys):
        names = list(dict.fromkeys(key[1] for key in keys if key[0] == what))
        for name in names:
            cells = [what, name]
            for mode in modes:
                this, first = found.get((what, name, mode)), found.get((what, names[0], mode))
                if this is None:
                    cells += [refused.get((what, name, mode), "-"), "", ""]
                    continue
                ratio = "" if first is None else f"{paired_ratio(this.seconds, first.seconds):.2f}"
                cells += [spread(this.seconds), ratio, f"{this.bytes / 2**30:.2f}"]
            yield cells


def spread(seconds: list[float]) -> str:
    """Median and range in milliseconds."""
    low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def where(device: torch.device) -> str:
    """The machine and the versions that figures depend on."""
    parts = [machine(), f"commit {commit()}"]
    if device.type == "cuda":
        parts = [torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda}", *parts]
    for package in ("segmentation-models-pytorch", "transformers", "triton"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{package} not installed")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="CCSNet against SegFormer on a GPU.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--modes", nargs="+", choices=MODES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8, help="until what is left is left out")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu tries the benchmark on a processor.")
    if arguments.modes is None:
        arguments.modes = list(MODES) if device.type == "cuda" else ["eager"]
    if importlib.util.find_spec("transformers") is None and "hf Segformer" in arguments.models:
        print("hf Segformer is left out: transformers is not installed.\n")
        arguments.models.remove("hf Segformer")

    data = make_data(arguments.batch, arguments.size, arguments.classes)
    data = data._replace(image=data.image.to(device), label=data.label.to(device))
    print(
        f"Batch {arguments.batch}, {arguments.size}x{arguments.size}, {arguments.classes} classes, "
        f"{arguments.precision}, {arguments.rounds} rounds: medians in ms (least to most), times "
        f"relative to the first, GiB above what was there.\n\n{where(device)}\n"
    )
    columns = [f"{mode} {what}" for mode in arguments.modes for what in ("ms", "/ first", "GiB")]
    columns = ["what", "by", *columns]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    start = time.perf_counter()
    for number, part in enumerate(arguments.parts):
        # Its share of what is left, to which those before may have added.
        now, end = time.perf_counter(), start + 60 * arguments.minutes
        share = PARTS[part] / sum(PARTS[later] for later in arguments.parts[number:])
        until = now + share * (end - now)
        if part == "attention":
            jobs = {key: partial(lambda job: job, job) for key, job in attention_jobs(arguments)}
        else:
            jobs = model_jobs(part, arguments, data)
        for row in rows(*measure(jobs, arguments.rounds, device, until), arguments.modes):
            print(f"| {' | '.join(row)} |", flush=True)
        torch.compiler.reset()  # What a part has compiled does not count for the next.
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if "attention" in arguments.parts:
        print(f"\nAttention, largest difference from ours in float32: {agreement(arguments)}")
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
