"""Parameter groups, optimizer and learning-rate schedule."""

from dataclasses import dataclass

import torch

from ccsnet.segmenter import Segmenter

WARMUP_START = 1e-6  # Of the learning rate. Source: the authors' release.


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a polynomial schedule.

    Source: the authors' release, which follows SegFormer (Xie et al. 2021, section 4.1).
    """

    lr: float = 6e-5
    """Peak learning rate of the backbone."""
    head_lr_multiplier: float = 10.0
    """The heads learn this many times faster."""
    weight_decay: float = 0.01
    """Not applied to norms, biases and position embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; none: 1500, and at most a tenth of the run."""
    power: float = 1.0
    """Of the polynomial decay to 0."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm; none: never."""


def parameter_groups(model: Segmenter, config: OptimConfig) -> list[dict]:
    """Backbone and head, each with and without weight decay: every parameter in exactly one group.

    Vectors and scalars (norms, biases, layer scales) are not decayed, nor is what the backbone
    itself declares (`no_weight_decay`: position embeddings and relative-position tables).
    """
    declared = getattr(model.backbone, "no_weight_decay", set)()
    groups = []
    for part, module, lr, undecayed in (
        ("backbone", model.backbone, config.lr, declared),
        ("head", model.head, config.lr * config.head_lr_multiplier, set()),
    ):
        decay, no_decay = [], []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim <= 1 or name in undecayed
                (no_decay if plain else decay).append(parameter)
        groups += [
            {"name": part, "params": decay, "lr": lr, "weight_decay": config.weight_decay},
            {"name": f"{part} (no decay)", "params": no_decay, "lr": lr, "weight_decay": 0.0},
        ]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == trained, "a parameter is in no group"
    return [group for group in groups if group["params"]]


def create_optimizer(model: Segmenter, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the model's groups; each group remembers its peak rate as `peak_lr`."""
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up times polynomial decay.

    Args:
        step: Steps already done, 0 to steps - 1.
        steps: Steps of the whole run.
        config: Settings.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(1500, steps // 10)
    factor = (1 - step / steps) ** config.power
    if step < warmup:
        factor *= WARMUP_START + (1 - WARMUP_START) * step / warmup
    return factor


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Set every group's learning rate for a step. Needs no state: resuming needs only the step."""
    factor = lr_factor(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
