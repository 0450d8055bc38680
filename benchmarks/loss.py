"""Cross-entropy at the label's size of logits on a coarser grid: strips against the full-size map.

    python -m benchmarks.loss

Forward and backward, as in training, of the final and of the coarse prediction's logits. "full" is
`F.interpolate` and `F.cross_entropy`. The two take turns; the ratio is the median over the rounds.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.peak import peak_extra_bytes
from benchmarks.turns import paired_ratio, take_turns
from ccsnet.losses._upsampled import upsampled_cross_entropy
from ccsnet.memory import keep_freed_memory

CASES = ((2, 150, 128, 512), (2, 150, 32, 512), (8, 11, 80, 320), (8, 11, 20, 320))
"""Images, classes, side of the grid and of the label."""


def full(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    resized = F.interpolate(logits, size=label.shape[-2:], mode="bilinear")
    return F.cross_entropy(resized, label, ignore_index=255, reduction="sum")


def strips(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return upsampled_cross_entropy(logits, label, 255)


def both_ways(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    label: torch.Tensor,
) -> None:
    logits.grad = None
    loss(logits, label).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cross-entropy without the full-size map.")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    keep_freed_memory()
    columns = ("images", "classes", "grid", "label", "full, ms", "strips, ms", "full / strips")
    columns += ("full, MiB", "strips, MiB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for images, classes, grid, side in CASES:
        torch.manual_seed(0)
        logits = torch.randn(images, classes, grid, grid).to(memory_format=torch.channels_last)
        label = torch.randint(classes, (images, side, side))
        label[:, : side // 16] = 255
        jobs = {
            loss.__name__: partial(both_ways, loss, logits.requires_grad_(), label)
            for loss in (full, strips)
        }
        times = take_turns(jobs, arguments.rounds)
        cells = [str(images), str(classes), f"{grid}x{grid}", f"{side}x{side}"]
        cells += [f"{1e3 * statistics.median(times[name]):.1f}" for name in jobs]
        cells.append(f"{paired_ratio(times['full'], times['strips']):.2f}")
        cells += [f"{peak_extra_bytes(job) / 2**20:.0f}" for job in jobs.values()]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
