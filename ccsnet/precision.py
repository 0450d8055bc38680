"""Number types and memory orders in which a model computes."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item", nn.Module, Tensor)


class Mode(NamedTuple):
    """How a model computes."""

    precision: str
    """float32, bf16 or fp16."""
    channels_last: bool
    """Whether the backbone's maps keep the channels of a place side by side."""


def autocast(mode: Mode, device: torch.device) -> torch.autocast:
    """The context in which a forward pass runs in a mode."""
    dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Autocast(nn.Module):
    """A network in a mode; a module, so that it can be compiled and copied to every process."""

    def __init__(self, model: nn.Module, mode: Mode, device: torch.device) -> None:
        super().__init__()
        self.model, self.mode, self.device = model, mode, device

    def forward(self, image: Tensor) -> Any:
        """What the network makes of images."""
        with autocast(self.mode, self.device):
            return self.model(image)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def in_memory_order(item: Item, mode: Mode) -> Item:
    """The item in the mode's memory order."""
    order = torch.channels_last if mode.channels_last else torch.contiguous_format
    return item.to(memory_format=order)  # pyright: ignore[reportCallIssue, reportReturnType]
