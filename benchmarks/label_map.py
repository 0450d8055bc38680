"""The label map against the plain form: time and extra memory, as ratios of one run.

    python -m benchmarks.label_map
    python -m benchmarks.label_map --run runs/x --image street.jpg    # a model's own logits too

Plain is `F.interpolate` to the full size and argmax over the classes. Logits in channels-last
order, as our heads give them, and in the order of planes. The two forms take turns, so that a
change of the machine's speed meets both alike; the median of the paired ratios is what counts.
Extra memory is the peak of all allocations, the logits not counted, the label map counted.
Boundary is the part of the output's pixels whose four grid places do not agree; made logits are
scaled such that it is near what is asked for.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peak import peak_extra_bytes
from benchmarks.turns import Job, paired_ratio, take_turns
from ccsnet.upsample import upsample_argmax


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    logits = logits.float()
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)


def boundary(logits: Tensor) -> float:
    """The part of the places between four of the grid where the four do not agree."""
    best = logits.argmax(1)
    low = best[:, :-1, :-1]
    same = (low == best[:, 1:, :-1]) & (low == best[:, :-1, 1:]) & (low == best[:, 1:, 1:])
    return 1 - same.float().mean().item()


def smooth_logits(num_classes: int, side: int, wanted: float) -> Tensor:
    """Random areas with noise, about `wanted` of it boundary."""
    random = torch.Generator().manual_seed(0)
    made = []
    for cells in range(2, 33):
        coarse = torch.randn(1, num_classes, cells, cells, generator=random)
        logits = 8 * F.interpolate(coarse, size=(side, side), mode="bicubic")
        made.append(logits + 0.3 * torch.randn(logits.shape, generator=random))
        if boundary(made[-1]) > wanted:
            break
    return min(made, key=lambda logits: abs(boundary(logits) - wanted))


def model_logits(run: Path, image: Path) -> Tensor:
    """What a trained model gives for one image of 512x512."""
    import numpy as np
    from PIL import Image

    from ccsnet.predict import load

    with Image.open(image) as opened:
        pixels = np.array(opened.convert("RGB").resize((512, 512)))
    with torch.inference_mode():
        return load(run, device="cpu").model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).logits


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    made = smooth_logits(arguments.classes, arguments.size // 4, arguments.boundary)
    last = made.contiguous(memory_format=torch.channels_last)
    yield "channels-last", last
    yield "planes", made
    yield "channels-last bf16", last.bfloat16()
    few = smooth_logits(11, arguments.size // 4, arguments.boundary)
    yield "11 classes", few.contiguous(memory_format=torch.channels_last)
    yield "11 classes, planes", few
    if arguments.run:
        yield "the model's", model_logits(arguments.run, arguments.image)


def compare(name: str, logits: Tensor, size: tuple[int, int], repeats: int) -> None:
    forms: dict[str, Job] = {
        "plain": lambda: plain(logits, size),
        "ours": lambda: upsample_argmax(logits, size),
    }
    times = take_turns(forms, repeats)
    memory = {form: peak_extra_bytes(run) for form, run in forms.items()}
    ours = upsample_argmax(logits, size)
    differ = int((ours != plain(logits.contiguous(), size)).sum())
    differ_as_given = int((ours != plain(logits, size)).sum())

    print(f"{name}: {logits.shape[1]} classes, {logits.dtype}, boundary {boundary(logits):.3f}")
    for form, values in times.items():
        print(
            f"  {form:6} {1e3 * statistics.median(values):7.1f} ms "
            f"({1e3 * min(values):.1f} to {1e3 * max(values):.1f})   "
            f"{memory[form] / 2**20:7.1f} MiB extra"
        )
    ratio = paired_ratio(times["plain"], times["ours"])
    print(
        f"  plain / ours {ratio:.2f} in time, ours / plain "
        f"{memory['ours'] / memory['plain']:.3f} in memory; pixels that differ: {differ} from "
        f"plain on planes, {differ_as_given} from plain on the same memory order"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The label map against the plain form.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--boundary", type=float, default=0.15)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--run", type=Path, help="a trained run, for its logits")
    parser.add_argument("--image", type=Path, help="the image that the run is given")
    arguments = parser.parse_args()
    if (arguments.run is None) != (arguments.image is None):
        parser.error("--run and --image belong together")

    print(
        f"label map: {arguments.size // 4} -> {arguments.size}, batch 1, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads"
    )
    with torch.inference_mode():
        for name, logits in cases(arguments):
            compare(name, logits, (arguments.size, arguments.size), arguments.repeats)


if __name__ == "__main__":
    main()
