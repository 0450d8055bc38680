"""The training loop: load, forward, loss, step, top to bottom."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ccsnet import checkpoint as ckpt
from ccsnet.checkpoint import BEST, LAST, ClassInfo
from ccsnet.config import RunConfig, to_json
from ccsnet.data.loading import (
    Batch,
    SafeLoader,
    evaluation_samples,
    open_dataset,
    test_sides,
    training_batches,
)
from ccsnet.data.sampling import scan_labels, settle_class_weights
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.evaluate import evaluate
from ccsnet.files import atomic_path
from ccsnet.heads._base import Output
from ccsnet.loss import segmentation_loss, total_weight
from ccsnet.metrics import Metrics
from ccsnet.optim import create_optimizer, set_lr
from ccsnet.precision import Mode, autocast, in_memory_order
from ccsnet.preflight import check_classes, check_compiler, check_data, settle_mode, with_statistics
from ccsnet.progress import Reporter, Silent
from ccsnet.runlog import RunLog
from ccsnet.segmenter import create_segmenter

CONFIG_FILE, METRICS_FILE = "config.json", "metrics.json"


class Interrupted(Exception):
    """Training was stopped by the user after saving; the text says how to go on."""


class TrainingResult(NamedTuple):
    """What a finished run is."""

    out: Path
    best_miou: float
    metrics: Metrics
    """Of the last validation."""
    seconds: float
    """Of training, validation left out, over all sittings."""


def train(
    config: RunConfig, out: Path, *, resume: bool = False, reporter: Reporter | None = None
) -> TrainingResult:
    """Train a model and leave config, checkpoints and logs in a folder.

    Args:
        config: What to train, on what, how.
        out: The run's folder: config.json, best.safetensors, last.safetensors, log.csv,
            validation.csv, metrics.json and TensorBoard's files.
        resume: Go on from the folder's last checkpoint. The result is that of a run never stopped.
        reporter: Who is told how it goes.

    Raises:
        InputError: Something in the configuration, the data or the folder cannot be used.
        FileNotFoundError: Data, weights or the checkpoint to resume from are missing.
        FloatingPointError: The loss is not a number.
        Interrupted: Ctrl-C; the last checkpoint is written.
    """
    run = _Run(config, out, resume, reporter or Silent())
    try:
        if run.validation_is_due():  # Stopped before it, last time.
            run.validate()
        run.start_bar()
        for batch in run.batches():
            with _interrupt_held():
                run.optimize(batch)
            if run.validation_is_due():
                run.validate()
                run.start_bar()
    except KeyboardInterrupt:
        raise Interrupted(run.stop()) from None
    finally:
        run.close()
    return run.finish()


class _Run:
    """What the loop works on, from a run's first step, or the one it goes on from, to its last."""

    def __init__(self, config: RunConfig, out: Path, resume: bool, reporter: Reporter) -> None:
        # Accelerate knows devices and processes. Precision stays with torch: accelerate would fix
        # it for all later runs of the program.
        self.accelerator = Accelerator(cpu=config.train.cpu)
        self.is_main = self.accelerator.is_main_process
        _check_folder(out, resume)
        self.accelerator.wait_for_everyone()  # All have looked before one writes there.
        reporter = reporter if self.is_main else Silent()
        self.out, self.reporter = out, reporter
        _check_shares(config, self.accelerator.num_processes)
        torch.manual_seed(config.train.seed)

        self.spec, self.root = open_dataset(config.data)
        start = ckpt.read_checkpoint(out / LAST) if resume else None
        if start is None:
            check_data(self.spec, self.root, config, reporter)
        else:
            check_classes(start, self.spec)
        config = with_statistics(config, self.spec, self.root)
        with self.accelerator.main_process_first():  # The others find what it keeps.
            config = _with_class_weights(config, self.spec, self.root, reporter)
        sides = test_sides(self.spec, config.data)
        self.info = replace(ClassInfo.of(self.spec), short_side=sides[0], long_side=sides[1])

        self.model = create_segmenter(
            config.model,
            num_classes=self.spec.num_classes,
            in_channels=self.spec.channels,
            load_weights=start is None,
        )
        loaded = self.model.backbone.loaded_weights
        if loaded is not None:
            reporter.note("\n".join(f"{title:>8}  {text}" for title, text in loaded.rows()))
        if start is not None:
            ckpt.load_weights(self.model, start.path)
        self.device = self.accelerator.device
        self.model.to(self.device).train()
        self.mode = settle_mode(config, self.model, self.spec, self.root, self.device, reporter)
        settled = replace(
            config.train, precision=self.mode.precision, channels_last=self.mode.channels_last
        )
        self.config = config = replace(config, train=settled)
        in_memory_order(self.model.backbone, self.mode)
        if config.train.grad_checkpointing:
            self.model.backbone.set_grad_checkpointing()

        self.optimizer = create_optimizer(self.model, config.optim)
        if start is not None and start.step:
            ckpt.restore_optimizer(self.optimizer, ckpt.training_tensors(start.path))
        self.network = self._in_parallel()
        weights = config.train.class_weights
        self.class_weights = None if weights == "none" else torch.tensor(weights)

        self.step = 0 if start is None else start.step
        self.whole = True  # False while the weights are between two steps.
        self.miou = None if start is None else start.miou  # Of the weights as they are.
        self.best: float = -math.inf
        if start is not None and start.best_miou is not None:
            self.best = start.best_miou
        self.metrics: Metrics | None = None
        self.num_images = len(self.spec.pairs(self.root, config.data.train_split))
        if self.is_main:
            _write_text(out / CONFIG_FILE, to_json(config))
        self.log = RunLog(out, resume_at=self.step) if self.is_main else None
        self.seconds = self.log.seconds if self.log else 0.0
        self.tick = 0.0

    def _in_parallel(self) -> nn.Module:
        """The model as the loop calls it: in its precision, and copied to every process."""
        network: nn.Module = _Autocast(self.model, self.mode, self.device)
        several = self.accelerator.num_processes > 1
        if several and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if self.config.train.compile:
            check_compiler(self.device)
            network = torch.compile(network)  # pyright: ignore[reportAssignmentType]
        return self.accelerator.prepare_model(network) if several else network

    def start_bar(self) -> None:
        """Show how far training is."""
        self.reporter.start("training", self.config.train.steps, self.step)
        self.tick = time.perf_counter()

    def batches(self) -> SafeLoader:
        """This process's share of what is left."""
        return training_batches(
            self.spec,
            self.root,
            self.config.data,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            steps=self.config.train.steps,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def optimize(self, batch: Batch) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: The loss is not a number.
        """
        train, optim = self.config.train, self.config.optim
        set_lr(self.optimizer, self.step, train.steps, optim)
        # Dropout is a function of the step, so that a resumed run draws what it would have drawn.
        torch.manual_seed(_stream(train.seed, self.step, self.accelerator.process_index))
        self.whole = False
        losses: dict[str, float] = {}
        images, labels = batch.image.chunk(train.accumulate), batch.label.chunk(train.accumulate)
        # A pass counts by its valid pixels, so that passes add up to the whole batch's loss.
        valid = [
            total_weight(label, self.spec.ignore_index, self.class_weights).item()
            for label in labels
        ]
        for image, label, pixels in zip(images, labels, valid, strict=True):
            weight = pixels / (sum(valid) or 1)
            terms = segmentation_loss(
                self.network(in_memory_order(image.to(self.device), self.mode)),
                label.to(self.device),
                coarse_weight=train.coarse_weight,
                ignore_index=self.spec.ignore_index,
                class_weights=self.class_weights,
            )
            for name, term in terms.items():
                losses[name] = losses.get(name, 0.0) + weight * term.item()
            if not math.isfinite(sum(losses.values())):
                raise FloatingPointError(_not_a_number(self.step + 1, losses, batch.names))
            self.accelerator.backward(weight * torch.stack(list(terms.values())).sum())
        if optim.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.miou, self.whole = self.step + 1, None, True
        self._record(losses)

    def _record(self, losses: dict[str, float]) -> None:
        now = time.perf_counter()
        elapsed, self.tick = now - self.tick, now
        self.seconds += elapsed
        rate = self.config.train.batch_size / elapsed
        loss = sum(losses.values())
        if self.log is not None:
            self.log.step(
                step=self.step,
                epoch=round(self.step * self.config.train.batch_size / self.num_images, 3),
                seconds=round(self.seconds, 3),
                lr=self.optimizer.param_groups[0]["lr"],
                loss=loss,
                coarse_loss=losses.get("coarse", 0.0),
                images_per_second=round(rate, 3),
            )
        best = self.best if math.isfinite(self.best) else None
        self.reporter.advance(1, loss=loss, mIoU=best, images_s=rate)

    def validation_is_due(self) -> bool:
        """Whether these weights should be validated and have not been."""
        train = self.config.train
        at_interval = self.step % train.validation_interval == 0 or self.step == train.steps
        return self.step > 0 and at_interval and self.miou is None

    def validate(self) -> None:
        """Measure the model, and keep it: as the last, and if it is the best as that."""
        self.metrics = self._measure()
        self.miou = self.metrics.miou
        if self.log is not None:
            self.log.validation(
                step=self.step, miou=self.miou, pixel_accuracy=self.metrics.pixel_accuracy
            )
        if not self.miou <= self.best:  # Also when nothing could be counted: NaN.
            self.best = self.miou
            self.save(BEST)
        self.save(LAST)

    def _measure(self) -> Metrics:
        samples = evaluation_samples(
            self.spec,
            self.root,
            self.config.data,
            self.config.data.val_split,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            multiple=32 if self.spec.window is None else 1,
        )
        self.reporter.start("validating", len(samples))
        shared = self.accelerator.num_processes > 1
        return evaluate(
            self.model,
            samples,
            self.spec.classes,
            ignore_index=self.spec.ignore_index,
            batch_size=self.config.train.validate_batch_size,
            window=self.spec.window,
            progress=self.reporter.advance,
            reduce=self._sum if shared else None,
        ).metrics

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "sum")  # pyright: ignore[reportReturnType]

    def save(self, name: str) -> None:
        """Write a checkpoint; the last also holds what resuming needs."""
        if self.is_main:
            ckpt.save_checkpoint(
                self.out / name,
                self.model,
                self.config,
                self.info,
                step=self.step,
                miou=self.miou,
                best_miou=self.best if math.isfinite(self.best) else None,
                training=ckpt.optimizer_tensors(self.optimizer) if name == LAST else None,
            )

    def stop(self) -> str:
        """Save after Ctrl-C; returns what to tell the user."""
        steps = self.config.train.steps
        if not self.whole:
            return (
                f"Stopped within step {self.step + 1} of {steps}, which cannot be saved; "
                "checkpoints are from before it."
            )
        self.save(LAST)
        return (
            f"Stopped after step {self.step} of {steps}; all is saved. "
            f"Go on with: ccsnet train --resume {self.out}"
        )

    def close(self) -> None:
        """End the bar and the log."""
        self.reporter.end()
        if self.log is not None:
            self.log.close()

    def finish(self) -> TrainingResult:
        """Write the figures of the finished run."""
        metrics = self.metrics or self._measure()  # None: resumed when all was done.
        self.reporter.end()
        if self.is_main:
            figures = {"step": self.step, "best_miou": self.best, **metrics.to_dict()}
            _write_text(self.out / METRICS_FILE, json.dumps(figures, indent=2))
        return TrainingResult(self.out, self.best, metrics, self.seconds)


class _Autocast(nn.Module):
    """A network in a precision; a module, so that it can be copied to every process."""

    def __init__(self, model: nn.Module, mode: Mode, device: torch.device) -> None:
        super().__init__()
        self.model, self.mode, self.device = model, mode, device

    def forward(self, image: Tensor) -> Output:
        with autocast(self.mode, self.device):
            return self.model(image)


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that a step counts whole; the second does not."""
    if threading.current_thread() is not threading.main_thread():  # It never reaches the others.
        yield
        return
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _with_class_weights(
    config: RunConfig, spec: DatasetSpec, root: Path, reporter: Reporter
) -> RunConfig:
    """Class weights as numbers; what they and the sampler need of the labels is read here."""
    data, weights = config.data, config.train.class_weights
    if data.knows_classes or weights == "auto":
        scan_labels(spec, root, data.train_split, workers=data.num_workers, reporter=reporter)
    settled = settle_class_weights(weights, spec, root, data.train_split, data.num_workers)
    return replace(config, train=replace(config.train, class_weights=settled))


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse to write over a run, or to go on with none."""
    if resume and not (out / LAST).is_file():
        raise FileNotFoundError(
            f"No {out / LAST} to resume from. Start the run without --resume, with --out {out}."
        )
    if not resume and any((out / name).exists() for name in (LAST, BEST, CONFIG_FILE)):
        if (out / LAST).exists():
            advice = f"Go on with it by --resume {out}, or choose another --out."
        else:
            advice = "It has no checkpoint to go on from: delete it, or choose another --out."
        raise InputError(f"{out} already holds a run. {advice}")


def _check_shares(config: RunConfig, processes: int) -> None:
    """Refuse a batch that does not divide among processes and passes."""
    share = config.train.accumulate * processes
    if config.train.batch_size % share:
        raise InputError(
            f"batch_size is {config.train.batch_size} images for each optimizer step and does not "
            f"divide among {processes} processes x {config.train.accumulate} passes. "
            f"Use a multiple of {share}."
        )


def _not_a_number(step: int, losses: dict[str, float], names: list[str]) -> str:
    return (
        f"The loss of step {step} is not a number ({losses}); the images were "
        f"{', '.join(names)}. Checkpoints are from before it. Lower --lr, set --clip-norm 1, "
        "use --precision float32, or look at these images."
    )


def _stream(seed: int, step: int, process: int) -> int:
    """A seed for one step of one process."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text + "\n")
