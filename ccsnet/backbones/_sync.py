"""What timm adds to a BatchNorm, for those who synchronise it."""

from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

KNOWN = (nn.BatchNorm2d.forward, BatchNormAct2d.forward)
"""How a BatchNorm may compute, to be replaced: torch's, of any dimension, and timm's."""


def parts_after(norm: nn.Module) -> tuple[nn.Module, ...]:
    """What a BatchNorm of timm does with its result: drop and activate."""
    if not isinstance(norm, BatchNormAct2d):
        return ()
    return norm.get_submodule("drop"), norm.get_submodule("act")


def native(norm: nn.Module) -> nn.Module:
    """Torch's own synchronised form of one BatchNorm, with its tensors; for accelerators only."""
    return convert_sync_batchnorm(norm)
