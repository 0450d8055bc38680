"""Parameter groups, optimizer and learning-rate schedule.

Any optimizer of timm's serves, by its name, if a run with it can be stopped and go on as if it
never was. timm is imported only when such a name is given.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from ccsnet.backbones._base import Backbone
from ccsnet.errors import InputError, unknown_name
from ccsnet.segmenter import Segmenter

Schedule = Literal["poly", "cosine", "onecycle"]

_UNDECAYED = " (no decay)"  # Ends the names of groups without weight decay.

WARMUP_START = 1e-6  # Of the learning rate. Source: the authors' release.

# Of one cycle: the share of the run in which the rate rises, what the peak is divided by at the
# start, and what that is divided by at the end. Source: the defaults of torch's OneCycleLR, after
# Smith and Topin, "Super-Convergence", 2018.
RISE, START_DIVISOR, END_DIVISOR = 0.3, 25.0, 1e4

BETAS = (0.9, 0.999)  # Of AdamW; the momentum of SGD is the first.

# The two that are torch's own. What timm calls "sgd" has Nesterov's momentum: its "nesterov".
_OURS = {
    "adamw": "Adam with decoupled weight decay",
    "sgd": "stochastic gradient descent with classical momentum",
}

# What timm makes and this loop cannot use.
_UNUSABLE = {
    "adahessian": "it differentiates the gradients a second time, which training here does not",
    "kron*": (
        "it keeps a random generator that checkpoints do not hold, so that a stopped run would not "
        "go on as if it never was, and it needs a compiler"
    ),
    "lookahead_*": (
        "its result is a second set of weights that only it knows of: what is validated and saved "
        "would be the other set"
    ),
}

# What numbers may be, but for being finite: setting, test, in words.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("lr", lambda x: x > 0, "above 0"),
    ("head_lr_multiplier", lambda x: x > 0, "above 0"),
    ("weight_decay", lambda x: x >= 0, "0 or more"),
    ("layer_decay", lambda x: 0 < x <= 1, "above 0, at most 1"),
    ("layer_decay_layers", lambda x: x >= 1, "1 or more, or none"),
    ("warmup_steps", lambda x: x >= 0, "0 or more, or none"),
    ("power", lambda x: x >= 0, "0 or more"),
    ("min_lr", lambda x: x >= 0, "0 or more"),
    ("clip_norm", lambda x: x > 0, "above 0, or none"),
)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its settings and the schedule of the learning rate.

    Source of the defaults: the authors' release, which follows SegFormer (Xie et al. 2021, section
    4.1).
    """

    optimizer: str = "adamw"
    """adamw | sgd (with momentum) | one of timm's, such as lion (`ccsnet list optimizers`). Each
    wants a learning rate of its own."""
    lr: float = 6e-5
    """Peak learning rate of the backbone."""
    head_lr_multiplier: float = 10.0
    """The heads learn this many times faster."""
    weight_decay: float = 0.01
    """Not applied to norms, biases and position embeddings."""
    betas: tuple[float, float] | None = None
    """Decay rates of the moments, where the optimizer has two; a momentum is the first. None: the
    optimizer's own, 0.9 and 0.999 for adamw, and a momentum of 0.9 where it would have none."""
    layer_decay: float = 1.0
    """Each layer of the backbone learns at this share of the rate of the next; 1: all alike."""
    layer_decay_by: Literal["block", "stage"] = "block"
    """What counts as a layer."""
    layer_decay_layers: int | None = None
    """Number of layers that the shares are counted from; none: what the backbone has."""
    schedule: Schedule = "poly"
    """poly | cosine | onecycle: how the rate falls after its rise. One cycle rises from a 25th of
    the peak, as half a cosine; it leaves the momentum alone."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; none: 1500, and at most a tenth of the run. Of one cycle, steps of
    the rise; none: three tenths of the run."""
    power: float = 1.0
    """Of the polynomial decay; 0: the rate stays."""
    min_lr: float = 0.0
    """The rate decays to this; one cycle, if this is less, to the peak / 250000."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm; none: never."""

    def __post_init__(self) -> None:
        for name, fits, allowed in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise InputError(f"{name} is {value}; it must be {allowed}.")
        if self.betas is not None and not (
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        ):
            raise InputError(
                f"betas is {self.betas}; it must be two numbers from 0 to below 1, or none."
            )
        if self.schedule not in get_args(Schedule):
            raise unknown_name("schedule", self.schedule, get_args(Schedule))


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
        name = part if decayed else part + _UNDECAYED
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


def optimizer_names() -> dict[str, str]:
    """Every optimizer that a run can use, by name, with a line on each."""
    from timm.optim import get_optimizer_info, list_optimizers

    names = [str(name) for name in list_optimizers()]
    usable = {n: get_optimizer_info(n).description for n in names if _why_not(n) is None}
    return dict(sorted((usable | _OURS).items()))


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that a run cannot use, before anything is built.

    Raises:
        InputError: It does not exist, or this loop cannot use it; the text says why.
    """
    if name in _OURS:
        return
    reason = _why_not(name)
    if reason is not None:
        raise InputError(
            f"The optimizer {name!r} cannot be used here: {reason}. "
            "`ccsnet list optimizers` shows those that can."
        )
    names = optimizer_names()
    if name not in names:
        lower = name.lower()
        raise unknown_name("optimizer", name, [lower] if lower in names else names)


def _why_not(name: str) -> str | None:
    """Why this loop cannot use one of timm's optimizers; None if nothing is known against it."""
    from timm.optim import get_optimizer_info, list_optimizers

    for pattern, reason in _UNUSABLE.items():
        if fnmatch(name, pattern):
            return reason
    foreign = get_optimizer_info(name).opt_class if name in list_optimizers() else None
    if isinstance(foreign, str):
        return f"it is part of another package, {foreign.partition('.')[0]}"
    return None


