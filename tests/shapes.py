"""A tiny data set of discs and boxes, and the settings of a run that learns it in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

from ccsnet.config import RunConfig, TrainConfig
from ccsnet.data.opening import DataConfig
from ccsnet.heads._base import HeadConfig
from ccsnet.optim import OptimConfig
from ccsnet.segmenter import ModelConfig

CLASSES = ("ground", "disc", "box")
COLOURS = ((30, 120, 40), (210, 40, 40), (40, 60, 220))
SIZES = ((72, 96), (64, 80), (72, 96), (90, 61))
IGNORED = 255

YAML = """
classes: [ground, disc, box]
colours: [[30, 120, 40], [210, 40, 40], [40, 60, 220]]
images: images/{split}/*.png
labels: labels/{split}/*.png
crop: [64, 64]
"""

BACKBONE = "test_efficientnet"
OPTIONS = (
    *("--backbone", BACKBONE, "--backbone-weights", "none", "--dim", "16", "--coarse-dim", "16"),
    *("--top-k", "2", "--batch-size", "2", "--workers", "0", "--precision", "float32", "--cpu"),
)
"""The command line's form of `tiny_config`, steps left out."""


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One picture and its labels: a disc, a box, an unlabelled edge."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    label = np.zeros(size, np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    label[top : top + height // 3, left : left + width // 3] = 2
    middle = rng.integers(height // 4, height), rng.integers(width // 4, width)
    radius = height // 5
    label[(rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2] = 1
    image = np.array(COLOURS)[label] + rng.normal(0, 12, (*size, 3))
    label[:2] = IGNORED
    return image.clip(0, 255).astype(np.uint8), label


def make_shapes(root: Path, train: int = 8, val: int = 4, yaml: str = YAML) -> Path:
    """Write the data set; returns its folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(yaml)
    rng = np.random.default_rng(0)
    for split, num in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(num):
            image, label = scene(rng, SIZES[i % len(SIZES)])
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{i}.png")
    return root


def tiny_model(head: str = "ccs", backbone: str = BACKBONE) -> ModelConfig:
    """The smallest model."""
    return ModelConfig(
        backbone=backbone,
        head=head,
        head_config=HeadConfig(dim=16, coarse_dim=16, top_k=2),
        drop_path=0.0,
    )


def tiny_config(root: Path, steps: int = 4, **train: object) -> RunConfig:
    """Two images a step on the processor."""
    settings: dict = {"batch_size": 2, "precision": "float32", "cpu": True} | train
    return RunConfig(
        data=DataConfig(dataset=str(root), workers=0),
        model=tiny_model(),
        optim=OptimConfig(lr=3e-3, head_lr_multiplier=2.0),
        train=TrainConfig(steps=steps, **settings),
    )
