"""Keep freed memory in the process instead of handing it back to the system.

torch has no memory pool for processors: every large map is asked of the system when it is made and
handed back when it is dropped, and the system clears each page again. On two cores that took over
a quarter of a training step (docs/speed.md). A program may keep what it frees; it is then as large
as at its peak until it ends.
"""

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Names of the settings in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4

STATUS = Path("/proc/self/status")


def keep_freed_memory() -> bool:
    """Tell the C library to reuse large blocks; for this process, from now on.

    Returns:
        Whether it could: only glibc (Linux) has these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)


def peak_memory(device: "torch.device") -> float:
    """The most that the program has had so far, in GiB: of a GPU's memory, else of the machine's.

    0 where the system does not tell (Windows).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # Linux; getrusage's peak there begins with the parent's.
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):  # Some sandboxes leave it out.
                return int(line.split()[1]) / 2**20
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # Bytes there, KiB elsewhere.
