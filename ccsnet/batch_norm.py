"""BatchNorm follows the run: plain on one process, synchronised on several, frozen on request."""

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ccsnet.backbones._sync import KNOWN, native, parts_after
from ccsnet.errors import InputError
from ccsnet.segmenter import Segmenter

# B images, C channels, the places of any grid.


def synchronise(model: nn.Module) -> nn.Module:
    """Every BatchNorm of a model computes its statistics over the batches of all processes.

    In evaluation, frozen, and where one process runs alone, they compute as before; names, tensors
    and hooks stay. On accelerators torch's own modules take their place, on the CPU, where torch
    has none, ours.

    All processes must run the same layers in the same order, forwards and backwards: a process
    that skips one leaves the others waiting.

    Args:
        model: On its device; changed in place.

    Returns:
        The model; another module only if it is itself a BatchNorm.

    Raises:
        InputError: A BatchNorm computes in a way of its own.
    """
    for name, norm in _batch_norms(model):
        if isinstance(norm, (_Frozen, _Synchronised, nn.SyncBatchNorm)):
            continue
        if type(norm).forward not in KNOWN:
            raise InputError(
                f"{name or 'The model'} is a {type(norm).__name__}, a BatchNorm that computes in a "
                "way of its own and cannot be synchronised over processes. Use torch's "
                "BatchNorm2d, or train in one process."
            )
        if not _on_accelerator(norm):
            norm.__class__ = _with(_Synchronised, type(norm))
        elif name:
            model.set_submodule(name, native(norm))
        else:
            model = native(norm)
    return model


def freeze(model: Segmenter) -> None:
    """The backbone's BatchNorms use the statistics that they have, and keep them, in training too.

    Scale and shift still learn, as with MMSegmentation's `norm_eval`; what Detectron2's FrozenBN
    does, which keeps them as well, is done by `frozen_stages`. For batches so small that their
    statistics are noise, with a backbone that brings its own. The head has none yet, so its
    BatchNorms stay as they are.

    Args:
        model: Changed in place; names and tensors stay.
    """
    for _, norm in _batch_norms(model.backbone):
        if not isinstance(norm, _Frozen):
            norm.__class__ = _with(_Frozen, type(norm))
            norm.train(norm.training)


def _batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]


def _on_accelerator(norm: _BatchNorm) -> bool:
    return any(tensor.device.type != "cpu" for tensor in norm.state_dict().values())


@cache
def _with(trait: type, kind: type) -> type:
    """A kind of BatchNorm, timm's with drop and activation among them, with one of our traits.

    Given to a module as its class, so that it stays the same object, and a BatchNorm2d.
    """
    return type(trait.__name__.strip("_") + kind.__name__, (trait, kind), {"__module__": __name__})


class _Frozen(nn.Module):
    """Trait of a BatchNorm that is never in training; parts of it (drop, activation) are."""

    def train(self, mode: bool = True) -> "_Frozen":
        super().train(mode)
        self.training = False
        return self


class _Synchronised(nn.Module):
    """Trait of a BatchNorm that in training norms by the batches of all processes.

    Eager when the model is compiled: collectives within a compiled graph may be put in another
    order, and each process compiles its own.
    """

    @torch.compiler.disable
    def forward(self: Any, x: Float[Tensor, "B C *places"]) -> Float[Tensor, "B C *places"]:
        if not self.training or num_processes() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        batch = _statistics(x.detach())
        if batch.count < 2:  # As torch on one process, but for the batches of all.
            raise ValueError(
                "BatchNorm has one value for each channel in the batches of all processes together "
                f"(the shape here is {tuple(x.shape)}); in training it needs more. "
                "Use a larger --batch-size or crop."
            )
        if self.track_running_stats:
            _remember(self, batch)
        normed = _Norm.apply(x, self.weight, self.bias, batch, self.eps)
        for part in parts_after(self):
            normed = part(normed)
        return normed


def num_processes() -> int:
    """How many processes train together; 1 where nothing connects them."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Batch(NamedTuple):
    """What a BatchNorm knows of a batch, the shares of all processes together."""

    mean: Float[Tensor, " C"]
    variance: Float[Tensor, " C"]
    """Biased: divided by the count."""
    count: int
    """Values for each channel."""


def _statistics(x: Float[Tensor, "B C *places"]) -> _Batch:
    """Mean and variance over all processes; each may hold another number of values, or none.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979. Unlike a sum of squares it loses nothing where the mean is large. Summed in
    float64 and in the order of the processes, so that all get the same bits.
    """
    channels = x.shape[1]
    count = x.numel() // max(channels, 1)
    share = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count:
        # In two passes, which are as exact as torch.var_mean and ten times faster here.
        exact, dims = x.to(_exact(x)), _all_but_channels(x)
        mean = exact.mean(dims, keepdim=True)
        variance = (exact - mean).square_().mean(dims)
        mean = mean.flatten()
        share[0] = count
        share[1:] = torch.cat([mean, variance])
    shares = [torch.empty_like(share) for _ in range(num_processes())]
    dist.all_gather(shares, share)
    gathered = torch.stack(shares)
    counts, means, variances = gathered.split([1, channels, channels], dim=1)
    total = counts.sum()
    weights = counts / total.clamp(min=1)
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return _Batch(mean.to(_exact(x)), variance.to(_exact(x)), int(total))


@torch.no_grad()
def _remember(norm: _BatchNorm, batch: _Batch) -> None:
    """Move the running statistics towards those of a batch, as torch does on one process."""
    assert norm.running_mean is not None, "checked by the caller: it tracks them"
    assert norm.running_var is not None, "checked by the caller: it tracks them"
    assert norm.num_batches_tracked is not None, "checked by the caller: it tracks them"
    norm.num_batches_tracked.add_(1)
    share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    unbiased = batch.variance * (batch.count / (batch.count - 1))
    for running, new in ((norm.running_mean, batch.mean), (norm.running_var, unbiased)):
        running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)


class _Norm(torch.autograd.Function):
    """Norm by statistics that are themselves a function of the batches of all processes.

    Gradients of scale and shift are those of this process's share, which is what DDP sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, batch: _Batch, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, *batch[:2])
        ctx.count, ctx.eps = batch.count, eps
        return F.batch_norm(x, batch.mean, batch.variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        shape = (1, -1) + (1,) * (x.ndim - 2)
        exact, dims = _exact(x), _all_but_channels(x)
        gradient = outputs[0].to(exact)
        deviation = (variance + ctx.eps).rsqrt()
        normed = (x.to(exact) - mean.view(shape)) * deviation.view(shape)
        sums = torch.stack([gradient.sum(dims), (gradient * normed).sum(dims)])
        for_bias, for_weight = sums.clone() if ctx.needs_input_grad[0] else sums
        for_x = None
        if ctx.needs_input_grad[0]:  # In all processes or in none: it is the same network.
            dist.all_reduce(sums)
            of_mean, of_deviation = sums / ctx.count
            scale = deviation if weight is None else deviation * weight
            for_x = gradient - of_mean.view(shape)
            for_x = for_x.sub_(normed.mul_(of_deviation.view(shape))).mul_(scale.view(shape))
            for_x = for_x.to(x.dtype)
        if weight is None:
            return for_x, None, None, None, None
        return for_x, for_weight.to(weight.dtype), for_bias.to(weight.dtype), None, None


def _exact(x: Tensor) -> torch.dtype:
    """The type in which statistics are summed: float32, or the wider one that the map has."""
    return torch.promote_types(x.dtype, torch.float32)


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
