"""Checkpoints: one safetensors file that holds the weights and, as JSON, all else that is needed.

Nothing in such a file is ever executed. It is written aside and renamed, so it is complete or not
there. Next to the weights to predict with, a `last.safetensors` holds what training needs, so that
a run resumes from that one file.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ccsnet.config import RunConfig, from_json, to_json
from ccsnet.datasets._spec import Colour, DatasetSpec, ignore_index_of
from ccsnet.errors import InputError, similar_path
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
    best_step: int | None = None


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    config: RunConfig,
    info: ClassInfo,
    *,
    step: int,
    miou: float | None = None,
    best_miou: float | None = None,
    best_step: int | None = None,
    training: Mapping[str, Tensor] | None = None,
    before_replacing: Callable[[], None] | None = None,
) -> None:
    """Write a checkpoint, or leave the one that is there as it was.

    Args:
        path: The file.
        weights: To predict with: the state dict of a model.
        config: The run's settings.
        info: What the model's outputs mean.
        step: Optimizer steps done.
        miou: Validation mIoU of these weights, if known.
        best_miou: The best of the run so far.
        best_step: The step that it was measured at.
        training: More tensors, which resuming needs (see `training_tensors`).
        before_replacing: Called when the new file is complete, before it takes the old one's name.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    for name, tensor in (training or {}).items():
        tensors[_TRAINING + name] = tensor.detach().cpu().contiguous()
    state = {"step": step, "miou": miou, "best_miou": best_miou, "best_step": best_step}
    metadata = {
        "format": FORMAT,
        "config": to_json(config),
        "info": json.dumps(asdict(info)),
        "state": json.dumps(state),
        "crc32": str(_checksum(tensors)),
    }
    with atomic_path(path) as aside:
        try:
            save_file(tensors, aside, metadata)
        except SafetensorError as error:  # What the library makes of a full disk.
            raise OSError(
                f"The checkpoint {path} could not be written ({error}). Checkpoints from before it "
                "are whole. Make room on the disk, then resume the run."
            ) from error
        if before_replacing is not None:
            before_replacing()


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of all values, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def check_whole(path: Path) -> None:
    """Read all of a checkpoint and compare it with the checksum that it was written with.

    Raises:
        InputError: It was damaged afterwards.
    """
    with _opened(path) as file:
        written = (file.metadata() or {}).get("crc32")
        found = _checksum({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    if written is not None and written != str(found):  # None: of an earlier version.
        raise InputError(
            f"{path} is damaged: its values are not those that were written. Copy it again, or use "
            "another checkpoint of the run."
        )


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
        f"No run or checkpoint {path}.{similar_path(path)} Give the folder of a run that "
        "`ccsnet train` wrote, or a .safetensors file."
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
    found = metadata.get("format", "of some other program")
    if found != FORMAT:
        ours = found.startswith(FORMAT.partition("-")[0] + "-")
        raise InputError(
            f"{path} holds the format {found!r}; this version reads {FORMAT!r}. "
            + (
                "Another version of ccsnet wrote it: pip install --upgrade ccsnet."
                if ours
                else "Give a checkpoint that `ccsnet train` wrote."
            )
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
            best_step=state.get("best_step"),
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
