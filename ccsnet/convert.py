"""Whole checkpoints of other programs become ours: backbone, head and classes in one file.

What a checkpoint holds is told by the names and the shapes of its tensors. Every place of our model
must be filled and every tensor must have a place, or nothing is written.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccsnet.backbones._files import read_content, tensors_of
from ccsnet.backbones._recognise import mit_name
from ccsnet.backbones.weights import LoadedWeights, load_state
from ccsnet.checkpoint import ClassInfo, save_checkpoint
from ccsnet.config import RunConfig
from ccsnet.data.opening import PACKAGE, DataConfig, open_dataset
from ccsnet.datasets._folder import distinct_colours
from ccsnet.datasets._spec import Colour, DatasetSpec
from ccsnet.errors import InputError, unknown_name
from ccsnet.heads import ccs, segformer, segformer_mmseg
from ccsnet.heads._foreign import HeadLayout, config_of, fill_head, num_classes_of
from ccsnet.plugins import find_plugin, plugin_names
from ccsnet.recipes import ccsnet_mit_b1_ade20k
from ccsnet.segmenter import ModelConfig, Segmenter, create_segmenter

LAYOUTS = (
    ccs.RELEASE,
    segformer_mmseg.MMSEGMENTATION,
    segformer.RELEASE,
    segformer.HUGGING_FACE,
)
HEADS = ("ccs", "segformer")  # What `--head` can name; a family, where others have two forms of it.

_WRAPPERS = re.compile(r"(?:(?:module|model|_orig_mod)\.)+")
_BACKBONES = ("backbone.", "segformer.encoder.")
_HEAD, _COARSE_HEAD, _AUXILIARY = "decode_head.", "decode_head.0.", "auxiliary_head."
# What training programs store beside the weights, none of which is needed.
_BESIDE = ("optimizer", "param_schedulers", "lr_scheduler", "message_hub", "ema_state_dict")
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was made of a checkpoint."""

    path: Path
    """The file written."""
    config: RunConfig
    """The model's settings; those of training are the paper's, for want of the file's own."""
    info: ClassInfo
    """Its classes."""
    classes_from: str
    """Where the classes are from."""
    rows: tuple[tuple[str, str, int | None], ...]
    """Part of the model, whose names the file used for it, how many tensors."""


def convert(
    file: Path | str,
    out: Path | str,
    *,
    head: str | None = None,
    backbone: str | None = None,
    dataset: str | None = None,
    top_k: int = 20,
) -> Converted:
    """Write another program's checkpoint as one of ours.

    Known are CCSNet's release, and SegFormer as its authors, MMSegmentation and Hugging Face store
    it. The images must be RGB, normalised as for ImageNet, as all of these have them.

    Args:
        file: A .pth, .pt, .bin or .safetensors file; no code in it is run.
        out: The .safetensors file to write.
        head: Refuse any other head than this one of `HEADS`; none: whichever the file holds.
        backbone: Name of the backbone; none: a Mix Transformer, whose size the shapes tell.
        dataset: Whose classes the model knows: a built-in name, or a folder with a dataset.yaml;
            none: those that the file names, else the one built-in data set with as many classes.
        top_k: ccs: the relevant classes of a place, which the release does not store.

    Raises:
        FileNotFoundError: `dataset` names a folder that is not there.
        InputError: The file cannot be read, holds no such model or not all of it, or has another
            number of classes; `out` exists.
        OSError: The disk is full or the folder cannot be written.
    """
    file, out = Path(file).expanduser(), Path(out).expanduser()
    _check_paths(file, out)
    state, beside = _read(file)
    layout = _layout_of(file, state, head)
    if layout.head != "ccs" and top_k != 20:
        warnings.warn(
            f"top_k={top_k} is a setting of ccs: the head {layout.head!r} skips it.", stacklevel=2
        )
    parts = _parts_of(file, state)
    renamed = layout.rename(parts.head)
    if renamed.unknown:
        raise _left_over(file, layout.name, renamed.unknown)
    known = _classes_of(file, beside, dataset, num_classes_of(renamed.tensors))

    paper = ccsnet_mit_b1_ade20k()
    config = replace(
        paper,
        data=DataConfig(dataset=known.dataset),
        model=ModelConfig(
            backbone=backbone or mit_name(parts.backbone),
            head=layout.head,
            head_config=config_of(renamed.tensors, top_k),
            # Only in training, and not every other backbone has it.
            drop_path=0.0 if backbone else paper.model.drop_path,
        ),
    )
    model = create_segmenter(config.model, num_classes=len(known.info.classes))
    loaded = _fill(model, file, parts.backbone, renamed.tensors)
    save_checkpoint(out, model.state_dict(), config, known.info, step=0)

    skipped = [(name, keys) for name, keys in _skipped(parts, renamed.unused) if keys]
    coarse = [key for key in parts.head if layout.head == "ccs" and key.startswith(_COARSE_HEAD)]
    num_head = len(renamed.tensors) - len(coarse)
    rows: list[tuple[str, str, int | None]] = [
        (f"backbone {config.model.backbone}", loaded.layout, loaded.matched),
        ("coarse head", layout.name, len(coarse)),
        (f"head {layout.head}", layout.name, num_head),
        (f"resized {', '.join(sorted(set(loaded.sizes)))}", loaded.layout, len(loaded.sizes)),
        *((f"skipped: {name}", layout.name, len(keys)) for name, keys in skipped),
        *((f"skipped: {name}", "beside the weights", None) for name in _BESIDE if name in beside),
    ]
    return Converted(
        path=out,
        config=config,
        info=known.info,
        classes_from=known.source,
        rows=tuple(row for row in rows if row[2] != 0),
    )


