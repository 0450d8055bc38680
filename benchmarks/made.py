"""Models that have learnt nothing, as checkpoints: for what depends on their form alone."""

from pathlib import Path

from ccsnet.checkpoint import Checkpoint, ClassInfo, read_checkpoint, save_checkpoint
from ccsnet.config import RunConfig, TrainConfig
from ccsnet.data.opening import DataConfig
from ccsnet.segmenter import ModelConfig, Segmenter


def made_info(num_classes: int) -> ClassInfo:
    """Classes that no data set has."""
    return ClassInfo(
        dataset="none",
        classes=tuple(f"class {i}" for i in range(num_classes)),
        colours=tuple((i, 10, 20) for i in range(num_classes)),
    )


def made_checkpoint(
    model: Segmenter, config: ModelConfig, info: ClassInfo, path: Path
) -> Checkpoint:
    """A model's weights as a run without data or steps would have left them."""
    run = RunConfig(data=DataConfig(dataset="none"), model=config, train=TrainConfig(steps=1))
    save_checkpoint(path, model.state_dict(), run, info, step=0)
    return read_checkpoint(path)
