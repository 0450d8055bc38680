"""The settings of `predict` and `evaluate`; no torch here, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal

from ccsnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How an image becomes a label map, in `predict` and in `evaluate`."""

    window: int | None = None
    """Side of square windows over the image at its own size; 0: the whole image at once; none: as
    the data set is tested, in its windows or as a whole."""
    overlap: float = 0.25
    """Share of a window's side that it has in common with its neighbour."""
    own_size: bool | None = None
    """Whether images are seen at their own size rather than that at which the data set is tested;
    none: where `window` gives a side."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which each image is seen, as multiples; the probabilities are averaged."""
    flip: bool = False
    """Also see each image mirrored."""
    batch_size: int = 4
    """Windows, or images of equal size, in each forward pass."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """auto: float32, or where the device multiplies it in hardware bf16, whichever is faster in a
    short trial, which is kept. float32 gives the same figures on all devices, up to rounding."""
    channels_last: bool | None = None
    """Whether the backbone's maps keep the channels of a place side by side; none: as trained."""
    compile: bool = False
    """Compile the network for the first sizes that come, on a GPU with CUDA graphs: worth its
    minute or so for many images of few sizes, or in windows."""
    max_memory: float | None = None
    """GiB that the program, or on a GPU its tensors, should stay below: where an image does not
    fit, it is seen in the largest windows that do, and fewer at once. An estimate."""

    def __post_init__(self) -> None:
        if self.window and (self.window < 32 or self.window % 32):
            raise InputError(
                f"window is {self.window}; it must be a multiple of 32, such as 512, or 0 for "
                "whole images."
            )
        if not 0 <= self.overlap <= 0.75:
            raise InputError(f"overlap is {self.overlap}; it must be from 0 to 0.75.")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; it must be at least 1.")
        # Not `scale < 0.1`, which NaN would pass.
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise InputError(
                f"scales are {self.scales}; each must be from 0.1 to 10, such as 0.5 1.0 1.5."
            )
        if len(set(self.scales)) < len(self.scales):
            raise InputError(f"scales are {self.scales}; name each once.")
        if self.max_memory is not None and not self.max_memory > 0:
            raise InputError(f"max_memory is {self.max_memory}; it must be above 0 GiB.")
