"""Seconds of a training step: CCSNet, our SegFormer head, and the same backbones elsewhere.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --models mit_b1 --size 64 --classes 20 --rounds 1  # to try it

A step is the forward pass, the loss at the label's size, the backward pass and AdamW. Weights are
random. Each model is tried in both memory orders; "channels-last" of ours concerns the backbone, as
in our loop. The contenders of a backbone take turns, so that a change of the machine's speed meets
all alike; ratios are medians over the rounds, each contender in its faster order. The models of
segmentation_models_pytorch (smp) get images that are normalised already, ours get bytes; all keep
the memory that they free, as our command line does. Memory is the highest sum of what a step
allocates; weights and AdamW's moments are there before. Hugging Face transformers (hf) is no
requirement here: put it on PYTHONPATH, or it stays out.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peak import peak_extra_bytes
from benchmarks.turns import paired_ratio, take_turns
from ccsnet.backbones import make_torchvision_importable
from ccsnet.catalogue import machine
from ccsnet.cpu_kernels import faster_kernels
from ccsnet.loss import SegmentationLoss
from ccsnet.memory import keep_freed_memory
from ccsnet.optim import OptimConfig, create_optimizer
from ccsnet.precision import Mode, autocast, in_memory_order
from ccsnet.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, create_segmenter

CPU = torch.device("cpu")
IGNORED = 255
ENCODERS = {"mit_b1": "mit_b1", "resnet50": "resnet50", "convnext_tiny": "tu-convnext_tiny"}
"""Our name of a backbone: smp's."""
ORDERS = {"default": False, "channels-last": True}
PRECISIONS = ("float32", "bf16")

Step = Callable[[str], object]
"""A training step in a precision."""


class Data(NamedTuple):
    """A batch."""

    image: Tensor
    label: Tensor
    classes: int


def make_data(images: int, size: int, classes: int) -> Data:
    """Random images as files hold them, and labels of which some pixels do not count."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, classes, (images, size, size), generator=generator)
    label[:, : size // 16] = IGNORED
    return Data(image, label, classes)


def with_moments(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer with the moments that its first step makes, so that all steps are alike."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def ours(head: str, backbone: str, channels_last: bool, data: Data) -> Step:
    """What our loop does with a batch."""
    config = ModelConfig(backbone=backbone, head=head, drop_path=0.0)
    model = create_segmenter(config, num_classes=data.classes).train()
    order = Mode("float32", channels_last)
    in_memory_order(model.backbone, order)
    optimizer = with_moments(create_optimizer(model, OptimConfig()))
    loss = SegmentationLoss(ignore_index=IGNORED)
    image = in_memory_order(data.image, order)

    def step(precision: str) -> None:
        with autocast(Mode(precision, channels_last), CPU), faster_kernels(CPU):
            output = model(image)
        torch.stack(list(loss(output, data.label).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def normalised(image: Tensor) -> Tensor:
    """Images as other libraries' models take them."""
    mean, std = (
        torch.tensor(values, device=image.device).view(-1, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image - mean) / std


def hf_segformer(num_classes: int) -> nn.Module:
    """SegFormer-B1 of Hugging Face transformers, untrained."""
    make_torchvision_importable()
    from transformers import (  # pyright: ignore[reportMissingImports]
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )

    # Source: the configuration of nvidia/segformer-b1-finetuned-ade-512-512.
    config = SegformerConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 320, 512],
        decoder_hidden_size=256,
        num_labels=num_classes,
        semantic_loss_ignore_index=IGNORED,
    )
    return SegformerForSemanticSegmentation(config)


def peer(name: str, backbone: str, channels_last: bool, data: Data) -> Step:
    """The same with a model of smp, as it comes."""
    make_torchvision_importable()
    import segmentation_models_pytorch as smp

    build = getattr(smp, name)
    model: nn.Module = build(ENCODERS[backbone], encoder_weights=None, classes=data.classes)
    order = Mode("float32", channels_last)
    in_memory_order(model.train(), order)
    optimizer = with_moments(torch.optim.AdamW(model.parameters(), lr=6e-5))
    image = in_memory_order(normalised(data.image), order)

    def step(precision: str) -> None:
        with autocast(Mode(precision, channels_last), CPU):
            logits = model(image)
        F.cross_entropy(logits.float(), data.label, ignore_index=IGNORED).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def hf(backbone: str, channels_last: bool, data: Data) -> Step:
    """The same with SegFormer-B1 of Hugging Face transformers, its loss included."""
    if backbone != "mit_b1":
        raise ValueError("has this one only with MiT")
    model = hf_segformer(data.classes)
    order = Mode("float32", channels_last)
    in_memory_order(model.train(), order)
    optimizer = with_moments(torch.optim.AdamW(model.parameters(), lr=6e-5))
    image = in_memory_order(normalised(data.image), order)

    def step(precision: str) -> None:
        with autocast(Mode(precision, channels_last), CPU):
            loss = model(image, labels=data.label).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


