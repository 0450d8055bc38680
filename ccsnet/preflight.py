"""What is settled and checked before the first step, rather than hours into a run."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ccsnet.checkpoint import Checkpoint
from ccsnet.config import RunConfig
from ccsnet.cpu_kernels import FasterKernels
from ccsnet.data.check import channel_statistics, check_labels
from ccsnet.data.loading import Batch, training_batches
from ccsnet.data.sampling import scan_labels, settle_class_weights
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.loss import SegmentationLoss
from ccsnet.optim import check_optimizer
from ccsnet.parallel import Processes
from ccsnet.precision import Mode
from ccsnet.progress import Reporter
from ccsnet.segmenter import ModelConfig, Segmenter
from ccsnet.trackers import check_trackers
from ccsnet.trial import TRIAL_BATCH, choose_mode

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


def check_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Refuse to go on with another model than the checkpoint's.

    Raises:
        InputError: A setting differs that the weights depend on.
    """
    theirs, ours = (_decisive(config) for config in (checkpoint.config.model, model))
    for name, value in ours.items():
        if value != theirs[name]:
            raise InputError(
                f"The model of {checkpoint.path} has {name}={theirs[name]!r}, not {value!r}. Leave "
                "the model as it is, or start another run with another --out."
            )


def _decisive(model: ModelConfig) -> dict[str, object]:
    """The settings without which weights mean something else."""
    values = asdict(model)
    values |= values.pop("head_config")
    values |= values.pop("variant")
    free = ("backbone_weights", "centre_loss_weight", "drop_path", "dropout", "frozen_stages")
    return {name: value for name, value in values.items() if name not in free}


def settled_as(saved: RunConfig, config: RunConfig) -> RunConfig:
    """A resumed run's settings: what the run itself chose stays chosen."""
    train = config.train
    if train.precision == "auto":
        train = replace(train, precision=saved.train.precision)
    if train.channels_last is None:
        train = replace(train, channels_last=saved.train.channels_last)
    if train.class_weights == "auto" and saved.train.class_weights != "none":
        train = replace(train, class_weights=saved.train.class_weights)
    mean, std = config.model.mean or saved.model.mean, config.model.std or saved.model.std
    return replace(config, train=train, model=replace(config.model, mean=mean, std=std))


def check_settings(config: RunConfig, processes: int) -> None:
    """Refuse what cannot work before anything is read or written.

    Raises:
        InputError: The optimizer, a tracker or the split of a batch cannot be used.
    """
    check_optimizer(config.optim.optimizer)
    check_trackers(config.train.trackers)
    check_shares(config, processes)
    if config.train.shard and config.train.precision == "fp16":
        raise InputError("shard does not go with precision fp16: use bf16, or float32.")
    if config.train.shard and processes == 1:
        raise InputError(
            "shard spreads the weights over several processes, and there is one. Start them with "
            "torchrun (docs/scaling.md), or leave out --shard."
        )


def check_shares(config: RunConfig, processes: int) -> None:
    """Refuse a batch that does not divide among processes and passes.

    Raises:
        InputError: It does not.
    """
    share = config.train.accumulate * processes
    if config.train.batch_size % share:
        raise InputError(
            f"batch_size is {config.train.batch_size} images for each optimizer step and does not "
            f"divide among {processes} processes x {config.train.accumulate} passes. "
            f"Use a multiple of {share}."
        )


def with_class_weights(
    config: RunConfig, spec: DatasetSpec, root: Path, reporter: Reporter
) -> RunConfig:
    """Class weights as numbers; what they and the sampler need of the labels is read here.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The weights cannot be used, or a label cannot.
    """
    data, weights = config.data, config.train.class_weights
    if data.knows_classes or weights == "auto":
        scan_labels(spec, root, data.train_split, workers=data.num_workers, reporter=reporter)
    settled = settle_class_weights(weights, spec, root, data.train_split, data.num_workers)
    return replace(config, train=replace(config.train, class_weights=settled))


def settle_mode(
    config: RunConfig,
    model: Segmenter,
    loss: SegmentationLoss,
    spec: DatasetSpec,
    root: Path,
    processes: Processes,
    reporter: Reporter,
) -> Mode:
    """The run's precision and memory order; `auto` is tried on the run's first images.

    The first of several processes tries, and all take what it finds.
    """
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

    def total(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
        if config.train.takes_faster_kernels:
            network = FasterKernels(network, processes.device)
        return torch.stack(list(loss(network(image), label).values())).sum()

    mode = None
    if processes.is_main:
        image, label = (t.to(processes.device) for t in (batch.image, batch.label))
        form = replace(config.model, backbone_weights="none")
        key = f"{form}, {processes.num_here} processes, {config.train.takes_faster_kernels}"
        mode, told = choose_mode(
            model, image, label, total, precision=precision, channels_last=order, key=key
        )
        reporter.note(told)
    return processes.gather([mode])[0]
