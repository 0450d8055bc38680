"""Heads' weights under other programs' names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccsnet.errors import InputError
from ccsnet.heads._base import HeadConfig

_COUNTER = "num_batches_tracked"  # Of batch norms; nothing here reads it.


class Renamed(NamedTuple):
    """A file's tensors for a head."""

    tensors: dict[str, Tensor]
    """Under our names."""
    unused: list[str]
    """Keys of the file that such files hold and never use."""
    unknown: list[str]
    """Keys of the file that have no place in this layout."""


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """How another program names and orders the weights of one of our heads."""

    name: str
    """What a user knows it by."""
    head: str
    """Our head that computes the same."""
    modules: Mapping[str, str]
    """Their name of each module with weights -> ours."""
    unused: tuple[str, ...] = ()
    """Modules that their files hold and never use."""
    finest_first: bool = False
    """Whether their fusion concatenates the finest map first; ours begins with the coarsest."""

    def share(self, state: Mapping[str, Tensor]) -> float:
        """Which part of the modules the tensors have."""
        return 1 - len(self._missing(state)) / len(self.modules)

    def _missing(self, state: Mapping[str, Tensor]) -> list[str]:
        return [module for module in self.modules if f"{module}.weight" not in state]

    def rename(self, state: Mapping[str, Tensor]) -> Renamed:
        """The head's tensors under our names.

        Raises:
            InputError: A module is missing.
        """
        missing = self._missing(state)
        if missing:
            raise InputError(
                f"This is not a checkpoint of {self.name}: {len(missing)} of its "
                f"{len(self.modules)} layers are missing, among them {missing[0]}.weight. "
                f"Give a state dict with all of its tensors, such as {next(iter(self.modules))}."
            )
        renamed = Renamed({}, [], [])
        for key, tensor in state.items():
            module, _, leaf = key.rpartition(".")
            if module in self.modules:
                renamed.tensors[f"{self.modules[module]}.{leaf}"] = tensor
            else:
                (renamed.unused if module in self.unused else renamed.unknown).append(key)
        fusion = renamed.tensors.get("fusion.conv.weight")
        if self.finest_first and fusion is not None and fusion.ndim == 4:
            maps = fusion.tensor_split(4, dim=1)
            renamed.tensors["fusion.conv.weight"] = torch.cat(maps[::-1], dim=1)
        return renamed


def num_classes_of(tensors: Mapping[str, Tensor]) -> int:
    """How many classes the head tells apart, from its tensors under our names."""
    return _rows(tensors["classifier.weight"])


def config_of(tensors: Mapping[str, Tensor], top_k: int) -> HeadConfig:
    """The settings that the shapes of a head's tensors tell, under our names.

    Raises:
        InputError: `top_k` or a width is below 1.
    """
    dim = _rows(tensors["fusion.conv.weight"])
    coarse = tensors.get("coarse.0.0.weight")
    try:
        return HeadConfig(dim=dim, coarse_dim=dim if coarse is None else _rows(coarse), top_k=top_k)
    except ValueError as error:
        raise InputError(str(error)) from error


def _rows(weight: Tensor) -> int:
    return weight.shape[0] if weight.ndim else 1


def fill_head(head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors under our names into a head: all of them into all of it, or nothing.

    A linear layer and a 1x1 convolution hold the same numbers, so either is taken for the other.

    Raises:
        InputError: A tensor is missing, has no place, or is of another shape.
    """
    wanted = head.state_dict()
    given = {
        key: tensor.reshape(wanted[key].shape)
        if key in wanted and _squeezed(tensor) == _squeezed(wanted[key])
        else tensor
        for key, tensor in tensors.items()
    }
    counters = {key: tensor for key, tensor in wanted.items() if key.endswith(_COUNTER)}
    try:
        head.load_state_dict(counters | given)
    except RuntimeError as error:
        raise InputError(f"The tensors of this checkpoint do not fit together. {error}") from error


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]