CONTENDERS: dict[str, Callable[[str, bool, Data], Step]] = {
    "ccs": partial(ours, "ccs"),
    "segformer": partial(ours, "segformer"),
    "smp Segformer": partial(peer, "Segformer"),
    "hf SegFormer": hf,
    "smp UPerNet": partial(peer, "UPerNet"),
}


class Measured(NamedTuple):
    """One contender in one precision and memory order."""

    bytes: int
    """At the peak of a step."""
    seconds: list[float]
    """Of each round."""

    @property
    def median(self) -> float:
        """The typical round."""
        return statistics.median(self.seconds)


Measurements = dict[tuple[str, str, str], Measured]
"""By contender, precision and order."""


@contextlib.contextmanager
def refusal(contender: str, refused: dict[str, str]) -> Iterator[None]:
    """Whatever a library says of a backbone that it cannot use becomes a reason in the table."""
    try:
        yield
    except Exception as error:
        refused[contender] = str(error).strip().partition("\n")[0] or type(error).__name__


def measure(
    backbone: str, precisions: list[str], rounds: int, data: Data
) -> tuple[Measurements, dict[str, str]]:
    """All contenders with a backbone, and the reasons of those that refused."""
    found: Measurements = {}
    refused: dict[str, str] = {}
    steps: dict[tuple[str, str, str], Callable[[], object]] = {}
    for contender, build in CONTENDERS.items():
        for order, channels_last in ORDERS.items():
            torch.manual_seed(0)
            with refusal(contender, refused):
                step = build(backbone, channels_last, data)
                # Autocast leaves the weights alone: one model serves all precisions.
                for precision in precisions:
                    steps[contender, precision, order] = partial(step, precision)
    for key, step in steps.items():  # The first round is for the caches, and shows the memory.
        if key[0] not in refused:
            with refusal(key[0], refused):
                found[key] = Measured(peak_extra_bytes(step), [])
    left = {key: step for key, step in steps.items() if key[0] not in refused}
    for key, times in take_turns(left, rounds, warm_up=0).items():
        found[key].seconds.extend(times)
    return found, refused


COLUMNS = ("backbone", "precision", "model", *ORDERS, "this / ccs", "MiB")


def rows(
    backbone: str, precisions: list[str], found: Measurements, refused: dict[str, str]
) -> Iterator[list[str]]:
    """What is printed of a backbone: seconds in both orders, and ratios in the faster one."""
    for precision in precisions:
        best = {
            contender: min(
                (found[contender, precision, order] for order in ORDERS),
                key=lambda measured: measured.median,
            )
            for contender in CONTENDERS
            if contender not in refused
        }
        for contender in CONTENDERS:
            start = [backbone, precision, contender]
            if contender in refused:
                yield [*start, f"refused: {refused[contender]}", "", "", ""]
                continue
            times = (found[contender, precision, order] for order in ORDERS)
            this, ratio = best[contender], ""
            if "ccs" not in refused:
                ratio = f"{paired_ratio(this.seconds, best['ccs'].seconds):.2f}"
            yield [*start, *map(spread, times), ratio, f"{this.bytes / 2**20:.0f}"]


def spread(measured: Measured) -> str:
    return f"{measured.median:.3f} ({min(measured.seconds):.3f} to {max(measured.seconds):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of a training step.")
    parser.add_argument("--models", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    keep_freed_memory()
    data = make_data(arguments.batch, arguments.size, arguments.classes)
    print(
        f"Training step, seconds: batch {arguments.batch}, {arguments.size}x{arguments.size}, "
        f"{arguments.classes} classes, {arguments.rounds} rounds.\n{machine()}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    start = time.perf_counter()
    for backbone in arguments.models:
        found, refused = measure(backbone, arguments.precision, arguments.rounds, data)
        for row in rows(backbone, arguments.precision, found, refused):
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