def _check_paths(file: Path, out: Path) -> None:
    if not file.is_file():
        raise InputError(f"There is no file {file}. Give a .pth, .pt, .bin or .safetensors file.")
    if out.suffix != ".safetensors":
        raise InputError(f"The model is written as .safetensors; got {out}. Give such a name.")
    if out.exists():
        raise InputError(f"{out} exists, and is not replaced. Delete it, or give another name.")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the model by name, and what else the file holds."""
    content = read_content(file)
    tensors = tensors_of(file, content)
    bare = {_WRAPPERS.sub("", key, count=1): tensor for key, tensor in tensors.items()}
    beside: dict[str, Any] = {}
    if file.suffix != ".safetensors":
        beside = {str(key): value for key, value in content.items()}
    return (bare if len(bare) == len(tensors) else tensors), beside


def _layout_of(file: Path, state: Mapping[str, Tensor], head: str | None) -> HeadLayout:
    """Whose head the tensors are.

    Raises:
        InputError: Nobody's that is known.
    """
    if head is not None and head not in HEADS:
        raise unknown_name("head to convert", head, HEADS)
    allowed = [layout for layout in LAYOUTS if head in (None, layout.head.partition("_")[0])]
    layout = max(allowed, key=lambda layout: layout.share(state))
    if layout.share(state) >= 0.5:
        return layout
    advice = "Give a whole checkpoint of one of these."
    if head is not None:
        advice = "Leave out --head, or give a whole checkpoint of one of these."
    elif not any(key.startswith(_HEAD) for key in state):
        advice = "For a backbone alone, train with --backbone-weights FILE."
    raise InputError(
        f"{file} holds no model that can be converted: its names are none of "
        f"{', '.join(layout.name for layout in allowed)}. Found: {_some(state)}. {advice}"
    )


class _Parts(NamedTuple):
    """A checkpoint's tensors by what they belong to."""

    backbone: dict[str, Tensor]
    """Names without what they have in common."""
    head: dict[str, Tensor]
    auxiliary: list[str]
    counters: list[str]


def _parts_of(file: Path, state: Mapping[str, Tensor]) -> _Parts:
    """Sort the tensors.

    Raises:
        InputError: Some belong to none of the parts, or there is no backbone.
    """
    parts, unknown = _Parts({}, {}, [], []), []
    for key, tensor in state.items():
        prefix = next((prefix for prefix in _BACKBONES if key.startswith(prefix)), None)
        if prefix is not None and key.endswith(_COUNTER):
            parts.counters.append(key)
        elif prefix is not None:
            parts.backbone[key.removeprefix(prefix)] = tensor
        elif key.startswith(_HEAD):
            parts.head[key] = tensor
        elif key.startswith(_AUXILIARY):
            parts.auxiliary.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise _left_over(file, "backbone, decode head and auxiliary head", unknown)
    if not parts.backbone:
        raise InputError(
            f"{file} holds a head without its backbone: no names begin with "
            f"{' or '.join(_BACKBONES)}. Give the whole checkpoint."
        )
    return parts


def _skipped(parts: _Parts, unused: list[str]) -> list[tuple[str, list[str]]]:
    modules = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in unused))
    return [
        (f"{modules}, which is never used", unused),
        ("auxiliary head", parts.auxiliary),
        ("counters of batches", parts.counters),
    ]


class _Known(NamedTuple):
    """The classes of a model."""

    info: ClassInfo
    dataset: str
    """What names the data set to our commands."""
    source: str


