"""What our training loop costs over a bare PyTorch loop, as a ratio of one run.

    python -m benchmarks.loop
    python -m benchmarks.loop --side 64 --images 8 --steps 6 --skip 2 --rounds 1   # to try it

Both take the same batches from the same loader with the same workers, and the same model,
precision and memory order; the bare loop is forward, loss, backward, clip, step and nothing else.
They take turns. A step lasts from the end of the one before to its own end: all that our loop does
between two steps counts, also what log.csv leaves out of its seconds. Pictures are made up.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccsnet.catalogue import machine
from ccsnet.config import RunConfig, TrainConfig
from ccsnet.data.loading import training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.heads._base import HeadConfig
from ccsnet.loss import SegmentationLoss
from ccsnet.memory import keep_freed_memory
from ccsnet.optim import OptimConfig, create_optimizer
from ccsnet.precision import Mode, in_memory_order
from ccsnet.progress import Silent
from ccsnet.segmenter import ModelConfig, create_segmenter
from ccsnet.train import train
from tests.shapes import scene

CLIP_NORM = 1.0
SIZE = (360, 480)  # CamVid's at half its side, and its 11 classes.
YAML = """
classes: [ground, disc, box, c3, c4, c5, c6, c7, c8, c9, c10]
images: images/{split}/*.jpg
labels: labels/{split}/*.png
"""


def make_pictures(folder: Path, images: int) -> None:
    """Discs and boxes of CamVid's size, and two to validate on."""
    folder.mkdir()
    (folder / "dataset.yaml").write_text(YAML)
    rng = np.random.default_rng(0)
    for split, num in (("train", images), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(num):
            image, label = scene(rng, SIZE)
            Image.fromarray(image).save(folder / "images" / split / f"{number:03}.jpg", quality=90)
            Image.fromarray(label).save(folder / "labels" / split / f"{number:03}.png")


def make_config(folder: Path, arguments: argparse.Namespace) -> RunConfig:
    """A run that validates only at its end."""
    return RunConfig(
        data=DataConfig(
            dataset=str(folder), crop=(arguments.side, arguments.side), workers=arguments.workers
        ),
        model=ModelConfig(
            backbone=arguments.backbone,
            head_config=HeadConfig(dim=128, coarse_dim=128, top_k=5),
            drop_path=0.0,
        ),
        optim=OptimConfig(lr=2e-4, clip_norm=CLIP_NORM),
        train=TrainConfig(
            steps=arguments.steps,
            validate_every=arguments.steps,
            batch_size=arguments.batch,
            precision="float32",
            channels_last=True,
            cpu=True,
        ),
    )


def bare(config: RunConfig) -> list[float]:
    """When each step of a bare loop was done."""
    torch.manual_seed(config.train.seed)
    spec, root = open_dataset(config.data)
    mode = Mode("float32", channels_last=True)
    model = create_segmenter(config.model, num_classes=spec.num_classes).train()
    in_memory_order(model.backbone, mode)
    optimizer = create_optimizer(model, config.optim)
    loss = SegmentationLoss(ignore_index=spec.ignore_index)
    loader = training_batches(
        spec,
        root,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        steps=config.train.steps,
    )
    done = []
    for batch in loader:
        output = model(in_memory_order(batch.image, mode))
        torch.stack(list(loss(output, batch.label).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done.append(time.perf_counter())
    return done


class Clock(Silent):
    """Notes when each step of a run was done."""

    def __init__(self) -> None:
        self.stage, self.done = "", []

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Training, or validation."""
        self.stage = stage

    def advance(self, units: int = 1, **values: float | None) -> None:
        """A step is done."""
        if self.stage == "training":
            self.done.append(time.perf_counter())


def ours(config: RunConfig) -> list[float]:
    """The same of `ccsnet train`'s loop."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        train(config, Path(name) / "run", reporter=clock)
    assert len(clock.done) == config.train.steps, "the loop tells of every step"
    return clock.done


LOOPS = {"bare": bare, "ccsnet": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training loop against a bare one.")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=5, help="first steps that do not count")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    keep_freed_memory()
    print(
        f"A step of {arguments.backbone} with the ccs head, float32, {arguments.batch} x "
        f"{arguments.side}x{arguments.side}, {arguments.rounds} rounds of {arguments.steps} steps."
        f"\n{machine()}"
    )
    rounds: dict[str, list[list[float]]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        make_pictures(folder, arguments.images)
        config = make_config(folder, arguments)
        for turn in range(arguments.rounds):
            for loop in list(LOOPS) if turn % 2 == 0 else reversed(LOOPS):
                done = LOOPS[loop](config)[arguments.skip :]
                rounds[loop].append([b - a for a, b in itertools.pairwise(done)])
    for title, middle in (("median", statistics.median), ("mean", statistics.fmean)):
        for loop, found in rounds.items():
            values = [middle(steps) for steps in found]
            ratio = statistics.median(
                middle(a) / middle(b) for a, b in zip(found, rounds["bare"], strict=True)
            )
            print(
                f"{title:6} {loop:8} {statistics.median(values):.4f} s "
                f"({min(values):.4f} to {max(values):.4f})   this / bare {ratio:.3f}"
            )


if __name__ == "__main__":
    main()
