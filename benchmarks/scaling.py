"""The tables of docs/scaling.md: what training on many accelerators amounts to, computed.

    python -m benchmarks.scaling           # writes them into the page
    python -m benchmarks.scaling --check   # is the page as the code has it?
    python -m benchmarks.scaling --print --step-seconds 0.08   # with a step that you measured

Nothing here is measured but the time to read an image (docs/speed.md). Operations are counted on
our own models; what hardware does is assumed, in `ASSUMED`.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ccsnet.catalogue import training_memory
from ccsnet.config import RunConfig
from ccsnet.data.opening import DataConfig
from ccsnet.segmenter import ModelConfig, create_segmenter

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
START, END = "<!-- made by `python -m benchmarks.scaling` -->", "<!-- end of what is made -->"

CLASSES, SIDE = 150, 512
STEPS, BATCH, IMAGES = 160_000, 16, 20_210  # ADE20K's usual schedule, and its training images.
BACKBONES = ("mit_b1", "resnet50", "convnext_tiny", "mit_b5", "vit_large_patch14_dinov2")


class Assumed(NamedTuple):
    """What is not counted but assumed."""

    peak: float = 989e12
    """Operations a second in bf16, dense. Source: NVIDIA's data sheet of the H100 SXM."""
    peak_share: float = 0.4
    """Of the peak that large products of matrices reach."""
    bandwidth: float = 3.35e12
    """Bytes a second between the accelerator and its memory. Source: the same."""
    bandwidth_share: float = 0.6
    passes: int = 5
    """A map that is kept is written once and read twice, its gradient written and read once."""
    pair_bytes: float = 45e3
    """An image with its label on disk: the archive of about 1 GB holds 22 210 pairs."""
    read_seconds: float = 2.9e-3
    """To decode and augment an image, on one core. Source: docs/speed.md, measured."""
    collective: float = 30e-6
    """Seconds of an exchange among all devices that is too small for its bytes to count."""
    devices_per_node: int = 8


ASSUMED = Assumed()

LINKS = {"NVLink": 450e9, "PCIe 4 x16": 25e9, "Ethernet 100 Gbit/s": 12.5e9}
"""Bytes a second in one direction."""
INSIDE, BETWEEN = "NVLink", "Ethernet 100 Gbit/s"
RINGS = ((8, "NVLink"), (8, "PCIe 4 x16"), (16, "Ethernet 100 Gbit/s"), (64, "Ethernet 100 Gbit/s"))
SLOWER = 5  # The second schedule's step, against the first's, which is a floor.


class Model(NamedTuple):
    """What a model is, counted."""

    name: str
    parameters: int
    forward: int
    """Operations for one image; a multiplication with its addition is two."""
    kept_bytes: int
    """Of maps that one image's forward pass keeps for the backward pass, in float32."""
    batch_norms: int

    @property
    def operations(self) -> int:
        """Of both passes: for every product forward there are two of its size backward.

        torch's counter takes depthwise convolutions for dense ones on the way back.
        """
        return 3 * self.forward

    @property
    def gradient_bytes(self) -> int:
        """In float32, as they are averaged."""
        return 4 * self.parameters


def count(backbone: str) -> Model:
    """Count a model of ours with the ccs head."""
    config = RunConfig(data=DataConfig(dataset="ade20k"), model=ModelConfig(backbone=backbone))
    model = create_segmenter(config.model, num_classes=CLASSES, load_weights=False)
    model.to("meta").train()
    # Two images: some norms need two values.
    image = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(image)
    kept = training_memory(config)
    return Model(
        name=backbone,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        forward=counter.get_total_flops() // 2,
        kept_bytes=kept.per_image,
        batch_norms=sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
    )


def image_seconds(model: Model) -> tuple[float, float]:
    """Of one image on one accelerator in bf16: its operations, and its maps' way to memory."""
    traffic = ASSUMED.passes * model.kept_bytes / 2  # bf16: half of float32's bytes.
    return (
        model.operations / (ASSUMED.peak * ASSUMED.peak_share),
        traffic / (ASSUMED.bandwidth * ASSUMED.bandwidth_share),
    )


def reduce_seconds(size: float, devices: int, link: float) -> float:
    """A ring's: every device sends, and receives, 2 (n - 1) / n of the bytes."""
    return 2 * (devices - 1) / devices * size / link


class Row(NamedTuple):
    """One way to train: how many devices, and how many images for each step."""

    devices: int
    batch: int

    @property
    def steps(self) -> int:
        """So that as many images are seen as in the usual schedule."""
        return STEPS * BATCH // self.batch

    @property
    def link(self) -> str:
        """The slowest of a ring through all devices."""
        return INSIDE if self.devices <= ASSUMED.devices_per_node else BETWEEN


