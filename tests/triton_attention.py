"""What is tested of the Triton kernels, in processes of its own: how they run is settled on import.

    TRITON_INTERPRET=1 python -m tests.triton_attention compare cpu
    python -m tests.triton_attention compare cuda
    python -m tests.triton_attention compile

Each prints what it finds as JSON.
"""

import itertools
import json
import sys

import torch

from benchmarks import gpu_attention_triton as kernels
from benchmarks.gpu_attention import (
    Inputs,
    difference,
    four_calls,
    in_type,
    make_inputs,
    with_gradients,
)
from benchmarks.gpu_attention import kernels as attention
from tests.literal_attention import literal_attention

CELLS = (2, 3)
SIZES = [(7, 9), (5, 3), CELLS, CELLS]
"""Of stages; none that divides evenly."""


def compare(device: str) -> dict[str, tuple[float, float]]:
    """Largest relative differences from the literal attention in float64: the kernels', torch's."""
    kernels.PLACES_OF_A_PART = 40  # Parts that are not a whole number of blocks.
    found = {}
    for classes, dtype in itertools.product((2, 11, 150), (torch.float32, torch.bfloat16)):
        for top_k in sorted({1, min(5, classes), classes}):
            inputs = in_type(uneven(classes, top_k, 24, device), dtype)
            inputs = inputs._replace(weights=[weight.to(dtype) for weight in inputs.weights])
            found[f"{dtype} {classes} {top_k}"] = differences(inputs)
    return found | of_all_blocks(device)


def uneven(classes: int, top_k: int, width: int, device: str) -> Inputs:
    """Random ones on grids that do not divide each other."""
    made = make_inputs(2, 48, classes, width, top_k, device)
    queries = [
        torch.randn(2, height * columns, width, generator=torch.Generator().manual_seed(stage))
        for stage, (height, columns) in enumerate(SIZES)
    ]
    relevant = made.relevant[:, : CELLS[0], : CELLS[1]]
    queries = [query.to(device) for query in queries]
    return made._replace(queries=queries, relevant=relevant, sizes=SIZES)


def differences(inputs: Inputs) -> tuple[float, float]:
    """Of one case."""
    weights = [weight.double() for weight in inputs.weights]
    same = in_type(inputs, torch.float64)._replace(weights=weights)
    expected = with_gradients(literal_attention, same)
    ours, of_torch = (
        difference(with_gradients(way, inputs), expected) for way in (attention, four_calls)
    )
    return ours, of_torch


def of_all_blocks(device: str) -> dict[str, tuple[float, float]]:
    """The same for each way to cut the work, which a GPU chooses from."""
    inputs, found = uneven(40, 3, 16, device), {}
    for name, blocks in kernels.BLOCKS.items():
        kernel = getattr(kernels, f"_{name}")
        kept = kernel.configs
        for some in blocks:
            kernel.configs = kernels.configurations([some])
            found[f"{name} {some}"] = differences(inputs)
        kernel.configs = kept
    return found


def shared_memory() -> dict[str, int]:
    """Bytes of shared memory of each kernel, compiled for an H100 in bf16, 256 wide."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    in_float32 = {"total", "inner", "to_keys", "to_values"}
    found = {}
    for name, blocks in kernels.BLOCKS.items():
        kernel = getattr(kernels, f"_{name}").fn
        for some in blocks:
            fixed = {"D": 256, "BLOCK_D": 256, "BLOCK_L": some.places, "BLOCK_N": some.classes}
            types = dict.fromkeys(kernel.arg_names, "*bf16")
            types |= dict.fromkeys(fixed, "constexpr") | {"relevant": "*u8", "scale": "fp32"}
            types |= {one: "i32" for one in ("L", "N", "H", "W", "h", "w")}
            types |= {one: "*fp32" for one in in_float32 & types.keys()}
            types |= {one: "i32" for one in {"part"} & types.keys()}
            # Addresses and sizes that are multiples of 16, of which Triton makes use.
            even = [n for n, one in enumerate(types) if one not in (*fixed, "N", "scale")]
            aligned = {(n,): [["tt.divisibility", 16]] for n in even}
            compiled = triton.compile(
                ASTSource(kernel, types, fixed, aligned),
                target=GPUTarget("cuda", 90, 32),
                options={"num_warps": some.warps, "num_stages": some.stages},
            )
            found[f"{name} {some}"] = compiled.metadata.shared
    return found


if __name__ == "__main__":
    run, *arguments = sys.argv[1:]
    print(json.dumps({"compare": compare, "compile": shared_memory}[run](*arguments)))
