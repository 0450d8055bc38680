"""What keeping freed memory does for a training step, as a ratio of one run.

    python -m benchmarks.memory

Each measurement is a process of its own, since the setting cannot be taken back. They take turns.
"""

import statistics
import subprocess
import sys
import time

import torch

from ccsnet.loss import segmentation_loss
from ccsnet.memory import keep_freed_memory
from ccsnet.precision import Mode, in_memory_order
from ccsnet.recipes import lite0
from ccsnet.segmenter import create_segmenter

ROUNDS = 4


def step_seconds() -> float:
    """Median time of a training step in this process."""
    torch.manual_seed(0)
    model = create_segmenter(lite0(), num_classes=11, load_weights=False)
    order = Mode("float32", channels_last=True)
    in_memory_order(model.train().backbone, order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    image = in_memory_order(torch.randint(0, 255, (8, 3, 320, 320), dtype=torch.uint8), order)
    label = torch.randint(0, 11, (8, 320, 320))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        losses = segmentation_loss(model(image), label)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    if len(sys.argv) > 1:
        if sys.argv[1] == "kept":
            assert keep_freed_memory(), "only glibc has these settings"
        print(step_seconds())
        return
    times: dict[str, list[float]] = {"handed back": [], "kept": []}
    for _ in range(ROUNDS):
        for name in times:
            command = [sys.executable, "-m", "benchmarks.memory", name.split()[0]]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            times[name].append(float(done.stdout))
    for name, values in times.items():
        pairs = zip(times["handed back"], values, strict=True)
        print(
            f"freed memory {name:12} {statistics.median(values):.3f} s per step "
            f"({min(values):.3f} to {max(values):.3f})   "
            f"handed back / this {statistics.median(a / b for a, b in pairs):.2f}"
        )


if __name__ == "__main__":
    main()
