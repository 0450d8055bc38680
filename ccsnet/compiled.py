"""Networks compiled by torch for predicting; on a GPU as CUDA graphs, which start in one go."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ccsnet.errors import InputError

COMPILED_SHAPES = 8
"""Shapes of batches for which a network is compiled; of others it runs as it is. A form for all
shapes would be slower, and tracing it takes minutes for networks with windows, such as Swin."""


def check_compiler(device: torch.device) -> None:
    """Compile something small, before anything relies on it.

    Raises:
        InputError: torch.compile does not work on this machine.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    # What fails depends on the compiler, of which there are several, and on what it needs.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"torch.compile does not work on this machine ({type(error).__name__}: {reason}). "
            "It needs a C++ compiler (g++) and on a GPU Triton: install it or leave out --compile."
        ) from error


class Compiled(nn.Module):
    """A network without gradients, compiled for each shape of images when it first comes.

    Windows have one shape, and another where those that are left do not fill a batch. Warns when
    there are more than `COMPILED_SHAPES`.

    Args:
        network: What sees the images.
        device: Where it computes.

    Raises:
        InputError: torch.compile does not work on this machine.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        import torch._dynamo.config  # Half of the compiler comes with it.

        super().__init__()
        check_compiler(device)
        # torch counts what it compiles of a function, here Autocast's, for all networks together.
        torch._dynamo.config.recompile_limit += COMPILED_SHAPES
        self.graphs = device.type == "cuda"
        mode = "reduce-overhead" if self.graphs else "default"
        self.network = network
        self.compiled = torch.compile(network, mode=mode, dynamic=False)
        self.shapes: set[tuple[torch.Size, torch.dtype]] = set()
        self.warned = False

    def forward(self, image: Tensor) -> Any:
        """What the network makes of images."""
        shape = (image.shape, image.dtype)
        if shape not in self.shapes and len(self.shapes) == COMPILED_SHAPES:
            self._warn()
            return self.network(image)
        self.shapes.add(shape)
        if not self.graphs:
            return self.compiled(image)
        torch.compiler.cudagraph_mark_step_begin()
        # A graph writes to the same memory every time.
        return tree_map_only(Tensor, Tensor.clone, self.compiled(image))

    def _warn(self) -> None:
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"The network is compiled for {COMPILED_SHAPES} shapes of images; those of others "
                "run as without --compile. Images of many sizes gain by --window.",
                stacklevel=3,
            )