ROWS = (Row(1, 16), Row(8, 16), Row(16, 16), Row(8, 128), Row(64, 64), Row(64, 1024))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def models_table(models: Sequence[Model]) -> list[str]:
    """What a model is, and what each step moves because of it."""
    columns = ("CCSNet on", "parameters, M", "GFLOP an image", "kept in bf16, MB an image")
    columns += ("gradients, MB a step", "weights, gradients, AdamW: GB", "on 8 with `--shard`: GB")
    columns += ("batch norms", "synchronising them, ms a step")
    return table(
        columns,
        [
            (
                f"`{m.name}`",
                f"{m.parameters / 1e6:.1f}",
                f"{m.operations / 1e9:.0f}",
                f"{m.kept_bytes / 2e6:.0f}",
                f"{m.gradient_bytes / 1e6:.0f}",
                f"{4 * m.gradient_bytes / 1e9:.2f}",
                f"{4 * m.gradient_bytes / 8e9:.2f}",
                f"{m.batch_norms}",
                f"{2e3 * m.batch_norms * ASSUMED.collective:.1f}",
            )
            for m in models
        ],
    )


def links_table(models: Sequence[Model]) -> list[str]:
    """Milliseconds to average the gradients of one step."""
    columns = ["ms a step", *(f"{n} devices, {link}" for n, link in RINGS)]
    return table(
        columns,
        [
            (
                f"`{m.name}`",
                *(f"{1e3 * reduce_seconds(m.gradient_bytes, n, LINKS[k]):.1f}" for n, k in RINGS),
            )
            for m in models
        ],
    )


def schedule_table(model: Model, seconds: float) -> list[str]:
    """ADE20K's usual schedule in several ways.

    Args:
        model: What is trained.
        seconds: Of one image on one accelerator.
    """
    columns = ("devices", "batch", "steps", "images a device", "compute, ms", "all-reduce, ms")
    columns += ("hours", "of ideal", "images/s", "cores to read", "MB/s from disk")

    def cells(row: Row) -> tuple[str, ...]:
        compute = row.batch / row.devices * seconds
        reduce = reduce_seconds(model.gradient_bytes, row.devices, LINKS[row.link])
        step, worst = max(compute, reduce), compute + reduce
        rate = row.batch / step
        return (
            f"{row.devices}",
            f"{row.batch}",
            f"{row.steps}",
            f"{row.batch // row.devices}",
            f"{1e3 * compute:.1f}",
            f"{1e3 * reduce:.1f}",
            hours_between(row.steps * step, row.steps * worst),
            " to ".join(dict.fromkeys(f"{100 * compute / x:.0f} %" for x in (worst, step))),
            f"{rate:.0f}",
            f"{rate * ASSUMED.read_seconds:.1f}",
            f"{rate * ASSUMED.pair_bytes / 1e6:.0f}",
        )

    return table(columns, [cells(row) for row in ROWS])


def hours_between(least: float, most: float) -> str:
    """Two times, or one where they look alike."""
    texts = [f"{seconds / 3600:.2f}" for seconds in (least, most)]
    return " to ".join(dict.fromkeys(texts))


def made(step_seconds: float | None = None) -> list[str]:
    """All that stands between the markers."""
    models = [count(name) for name in BACKBONES]
    first = models[0]
    operations, traffic = image_seconds(first)
    floor = operations + traffic
    if step_seconds is None:
        text = (
            f"An image: {1e3 * operations:.2f} ms of operations, {1e3 * traffic:.2f} ms of memory "
            f"traffic. A step of {BATCH} on one device: {1e3 * BATCH * floor:.0f} ms."
        )
        slower = f"With steps {SLOWER} times as long, {1e3 * BATCH * SLOWER * floor:.0f} ms:"
        schedules = {text: floor, slower: SLOWER * floor}
    else:
        text = f"A step of {BATCH} takes {1e3 * step_seconds:.0f} ms on one device:"
        schedules = {text: step_seconds / BATCH}
    lines = [
        START,
        "",
        *models_table(models),
        "",
        "### Averaging the gradients",
        "",
        *links_table(models),
        "",
        f"### ADE20K with `{first.name}`",
        "",
        f"The usual {STEPS} steps of {BATCH}, or as many images in larger steps "
        f"({STEPS * BATCH / IMAGES:.0f} epochs).",
        "",
    ]
    for text, seconds in schedules.items():
        lines += [text, "", *schedule_table(first, seconds), ""]
    return [*lines, END]


def between(text: str) -> list[str]:
    """The lines between the markers."""
    return text[text.index(START) : text.index(END) + len(END)].splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/scaling.md.")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    parser.add_argument("--step-seconds", type=float, help="of 16 images on one device, measured")
    arguments = parser.parse_args()
    if arguments.step_seconds is not None and not arguments.print:
        parser.error("--step-seconds is of your machine, not of the page: add --print")
    text, lines = PAGE.read_text("utf-8"), made(arguments.step_seconds)
    if arguments.print:
        print("\n".join(lines))
    elif arguments.check:
        current = between(text) == lines
        print(f"{PAGE.name} is {'current' if current else 'stale: make it anew'}.")
        sys.exit(not current)
    else:
        pattern = f"{re.escape(START)}.*{re.escape(END)}"
        page = re.sub(pattern, lambda _: "\n".join(lines), text, flags=re.DOTALL)
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
