"""The masked attention of the head ccs as Triton kernels, a way in `benchmarks.gpu_attention`.

The places of a stage read from the classes relevant in their cells of stride 16. Which those are is
read from the cells by every block of places; nothing of as many elements as places times classes is
ever in memory. One launch for each stage and direction, but two backward: one by places for the
queries' gradients, one by classes for the keys' and values'. Those are sums over all places, made
in parts that are then added up in a fixed order, without atomic operations: the same every time for
the same blocks.

The head does not use it: no table says yet that it is the fastest. Run without a GPU by
TRITON_INTERPRET=1, and compiled for one, in `tests/test_gpu_attention_triton.py`; never measured.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Bool, Float
from torch import Tensor

# B images, N classes, D width of the head, (H, W) the grid of a stage of L places, (h, w) of cells.

PLACES_OF_A_PART = 2048
"""That one program sums over for a block of classes: enough programs, and few parts to add up."""


class Blocks(NamedTuple):
    """How the work is cut, and the warps and steps ahead of loads that it is given."""

    places: int
    classes: int
    warps: int
    stages: int


BLOCKS: dict[str, tuple[Blocks, ...]] = {
    "read": (Blocks(32, 32, 4, 2), Blocks(64, 32, 4, 2), Blocks(128, 32, 8, 2)),
    "to_queries": (Blocks(32, 32, 4, 2), Blocks(64, 32, 8, 2)),
    "to_classes": (Blocks(32, 32, 4, 1), Blocks(32, 64, 8, 1)),
}
"""Those that a kernel is tried with on a GPU, where the fastest is kept for every shape. Compiled
for an H100, a width of 256 and bf16, all fit into registers and shared memory (at most 132 KiB). In
float32 only the first of each fits, and not into registers: it is there for its results."""


def configurations(blocks: Sequence[Blocks]) -> list[Any]:
    """As Triton takes them."""
    return [
        triton.Config(
            {"BLOCK_L": some.places, "BLOCK_N": some.classes},
            num_warps=some.warps,
            num_stages=some.stages,
        )
        for some in blocks
    ]


def tuned(kernel: Any) -> Any:
    """The kernel in the fastest of its blocks; interpreted, in the first of them."""
    blocks = BLOCKS[kernel.fn.__name__.removeprefix("_")]
    blocks = blocks[:1] if triton.knobs.runtime.interpret else blocks
    return triton.autotune(configurations(blocks), key=["L", "N", "D"])(kernel)


INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
BASE_2 = tl.constexpr(math.log2(math.e))
"""Exponents are in base 2, for which GPUs have an instruction: they are so many times larger."""


@triton.jit
def _product(a, b):
    """Of matrices, in float32. The interpreter has none of bf16, whose products float32 holds."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _rows(start, index, number, columns, D):
    """Addresses of rows of a matrix, and which of their elements there are."""
    at = start + index[:, None] * D + columns[None, :]
    return at, (index < number)[:, None] & (columns < D)[None, :]


