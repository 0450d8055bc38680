"""Faster forms of linear layers and attention for processors.

What they compute is the same up to rounding; networks and libraries need not know of them.
"""

import contextlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from ccsnet.precision import has_bf16

MAX_SCORES = 2**19
"""Attention scores that are held at once: blocks of queries see to it that there are no more."""
MAX_KEPT = 4
"""Of scores that a backward pass needs, how many are kept for each number of the queries."""


class _Faster(TorchFunctionMode):
    """Puts the forms of this module in the place of torch's, where they are the faster ones."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or what stands for it."""
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        result = None if replacement is None else replacement(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def faster_kernels(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a network runs at its fastest on a device.

    Linear layers and 1x1 convolutions of float32 go to oneDNN where MKL, which torch takes, uses
    half of the processor's vector width: on AMD's with AVX-512 it is 2 times faster. Attention is
    computed by such products as well; of bf16 they have the processor's bf16 instructions, which
    torch's own kernel has not, and going backward that kernel knows no other parallel work than
    images and heads. `python -m benchmarks.latency` and `benchmarks.roofline` measure them.

    Going backward nothing of the context is needed. What a checkpoint computes again then would
    be computed outside of it, so it is not for networks with checkpoints in them.
    """
    return _Faster() if device.type == "cpu" else contextlib.nullcontext()


class FasterKernels(nn.Module):
    """A network that runs in `faster_kernels`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, image: Tensor) -> Any:
        """What the network makes of images."""
        with faster_kernels(self.device):
            return self.model(image)


@cache
def onednn_is_faster() -> bool:
    """Whether MKL computes with half of this processor's vector width."""
    return (
        hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AMD" in _vendor()
    )


def _vendor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()  # "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
    lines = cpuinfo.read_text().splitlines()
    return next((line for line in lines if line.startswith("vendor_id")), "")


def _usable(*tensors: Tensor) -> bool:
    """Whether all hold something, and are the processor's."""
    return all(t.device.type == "cpu" and t.numel() for t in tensors)


def _graph(*tensors: Tensor | None) -> bool:
    """Whether a backward pass will go through what is computed of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _linear(
    input: Float[Tensor, "*B I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None = None,
) -> Float[Tensor, "*B O"] | None:
    tensors = [input, weight] if bias is None else [input, weight, bias]
    if (
        not onednn_is_faster()
        or torch.is_autocast_enabled("cpu")
        or any(t.dtype != torch.float32 for t in tensors)
        or not _usable(*tensors)
        or input.dim() < 2
        or weight.dim() < 2
    ):
        return None
    return _onednn_linear(input, weight, bias)


def _conv2d(
    input: Float[Tensor, "B I H W"],
    weight: Float[Tensor, "O _ _ _"],
    bias: Float[Tensor, " O"] | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Float[Tensor, "B O h w"] | None:
    """A 1x1 convolution of maps that keep their channels side by side is a linear layer."""
    if _graph(input, weight, bias) and torch.get_num_threads() > 1:
        return None  # Torch takes oneDNN by itself.
    if (
        weight.shape[2:] != (1, 1)
        or groups != 1
        or stride not in (1, (1, 1))
        or padding not in (0, (0, 0), "valid", "same")
        or input.dim() != 4
        or not input.is_contiguous(memory_format=torch.channels_last)
    ):
        return None
    result = _linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return None if result is None else result.permute(0, 3, 1, 2)


def _attention(
    query: Float[Tensor, "*#B L D"],
    key: Float[Tensor, "*#B N D"],
    value: Float[Tensor, "*#B N E"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*#B L E"] | None:
    """Scores, their softmax, and the sum that it weighs, for a block of queries at a time."""
    tensors = [query, key, value]
    if dropout_p or is_causal or enable_gqa or not _usable(*tensors):
        return None
    graph = _graph(*tensors, attn_mask)
    if graph and key.shape[-2] > MAX_KEPT * query.shape[-1]:
        return None  # Torch's keeps no scores.
    # Neither a single sequence nor batches of one that are shared.
    if query.dim() < 3 or any(t.shape[:-2] != query.shape[:-2] for t in tensors):
        return None
    if torch.is_autocast_enabled("cpu"):
        tensors = [t.to(torch.get_autocast_dtype("cpu")) for t in tensors]
    elif any(t.dtype != query.dtype for t in tensors):
        return None
    dtype = tensors[0].dtype
    if dtype == torch.float32:
        if not onednn_is_faster():
            return None
        attend = _attend_by_linear
    elif dtype == torch.bfloat16 and has_bf16(query.device):
        attend = _attend
    else:
        return None
    query, key, value = tensors
    # The keys are fewer than the queries, and are parts of a larger tensor, mostly.
    key = key.contiguous() * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    value = value.contiguous()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=dtype).masked_fill_(
                ~attn_mask, -torch.inf
            )
        attn_mask = attn_mask.to(dtype).expand(*query.shape[:-1], key.shape[-2])
    if graph:
        return attend(query, key, value, attn_mask)
    read = query.new_empty(*query.shape[:-1], value.shape[-1])
    places = max(1, MAX_SCORES // (query[..., 0, 0].numel() * key.shape[-2]))
    for start in range(0, query.shape[-2], places):
        block = slice(start, start + places)
        bias = None if attn_mask is None else attn_mask[..., block, :]
        read[..., block, :] = attend(query[..., block, :], key, value, bias)
    return read


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2)
    return _weights(scores, bias) @ value


def _attend_by_linear(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The same by linear layers whose weights are the keys and the values, one for each head."""
    flat = [t.flatten(0, -3).unbind() for t in (query, key, value)]
    biases = [None] * len(flat[0]) if bias is None else bias.flatten(0, -3).unbind()
    read = [
        _onednn_linear(_weights(_onednn_linear(q, k), b), v.t())
        for q, k, v, b in zip(*flat, biases, strict=True)
    ]
    result = torch.stack(read) if len(read) > 1 else read[0]  # Of one image and head no copy.
    return result.view(*query.shape[:-1], value.shape[-1])


def _weights(scores: Tensor, bias: Tensor | None) -> Tensor:
    """A softmax; 0, as torch has it, where the bias leaves nothing to read from."""
    if bias is None:
        return scores.softmax(-1)
    # In place only where nothing is kept: of views the backward pass would make copies.
    scores = scores + bias if _graph(scores) else scores.add_(bias)
    weights = scores.softmax(-1)
    if weights[..., 0].isnan().any():  # A row is so as a whole: one column tells.
        nothing = (bias == -torch.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    return weights


def _onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # For anything else oneDNN has a reference form only, thousands of times slower.
    input, weight = input.contiguous(), weight.contiguous()
    if _graph(input, weight, bias):
        # Flat, since what comes out of a function may not be changed in place if it is a view.
        flat = _Linear.apply(input.flatten(0, -2), weight, bias)
        return flat.unflatten(0, input.shape[:-1])
    return _product(input, weight, bias)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear layer whose three products are all oneDNN's."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t().contiguous()) if of_input else None,
            _weight_gradient(grad, input, weight) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _weight_gradient(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """By a 1x1 convolution, on maps one place high: the sum over many places is oneDNN's there."""
    maps = [t.reshape(1, 1, -1, t.shape[-1]).permute(0, 3, 1, 2) for t in (grad, input)]
    _, gradient, _ = torch.ops.aten.convolution_backward(
        *maps,
        weight[:, :, None, None],
        bias_sizes=None,
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[False, True, False],
    )
    return gradient.flatten(1)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.scaled_dot_product_attention: _attention,
}
