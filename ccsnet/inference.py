"""From images to class scores: whole or in windows, scaled, mirrored, by one model or several.

`evaluate` and `predict` both label through the `Pipeline` here, so that what is measured is what is
predicted. One pass of one model ends in logits. Where several passes are averaged, it is their
probabilities that are: logits have an offset that means nothing and a scale that is each model's
own. Source: test-time augmentation of MMSegmentation, which averages softmax scores.

Letters: B images, C bands, H W a size in pixels, N classes, h w places of the scores.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from ccsnet.compiled import Compiled
from ccsnet.cpu_kernels import FasterKernels
from ccsnet.data.loading import image_tensor
from ccsnet.data.transforms import resize_image, scaled_size
from ccsnet.errors import InputError
from ccsnet.footprint import forward_bytes
from ccsnet.grid import ScoreGrid
from ccsnet.memory import peak_memory
from ccsnet.precision import Autocast, Mode, autocast, in_memory_order
from ccsnet.predict_config import PredictConfig
from ccsnet.sliding import LOGIT_STRIDE, sliding_batch, stride_of, window_corners
from ccsnet.trial import choose_inference_mode

WINDOWS = (2048, 1536, 1024, 768, 512, 384, 256, 128)
"""Sides that `max_memory` chooses from."""

TOGETHER = 2**22
"""Pixels of whole images that are seen together; one image may be larger."""

MARGIN = 1.3
"""Measured peaks of forward passes were 0.8 to 1.25 times what `forward_bytes` says."""


Item = TypeVar("Item")


class Plan(NamedTuple):
    """How images of one size are seen."""

    window: tuple[int, int] | None
    """Side and stride; none: whole."""
    batch_size: int


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Models and how they see images.

    Args:
        models: Networks in evaluation mode on one device; of several, the mean is taken.
        num_classes: N.
        config: The settings.
        sides: Short and long side at which the data set is tested, as in `DataConfig`.
        tested_in: Side and stride of the windows that the data set is tested in, if it is.
        note: Told what `max_memory` led to.
    """

    models: tuple[nn.Module, ...]
    num_classes: int
    config: PredictConfig = field(default_factory=PredictConfig)
    sides: tuple[int | None, int | None] = (None, None)
    tested_in: tuple[int, int] | None = None
    note: Callable[[str], None] = _ignore
    _plans: dict[tuple[int, ...], Plan] = field(default_factory=dict, repr=False)
    _footprints: dict[tuple[int, ...], int] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the models compute."""
        return next(self.models[0].parameters()).device

    @property
    def window(self) -> tuple[int, int] | None:
        """Side and stride of the windows that are asked for; `max_memory` may choose others."""
        if self.config.window is None:
            return self.tested_in
        side = self.config.window
        return (side, stride_of(side, self.config.overlap)) if side else None

    @property
    def own_size(self) -> bool:
        """Whether images are seen at their own size."""
        own = self.config.own_size
        return bool(self.config.window) if own is None else own

    @property
    def averages(self) -> bool:
        """Whether there is more than one pass."""
        return len(self.models) * len(self.config.scales) > 1 or self.config.flip

    @property
    def takes_resized(self) -> bool:
        """Whether images can be brought to their size before: there is one, the data set's."""
        return not (
            self.averages
            or self.own_size
            or self.config.scales != (1.0,)
            or self.config.max_memory is not None
        )

    def seen_size(
        self, size: Sequence[int], scale: float, window: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Height and width at which the models see an image at a scale.

        Whole images get sides that are multiples of 32. Grids of several passes must cover the
        same, so in windows their sides are multiples of 4.
        """
        short, long = (None, None) if self.own_size else self.sides
        wanted = scaled_size(
            tuple(size),
            None if short is None else short * scale,
            None if long is None else long * scale,
            factor=scale,
        )
        multiple = 32 if window is None else LOGIT_STRIDE if self.averages else 1
        height, width = (math.ceil(side / multiple) * multiple for side in wanted)
        return height, width

    @torch.inference_mode()
    def scores(
        self,
        images: Sequence[Num[np.ndarray, "H W C"]],
        progress: Callable[[int, int], None] | None = None,
    ) -> ScoreGrid:
        """ScoreGrid of images of one size, as files hold them.

        Args:
            images: Raw pixel values, RGB order if three bands.
            progress: Called with windows done and windows in all, of all passes.

        Raises:
            InputError: The images do not fit into `max_memory`.
        """
        size, bands = images[0].shape[:2], images[0].shape[2]
        plan = self.plan(size, bands)

        def seen(scale: float) -> Num[Tensor, "B C h w"]:
            wanted = self.seen_size(size, scale, plan.window)
            return torch.stack([image_tensor(resize_image(image, wanted)) for image in images])

        if progress is None or plan.window is None:
            return self._scores(seen, plan)
        windows = sum(self.num_windows(size, plan.window, scale) for scale in self.config.scales)
        passes = len(self.models) * (1 + self.config.flip)
        done, total = 0, windows * passes * len(images)

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        return self._scores(seen, plan, advance)

    @torch.inference_mode()
    def scores_of_resized(self, images: Num[Tensor, "B C H W"]) -> ScoreGrid:
        """ScoreGrid of images at the size at which the data set is tested.

        Asks for a pipeline that `takes_resized`.
        """
        assert self.takes_resized, "the caller has asked"
        return self._scores(lambda _: images, Plan(self.window, self.config.batch_size))

    def images_at_once(self, size: Sequence[int], bands: int) -> int:
        """How many images of a size to see together: no more than fill a forward pass."""
        plan = self.plan(size, bands)
        if plan.window is not None:
            return max(1, plan.batch_size // self.num_windows(size, plan.window))
        height, width = self.seen_size(size, max(self.config.scales), None)
        return max(1, min(plan.batch_size, TOGETHER // (height * width)))

    def together(
        self, items: Iterable[Item], shape: Callable[[Item], Sequence[int]]
    ) -> Iterator[list[Item]]:
        """Neighbours of one shape, as many as are to be seen together.

        Those before an item that cannot be read are given out before its error is raised.

        Args:
            items: Images, or what has one each.
            shape: Height, width and bands of an item's image.

        Raises:
            InputError: Images do not fit into `max_memory`.
        """
        group: list[Item] = []
        try:
            for item in items:
                height, width, bands = shape(item)
                if group and tuple(shape(group[0])) != (height, width, bands):
                    yield group
                    group = []
                group.append(item)
                if len(group) >= self.images_at_once((height, width), bands):
                    yield group
                    group = []
        except (InputError, OSError):
            if group:
                yield group
            raise
        if group:
            yield group

    def num_windows(self, size: Sequence[int], window: tuple[int, int], scale: float = 1.0) -> int:
        """How many windows there are of an image at a scale."""
        return len(window_corners(self.seen_size(size, scale, window), *window))

    def _scores(
        self,
        seen: Callable[[float], Tensor],
        plan: Plan,
        advance: Callable[[int], None] | None = None,
    ) -> ScoreGrid:
        """The only pass, or the mean of all, on the grid of the scale that is nearest to 1."""
        networks = self.networks()
        total: Tensor | None = None
        for scale in sorted(self.config.scales, key=lambda scale: abs(math.log(scale))):
            images = seen(scale)
            for network, flip in product(networks, (False, True)[: 1 + self.config.flip]):
                shown = images.flip(-1) if flip else images
                values, cell = self._one_pass(network, shown, plan, advance)
                if not self.averages:
                    size = values.shape[2:] if plan.window is None else images.shape[2:]
                    return ScoreGrid(values, False, cell, (size[0], size[1]))
                probs = values.float().softmax(1)
                probs = probs.flip(-1) if flip else probs
                if total is None:  # Never coarser than stride 4, should other models be finer.
                    sides = zip(probs.shape[2:], images.shape[2:], strict=True)
                    grid = [max(places, side // LOGIT_STRIDE) for places, side in sides]
                    total = probs.new_zeros(*probs.shape[:2], *grid)
                if probs.shape != total.shape:
                    probs = F.interpolate(
                        probs, size=total.shape[2:], mode="bilinear", align_corners=False
                    )
                total += probs.to(total.device)
        assert total is not None, "there is a scale and a model"
        total /= len(self.config.scales) * len(networks) * (1 + self.config.flip)
        return ScoreGrid(total, True, 1, (total.shape[2], total.shape[3]))

    def _one_pass(
        self,
        network: nn.Module,
        images: Num[Tensor, "B C H W"],
        plan: Plan,
        advance: Callable[[int], None] | None,
    ) -> tuple[Float[Tensor, "B N h w"], int]:
        """Logits, and the stride of their grid if they are of windows, else 1."""
        if plan.window is None:
            parts = [network(part.to(self.device)).logits for part in images.split(plan.batch_size)]
            return parts[0] if len(parts) == 1 else torch.cat(parts), 1
        side, stride = plan.window
        before = 0

        def told(done: int, _: int) -> None:
            nonlocal before
            if advance is not None:
                advance(done - before)
            before = done

        return sliding_batch(
            network,
            images,
            self.num_classes,
            window=side,
            stride=stride,
            batch_size=plan.batch_size,
            progress=told,
        )

    @cached_property
    def mode(self) -> Mode:
        """How the models compute; `auto` is tried on the first of them."""
        precision, order = self.config.precision, bool(self.config.channels_last)
        if precision != "auto":
            return Mode(precision, order)
        model = self.models[0]
        mode, told = choose_inference_mode(
            lambda mode: self._eager(model, mode),
            model,
            model.get_buffer("mean").numel(),
            channels_last=order,
        )
        self.note(told)
        return mode

    def networks(self) -> list[nn.Module]:
        """The models as they run."""
        eager = [self._eager(model, self.mode) for model in self.models]
        return self._compiled if self.config.compile else eager

    @cached_property
    def _compiled(self) -> list[nn.Module]:
        device = self.device
        return [Compiled(Autocast(model, self.mode, device), device) for model in self.models]

    def _eager(self, model: nn.Module, mode: Mode) -> nn.Module:
        if self.config.channels_last is not None:  # Each time: others may use the model, too.
            in_memory_order(model.get_submodule("backbone"), mode)
        model = FasterKernels(model, self.device)
        return model if mode.precision == "float32" else Autocast(model, mode, self.device)

    def plan(self, size: Sequence[int], bands: int) -> Plan:
        """How images of a size are seen: as asked for, or as it fits into `max_memory`.

        Raises:
            InputError: Not even the smallest window fits.
        """
        limit = self.config.max_memory
        if limit is None:
            return Plan(self.window, self.config.batch_size)
        key = (*size, bands)
        if key not in self._plans:
            self._plans[key] = self._fitting(size, bands, limit)
        return self._plans[key]

    def _fitting(self, size: Sequence[int], bands: int, limit: float) -> Plan:
        """The largest windows that fit, and as many at once as fit then."""
        largest = max(self.config.scales)
        there = self._in_use
        if self.window is not None:  # Asked for: only their number is left to choose.
            choices: list[tuple[int, int] | None] = [self.window]
        else:
            sides = [s for s in WINDOWS if s < max(self.seen_size(size, largest, None))]
            choices = [None, *((s, stride_of(s, self.config.overlap)) for s in sides)]
        needed: list[float] = []
        chosen = choices[-1]
        for chosen in choices:
            needed.append(there + self._bytes(size, bands, Plan(chosen, 1)) / 2**30)
            if needed[-1] <= limit:
                break
        else:
            raise InputError(
                f"max_memory is {limit:g} GiB. The program has {there:.1f} as it starts; an image "
                f"of {size[0]} x {size[1]} pixels takes it to about {needed[-1]:.1f} GiB even "
                f"{_described(chosen)}. Allow more, or leave out larger scales."
            )
        batch, gib = 1, needed[-1]
        while batch < self.config.batch_size:
            more = there + self._bytes(size, bands, Plan(chosen, batch + 1)) / 2**30
            if more > limit:
                break
            batch, gib = batch + 1, more
        refused = f"; the whole image would take {needed[0]:.1f}" if len(needed) > 1 else ""
        self.note(
            f"{size[0]} x {size[1]} pixels: {_described(chosen)}, {batch} at once, about "
            f"{gib:.1f} of {limit:g} GiB{refused}."
        )
        return Plan(chosen, batch)

    @cached_property
    def _in_use(self) -> float:
        """GiB that the program has when it begins; asked once, because predicting adds to it."""
        return peak_memory(self.device)

    def _bytes(self, size: Sequence[int], bands: int, plan: Plan) -> float:
        """About what labelling images of a size takes at most."""
        height, width = self.seen_size(size, max(self.config.scales), plan.window)
        side = None if plan.window is None else plan.window[0]
        shape = (1, bands, side or height, side or width)
        if shape not in self._footprints:  # Windows of one side serve images of all sizes.
            mode = autocast(self.mode, self.device)
            footprints = [forward_bytes(model, shape, mode) for model in self.models]
            self._footprints[shape] = max(footprints)
        forward = plan.batch_size * self._footprints[shape]
        places = height * width / (1 if plan.window and plan.window[1] % 4 else LOGIT_STRIDE**2)
        images = 1 if plan.window else plan.batch_size
        # Windows are added up; passes are too, with the last one's probabilities beside their sum.
        grids = (1 if plan.window else 0) + (3 if self.averages else 0)
        pixels = images * (height * width * bands * 2 + size[0] * size[1] * 8)
        return MARGIN * forward + 4 * self.num_classes * places * grids * images + pixels + 2**27


def _described(window: tuple[int, int] | None) -> str:
    return "whole" if window is None else f"in windows of {window[0]} x {window[0]}"
