"""What training works on, made of its settings: data, model, loss, and what is settled by trial."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ccsnet import checkpoint as ckpt
from ccsnet.batch_norm import freeze, synchronise
from ccsnet.checkpoint import Checkpoint
from ccsnet.compiled import check_compiler
from ccsnet.config import RunConfig, TrainConfig
from ccsnet.cpu_kernels import FasterKernels
from ccsnet.data.opening import open_dataset
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.loss import SegmentationLoss
from ccsnet.parallel import Processes
from ccsnet.precision import Autocast, Mode, in_memory_order
from ccsnet.preflight import (
    check_classes,
    check_data,
    check_model,
    settle_mode,
    settled_as,
    with_class_weights,
    with_statistics,
)
from ccsnet.progress import Reporter
from ccsnet.segmenter import Segmenter, create_segmenter


class Parts(NamedTuple):
    """What `assemble` made."""

    config: RunConfig
    """With everything settled that was left open."""
    spec: DatasetSpec
    root: Path
    model: Segmenter
    """On its device, in training mode."""
    loss: SegmentationLoss
    mode: Mode


def assemble(
    config: RunConfig, processes: Processes, reporter: Reporter, start: Checkpoint | None = None
) -> Parts:
    """Open and check the data, build the model, settle what the settings leave open.

    Args:
        config: The run's settings.
        processes: Those that train together.
        reporter: Who is told how it goes.
        start: The checkpoint to go on from: its weights, and what its run has settled.

    Raises:
        InputError: Something in the settings, the data or the checkpoint cannot be used.
        FileNotFoundError: Data or weights are missing.
    """
    torch.manual_seed(config.train.seed)
    spec, root = open_dataset(config.data)
    if start is None:
        check_data(spec, root, config, reporter)
    else:
        check_classes(start, spec)
        config = settled_as(start.config, config)
        check_model(start, config.model)
    config = with_statistics(config, spec, root)
    with processes.main_first():  # The others find what it keeps.
        config = with_class_weights(config, spec, root, reporter)
    loss = _loss(config, spec)
    model = create_segmenter(
        config.model,
        num_classes=spec.num_classes,
        in_channels=spec.channels,
        load_weights=start is None,
    )
    loaded = model.backbone.loaded_weights
    if loaded is not None:
        rows = [f"{title:>8}  {text}" for title, text in loaded.rows()]
        reporter.note("\n".join([f"Weights of the backbone {config.model.backbone}:", *rows]))
    elif start is None:
        reporter.note(
            f"The backbone {config.model.backbone} starts from random weights. Pretrained ones "
            "mostly learn faster and end better: --backbone-weights (docs/backbones.md)."
        )
    if start is not None:
        ckpt.load_weights(model, start.path)
    model.to(processes.device).train()
    mode = settle_mode(config, model, loss, spec, root, processes, reporter)
    settled = replace(config.train, precision=mode.precision, channels_last=mode.channels_last)
    in_memory_order(model.backbone, mode)
    if config.train.grad_checkpointing:
        model.backbone.set_grad_checkpointing()
    if config.train.batch_norm == "frozen":
        freeze(model)
    if processes.num > 1:
        synchronise(model)
    return Parts(replace(config, train=settled), spec, root, model, loss, mode)


def _loss(config: RunConfig, spec: DatasetSpec) -> SegmentationLoss:
    weights = config.train.class_weights
    return SegmentationLoss(
        loss=config.train.loss,
        coarse_loss=config.train.coarse_loss,
        coarse_weight=config.train.coarse_weight,
        ignore_index=spec.ignore_index,
        class_weights=None if weights == "none" else torch.tensor(weights),
        auxiliary_weight=config.model.head_config.variant.centre_loss_weight,
    )


def in_mode(model: Segmenter, mode: Mode, train: TrainConfig, device: torch.device) -> nn.Module:
    """What runs the model on images, as its settings say.

    Raises:
        InputError: It is to be compiled, and torch.compile does not work on this machine.
    """
    network = Autocast(model, mode, device)
    if train.compile:
        check_compiler(device)
        return torch.compile(network)  # pyright: ignore[reportReturnType]
    return FasterKernels(network, device) if train.takes_faster_kernels else network