def create_optimizer(model: Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's groups; each group remembers its peak rate as `peak_lr`.

    Raises:
        InputError: No optimizer has the name, or this loop cannot use it.
    """
    return optimizer_over(parameter_groups(model, config), config)


def optimizer_over(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over groups such as `parameter_groups` makes.

    Raises:
        InputError: No optimizer has the name, or this loop cannot use it.
    """
    check_optimizer(config.optimizer)
    if config.optimizer == "adamw":
        create = partial(torch.optim.AdamW, betas=config.betas or BETAS)
    elif config.optimizer == "sgd":
        create = partial(torch.optim.SGD, momentum=(config.betas or BETAS)[0])
    else:
        create = _of_timm(groups, config)
    optimizer = create(groups, lr=config.lr)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _of_timm(groups: list[dict], config: OptimConfig) -> Callable[..., torch.optim.Optimizer]:
    """One of timm's optimizers with its settings; what it wants to know of groups is put there."""
    from timm.optim import get_optimizer_class, get_optimizer_info

    info = get_optimizer_info(config.optimizer)
    taken = inspect.signature(get_optimizer_class(config.optimizer)).parameters
    settings: dict[str, object] = {}
    if config.betas is None:
        if info.has_momentum and taken["momentum"].default == 0:
            settings["momentum"] = BETAS[0]
    else:
        if info.has_momentum:
            settings["momentum"] = config.betas[0]
        if info.has_betas and info.num_betas == 2:
            settings["betas"] = config.betas
        if not settings:
            warnings.warn(
                f"The optimizer {config.optimizer!r} does not have two betas or a momentum: betas="
                f"{config.betas} is not used.",
                stacklevel=4,
            )
    for group in groups:
        if "corrected_weight_decay" in taken:  # It compares a rate with the peak: the group's.
            group["max_lr_snapshot"] = group["lr"]
        if "fallback_lr_scale" in taken and group["name"].endswith(_UNDECAYED):
            group["use_fallback"] = True  # Muon is for matrices; tables of positions are none.
    return partial(get_optimizer_class(config.optimizer), **settings)


def state_share(config: OptimConfig) -> float:
    """Bytes that the optimizer keeps for each byte of weights that it trains.

    Measured on a square matrix; optimizers that keep less of vectors or more of wide matrices are
    a little off.
    """
    weight = nn.Parameter(torch.eye(256))
    weight.grad = torch.ones_like(weight)
    group = {"name": "", "params": [weight], "lr": config.lr, "weight_decay": 0.0}
    optimizer = optimizer_over([group], config)
    optimizer.step()
    kept = sum(v.nbytes for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    return round(kept / weight.nbytes, 2)


def warm_up(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the scheduled rate at a step of the linear warm-up; 1 after it."""
    warmup = _warmup_steps(steps, config)
    return WARMUP_START + (1 - WARMUP_START) * step / warmup if step < warmup else 1.0


def _warmup_steps(steps: int, config: OptimConfig) -> int:
    return min(1500, steps // 10) if config.warmup_steps is None else config.warmup_steps


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step, were `min_lr` 0.

    The polynomial decays from the first step on, and the warm-up multiplies it, as in the authors'
    release. The cosine begins where the warm-up ends, as in torch's and timm's recipes.

    Args:
        step: Steps already done, 0 to steps - 1.
        steps: Steps of the whole run.
        config: Settings.
    """
    if config.schedule == "onecycle":
        return _one_cycle(step, steps, 1.0, 0.0, config.warmup_steps)
    warm = warm_up(step, steps, config)
    if config.schedule == "poly":
        return (1 - step / steps) ** config.power * warm
    warmup = _warmup_steps(steps, config)
    left = (steps - step) / (steps - warmup) if step > warmup else 1.0
    return warm * math.sin(math.pi / 2 * left) ** 2  # (1 + cos) / 2, exact where it is small.


def _one_cycle(step: int, steps: int, peak: float, floor: float, rise: int | None) -> float:
    """A rate that rises to its peak and falls far below its start, each as half a cosine.

    Source: Smith and Topin, "Super-Convergence", 2018; cosines, and what counts as a step, as in
    torch's OneCycleLR, which it equals. Runs too short for a rise, of 3 steps, begin at the peak.
    """
    last = steps - 1
    top = max(RISE * steps - 1, 0) if rise is None else rise
    start = max(peak / START_DIVISOR, floor)
    end = max(peak / START_DIVISOR / END_DIVISOR, floor)
    if step < top:
        base, height = start, step / top
    else:
        base, height = end, max(last - step, 0) / (last - top) if last > top else 1.0
    return base + (peak - base) * math.sin(math.pi / 2 * height) ** 2


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Set every group's learning rate for a step. Needs no state: resuming needs only the step."""
    warm, factor = warm_up(step, steps, config), lr_factor(step, steps, config)
    for group in optimizer.param_groups:
        peak = group["peak_lr"]
        floor = min(config.min_lr, peak)
        if config.schedule == "onecycle":
            group["lr"] = _one_cycle(step, steps, peak, floor, config.warmup_steps)
        else:
            group["lr"] = floor * (warm - factor) + peak * factor
