"""Ways to compute the masked attention of the head ccs on a GPU; `benchmarks.gpu` measures them.

Every place of four stages reads from the centres of the classes relevant in its cell of stride 16;
a 1x1 convolution, one for each stage, follows. All compute the same. torch's memory-efficient
kernel wants the rows of a mask to begin at multiples of 8 elements, which 150 classes do not give;
where they do not, torch copies the mask into a larger one for each call (Source:
`preprocess_mask` in ATen/native/transformers/attention.cpp, and `sdpa_constraint` in
torch/_inductor/lowering.py, 2.13).
"""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.train_step import refusal
from ccsnet.heads._base import HeadConfig
from ccsnet.heads._classes import window_of
from ccsnet.precision import Mode, autocast

# B images, N classes, D width of the head, L places of a stage or of all, (h, w) the cells.

ALIGNMENT = 8
"""Elements, of masks. Source: as above."""


class Inputs(NamedTuple):
    """What the attention of all stages takes."""

    queries: list[Float[Tensor, "B _ D"]]
    """Of each stage."""
    keys: Float[Tensor, "B N D"]
    values: Float[Tensor, "B N D"]
    weights: list[Float[Tensor, "D D"]]
    """Of each stage's 1x1 convolution."""
    relevant: Bool[Tensor, "B h w N"]
    sizes: list[tuple[int, int]]
    """Height and width of each stage."""


Job = Callable[[], object]
Reads = Sequence[Float[Tensor, "B _ D"]]
"""Of each stage, convolved."""


def make_inputs(
    batch: int, size: int, classes: int, dim: int, top_k: int, device: torch.device | str
) -> Inputs:
    """Random ones for images of so many pixels a side."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    cells = -(-size // 16)
    sizes = [(-(-size // stride), -(-size // stride)) for stride in (4, 8, 16, 16)]
    best = draw(batch, cells, cells, classes).topk(min(top_k, classes)).indices
    relevant = torch.zeros(batch, cells, cells, classes, dtype=torch.bool, device=device)
    return Inputs(
        queries=[draw(batch, height * width, dim) for height, width in sizes],
        keys=draw(batch, classes, dim),
        values=draw(batch, classes, dim),
        weights=[draw(dim, dim) * dim**-0.5 for _ in sizes],
        relevant=relevant.scatter(-1, best, True),
        sizes=sizes,
    )


def in_type(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same in another type, but for the weights, which autocast takes care of."""
    return inputs._replace(
        queries=[query.to(dtype) for query in inputs.queries],
        keys=inputs.keys.to(dtype),
        values=inputs.values.to(dtype),
    )


def bias_of(inputs: Inputs, classes: int) -> Float[Tensor, "B h w C"]:
    """0 where a class is relevant, minus infinity elsewhere, and for classes that there are not."""
    relevant = F.pad(inputs.relevant, (0, classes - inputs.relevant.shape[-1]))
    zeros = torch.zeros_like(relevant, dtype=inputs.queries[0].dtype)
    return zeros.masked_fill(~relevant, -torch.inf)


def attend(
    query: Float[Tensor, "B L D"],
    keys: Float[Tensor, "B N D"],
    values: Float[Tensor, "B N D"],
    bias: Float[Tensor, "B L N"],
) -> Float[Tensor, "B L D"]:
    """Torch's attention, with one head."""
    query, keys, values, bias = (t.unsqueeze(1) for t in (query, keys, values, bias))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias).squeeze(1)


