"""How much memory a forward pass takes, worked out without running it."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class _Live(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations make, for as long as they are held."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def dropped(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, dropped)
        self.live += size
        self.peak = max(self.peak, self.live)


def forward_bytes(
    model: nn.Module, shape: tuple[int, int, int, int], mode: torch.autocast | None = None
) -> int:
    """The most memory that a forward pass without gradients holds at once beside the weights.

    The pass is run with tensors that have a shape and no values: at any size it takes well under a
    second and no memory. What libraries hold inside one operation is not seen.

    Args:
        model: In evaluation mode, on its device.
        shape: Of the images: B, C, H, W.
        mode: The autocast that the pass runs under, if any.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights: dict[str, Tensor] = {
        name: fake.from_tensor(tensor.detach())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    device = next(model.parameters()).device
    with torch.no_grad(), fake, mode or torch.autocast(device.type, enabled=False):
        image = torch.empty(shape, dtype=torch.uint8, device=device)
        with _Live() as counted:
            torch.func.functional_call(model, weights, (image,))
    return counted.peak
