"""Reads a file's tensors in every way that its names may be meant."""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ccsnet.backbones._layouts import LAYOUTS, Entries, Entry

# Names under which a backbone may stand as a part of something else.
_WRAPPERS = (
    *("module", "model", "backbone", "encoder", "network", "net", "trunk", "body", "features"),
    *("teacher", "student", "ema", "model_ema", "ema_model", "_orig_mod", "image_encoder"),
    *("segformer", "vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin"),
    *("convnext", "convnextv2"),
)
_WRAPPED = re.compile(rf"(?:(?:{'|'.join(_WRAPPERS)})\.)+")


class Reading(NamedTuple):
    """A file's tensors as one layout would have them."""

    layout: str
    """Whose names they are."""
    entries: Entries
    """The tensors under timm's names."""
    original: Entries
    """The same before timm converted them: with their sizes, and the norms behind the maps."""


def plain(key: str) -> str:
    """A key as the whole model and its `features_only` form both have it.

    timm turns "stages.0" into "stages_0" where it flattens a model.
    """
    return key.replace(".", "_")


def whole_name(features: nn.Module, key: str) -> str:
    """The name in the whole model of what `features` calls `key`."""
    wrapper = _wrapper(features)
    if wrapper:
        return key.removeprefix(f"{wrapper}.")
    return re.sub(r"^([a-z]\w*?)_(\d+)\.", r"\1.\2.", key)


def _wrapper(features: nn.Module) -> str:
    """Under which name timm holds the model where it has wrapped it as it is; else nothing."""
    children = [name for name, _ in features.named_children()]
    return children[0] if children in (["model"], ["body"]) else ""


def readings(
    model_name: str,
    features: nn.Module,
    target: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> Iterator[Reading]:
    """All readings of `state` for a model, the likeliest first.

    Args:
        model_name: The model's name in timm.
        features: The model made with `features_only=True`.
        target: The tensors that it needs.
        state: The tensors of a file.
    """
    module = timm.models.model_entrypoint(model_name.partition(".")[0]).__module__
    convert = _converter(module)
    wanted = {whole_name(features, key): tensor for key, tensor in target.items()}
    for prefix in _prefixes(state):
        entries = {
            key.removeprefix(prefix): Entry(tensor, (key,))
            for key, tensor in state.items()
            if key.startswith(prefix)
        }
        yield Reading("timm", entries, entries)
        if convert is not None:
            converted = _convert(convert, features, entries)
            # What timm only resized still has timm's names.
            layout = "timm" if set(converted) <= set(entries) else "the authors' release"
            yield Reading(layout, converted, entries)
        for layout in LAYOUTS.get(module.rpartition(".")[2], ()):
            renamed = {_rename(key, layout.renames): entry for key, entry in entries.items()}
            for finish in layout.finish:
                renamed = finish(renamed, wanted)
            yield Reading(layout.name, renamed, renamed)
            if convert is not None:
                yield Reading(layout.name, _convert(convert, features, renamed), renamed)


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What the backbone's keys may begin with; a teacher comes before its student."""
    found = {""}
    for key in state:
        wrapped = _WRAPPED.match(key)
        if wrapped:
            words = wrapped[0].split(".")[:-1]
            found |= {".".join(words[: n + 1]) + "." for n in range(len(words))}
    return sorted(found, key=lambda prefix: ("student" in prefix, prefix.count("."), prefix))


def _rename(key: str, renames: Any) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _converter(module: str) -> Callable[..., Any] | None:
    """What converts the published files of a family in timm, if it has such a function."""
    family = sys.modules[module]
    return getattr(family, "checkpoint_filter_fn", getattr(family, "_filter_fn", None))


def _convert(convert: Callable[..., Any], features: nn.Module, entries: Entries) -> Entries:
    """The entries as timm converts them: renamed, reshaped, resized; none if it cannot."""
    view = _WholeModel(features)
    tensors = {
        key: entry.tensor
        for key, entry in entries.items()
        # Tables of blocks that the features do not have: timm would look for the blocks.
        if not key.endswith(".relative_position_bias_table") or view.has(key.rpartition(".")[0])
    }
    try:
        # One of the functions prints, and one warns of what it does itself.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                converted = convert(tensors, view)
            except TypeError:  # Some take the tensors alone.
                converted = convert(tensors)
    # Made for the files that timm publishes: on others it may fail in any way.
    except Exception:
        return {}
    # Where a tensor is from: its memory tells even if it was renamed and reshaped, and what was
    # resized has kept its name.
    by_memory = {entry.tensor.data_ptr(): entry for entry in entries.values()}
    nothing = Entry(torch.empty(0), ())
    return {
        key: Entry(tensor, (by_memory.get(tensor.data_ptr()) or entries.get(key) or nothing).keys)
        for key, tensor in converted.items()
        if isinstance(tensor, Tensor)
    }


class _WholeModel:
    """Shows a features model to timm's converters as if it were the whole model."""

    def __init__(self, features: nn.Module):
        self._model = features.get_submodule(_wrapper(features))
        self._modules = {plain(name): module for name, module in self._model.named_modules()}
        self._shapes = _Shapes(
            {whole_name(features, key): tensor for key, tensor in features.state_dict().items()}
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def has(self, name: str) -> bool:
        return plain(name) in self._modules

    def get_submodule(self, name: str) -> nn.Module:
        return self._modules[plain(name)]

    def get_parameter(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise AttributeError(name)
        return self._shapes[name]

    def state_dict(self) -> "_Shapes":
        return self._shapes


class _Shapes(dict[str, Tensor]):
    """A state of which a tensor that is not there is empty: the classifier's, for one."""

    def __missing__(self, key: str) -> Tensor:
        return torch.empty(0)
