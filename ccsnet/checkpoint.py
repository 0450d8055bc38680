"""Checkpoints: one safetensors file that holds the weights and, as JSON, all else that is needed.

Nothing in such a file is ever executed. It is written aside and renamed, so it is complete or not
there. Next to the weights a `last.safetensors` holds the optimizer's state, so that a run resumes
from that one file.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ccsnet.config import RunConfig, from_json, to_json
from ccsnet.datasets._spec import Colour, DatasetSpec, ignore_index_of
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.precision import Mode, in_memory_order
from ccsnet.segmenter import Segmenter, create_segmenter

FORMAT = "ccsnet-1"
BEST, LAST = "best.safetensors", "last.safetensors"
_TRAINING = "training/"


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """What a model's outputs mean, copied from the data set that it learnt."""

    dataset: str
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    channels: int = 3
    short_side: int | None = None
    long_side: int | None = None
    window: tuple[int, int] | None = None
    """Side and stride of the windows that images are tested in; none: as a whole."""

    @staticmethod
    def of(spec: DatasetSpec) -> "ClassInfo":
        """The part of a SPEC that travels with the weights."""
        return ClassInfo(
            dataset=spec.name,
            classes=tuple(spec.classes),
            colours=tuple(spec.colours),
            channels=spec.channels,
            short_side=spec.short_side,
            long_side=spec.long_side,
            window=spec.window,
        )

    @property
    def ignore_index(self) -> int:
        """The label of pixels without a class."""
        return ignore_index_of(len(self.classes))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file says of itself; the weights are read by `load_model`."""

    path: Path
    config: RunConfig
    info: ClassInfo
    step: int
    miou: float | None = None
    best_miou: float | None = None


def save_checkpoint(
    path: Path,
    model: Segmenter,
    config: RunConfig,
    info: ClassInfo,
    *,
    step: int,
    miou: float | None = None,
    best_miou: float | None = None,
    training: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint, or leave the one that is there as it was.

    Args:
        path: The file.
        model: Whose weights to save.
        config: The run's settings.
        info: What the model's outputs mean.
        step: Optimizer steps done.
        miou: Validation mIoU of these weights, if known.
        best_miou: The best of the run so far.
        training: More tensors that resuming needs (see `optimizer_tensors`).

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for name, tensor in (training or {}).items():
        tensors[_TRAINING + name] = tensor.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "config": to_json(config),
        "info": json.dumps(asdict(info)),
        "state": json.dumps({"step": step, "miou": miou, "best_miou": best_miou}),
    }
    with atomic_path(path) as aside:
        save_file(tensors, aside, metadata)


def find_checkpoint(path: Path | str, name: str = BEST) -> Path:
    """The checkpoint file that a run folder or a file name stands for.

    Args:
        path: A .safetensors file, or a run's folder.
        name: Which of the folder's checkpoints; a run not yet validated has only the last.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    for candidate in (path / name, path / LAST):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(
            f"The folder {path} holds no checkpoint ({BEST} or {LAST}). "
            "Give the folder of a run that `ccsnet train` wrote, or a .safetensors file."
        )
    raise FileNotFoundError(
        f"No run or checkpoint {path}. Give the folder of a run that `ccsnet train` wrote, "
        "or a .safetensors file."
    )


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}; {os.path.getsize(path)} bytes). "  # noqa: PTH202
            "Its writing or copying was interrupted, or it is another kind of file. "
            "Copy it again, or use the run's other checkpoint."
        ) from error


def read_checkpoint(path: Path | str) -> Checkpoint:
    """What a checkpoint says of itself, without its weights.

    Raises:
        FileNotFoundError: There is none.
        InputError: It is damaged, or not one of ours.
    """
    path = find_checkpoint(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} holds the format {metadata.get('format', 'of some other program')!r}; this "
            f"version reads {FORMAT!r}. Give a checkpoint that `ccsnet train` wrote."
        )
    try:
        state = json.loads(metadata["state"])
        return Checkpoint(
            path=path,
            config=from_json(RunConfig, metadata["config"], str(path)),
            info=_read_info(metadata["info"]),
            step=state["step"],
            miou=state["miou"],
            best_miou=state["best_miou"],
        )
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not as `ccsnet train` wrote it: what it says of its run cannot be read "
            f"({error!r}). Copy it again, or use the run's other checkpoint."
        ) from error


def _read_info(text: str) -> ClassInfo:
    values: dict[str, Any] = json.loads(text)
    values["classes"] = tuple(values["classes"])
    values["colours"] = tuple(tuple(colour) for colour in values["colours"])
    if values.get("window") is not None:
        values["window"] = tuple(values["window"])
    return ClassInfo(**values)


def load_model(checkpoint: Checkpoint) -> Segmenter:
    """The checkpoint's network with its weights, in evaluation mode, on the CPU.

    Raises:
        InputError: The file lacks weights of the network that it describes.
    """
    model = create_segmenter(
        checkpoint.config.model,
        num_classes=len(checkpoint.info.classes),
        in_channels=checkpoint.info.channels,
        load_weights=False,
    )
    load_weights(model, checkpoint.path)
    if checkpoint.config.train.channels_last:  # What was fastest in training is so again.
        in_memory_order(model.backbone, Mode("float32", channels_last=True))
    return model.eval()


def load_weights(model: Segmenter, path: Path) -> None:
    """Fill a network with a checkpoint's weights.

    Raises:
        InputError: Names or shapes differ from the network's.
    """
    with _opened(path) as file:
        weights = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if not name.startswith(_TRAINING)
        }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"The weights in {path} are not those of this network. {error}") from error


def training_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors that `save_checkpoint` was given as `training`."""
    with _opened(path) as file:
        return {
            name.removeprefix(_TRAINING): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith(_TRAINING)
        }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and counts by parameter number."""
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        InputError: The tensors are not there: the file is a checkpoint to predict with.
    """
    if not tensors:
        raise InputError(
            f"This checkpoint holds weights alone; only a run's {LAST} can be resumed from."
        )
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})
