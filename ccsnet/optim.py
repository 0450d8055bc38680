"""Parameter groups, optimizer and learning-rate schedule."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from ccsnet.backbones._base import Backbone
from ccsnet.errors import InputError
from ccsnet.segmenter import Segmenter

WARMUP_START = 1e-6  # Of the learning rate. Source: the authors' release.


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or SGD with a polynomial schedule.

    Source of the defaults: the authors' release, which follows SegFormer (Xie et al. 2021, section
    4.1).
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw | sgd (with momentum)."""
    lr: float = 6e-5
    """Peak learning rate of the backbone."""
    head_lr_multiplier: float = 10.0
    """The heads learn this many times faster."""
    weight_decay: float = 0.01
    """Not applied to norms, biases and position embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments; the momentum of sgd is the first."""
    layer_decay: float = 1.0
    """Each layer of the backbone learns at this share of the rate of the next; 1: all alike."""
    layer_decay_by: Literal["block", "stage"] = "block"
    """What counts as a layer."""
    layer_decay_layers: int | None = None
    """Number of layers that the shares are counted from; none: what the backbone has."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; none: 1500, and at most a tenth of the run."""
    power: float = 1.0
    """Of the polynomial decay."""
    min_lr: float = 0.0
    """The rate decays to this."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm; none: never."""

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}; it must be above 0, at most 1.")


def parameter_groups(model: Segmenter, config: OptimConfig) -> list[dict]:
    """Backbone and head, each with and without weight decay: every parameter in exactly one group.

    Vectors and scalars (norms, biases, layer scales) are not decayed, nor are position embeddings,
    tables of relative positions and special tokens. With `layer_decay` every layer of the backbone
    has its own groups. What we put behind a pretrained model (a feature pyramid, the norms of its
    maps) starts from nothing and so learns as the head does.

    Raises:
        InputError: `layer_decay` is set and the backbone's layers have no order.
    """
    scales = _lr_scales(model.backbone, config)
    groups: dict[str, dict] = {}

    def add(part: str, lr: float, parameter: nn.Parameter, *, decayed: bool) -> None:
        name = part if decayed else f"{part} (no decay)"
        weight_decay = config.weight_decay if decayed else 0.0
        group = groups.setdefault(
            name, {"name": name, "params": [], "lr": lr, "weight_decay": weight_decay}
        )
        group["params"].append(parameter)

    for name, parameter in model.backbone.features.named_parameters():
        if parameter.requires_grad:
            layer, scale = scales[name]
            decayed = parameter.ndim > 1 and name not in model.backbone.undecayed
            add(f"backbone{layer}", config.lr * scale, parameter, decayed=decayed)
    for module in (model.backbone.norms, model.backbone.pyramid, model.head):
        for parameter in module.parameters() if module is not None else ():
            if parameter.requires_grad:
                lr = config.lr * config.head_lr_multiplier
                add("head", lr, parameter, decayed=parameter.ndim > 1)

    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == trained, "a parameter is in no group"
    return list(groups.values())


def _lr_scales(backbone: Backbone, config: OptimConfig) -> dict[str, tuple[str, float]]:
    """For each parameter of the pretrained model: its layer's name, and its share of the rate.

    The share is rate ** (L + 1 - id): the stem (patches, position embeddings) has the id 0, the
    i-th layer the id i, and the head would have L + 1. By stages, what makes maps smaller between
    them counts as the stem.

    Source: layer-wise, Bao et al., "BEiT", ICLR 2022; stage-wise, the ConvNeXt recipes of
    MMSegmentation.
    """
    names = [name for name, _ in backbone.features.named_parameters()]
    if config.layer_decay == 1:
        return dict.fromkeys(names, ("", 1.0))
    layer_of = backbone.layer_of
    if layer_of is None:
        raise InputError(
            f"The backbone {backbone.name!r} has no order of layers, so layer_decay="
            f"{config.layer_decay} cannot be applied. Leave it at 1."
        )
    if config.layer_decay_by == "stage":
        stage_of = backbone.stage_of()
        layer_of = {
            name: 0 if layer_of[name] == 0 or "downsample" in name else stage_of[name]
            for name in names
        }
    depth = config.layer_decay_layers or max(layer_of.values())
    if depth < max(layer_of.values()):
        raise InputError(
            f"layer_decay_layers is {depth}, but the backbone {backbone.name!r} has "
            f"{max(layer_of.values())} {config.layer_decay_by}s. Give at least as many, or none."
        )
    return {
        name: (f" layer {layer_of[name]}", config.layer_decay ** (depth + 1 - layer_of[name]))
        for name in names
    }


def create_optimizer(model: Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's groups; each group remembers its peak rate as `peak_lr`."""
    groups = parameter_groups(model, config)
    create = {
        "adamw": partial(torch.optim.AdamW, betas=config.betas),
        "sgd": partial(torch.optim.SGD, momentum=config.betas[0]),
    }[config.optimizer]
    optimizer = create(groups, lr=config.lr)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def warm_up(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the scheduled rate at a step of the linear warm-up; 1 after it."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(1500, steps // 10)
    return WARMUP_START + (1 - WARMUP_START) * step / warmup if step < warmup else 1.0


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up times polynomial decay.

    Args:
        step: Steps already done, 0 to steps - 1.
        steps: Steps of the whole run.
        config: Settings.
    """
    return (1 - step / steps) ** config.power * warm_up(step, steps, config)


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Set every group's learning rate for a step. Needs no state: resuming needs only the step."""
    warm, factor = warm_up(step, steps, config), lr_factor(step, steps, config)
    for group in optimizer.param_groups:
        floor = min(config.min_lr, group["peak_lr"])
        group["lr"] = floor * (warm - factor) + group["peak_lr"] * factor