def four_calls(inputs: Inputs, multiple: int = 1) -> Reads:
    """As in `ccsnet.heads.ccs`: a call for each stage, whose convolution is applied to the values.

    Args:
        inputs: What is read from what.
        multiple: Classes are filled up to a multiple of it.
    """
    classes = -(-inputs.keys.shape[1] // multiple) * multiple
    more = (0, 0, 0, classes - inputs.keys.shape[1])
    keys, values = F.pad(inputs.keys, more), F.pad(inputs.values, more)
    bias = bias_of(inputs, classes)
    return [
        attend(query, keys, F.linear(values, weight), window_of(bias, size).flatten(1, 2))
        for query, weight, size in zip(inputs.queries, inputs.weights, inputs.sizes, strict=True)
    ]


def four_padded_calls(inputs: Inputs) -> Reads:
    """The same with as many classes as masks are aligned to."""
    return four_calls(inputs, ALIGNMENT)


def one_call(inputs: Inputs, multiple: int = 1) -> Reads:
    """The places of all stages in one call; the convolutions follow, at every place.

    Args:
        inputs: What is read from what.
        multiple: Classes are filled up to a multiple of it.
    """
    classes = -(-inputs.keys.shape[1] // multiple) * multiple
    more = (0, 0, 0, classes - inputs.keys.shape[1])
    bias = bias_of(inputs, classes)
    biases = torch.cat([window_of(bias, size).flatten(1, 2) for size in inputs.sizes], dim=1)
    keys, values = F.pad(inputs.keys, more), F.pad(inputs.values, more)
    return _convolved(attend(torch.cat(inputs.queries, 1), keys, values, biases), inputs)


def one_padded_call(inputs: Inputs) -> Reads:
    """The same with as many classes as masks are aligned to."""
    return one_call(inputs, ALIGNMENT)


def products(inputs: Inputs) -> Reads:
    """Two matrix products and a softmax between them, for a compiler to fuse what it can."""
    bias = bias_of(inputs, inputs.keys.shape[1])
    scaled = inputs.keys.transpose(1, 2) * inputs.keys.shape[-1] ** -0.5
    return [
        torch.baddbmm(window_of(bias, size).flatten(1, 2), query, scaled).softmax(-1)
        @ F.linear(inputs.values, weight)
        for query, weight, size in zip(inputs.queries, inputs.weights, inputs.sizes, strict=True)
    ]


def flexible(inputs: Inputs) -> Reads:
    """flex_attention over all stages at once: each score looks up its class in its place's cell.

    As a change of scores and not as a mask of blocks: a block of 128 classes holds nearly always
    one that is relevant to one of 128 places.
    """
    relevant = inputs.relevant.flatten(1, 2)
    cells = _cell_of_each_place(inputs)

    def masked(score: Tensor, b: Tensor, head: Tensor, place: Tensor, number: Tensor) -> Tensor:
        return torch.where(relevant[b, cells[place], number], score, -torch.inf)

    query, keys, values = torch.cat(inputs.queries, 1), inputs.keys, inputs.values
    with warnings.catch_warnings():
        # Where it is not compiled, as in the tests, torch says that it is slow.
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        read = flex_attention(*(t.unsqueeze(1) for t in (query, keys, values)), score_mod=masked)
    assert isinstance(read, Tensor), "nothing else was asked for"
    return _convolved(read.squeeze(1), inputs)


def kernels(inputs: Inputs) -> Reads:
    """Triton kernels of our own, a call for each stage, whose convolution comes before it."""
    from benchmarks.gpu_attention_triton import masked_attention  # Triton is not everywhere.

    return [
        masked_attention(query, inputs.keys, F.linear(inputs.values, weight), inputs.relevant, size)
        for query, weight, size in zip(inputs.queries, inputs.weights, inputs.sizes, strict=True)
    ]


def _cell_of_each_place(inputs: Inputs) -> Int64[Tensor, " L"]:
    """The number of the cell of stride 16 in which each place of all stages lies."""
    height, width = inputs.relevant.shape[1:3]
    device = inputs.relevant.device
    parts = []
    for rows, columns in inputs.sizes:
        row = torch.arange(rows, device=device) * height // rows
        column = torch.arange(columns, device=device) * width // columns
        parts.append((row[:, None] * width + column).flatten())
    return torch.cat(parts)


def _convolved(read: Float[Tensor, "B L D"], inputs: Inputs) -> Reads:
    lengths = [query.shape[1] for query in inputs.queries]
    return list(map(F.linear, read.split(lengths, dim=1), inputs.weights))


ATTENTIONS: dict[str, Callable[[Inputs], Reads]] = {
    "a call for each stage (ours)": four_calls,
    "the same, classes padded to 8": four_padded_calls,
    "one call": one_call,
    "one call, classes padded to 8": one_padded_call,
    "matrix products": products,
    "flex_attention": flexible,
    "Triton kernels": kernels,
}
ONLY_COMPILED = ("flex_attention",)
"""Uncompiled it makes every score, and on a processor no gradients."""
ONLY_ON_A_GPU = ("Triton kernels",)
"""On a processor Triton interprets them, which shows what they compute and not how fast."""


def with_gradients(attention: Callable[[Inputs], Reads], inputs: Inputs) -> list[Tensor]:
    """What is read, and the gradients of all that it is made of if no two places count alike."""
    leaves = [*inputs.queries, inputs.keys, inputs.values, *inputs.weights]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    stages = len(inputs.queries)
    queries, (keys, values), weights = leaves[:stages], leaves[stages:-stages], leaves[-stages:]
    reads = attention(inputs._replace(queries=queries, keys=keys, values=values, weights=weights))
    sums = [
        (read * torch.linspace(-1, 1, read.numel(), device=read.device).view_as(read)).sum()
        for read in reads
    ]
    return [
        *(read.detach() for read in reads),
        *torch.autograd.grad(torch.stack(sums).sum(), leaves),
    ]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest of all, relative to the largest element of its tensor."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    # A place that reads from one class alone has no gradient: nothing to be relative to.
    return max(float((a - b).abs().max()) / (float(b.abs().max()) or 1.0) for a, b in pairs)


def attention_inputs(arguments: argparse.Namespace, batch: int) -> Inputs:
    """In the precision that is asked for."""
    config = HeadConfig()
    inputs = make_inputs(
        batch, arguments.size, arguments.classes, config.dim, config.top_k, arguments.device
    )
    return in_type(inputs, torch.bfloat16 if arguments.precision == "bf16" else torch.float32)


def runs_here(name: str, device: torch.device) -> bool:
    """Whether a way to compute the attention does, with gradients."""
    return device.type == "cuda" or name not in (*ONLY_COMPILED, *ONLY_ON_A_GPU)


def agreement(arguments: argparse.Namespace) -> str:
    """How far each way is from ours in float32, in what is read and in gradients."""
    device, how = torch.device(arguments.device), Mode(arguments.precision, False)
    inputs = attention_inputs(arguments, min(2, arguments.batch))
    expected = with_gradients(four_calls, in_type(inputs, torch.float32))
    told: dict[str, str] = {}
    for name, attention in ATTENTIONS.items():
        if runs_here(name, device):
            with refusal(name, told), autocast(how, device):
                told[name] = f"{difference(with_gradients(attention, inputs), expected):.1e}"
    return "; ".join(f"{name}: {text}" for name, text in told.items())


def attention_jobs(arguments: argparse.Namespace) -> Iterator[tuple[tuple[str, str, str], Job]]:
    """Every way in every mode, forward alone and with gradients."""
    device, how = torch.device(arguments.device), Mode(arguments.precision, False)
    inputs = attention_inputs(arguments, arguments.batch)
    for mode in arguments.modes:
        for name, attention in ATTENTIONS.items():
            missing = ONLY_ON_A_GPU if device.type != "cuda" else ()
            if name in (*missing, *(ONLY_COMPILED if mode == "eager" else ())):
                continue
            run = torch.compile(attention) if mode == "compiled" else attention

            def forward(run: Callable = run) -> object:
                with torch.inference_mode(), autocast(how, device):
                    return run(inputs)

            def both(run: Callable = run) -> None:
                leaves = [*inputs.queries, inputs.keys, inputs.values, *inputs.weights]
                for leaf in leaves:
                    leaf.requires_grad_()
                with autocast(how, device):
                    reads = run(inputs)
                torch.autograd.grad(torch.stack([read.sum() for read in reads]).sum(), leaves)

            yield ("attention, forward", name, mode), forward
            if runs_here(name, device):
                yield ("attention, forward and backward", name, mode), both