@triton.jit
def _allowed(relevant, place, end, classes, N, H, W, h, w):
    """Which of the classes each place may read from.

    Places from `end` on may read from all: their sums are finite that way, and are never stored, or
    count for nothing because their gradients are 0.
    """
    cell = (place // W) * h // H * w + (place % W) * w // W
    at = relevant + cell[:, None] * N + classes[None, :]
    found = tl.load(at, mask=(place < end)[:, None] & (classes < N)[None, :], other=0)
    return (found != 0) | (place >= end)[:, None]


@tuned
@triton.jit
def _read(
    query, keys, values, relevant, read, total, scale, L, N, H, W, h, w,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What a block of places reads, and the logarithm (base 2) of its sums of exponentials."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = tl.arange(0, BLOCK_D)
    places, there = _rows(image * L * D, place, L, columns, D)
    q = tl.load(query + places, mask=there, other=0.0)
    most = tl.full([BLOCK_L], -float("inf"), tl.float32)
    summed = tl.zeros([BLOCK_L], tl.float32)
    result = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for first in range(0, N, BLOCK_N):
        classes = first + tl.arange(0, BLOCK_N)
        at, inside = _rows(image * N * D, classes, N, columns, D)
        k = tl.load(keys + at, mask=inside, other=0.0)
        v = tl.load(values + at, mask=inside, other=0.0)
        allowed = _allowed(relevant + image * h * w * N, place, L, classes, N, H, W, h, w)
        scores = _product(q, tl.trans(k)) * scale
        scores = tl.where(allowed, scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        # No class of the first blocks may be relevant: a difference of two infinities is none.
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        kept = tl.exp2(most - finite)
        summed = summed * kept + tl.sum(weights, 1)
        result = result * kept[:, None]
        result += _product(weights.to(v.dtype), v)
        most = higher
    tl.store(read + places, (result / summed[:, None]).to(q.dtype), mask=there)
    tl.store(total + image * L + place, most + tl.log2(summed), mask=place < L)


@triton.jit
def _weights(q, k, allowed, total, scale):
    """The attention's weights, from the logarithms of their sums."""
    scores = _product(q, tl.trans(k)) * scale
    return tl.where(allowed, tl.exp2(scores - total[:, None]), 0.0)


@tuned
@triton.jit
def _to_queries(
    query, keys, values, relevant, read, total, gradient, inner, to_query, scale, L, N, H, W, h, w,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries of a block of places; `inner` keeps the products read x gradient."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = tl.arange(0, BLOCK_D)
    places, there = _rows(image * L * D, place, L, columns, D)
    q = tl.load(query + places, mask=there, other=0.0)
    g = tl.load(gradient + places, mask=there, other=0.0)
    was_read = tl.load(read + places, mask=there, other=0.0)
    product = tl.sum(was_read.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(inner + image * L + place, product, mask=place < L)
    logarithm = tl.load(total + image * L + place, mask=place < L, other=0.0)
    result = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for first in range(0, N, BLOCK_N):
        classes = first + tl.arange(0, BLOCK_N)
        at, inside = _rows(image * N * D, classes, N, columns, D)
        k = tl.load(keys + at, mask=inside, other=0.0)
        v = tl.load(values + at, mask=inside, other=0.0)
        allowed = _allowed(relevant + image * h * w * N, place, L, classes, N, H, W, h, w)
        weights = _weights(q, k, allowed, logarithm, scale)
        slopes = weights * (_product(g, tl.trans(v)) - product[:, None])
        result += _product(slopes.to(k.dtype), k)
    tl.store(to_query + places, (result * (scale / BASE_2)).to(q.dtype), mask=there)


@tuned
@triton.jit
def _to_classes(
    query, keys, values, relevant, total, gradient, inner, to_keys, to_values, scale, part,
    L, N, H, W, h, w,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, of one part of the places."""
    image = tl.program_id(1).to(tl.int64)
    classes = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    at, there = _rows(image * N * D, classes, N, columns, D)
    k = tl.load(keys + at, mask=there, other=0.0)
    v = tl.load(values + at, mask=there, other=0.0)
    of_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    of_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    start = tl.program_id(2) * part
    end = tl.minimum(start + part, L)
    for first in range(start, end, BLOCK_L):
        place = first + tl.arange(0, BLOCK_L)
        rows, inside = _rows(image * L * D, place, end, columns, D)
        q = tl.load(query + rows, mask=inside, other=0.0)
        g = tl.load(gradient + rows, mask=inside, other=0.0)
        logarithm = tl.load(total + image * L + place, mask=place < end, other=0.0)
        product = tl.load(inner + image * L + place, mask=place < end, other=0.0)
        allowed = _allowed(relevant + image * h * w * N, place, end, classes, N, H, W, h, w)
        weights = _weights(q, k, allowed, logarithm, scale)
        slopes = weights * (_product(g, tl.trans(v)) - product[:, None])
        of_values += _product(tl.trans(weights.to(g.dtype)), g)
        of_keys += _product(tl.trans(slopes.to(q.dtype)), q)
    at += (tl.program_id(2).to(tl.int64) * tl.num_programs(1)) * N * D
    tl.store(to_keys + at, of_keys * (scale / BASE_2), mask=there)
    tl.store(to_values + at, of_values, mask=there)


class _Attention(torch.autograd.Function):
    """Keeps what was read and the sums' logarithms; the weights are computed again backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, relevant: Tensor, size: tuple
    ) -> Tensor:
        query, keys, values = query.contiguous(), keys.contiguous(), values.contiguous()
        relevant = relevant.contiguous().view(torch.uint8)
        (batch, length, width), classes = query.shape, keys.shape[1]
        read = torch.empty_like(query)
        total = query.new_empty(batch, length, dtype=torch.float32)
        scale = width**-0.5 * BASE_2.value
        shape = (scale, length, classes, *size, *relevant.shape[1:3], width, _padded(width))

        def grid(blocks: dict) -> tuple[int, int]:
            return triton.cdiv(length, blocks["BLOCK_L"]), batch

        _read[grid](query, keys, values, relevant, read, total, *shape)
        ctx.save_for_backward(query, keys, values, relevant, read, total)
        ctx.size = size
        return read

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, relevant, read, total = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        (batch, length, width), classes = query.shape, keys.shape[1]
        scale = width**-0.5 * BASE_2.value
        shape = (length, classes, *ctx.size, *relevant.shape[1:3], width, _padded(width))
        inner, to_query = torch.empty_like(total), torch.empty_like(query)
        parts = triton.cdiv(length, PLACES_OF_A_PART)
        to_keys, to_values = (
            keys.new_empty(parts, *keys.shape, dtype=torch.float32) for _ in range(2)
        )

        def by_places(blocks: dict) -> tuple[int, int]:
            return triton.cdiv(length, blocks["BLOCK_L"]), batch

        def by_classes(blocks: dict) -> tuple[int, int, int]:
            return triton.cdiv(classes, blocks["BLOCK_N"]), batch, parts

        _to_queries[by_places](
            query, keys, values, relevant, read, total, gradient, inner, to_query, scale, *shape
        )
        _to_classes[by_classes](
            query, keys, values, relevant, total, gradient, inner, to_keys, to_values, scale,
            PLACES_OF_A_PART, *shape,
        )  # fmt: skip
        sums = (part_sums.sum(0).to(keys.dtype) for part_sums in (to_keys, to_values))
        return to_query, *sums, None, None


def _padded(width: int) -> int:
    """A power of two, as Triton wants its blocks, and not less than its products take."""
    return max(16, triton.next_power_of_2(width))


def masked_attention(
    query: Float[Tensor, "B L D"],
    keys: Float[Tensor, "B N D"],
    values: Float[Tensor, "B N D"],
    relevant: Bool[Tensor, "B h w N"],
    size: tuple[int, int],
) -> Float[Tensor, "B L D"]:
    """What each of L places, on a grid of `size`, reads from the classes relevant in its cell.

    All of one type. At least one class is relevant in every cell.
    """
    return _Attention.apply(query, keys, values, relevant, size)  # pyright: ignore[reportReturnType]
