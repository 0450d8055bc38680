"""What is settled and checked before the first step, rather than hours into a run."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ccsnet.checkpoint import Checkpoint
from ccsnet.config import RunConfig
from ccsnet.data.check import channel_statistics, check_labels
from ccsnet.data.loading import Batch, training_batches
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.loss import segmentation_loss
from ccsnet.precision import TRIAL_BATCH, Mode, choose_mode
from ccsnet.progress import Reporter
from ccsnet.segmenter import Segmenter

LABELS_CHECKED = 2000  # Per split; the rest is checked as it is read.


def check_classes(checkpoint: Checkpoint, spec: DatasetSpec) -> None:
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


def check_data(spec: DatasetSpec, root: Path, config: RunConfig, reporter: Reporter) -> None:
    """Look for labels that cannot be used.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: All that is wrong with a split, at once.
    """
    for split in dict.fromkeys((config.data.train_split, config.data.val_split)):
        started = False

        def progress(done: int, total: int, split: str = split) -> None:
            nonlocal started
            if not started:
                reporter.start(f"checking {split}", total)
                started = True
            reporter.advance(1)

        check_labels(spec, root, split, limit=LABELS_CHECKED, progress=progress)
    reporter.end()


def with_statistics(config: RunConfig, spec: DatasetSpec, root: Path) -> RunConfig:
    """Measured channel statistics where nobody gave them and ImageNet's do not fit."""
    if spec.channels == 3 or (config.model.mean and config.model.std):
        return config
    mean, std = channel_statistics(spec, root, config.data.train_split)
    return replace(config, model=replace(config.model, mean=mean, std=std))


def check_compiler(device: torch.device) -> None:
    """Compile something small, before a run relies on it.

    Raises:
        InputError: torch.compile does not work on this machine.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    # What fails depends on the compiler, of which there are several, and on what it needs.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"torch.compile does not work on this machine ({type(error).__name__}: {reason}). "
            "It needs a C++ compiler (g++) and on a GPU Triton: install it or leave out --compile."
        ) from error


def settle_mode(
    config: RunConfig,
    model: Segmenter,
    spec: DatasetSpec,
    root: Path,
    device: torch.device,
    reporter: Reporter,
) -> Mode:
    """The run's precision and memory order; `auto` is tried on the run's first images."""
    precision, order = config.train.precision, config.train.channels_last
    if precision != "auto":
        return Mode(precision, True if order is None else order)
    batches = training_batches(
        spec,
        root,
        replace(config.data, workers=0),
        batch_size=TRIAL_BATCH,
        seed=config.train.seed,
        steps=1,
    )
    batch: Batch = next(iter(batches))
    labels = batch.label.to(device)

    def loss(network: nn.Module, image: Tensor) -> Tensor:
        terms = segmentation_loss(network(image), labels, ignore_index=spec.ignore_index)
        return torch.stack(list(terms.values())).sum()

    mode, seconds = choose_mode(
        model, batch.image.to(device), loss, precision=precision, channels_last=order
    )
    trials = ", ".join(f"{_name(m)} {1e3 * s:.0f} ms" for m, s in seconds.items())
    reporter.note(f"Precision {_name(mode)}" + (f" (tried: {trials})" if trials else ""))
    return mode


def _name(mode: Mode) -> str:
    return f"{mode.precision} channels-last" if mode.channels_last else mode.precision
