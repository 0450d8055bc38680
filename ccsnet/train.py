"""The training loop: load, forward, loss, step, top to bottom."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
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
    channel_statistics,
    check_labels,
    evaluation_samples,
    open_dataset,
    test_sides,
    training_batches,
)
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.evaluate import evaluate
from ccsnet.files import atomic_path
from ccsnet.heads._base import Output
from ccsnet.loss import segmentation_loss
from ccsnet.metrics import Metrics
from ccsnet.optim import create_optimizer, set_lr
from ccsnet.precision import Mode, autocast, choose_mode, in_memory_order
from ccsnet.progress import Reporter, Silent
from ccsnet.runlog import RunLog
from ccsnet.segmenter import Segmenter, create_segmenter

LABELS_CHECKED = 2000  # Before training; the rest is checked as it is read.
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
            metrics.json and TensorBoard's files.
        resume: Go on from the folder's last checkpoint. The result is that of a run never stopped.
        reporter: Who is told how it goes.

    Raises:
        InputError: Something in the configuration, the data or the folder cannot be used.
        FileNotFoundError: Data, weights or the checkpoint to resume from are missing.
        FloatingPointError: The loss is not a number.
        Interrupted: Ctrl-C; the last checkpoint is written.
    """
    reporter = reporter or Silent()
    if not resume and any((out / name).exists() for name in (LAST, BEST, CONFIG_FILE)):
        if (out / LAST).exists():
            advice = f"Go on with it by --resume {out}, or choose another --out."
        else:
            advice = "It has no checkpoint to go on from: delete it, or choose another --out."
        raise InputError(f"{out} already holds a run. {advice}")
    accelerator = Accelerator(cpu=config.train.cpu)
    share = config.train.accumulate * accelerator.num_processes
    if config.train.batch_size % share:
        raise InputError(
            f"batch_size is {config.train.batch_size} images for each optimizer step and does not "
            f"divide among {accelerator.num_processes} processes x {config.train.accumulate} "
            f"passes. Use a multiple of {share}."
        )
    torch.manual_seed(config.train.seed)

    spec, root = open_dataset(config.data)
    start = _start(out, spec) if resume else None
    if start is None:
        _check_data(spec, root, config, reporter)
    config = _with_statistics(config, spec, root)
    sides = test_sides(spec, config.data)
    info = replace(ClassInfo.of(spec), short_side=sides[0], long_side=sides[1])

    model = create_segmenter(
        config.model,
        num_classes=spec.num_classes,
        in_channels=spec.channels,
        load_weights=start is None,
    )
    if start is not None:
        ckpt.load_weights(model, start.path)
    if model.backbone.loaded_weights is not None:
        reporter.note(str(model.backbone.loaded_weights))
    model.to(accelerator.device).train()
    step = 0 if start is None else start.step
    mode = _settle_mode(config, model, spec, root, accelerator, reporter)
    config = replace(
        config,
        train=replace(config.train, precision=mode.precision, channels_last=mode.channels_last),
    )
    in_memory_order(model.backbone, mode)

    optimizer = create_optimizer(model, config.optim)
    if start is not None and step:
        ckpt.restore_optimizer(optimizer, ckpt.training_tensors(start.path))
    parallel = _parallel(model, accelerator, mode)
    batches = training_batches(
        spec,
        root,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        steps=config.train.steps,
        start_step=step,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    if accelerator.is_main_process:
        with atomic_path(out / CONFIG_FILE) as aside:
            aside.write_text(to_json(config) + "\n")
    log = RunLog(out, resume_at=step) if accelerator.is_main_process else None

    num_images = len(spec.pairs(root, config.data.train_split))
    best = -math.inf if start is None or start.best_miou is None else start.best_miou
    metrics: Metrics | None = None
    seconds = log.seconds if log else 0.0

    def save(name: str, miou: float | None) -> None:
        if accelerator.is_main_process:
            training = ckpt.optimizer_tensors(optimizer) if name == LAST else None
            ckpt.save_checkpoint(
                out / name,
                model,
                config,
                info,
                step=step,
                miou=miou,
                best_miou=best if math.isfinite(best) else None,
                training=training,
            )

    miou = None if start is None else start.miou
    whole = True  # False while the weights are between two steps.
    try:
        reporter.start("training", config.train.steps, step)
        tick = time.perf_counter()
        for batch in batches:
            with _interrupt_held():
                set_lr(optimizer, step, config.train.steps, config.optim)
                torch.manual_seed(_stream(config.train.seed, step, accelerator.process_index))
                whole = False
                losses = _step(parallel, optimizer, batch, config, spec, accelerator, mode, step)
                step, miou, whole = step + 1, None, True
                now = time.perf_counter()
                elapsed, tick = now - tick, now
                seconds += elapsed
                rate = config.train.batch_size / elapsed
                row = {
                    "step": step,
                    "epoch": round(step * config.train.batch_size / num_images, 3),
                    "seconds": round(seconds, 3),
                    "lr": optimizer.param_groups[0]["lr"],
                    "loss": sum(losses.values()),
                    "coarse_loss": losses.get("coarse"),
                    "images_per_second": round(rate, 3),
                }
                if step % config.train.validation_interval == 0 or step == config.train.steps:
                    metrics = _validate(model, config, spec, root, accelerator, mode, reporter)
                    miou = metrics.miou
                    row |= {"val_miou": miou, "val_pixel_accuracy": metrics.pixel_accuracy}
                    if miou > best or not math.isfinite(best):
                        best = miou
                        save(BEST, miou)
                    save(LAST, miou)
                    reporter.start("training", config.train.steps, step - 1)
                    tick = time.perf_counter()
                if log is not None:
                    log.write(row)
                reporter.advance(1, loss=sum(losses.values()), mIoU=_shown(best), images_s=rate)
    except KeyboardInterrupt:
        if not whole:
            raise Interrupted(
                f"Stopped within step {step + 1} of {config.train.steps}, which cannot be saved; "
                "checkpoints are from before it."
            ) from None
        save(LAST, miou)
        raise Interrupted(
            f"Stopped after step {step} of {config.train.steps}; all is saved. "
            f"Go on with: ccsnet train --resume {out}"
        ) from None
    finally:
        reporter.end()
        if log is not None:
            log.close()

    if metrics is None:  # Resumed when all steps were done.
        metrics = _validate(model, config, spec, root, accelerator, mode, reporter)
    if accelerator.is_main_process:
        with atomic_path(out / METRICS_FILE) as aside:
            aside.write_text(
                json.dumps({"step": step, "best_miou": best, **metrics.to_dict()}, indent=2) + "\n"
            )
    return TrainingResult(out, best, metrics, seconds)


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


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: RunConfig,
    spec: DatasetSpec,
    accelerator: Accelerator,
    mode: Mode,
    step: int,
) -> Mapping[str, float]:
    """One optimizer step; returns the mean of each loss term over the passes."""
    passes = config.train.accumulate
    totals: dict[str, float] = {}
    for images, labels in zip(batch.image.chunk(passes), batch.label.chunk(passes), strict=True):
        images = in_memory_order(images.to(accelerator.device, non_blocking=True), mode)
        labels = labels.to(accelerator.device, non_blocking=True)
        losses = segmentation_loss(
            model(images),
            labels,
            coarse_weight=config.train.coarse_weight,
            ignore_index=spec.ignore_index,
        )
        loss = torch.stack(list(losses.values())).sum() / passes
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item() / passes
        if not math.isfinite(sum(totals.values())):
            optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"The loss of step {step + 1} is not a number ({totals}); the images were "
                f"{', '.join(batch.names)}. Checkpoints are from before it. Lower --lr, set "
                "--clip-norm 1, use --precision float32, or look at these images."
            )
        accelerator.backward(loss)
    if config.optim.clip_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return totals


