"""The settings of `bench`; no torch here, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal

from ccsnet.errors import InputError

BACKBONES = ("tf_efficientnet_lite0", "resnet50", "convnext_tiny", "mit_b0", "mit_b1")
"""Measured unless others are named: small to middling, three kinds."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    head: str = "ccs"
    """As in training."""
    classes: int = 150
    """How many the models tell apart."""
    sizes: tuple[int, ...] = (512,)
    """Sides of the square images, in pixels."""
    batch_size: int = 4
    """Images at once for the throughput; the latency is that of one."""
    precisions: tuple[Literal["float32", "bf16"], ...] = ()
    """None named: all that the device computes in hardware."""
    compile: bool = False
    """Compile the networks, as in `predict`."""
    rounds: int = 5
    """Times that each is measured, after two that are not; the median counts."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("batch_size", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.sizes or min(self.sizes) < 32:
            raise InputError(f"sizes are {self.sizes}; give sides of at least 32 pixels.")
