"""A whole run's settings, composed of the parts' own; to JSON and back."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ccsnet.data.opening import DataConfig
from ccsnet.data.sampling import ClassWeights
from ccsnet.errors import InputError, unknown_name
from ccsnet.optim import OptimConfig
from ccsnet.segmenter import ModelConfig

LONGEST_TIMEOUT = 1e9
"""Seconds, 30 years: what counts time in between need not take more."""
Precision = Literal["auto", "float32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast, where to."""

    steps: int = 160_000
    """Optimizer steps."""
    batch_size: int = 16
    """Images for each optimizer step, over all devices."""
    accumulate: int = 1
    """Forward passes for each optimizer step, to save memory."""
    validate_every: int | None = None
    """Steps between validations; none: a tenth of the run. The last step always validates."""
    validate_batch_size: int = 8
    """Images of equal size that are evaluated together."""
    patience: int | None = None
    """Stop after so many validations without a better mIoU; none: never."""
    save_every: int | None = None
    """Steps between checkpoints to resume from; none: at validations and every 15 minutes."""
    keep_last: int = 2
    """How many of them are kept: an older one serves when the newest is damaged."""
    keep_best: int = 1
    """How many of the best validated models are kept."""
    seed: int = 0
    """Fixes initial weights, order, augmentation and dropout."""
    precision: Precision = "auto"
    """auto: what a short trial on this machine finds fastest."""
    channels_last: bool | None = None
    """Memory order of the backbone; none: the trial decides with precision auto, else yes."""
    grad_checkpointing: bool = False
    """Less memory for more time: the backbone's blocks are computed again going backward."""
    compile: bool = False
    """Compile the network (torch.compile): a minute or two first, then faster steps on a GPU."""
    ema: float | None = None
    """Share of the averaged weights that a step keeps, such as 0.9998; they are then what is
    validated and saved. None: no average."""
    batch_norm: Literal["synced", "frozen"] = "synced"
    """synced: over all processes, plain on one; frozen: the backbone keeps its statistics."""
    loss: str = "ce"
    """Of the final prediction, such as "ce:1+dice:3" (docs/losses.md)."""
    coarse_loss: str | None = None
    """Of the coarse prediction; none: the same."""
    coarse_weight: float = 0.4
    """Of the coarse prediction's loss; the final prediction's is 1."""
    class_weights: ClassWeights = "none"
    """Of the loss: none | auto (median-frequency balancing) | a number for each class."""
    cpu: bool = False
    """Train on the processor even where there is a GPU."""
    shard: bool = False
    """Spread the weights over all processes (FSDP), for models that do not fit into one."""
    timeout: float = 1800.0
    """Seconds until a process that does not answer the others ends the run."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where figures go besides the CSV files: tensorboard wandb mlflow comet_ml clearml aim swanlab
    trackio dvclive (docs/tracking.md)."""

    def __post_init__(self) -> None:
        numbers = ("steps", "batch_size", "accumulate", "validate_every", "validate_batch_size")
        for name in (*numbers, "patience", "save_every", "keep_last", "keep_best"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size is {self.batch_size} images for each optimizer step and does not "
                f"divide into accumulate={self.accumulate} equal passes. Use a multiple of "
                f"{self.accumulate}, or another --accumulate."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema is {self.ema}; it must be above 0 and below 1, as 0.9998 is.")
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise InputError(
                f"timeout is {self.timeout} seconds; it must be above 0, and at most "
                f"{LONGEST_TIMEOUT:.0e}."
            )

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(1, self.steps // 10)

    @property
    def takes_faster_kernels(self) -> bool:
        """Whether `ccsnet.cpu_kernels` may stand in: the network runs once, and as it is."""
        return not (self.compile or self.grad_checkpointing or self.shard)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def to_json(config: Any) -> str:
    """A dataclass of settings as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_json(cls: type, text: str, source: str = "the configuration") -> Any:
    """The dataclass that `to_json` wrote.

    Raises:
        InputError: The text is not JSON, or has a setting or a value that does not exist.
    """
    try:
        return _build(cls, json.loads(text))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{source} cannot be read ({error}); it was not written by this version of ccsnet, "
            "or it was cut short."
        ) from error


def _build(annotation: Any, value: Any) -> Any:
    """A JSON value as the type that a field's annotation names."""
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        for name in value:
            if name not in hints:
                raise unknown_name("setting", name, hints)
        return typing.cast(type, annotation)(
            **{name: _build(hints[name], item) for name, item in value.items()}
        )
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        # Only a tuple becomes a JSON list.
        tuples = [a for a in kinds if typing.get_origin(a) is tuple]
        return _build(tuples[0] if tuples and isinstance(value, list) else kinds[0], value)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if annotation is Path:
        return Path(value)
    return value
