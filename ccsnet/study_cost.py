"""What the models of a study cost, counted on shapes alone, and the widths that make them equal."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ccsnet.backbones.timm import create_backbone
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.plugins import find_plugin
from ccsnet.segmenter import ModelConfig
from ccsnet.study import Match, Row, Study, with_dim

SIDE = 512
"""Of the square image that operations are counted for."""


class Cost(NamedTuple):
    """Of a whole model."""

    parameters: int
    gmacs: float
    """Billions of multiplications with additions for one image of 512x512."""


class _Backbone(NamedTuple):
    cost: Cost
    channels: tuple[int, ...]
    features: Sequence[Tensor]
    """Of one image; they have shapes and no values."""


class CostCounter:
    """Counts models of one data set; a backbone that many of them share is counted once.

    Args:
        spec: The data set.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self._backbones: dict[tuple[str, int], _Backbone] = {}

    def cost(self, model: ModelConfig) -> Cost:
        """What a model costs.

        Raises:
            InputError: It cannot be built.
        """
        backbone = self._backbone(model)
        build = find_plugin("ccsnet.heads", model.head, "build")
        with torch.device("meta"):
            head = build(backbone.channels, self.spec.num_classes, model.head_config).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            head([feature.clone() for feature in backbone.features])
        parameters = sum(parameter.numel() for parameter in head.parameters())
        own = backbone.cost
        return Cost(own.parameters + parameters, own.gmacs + counter.get_total_flops() / 2e9)

    def _backbone(self, model: ModelConfig) -> _Backbone:
        key = (model.backbone, model.output_stride)
        if key not in self._backbones:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # Building tries tiny images: threads wait for each other.
            try:
                backbone = create_backbone(
                    model.backbone,
                    in_channels=self.spec.channels,
                    output_stride=model.output_stride,
                )
            finally:
                torch.set_num_threads(threads)
            backbone.eval().to("meta")
            image = torch.zeros(1, self.spec.channels, SIDE, SIDE, device="meta")
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                features = backbone(image)
            parameters = sum(parameter.numel() for parameter in backbone.parameters())
            cost = Cost(parameters, counter.get_total_flops() / 2e9)
            self._backbones[key] = _Backbone(cost, tuple(backbone.channels), features)
        return self._backbones[key]


def matched(study: Study, counter: CostCounter) -> Study:
    """The study with heads of one size, where it asks for that.

    A row that names its `dim` itself keeps it, and so does the one that is matched.

    Raises:
        InputError: A model cannot be built.
    """
    match = study.match
    if match is None:
        return study
    goal = _size(study.rows[match.to], match, counter)
    rows = {
        name: row if row.sized or name == match.to else _nearest(row, match, goal, counter)
        for name, row in study.rows.items()
    }
    return replace(study, rows=rows)


def _size(row: Row, match: Match, counter: CostCounter) -> float:
    """What is to be equal, of a row's model."""
    return float(getattr(counter.cost(row.config.model), match.by))


def _nearest(row: Row, match: Match, goal: float, counter: CostCounter) -> Row:
    """The row with the width whose cost is nearest; a wider head never costs less."""

    def cost(dim: int) -> float:
        return _size(with_dim(row, dim), match, counter)

    low, high = 0, len(match.dims) - 1  # The first that reaches the goal, or the last.
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if cost(match.dims[middle]) < goal else (low, middle)
    candidates = match.dims[max(low - 1, 0) : low + 1]
    return with_dim(row, min(candidates, key=lambda dim: abs(cost(dim) - goal)))