def _validate(
    model: Segmenter,
    config: RunConfig,
    spec: DatasetSpec,
    root: Path,
    accelerator: Accelerator,
    mode: Mode,
    reporter: Reporter,
) -> Metrics:
    samples = evaluation_samples(
        spec,
        root,
        config.data,
        config.data.val_split,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    reporter.start("validating", len(samples))
    return evaluate(
        model,
        samples,
        spec.classes,
        ignore_index=spec.ignore_index,
        batch_size=config.train.validate_batch_size,
        progress=reporter.advance,
        reduce=lambda t: accelerator.reduce(t, "sum") if accelerator.num_processes > 1 else t,
    ).metrics


def _start(out: Path, spec: DatasetSpec) -> ckpt.Checkpoint:
    """The checkpoint to resume from, of the same classes."""
    if not (out / LAST).is_file():
        raise FileNotFoundError(
            f"No {out / LAST} to resume from. Start the run without --resume, with --out {out}."
        )
    start = ckpt.read_checkpoint(out / LAST)
    check_classes(start, spec)
    return start


def check_classes(checkpoint: ckpt.Checkpoint, spec: DatasetSpec) -> None:
    """Refuse a data set whose classes are not those that the checkpoint's model learnt.

    Raises:
        InputError: Names, number or order differ.
    """
    theirs, ours = checkpoint.info.classes, spec.classes
    if tuple(theirs) == tuple(ours):
        return
    if len(theirs) != len(ours):
        what = f"{len(theirs)} classes, the data set {spec.name!r} has {len(ours)}"
    else:
        i = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        what = f"{theirs[i]!r} as class {i}, the data set {spec.name!r} has {ours[i]!r}"
    raise InputError(
        f"The classes do not match: {checkpoint.path} has {what}. "
        f"Use the data that the model learnt ({checkpoint.info.dataset!r}), or train a new model."
    )


def _check_data(spec: DatasetSpec, root: Path, config: RunConfig, reporter: Reporter) -> None:
    """Find bad labels before the first step rather than hours into the run."""
    for split in (config.data.train_split, config.data.val_split):
        done = 0

        def progress(now: int, total: int) -> None:
            nonlocal done
            if done == 0:
                reporter.start(f"checking {split}", total)  # noqa: B023
            reporter.advance(now - done)
            done = now

        check_labels(spec, root, split, limit=LABELS_CHECKED, progress=progress)
    reporter.end()


def _with_statistics(config: RunConfig, spec: DatasetSpec, root: Path) -> RunConfig:
    """Measured channel statistics where nobody gave them and ImageNet's do not fit."""
    if spec.channels == 3 or (config.model.mean and config.model.std):
        return config
    mean, std = channel_statistics(spec, root, config.data.train_split)
    return replace(config, model=replace(config.model, mean=mean, std=std))


def _settle_mode(
    config: RunConfig,
    model: Segmenter,
    spec: DatasetSpec,
    root: Path,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Mode:
    """The run's precision and memory order; `auto` is tried on the first batch."""
    precision, order = config.train.precision, config.train.channels_last
    if precision != "auto":
        return Mode(precision, True if order is None else order)
    first = training_batches(
        spec,
        root,
        replace(config.data, workers=0),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        steps=1,
    )
    batch: Batch = next(iter(first))
    labels = batch.label[:2].to(accelerator.device)

    def loss(network: nn.Module, image: Tensor) -> Tensor:
        terms = segmentation_loss(
            network(image), labels[: len(image)], ignore_index=spec.ignore_index
        )
        return torch.stack(list(terms.values())).sum()

    mode, seconds = choose_mode(
        model, batch.image.to(accelerator.device), loss, precision=precision, channels_last=order
    )
    trials = ", ".join(
        f"{m.precision}{' channels-last' if m.channels_last else ''} {1e3 * s:.0f} ms"
        for m, s in seconds.items()
    )
    chosen = f"{mode.precision}{', channels-last' if mode.channels_last else ''}"
    reporter.note(f"Precision {chosen}" + (f" (tried: {trials})" if trials else ""))
    return mode


def _parallel(model: Segmenter, accelerator: Accelerator, mode: Mode) -> nn.Module:
    """The model as the loop calls it: in its precision, and copied to every process."""
    network: nn.Module = _Autocast(model, mode, accelerator.device)
    if accelerator.num_processes > 1:
        if accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = accelerator.prepare_model(network)
    return network


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, mode: Mode, device: torch.device) -> None:
        super().__init__()
        self.model, self.mode, self.device = model, mode, device

    def forward(self, image: Tensor) -> Output:
        with autocast(self.mode, self.device):
            return self.model(image)


def _stream(seed: int, step: int, process: int) -> int:
    """Where a step's dropout is drawn from: a function of the step, so that resuming is exact."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def _shown(best: float) -> float | None:
    return best if math.isfinite(best) else None
