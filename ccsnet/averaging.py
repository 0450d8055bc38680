"""The exponential moving average of a model's weights: smoother than the last step's."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ccsnet.segmenter import Segmenter


class WeightAverage:
    """Follows a model step by step; `model` is the average, for evaluation.

    The decay grows to its setting as (1 + n) / (10 + n) after n steps, so that a short run is not
    the average of what it started from.

    Source: the ramp is that of TensorFlow's ExponentialMovingAverage with `num_updates`.

    Args:
        model: Whose weights to average; those it has now are the start.
        decay: Share of the average that a step keeps, 0 to 1.
        step: Steps that the average has already seen.
    """

    def __init__(self, model: Segmenter, decay: float, step: int = 0) -> None:
        self._decay = decay
        # pyright knows only a tuple or a list where torch gives either.
        self._average = AveragedModel(model, multi_avg_fn=self._follow)  # pyright: ignore[reportArgumentType]
        self._average.requires_grad_(False).eval()
        # Not 0, at which the average would become the first step's weights.
        self._average.n_averaged.fill_(step + 1)

    @property
    def model(self) -> Segmenter:
        """The averaged model, in evaluation mode; statistics of norms are the model's own."""
        return self._average.module  # pyright: ignore[reportReturnType]

    def update(self, model: Segmenter) -> None:
        """Take in the weights after a step."""
        self._average.update_parameters(model)

    @torch.no_grad()
    def _follow(self, average: list[Tensor], new: list[Tensor], num: Tensor | int) -> None:
        decay = min(self._decay, (1 + int(num)) / (10 + int(num)))
        torch._foreach_lerp_(average, new, 1 - decay)
