"""The limits of the page; no torch here, so that `--help` is quick."""

import math
from dataclasses import dataclass

from ccsnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """How much the page takes and keeps."""

    max_megapixels: float = 40.0
    """Of an image."""
    max_megabytes: float = 128.0
    """Of an image's file."""
    keep_megabytes: float = 1024.0
    """Results that are kept in memory; the oldest are dropped beyond it."""

    def __post_init__(self) -> None:
        for name in ("max_megapixels", "max_megabytes", "keep_megabytes"):
            value = getattr(self, name)
            if not value > 0:  # Not `value <= 0`, which NaN would pass.
                raise InputError(f"{name} is {value}; it must be above 0.")
            if name.startswith("max") and math.isinf(value):
                raise InputError(f"{name} is {value}; it must be a number, such as 1000.")
