"""How large windows over a scene may be to stay below `max_memory`."""

import math
import os
from collections.abc import Callable

from ccsnet.errors import InputError
from ccsnet.footprint import forward_bytes
from ccsnet.inference import MARGIN, WINDOWS, Pipeline
from ccsnet.memory import peak_memory
from ccsnet.precision import autocast
from ccsnet.rasters_passes import ROWS
from ccsnet.sliding import LOGIT_STRIDE, stride_of

BESIDE = 2**27
"""Bytes for rows of labels, those on their way to the disk, and what is not counted."""


def fitting(
    pipeline: Pipeline,
    size: tuple[int, int],
    channels: int,
    default: tuple[int, int],
    cache: Callable[[int], int],
) -> tuple[tuple[int, int], int]:
    """Side and stride of the windows, and how many are seen at once.

    Without `max_memory`, those that are asked for; else the largest that fit, and as many as fit
    then.

    Args:
        pipeline: The models, and in what sizes they see the scene.
        size: Height and width of the scene.
        channels: Bands that the models take.
        default: Side and stride where none are asked for.
        cache: Bytes that reading takes, by the rows of the scene under a row of windows.

    Raises:
        InputError: Not even the smallest window fits, or, without `max_memory`, what is certain
            to be needed is more than the machine has.
    """
    config, limit = pipeline.config, pipeline.config.max_memory
    if limit is None:
        window = pipeline.window or default
        _check_machine(pipeline, size, window)
        return window, config.batch_size
    if pipeline.window is not None:
        choices = [pipeline.window]
    else:
        sides = [side for side in WINDOWS if side < max(size)] or [WINDOWS[-1]]
        choices = [(side, stride_of(side, config.overlap)) for side in sides]
    there = peak_memory(pipeline.device)
    chosen, gib = choices[-1], 0.0
    for chosen in choices:
        held = cache(rows_under(pipeline, size, chosen)) + blended_bytes(pipeline, size, chosen)
        forward = MARGIN * _forward(pipeline, channels, chosen[0])
        gib = there + (held + forward + BESIDE) / 2**30
        if gib <= limit:
            batch = min(config.batch_size, 1 + int((limit - gib) * 2**30 / forward))
            gib += (batch - 1) * forward / 2**30
            pipeline.note(
                f"{size[0]} x {size[1]} pixels: in windows of {chosen[0]} x {chosen[0]}, {batch} "
                f"at once, about {gib:.1f} of {limit:g} GiB."
            )
            return chosen, batch
    raise InputError(
        f"max_memory is {limit:g} GiB. The program has {there:.1f} as it starts; a scene of "
        f"{size[0]} x {size[1]} pixels takes it to about {gib:.1f} GiB even in windows of "
        f"{chosen[0]} x {chosen[0]}. Allow more, leave out scales or models, or cut the scene into "
        "narrower ones."
    )


def _check_machine(pipeline: Pipeline, size: tuple[int, int], window: tuple[int, int]) -> None:
    """A file of a few bytes may say that it is millions of pixels wide."""
    needed, there = blended_bytes(pipeline, size, window), _memory_of_machine()
    if needed > there:
        raise InputError(
            f"The scene says that it has {size[0]} x {size[1]} pixels: the logits of a row of "
            f"windows would take {needed / 2**30:,.0f} GiB of memory, and this machine has "
            f"{there / 2**30:,.0f}. Cut the scene into narrower ones, or give smaller windows."
        )


def _memory_of_machine() -> float:
    """Bytes; infinite where the system does not tell (Windows)."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def blended_bytes(pipeline: Pipeline, size: tuple[int, int], window: tuple[int, int]) -> int:
    """About what the logits of a row of windows take, of all passes."""
    side, stride = window
    step = 1 if stride % LOGIT_STRIDE else LOGIT_STRIDE
    places = 0
    for scale in pipeline.config.scales:
        height, width = pipeline.seen_size(size, scale, window)
        rows = math.ceil((side + ROWS * height / size[0]) / step) + 4
        places += rows * math.ceil(max(width, side) / step)
    passes = len(pipeline.models) * (1 + pipeline.config.flip)
    return 4 * (pipeline.num_classes + 1) * places * passes


def rows_under(pipeline: Pipeline, size: tuple[int, int], window: tuple[int, int]) -> int:
    """The most rows of the scene that lie under a row of windows."""
    seen = [pipeline.seen_size(size, scale, window)[0] for scale in pipeline.config.scales]
    return min(size[0], math.ceil(window[0] * size[0] / min(seen)))


def _forward(pipeline: Pipeline, channels: int, side: int) -> int:
    mode = autocast(pipeline.mode, pipeline.device)
    shape = (1, channels, side, side)
    return max(forward_bytes(model, shape, mode) for model in pipeline.models)