def _classes_of(file: Path, beside: Mapping[str, Any], dataset: str | None, num: int) -> _Known:
    """The classes, from the best source that there is.

    Raises:
        FileNotFoundError: The data set's folder is not there.
        InputError: There is no source, or it has another number of classes.
    """
    advice = "Name the data set that the model learnt with --dataset."
    if not 2 <= num <= 1000:
        raise InputError(f"The model in {file} has {num} outputs; 2 to 1000 classes are possible.")
    own = _own_classes(beside)
    if dataset is not None:
        # A root that exists: only the description is wanted, so no data is made or looked for.
        spec, _ = open_dataset(DataConfig(dataset=dataset, root=Path()))
        return _learnt(spec, dataset, "--dataset", file, own, num)
    built_in = {name: find_plugin(PACKAGE, name, "SPEC") for name in plugin_names(PACKAGE)}
    if own is not None:
        for name, spec in built_in.items():
            if _plain(spec.classes) == _plain(own.classes):
                return _learnt(spec, name, "the file", file, own, num)
        if len(own.classes) != num:
            raise InputError(
                f"The model in {file} has {num} classes, but the file names {len(own.classes)}: "
                f"{_some(own.classes)}. {advice}"
            )
        return _Known(own, own.dataset, "the file")
    equal = [name for name, spec in built_in.items() if spec.num_classes == num]
    if len(equal) == 1:
        spec = built_in[equal[0]]
        return _learnt(spec, equal[0], "their number alone", file, own, num)
    counts = ", ".join(f"{name} ({spec.num_classes})" for name, spec in built_in.items())
    raise InputError(
        f"The file {file} does not name the {num} classes of its model, and "
        f"{'several built-in data sets have' if equal else 'no built-in data set has'} as many: "
        f"{counts}. {advice}"
    )


def _learnt(
    spec: DatasetSpec, dataset: str, source: str, file: Path, own: ClassInfo | None, num: int
) -> _Known:
    """The classes of a data set, if they can be the model's."""
    if spec.num_classes != num:
        raise InputError(
            f"The model in {file} has {num} classes, the data set {spec.name!r} has "
            f"{spec.num_classes}. Name the data set that the model learnt with --dataset."
        )
    if spec.channels != 3:
        raise InputError(
            f"Images of {spec.name!r} have {spec.channels} channels; these models take RGB. "
            "Name the data set that the model learnt with --dataset."
        )
    if own is not None and _plain(own.classes) != _plain(spec.classes):
        differing = [
            f"{mine!r} for {theirs!r}"
            for mine, theirs in zip(spec.classes, own.classes, strict=False)
            if _plain([mine]) != _plain([theirs])
        ]
        warnings.warn(
            f"The data set {spec.name!r} names the classes otherwise than {file} does: "
            f"{_some(differing) or 'there are more'}. Its names are taken.",
            stacklevel=2,
        )
    return _Known(ClassInfo.of(spec), dataset, source)


def _own_classes(beside: Mapping[str, Any]) -> ClassInfo | None:
    """The classes that a checkpoint of MMSegmentation names, before or since its version 1."""
    meta = beside.get("meta")
    if not isinstance(meta, Mapping):
        return None
    since = meta.get("dataset_meta")
    since = since if isinstance(since, Mapping) else {}
    names, palette = since.get("classes"), since.get("palette")
    if names is None:
        names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    classes = tuple(name.strip() for name in names)
    if not classes or len(set(classes)) < len(classes):
        return None
    colours = _colours(palette)
    return ClassInfo(
        dataset="unnamed",
        classes=classes,
        colours=colours if len(colours) == len(classes) else distinct_colours(len(classes)),
    )


def _colours(palette: Any) -> tuple[Colour, ...]:
    """A palette's colours; none if it is not one."""
    try:
        rows = [tuple(int(part) for part in row) for row in palette]
    except (TypeError, ValueError):
        return ()
    if all(len(row) == 3 and all(0 <= part <= 255 for part in row) for row in rows):
        return tuple((red, green, blue) for red, green, blue in rows)
    return ()


def _plain(names: Iterable[str]) -> list[str]:
    """Names without what people write in several ways."""
    return [name.strip().casefold() for name in names]


def _fill(
    model: Segmenter, file: Path, backbone: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> LoadedWeights:
    """Load both parts, all of them.

    Raises:
        InputError: Tensors are missing, left over, or of other shapes.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # What stays so has not been loaded.
    mine = model.backbone
    loaded = load_state(mine.name, mine.features, backbone, str(file), 3, mine.norms)
    if loaded.skipped:
        raise _left_over(file, f"the backbone {mine.name!r}", loaded.skipped)
    fill_head(model.head, head)
    empty = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and tensor.isnan().any()
    ]
    if empty:
        raise InputError(
            f"{file} has no numbers for {len(empty)} tensors of the model with the backbone "
            f"{mine.name!r}: {_some(empty)}. Name the backbone that it was trained with; "
            "if it is this one, the weights are broken: they hold NaN."
        )
    return loaded


def _left_over(file: Path, what: str, keys: Iterable[str]) -> InputError:
    keys = list(keys)
    return InputError(
        f"{file} holds {len(keys)} tensors that have no place in {what}: {_some(keys)}. It is "
        "another model, or a changed one: it cannot be converted."
    )


def _some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
