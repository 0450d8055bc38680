"""Weights for a backbone: from timm's hub, from a file, or from an installed package."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ccsnet.backbones._files import download, find_file, read_file
from ccsnet.backbones._layouts import Entries, Entry
from ccsnet.backbones._reading import Reading, plain, readings, whole_name
from ccsnet.errors import InputError

# What a model computes from its own settings, or what nothing here reads.
_DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")
BY_ORDER = "by order"

# How the norms of the four maps are counted; PoolFormer counts what is between its stages too.
_NORM_NUMBERS = ((0, 1, 2, 3), (0, 2, 4, 6))


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """What was loaded into a backbone; `str()` of it is one line, `rows()` a short table."""

    source: str
    """The file, or "pretrained"."""
    layout: str
    """Whose names the source uses; "by order" where only the order and the shapes agreed."""
    matched: int
    """How many tensors were loaded: all of the backbone's, but for counters of batches."""
    adapted: tuple[str, ...]
    """Those that were changed for another number of input channels."""
    resized: tuple[str, ...]
    """Those that were interpolated: position embeddings, relative positions, patches."""
    sizes: tuple[str, ...]
    """From which size to which, for each of the resized."""
    skipped: tuple[str, ...]
    """Entries of the source that the backbone has no place for, such as a classifier."""

    def __str__(self) -> str:
        return "; ".join(f"{name} {text}" for name, text in self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """What happened, and to what; a row only for what there is."""
        changes = Counter(
            f"{key.rpartition('.')[2] if 'pos' in key else key} {size}"
            for key, size in zip(self.resized, self.sizes, strict=True)
        )
        resized = [f"{text} ({n} times)" if n > 1 else text for text, n in changes.items()]
        rows = [
            ("from", self.source),
            ("layout", self.layout),
            ("matched", f"{self.matched} tensors"),
            ("resized", _some(resized)),
            ("adapted to the input channels", _some(self.adapted)),
            ("skipped", _some(self.skipped)),
        ]
        return [row for row in rows if row[1]]


def load_backbone_weights(
    model_name: str,
    features: nn.Module,
    weights: str,
    in_channels: int,
    norms: nn.ModuleList | None = None,
) -> LoadedWeights | None:
    """Load weights into a timm model made with `features_only=True`, all of it or nothing.

    Args:
        model_name: The model's name in timm.
        features: The model to load into.
        weights: "none"; "pretrained" for timm's own download; a .safetensors, .pth, .pt, .bin or
            .pth.tar file; or "package:MODULE" for the one such file inside an installed package.
        in_channels: What the model was made for; a stem for three channels is adapted to it.
        norms: See `load_state`.

    Returns:
        What was loaded; None for "none".

    Raises:
        InputError: The weights cannot be found, read or downloaded, or do not fit the model.
    """
    if weights == "none":
        return None
    if weights == "pretrained":
        source, state = "pretrained", download(model_name)
    else:
        path = find_file(weights)
        source, state = str(path), read_file(path)
    return load_state(model_name, features, state, source, in_channels, norms)


def load_state(
    model_name: str,
    features: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    in_channels: int,
    norms: nn.ModuleList | None = None,
) -> LoadedWeights:
    """Load tensors into a timm model made with `features_only=True`, all of it or nothing.

    Entries are matched by name: timm's, those of the authors' releases, of Hugging Face's and of
    MMSegmentation's models. Where no names agree, they are matched by order if the tensors agree
    with timm's whole model of that name one by one, in shape and in what each is (weight, bias,
    running mean ...).

    Args:
        model_name: The model's name in timm.
        features: The model to load into.
        state: Tensors by name.
        source: Where they are from, for messages.
        in_channels: What the model was made for; a stem for three channels is adapted to it.
        norms: The norms behind the four maps, filled where the tensors have such norms.

    Raises:
        InputError: The tensors do not fit the model.
    """
    state = _without_derived(state)
    target = _without_derived(features.state_dict())
    wanted = {key: whole_name(features, key) for key in target}
    best: _Match | None = None
    for reading in readings(model_name, features, target, state):
        match = _match(reading, target, wanted, in_channels)
        if best is None or match.fit > best.fit:
            best = match
        if len(best.found) == len(target):
            break
    assert best is not None, "timm's own layout is always read"
    if len(best.found) < len(target):
        whole = _whole_model(model_name)
        renamed = _rename_by_order(whole, state)
        ordered = renamed and _match(renamed, target, wanted, in_channels)
        if not ordered or len(ordered.found) < len(target):
            raise _does_not_fit(model_name, source, state, target, wanted, best)
        best = ordered
    else:
        _check_size(model_name, source, set(wanted.values()), best)

    used = {key for found in best.found.values() for key in found.keys}
    features.load_state_dict(
        {
            key: adapt_input_conv(in_channels, found.tensor) if found.adapted else found.tensor
            for key, found in best.found.items()
        },
        strict=False,  # without what is derived
    )
    normed = _load_norms(norms, best.reading)
    used |= {key for _, keys in normed.values() for key in keys}
    return LoadedWeights(
        source=source,
        layout=best.reading.layout,
        matched=len(best.found) + len(normed),
        adapted=tuple(wanted[key] for key, found in best.found.items() if found.adapted),
        resized=tuple(wanted[key] for key, found in best.found.items() if found.resized),
        sizes=tuple(found.resized for found in best.found.values() if found.resized),
        skipped=tuple(key for key in state if key not in used),
    )


class _Found(NamedTuple):
    """A tensor for one of the model's keys."""

    tensor: Tensor
    keys: tuple[str, ...]
    """Where in the source it is from."""
    adapted: bool
    """Whether it is a stem of three channels for a model of another number."""
    resized: str
    """From which size to which timm has resized it; empty if it has not."""


class _Match(NamedTuple):
    """What of a reading fits the model."""

    reading: Reading
    found: dict[str, _Found]
    names: dict[str, str]
    """The reading's names for the model's keys, where it has them, of whatever shape."""

    @property
    def fit(self) -> tuple[int, int]:
        """How well the reading fits: the names count where no more shapes agree."""
        return len(self.found), len(self.names)


def _match(
    reading: Reading, target: Mapping[str, Tensor], wanted: Mapping[str, str], in_channels: int
) -> _Match:
    """Find a tensor for each of the model's keys, whose names in the whole model are `wanted`."""
    by_plain = {plain(name): name for name in reading.entries}
    found, names = {}, {}
    for key, place in target.items():
        name = by_plain.get(plain(wanted[key]))
        if name is None:
            continue
        names[key] = name
        tensor, keys = reading.entries[name]
        resized = _resized(name, reading.entries[name], reading.original.get(name))
        if tensor.shape == place.shape:
            found[key] = _Found(tensor, keys, False, resized)
        elif _squeezed(tensor) == _squeezed(place):
            # A linear layer and a convolution of 1x1 are the same.
            found[key] = _Found(tensor.reshape(place.shape), keys, False, resized)
        elif _is_rgb_stem(tensor, place, in_channels):
            found[key] = _Found(tensor, keys, True, resized)
    return _Match(reading, found, names)


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _resized(name: str, entry: Entry, original: Entry | None) -> str:
    """From which size to which a tensor has been interpolated, if it has."""
    if original is None or original.keys != entry.keys:
        return ""  # Another tensor, which had this name in its own layout.
    if original.tensor.numel() == entry.tensor.numel():
        return ""
    before, after = _size(name, original.tensor), _size(name, entry.tensor)
    return "" if before == after else f"{before} -> {after}"


def _size(name: str, tensor: Tensor) -> str:
    """The height and width that a tensor is for, as people say it."""
    if name.endswith("relative_position_bias_table"):
        # Every offset between two places of a window, and up to three with the class token.
        side = (math.isqrt(tensor.shape[0]) + 1) // 2
        return f"{side}x{side}"
    if tensor.ndim == 3 and "pos_embed" in name:
        # A place each, and a few more for class and register tokens.
        side = math.isqrt(tensor.shape[1])
        return f"{side}x{side}"
    sides = tensor.shape[1:3] if "pos_embed" in name else tensor.shape[2:] or tensor.shape
    return "x".join(map(str, sides))


def _is_rgb_stem(tensor: Tensor, wanted: Tensor, in_channels: int) -> bool:
    """Whether a tensor is the first convolution of the same model for three channels."""
    return (
        tensor.ndim == wanted.ndim == 4
        and tensor.shape[1] == 3
        and wanted.shape[1] == in_channels
        and tensor.shape[0] == wanted.shape[0]
        and tensor.shape[2:] == wanted.shape[2:]
    )


def _load_norms(norms: nn.ModuleList | None, reading: Reading) -> Entries:
    """Fill the norms behind the maps, if the source has all of them; what was used."""
    wanted = {} if norms is None else norms.state_dict()
    for numbers in _NORM_NUMBERS if wanted else ():
        entries: Entries = {}
        for key, tensor in wanted.items():
            place, _, kind = key.partition(".")
            entry = reading.original.get(f"norm{numbers[int(place)]}.{kind}")
            if entry is not None and entry.tensor.shape == tensor.shape:
                entries[key] = entry
        if norms is not None and len(entries) == len(wanted):
            norms.load_state_dict({key: entry.tensor for key, entry in entries.items()})
            return entries
    return {}


def _without_derived(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(_DERIVED)}


def _whole_model(model_name: str) -> dict[str, Tensor]:
    """The state of timm's whole model: shapes alone, without memory."""
    try:
        with torch.device("meta"):
            model = timm.create_model(model_name)
    # Some models compute with numbers while they are built.
    except (NotImplementedError, RuntimeError):
        model = timm.create_model(model_name)
    return _without_derived(model.state_dict())


def _rename_by_order(whole: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Reading | None:
    """The source's tensors under timm's names, or None if their order does not agree."""
    if len(whole) != len(state):
        return None
    entries: Entries = {}
    for (key, tensor), (own_key, own) in zip(whole.items(), state.items(), strict=True):
        # The last part too: a norm's weight, bias, mean and variance all have the same shape.
        if tensor.shape != own.shape or key.rpartition(".")[2] != own_key.rpartition(".")[2]:
            return None
        entries[key] = Entry(own, (own_key,))
    return Reading(BY_ORDER, entries, entries)


def _check_size(model_name: str, source: str, wanted: set[str], match: _Match) -> None:
    """Refuse the weights of a deeper model, of which a shallower one would take the first blocks.

    Raises:
        InputError: The source has blocks of this family that the model does not have.
    """
    kinds = set(map(_kind, wanted))
    used = set(match.names.values())
    more = [key for key in match.reading.entries if key not in used and _kind(key) in kinds]
    # The features may have fewer blocks than the model, where no map needs the last ones.
    whole = {plain(key) for key in _whole_model(model_name)} if more else set()
    beyond = [key for key in more if plain(key) not in whole]
    if beyond:
        raise InputError(
            f"The weights {source!r} are of another size of the family of {model_name!r}: they "
            f"have {_some(beyond)}, for which it has no place. Give weights of this very model, "
            "or name the backbone that they are of."
        )


def _kind(key: str) -> str:
    """A key without the numbers of stages and blocks."""
    return re.sub(r"\d+", "#", key)


def _does_not_fit(
    model_name: str,
    source: str,
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    wanted: Mapping[str, str],
    match: _Match,
) -> InputError:
    misfits = [key for key in target if key not in match.found]
    first = misfits[0]
    name = match.names.get(first)
    has = f"has {tuple(match.reading.entries[name].tensor.shape)}" if name else "has none"
    found = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    more = f", and {len(misfits) - 1} more do not fit" if len(misfits) > 1 else ""
    advice = "Give weights of this very model."
    if 2 * len(match.names) > len(target):
        advice = (
            "What the file has of this backbone fits: these may be weights of a smaller model of "
            "its family. Name the backbone that they are of."
            if len(match.found) == len(match.names)
            else "The names agree and the sizes do not: these are weights of another size of its "
            "family. Name the backbone that they are of."
        )
    return InputError(
        f"The weights {source!r} do not fit the backbone {model_name!r}: {len(match.found)} of its "
        f"{len(target)} tensors have their name and shape there, read in the nearest layout, "
        f"{match.reading.layout}. Expected: {wanted[first]} {tuple(target[first].shape)}; "
        f"the file {has}{more}. Found: {_some(found)}. Nor do they agree in order with timm's "
        f"whole model. {advice}"
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
