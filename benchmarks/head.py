"""The head alone against the literal method: time and extra memory, as ratios of one run.

    python -m benchmarks.head

MiT-B1's channels, 150 classes, one image of 512x512. The two take turns, so that a change of the
machine's speed meets both alike; the median of the paired ratios is what counts. Extra memory is
the peak of all allocations while the head runs, the inputs and weights not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from ccsnet.heads._base import HeadConfig
from ccsnet.heads.ccs import CCSHead
from tests.heads.literal import literal_forward

CHANNELS = (64, 128, 320, 512)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_extra_bytes(run: Callable[[], object]) -> int:
    """Highest sum of live allocations during the run, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = peak = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, live)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description="The head against the literal method.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    head = CCSHead(CHANNELS, arguments.classes, HeadConfig()).eval()
    torch.nn.init.normal_(head.coarse.get_parameter("2.weight"))
    features = [
        torch.randn(1, c, arguments.size // s, arguments.size // s)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]

    def ours() -> object:
        return head(features)

    def literal() -> object:
        return literal_forward(head, features)

    def ours_bf16() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return head(features)

    print(
        f"head alone: {arguments.classes} classes, {arguments.size}x{arguments.size}, batch 1, "
        f"evaluation, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    with torch.inference_mode():
        difference = (head(features).logits - literal_forward(head, features)[0]).abs().max()
        scale = head(features).logits.abs().max()
        times: dict[str, list[float]] = {"literal": [], "ours": [], "ours bf16": []}
        for repeat in range(arguments.repeats + 2):
            for name, run in (("literal", literal), ("ours", ours), ("ours bf16", ours_bf16)):
                elapsed = seconds(run)
                if repeat >= 2:
                    times[name].append(elapsed)
        memory = {"literal": peak_extra_bytes(literal), "ours": peak_extra_bytes(ours)}

    print(f"largest relative difference {difference / scale:.1e}")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["literal"], values, strict=True))
        print(
            f"{name:10} {1e3 * statistics.median(values):7.1f} ms "
            f"({1e3 * min(values):.1f} to {1e3 * max(values):.1f})   "
            f"literal / this {ratio:.2f}"
        )
    for name, value in memory.items():
        print(
            f"{name:10} {value / 2**20:7.1f} MiB extra   "
            f"this / literal {value / memory['literal']:.3f}"
        )


if __name__ == "__main__":
    main()
