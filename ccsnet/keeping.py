"""A run's checkpoints: what is put into them, and put back when the run goes on."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccsnet.averaging import WeightAverage
from ccsnet.checkpoint import LAST, Checkpoint, ClassInfo, save_checkpoint, training_tensors
from ccsnet.config import RunConfig
from ccsnet.optimizer_state import restore_state, state_tensors
from ccsnet.parallel import Processes
from ccsnet.run_folder import prune, put_by
from ccsnet.segmenter import Segmenter
from ccsnet.sharding import full_state_dict, full_tensor, like, load_full


class Learner(NamedTuple):
    """All that changes from step to step."""

    model: Segmenter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None


class Checkpoints:
    """Writes and reads a run's checkpoints.

    The weights in a file are always those to predict with: the average, where there is one. What
    else training needs to go on stands beside them in the last.

    Args:
        out: The run's folder.
        learner: What to keep.
        config: The run's settings.
        info: What the model's outputs mean.
        processes: Those that train together; the main one writes.

    Attributes:
        saved_at: When the last checkpoint to resume from was written, on the clock of
            `time.perf_counter`.
    """

    def __init__(
        self,
        out: Path,
        learner: Learner,
        config: RunConfig,
        info: ClassInfo,
        processes: Processes,
    ) -> None:
        self.out, self.learner, self.config, self.info = out, learner, config, info
        self.processes = processes
        self.saved_at = time.perf_counter()

    @property
    def evaluated(self) -> nn.Module:
        """The model to predict with."""
        average = self.learner.average
        return self.learner.model if average is None else average.model

    def save(
        self,
        name: str,
        *,
        step: int,
        miou: float | None,
        best_miou: float | None,
        best_step: int,
    ) -> None:
        """Write a checkpoint, as `save_checkpoint`; all processes call it.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        train = self.config.train
        if not (self.processes.is_main or train.shard):
            return
        # Of a sharded model every process has a part, which it gives here.
        weights = full_state_dict(self.evaluated)
        training = self._training_tensors() if name == LAST else None
        if not self.processes.is_main:
            return
        keep = train.keep_last if name == LAST else train.keep_best
        save_checkpoint(
            self.out / name,
            weights,
            self.config,
            self.info,
            step=step,
            miou=miou,
            best_miou=best_miou,
            best_step=best_step,
            training=training,
            before_replacing=(lambda: put_by(self.out, name, step)) if keep > 1 else None,
        )
        if name == LAST:
            prune(self.out, LAST, keep)
            self.saved_at = time.perf_counter()

    def _training_tensors(self) -> dict[str, Tensor]:
        model, optimizer, scaler, average = self.learner
        parts: dict[str, Mapping[str, Tensor]] = {
            "optimizer": state_tensors(optimizer, gather=full_tensor)
        }
        if average is not None:
            parts["model"] = full_state_dict(model)
        if scaler.is_enabled():
            state = scaler.state_dict()
            numbers = {"scale": state["scale"], "_growth_tracker": state["_growth_tracker"]}
            parts["scaler"] = {name: torch.tensor(value) for name, value in numbers.items()}
        return {f"{part}/{name}": t for part, some in parts.items() for name, t in some.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what stands beside the weights to predict with.

        Raises:
            InputError: It is missing, damaged, or of another optimizer.
        """
        model, optimizer, scaler, _ = self.learner
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in training_tensors(checkpoint.path).items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        scatter = like if self.config.train.shard else None
        restore_state(optimizer, parts.get("optimizer", {}), scatter=scatter)
        if "model" in parts:
            load_full(model, parts["model"])
        if "scaler" in parts and scaler.is_enabled():
            state = {name: value.item() for name, value in parts["scaler"].items()}
            scaler.load_state_dict({**scaler.state_dict(), **state})
