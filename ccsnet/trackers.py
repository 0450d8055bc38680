"""Experiment trackers by name: TensorBoard, W&B, MLflow, Comet and others, through accelerate.

None of them is the run's record: that is its own files. So a server that does not answer is told
of and costs a gap in its curves, never the run. TensorBoard's files lie in the run's folder, and a
disk that is full there is an error.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ccsnet.errors import InputError, unknown_name
from ccsnet.files import atomic_path

PROJECT = "ccsnet"
IDS_FILE = "trackers.json"
SERVER_INTERVAL = 2.0  # Seconds between steps that a server is told of: some wait for each answer.
PAUSE = 600.0  # Seconds without a call to a tracker that has failed.

Settings = Mapping[str, bool | int | float | str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What a tracker is told at the start."""

    out: Path
    name: str
    resume_at: int
    id: str | None
    """The tracker's own name of the run, when it has one already."""

    @property
    def own_id(self) -> str:
        """An id for a tracker that lets us choose it."""
        return self.id or uuid.uuid4().hex


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """How one tracker wants it."""

    options: Callable[[_Run], dict[str, Any]]
    """Keyword arguments of accelerate's class that start a run, or go on with it."""
    id_of: Callable[[Any], str] | None = None
    """The id in the library's own run; none: nothing to go on with by a name."""
    images: Callable[[np.ndarray], Any] | None = None
    """One picture as `log_images` takes it; none: it takes none."""
    image_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _tensorboard(run: _Run) -> dict[str, Any]:
    # A step that is done again must not stand there twice.
    again = (run.out / "tensorboard").is_dir()
    return {"logging_dir": str(run.out), "purge_step": run.resume_at + 1 if again else None}


KINDS: dict[str, _Kind] = {
    "tensorboard": _Kind(
        options=_tensorboard,
        images=lambda pixels: pixels[None],
        image_options={"dataformats": "NHWC"},
    ),
    "wandb": _Kind(
        options=lambda run: {
            "name": run.name,
            "id": run.own_id,
            "resume": "allow",
            "dir": str(run.out),
        },
        id_of=lambda wandb_run: wandb_run.id,
        images=lambda pixels: [pixels],
    ),
    "mlflow": _Kind(
        options=lambda run: {"run_name": run.name, "run_id": run.id},
        id_of=lambda active_run: active_run.info.run_id,
    ),
    "comet_ml": _Kind(
        options=lambda run: {"experiment_key": run.own_id},
        id_of=lambda experiment: experiment.get_key(),
    ),
    "clearml": _Kind(
        options=lambda run: {
            "task_name": run.name,
            "continue_last_task": run.id or False,
            "reuse_last_task_id": False,
            # It would send what TensorBoard gets a second time, and read our command line.
            "auto_connect_frameworks": False,
            "auto_connect_arg_parser": False,
        },
        id_of=lambda task: task.id,
        images=lambda pixels: pixels,
    ),
    "aim": _Kind(
        options=lambda run: {"run_hash": run.id, "experiment": PROJECT},
        id_of=lambda aim_run: aim_run.hash,
        images=lambda pixels: pixels,
    ),
    "dvclive": _Kind(
        options=lambda run: {"dir": str(run.out / "dvclive"), "resume": run.resume_at > 0},
    ),
    "swanlab": _Kind(
        options=lambda run: {
            "experiment_name": run.name,
            "id": run.own_id[:21],
            "resume": "allow",
            "logdir": str(run.out / "swanlog"),
        },
        id_of=lambda swanlab_run: swanlab_run.id,
        images=lambda pixels: [pixels],
    ),
    "trackio": _Kind(
        # It knows a run by its name alone.
        options=lambda run: {"name": run.name, "resume": "allow" if run.resume_at else "never"},
    ),
}
# What the first argument of a tracker's class names, where that is not the project.
TITLES: dict[str, Callable[[_Run], str]] = {
    "tensorboard": lambda run: "tensorboard",
    "aim": lambda run: run.name,
}
# Variables that name the project, where accelerate does not read them itself.
PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "comet_ml": "COMET_PROJECT_NAME"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used, before anything is written.

    Raises:
        InputError: No tracker has that name, it is named twice, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for place, name in enumerate(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown_name("tracker", name, map(str, LOGGER_TYPE_TO_CLASS))
        if name in names[:place]:
            raise InputError(f"The tracker {name} is named twice; name it once.")
        if name in KINDS and importlib.util.find_spec(name) is None:
            raise InputError(f"The tracker {name} needs the package {name}: pip install {name}")


def flat_settings(config: Any) -> dict[str, bool | int | float | str]:
    """Settings with dotted names and plain values, as trackers take them.

    Args:
        config: A dataclass of settings or a mapping, of any depth.
    """
    values: Mapping[str, Any] = (
        dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # pyright: ignore[reportArgumentType, reportAssignmentType]
    )
    flat: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": item for inner, item in flat_settings(value).items()}
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class Trackers:
    """The trackers of a run, started.

    Args:
        names: As accelerate has them, such as "tensorboard" or "wandb".
        out: The run's folder; it keeps each tracker's own id of the run, so that a run that is
            resumed goes on there too.
        name: The run's name.
        config: Its settings.
        resume_at: The step that it goes on from.
        note: Told once when a tracker fails.

    Raises:
        InputError: A tracker does not exist, is not installed or does not start.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        *,
        name: str,
        config: Settings,
        resume_at: int,
        note: Callable[[str], None],
    ) -> None:
        check_trackers(names)
        self._out, self._note = out, note
        ids = _read_ids(out)
        self._links = []
        for kind in names:
            run = _Run(out=out, name=name, resume_at=resume_at, id=ids.get(kind))
            try:
                tracker = _start(kind, run)
                link = _Link(kind, tracker)
                self._links.append(link)
                if link.id is not None:
                    ids[kind] = link.id
                has_id = kind in KINDS and KINDS[kind].id_of is not None
                if run.id is None and (has_id or not resume_at):  # Some refuse them twice.
                    _send_settings(kind, tracker, config, name)
            except Exception as error:
                self.close(finished=False)
                if kind == "tensorboard":
                    raise
                raise InputError(_not_started(kind, error, run)) from error
        if ids != _read_ids(out):
            with atomic_path(out / IDS_FILE) as aside:
                aside.write_text(json.dumps(ids, indent=2) + "\n")

    def log(self, values: Mapping[str, float], step: int, *, often: bool = False) -> None:
        """Send figures; what is no number is left out.

        Args:
            values: By name, such as "train/loss".
            step: The optimizer step they belong to.
            often: Servers need not hear of all of these.

        Raises:
            OSError: TensorBoard's file cannot be written.
        """
        figures = {_plain(k): float(v) for k, v in values.items() if math.isfinite(v)}
        for link in self._links:
            if often and not link.local:
                if time.monotonic() < link.next_step:
                    continue
                link.next_step = time.monotonic() + SERVER_INTERVAL
            self._try(link, link.tracker.log, figures, step=step)

    def pictures(self, pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], step: int) -> None:
        """Send pictures to the trackers that take them.

        Raises:
            OSError: TensorBoard's file cannot be written.
        """
        for link in self._links:
            kind = KINDS.get(link.name)
            if kind is not None and kind.images is not None:
                made = {_plain(name): kind.images(pixels) for name, pixels in pictures.items()}
                log_images = link.tracker.log_images
                self._try(link, log_images, made, step=step, **kind.image_options)

    def close(self, finished: bool) -> None:
        """End all of them; an unfinished run is told to be one where a tracker knows the word.

        Raises:
            OSError: TensorBoard's file cannot be written.
        """
        links, self._links = self._links, []
        for link in links:
            link.next_try = 0.0
            self._try(link, _finish, link, finished)
            if link.missed:
                self._note(
                    f"The tracker {link.name} missed {link.missed} messages; {self._out} has all."
                )

    def _try(self, link: "_Link", call: Callable[..., object], *args: Any, **options: Any) -> None:
        if time.monotonic() < link.next_try:
            link.missed += 1
            return
        try:
            call(*args, **options)
        except Exception as error:
            if link.local and isinstance(error, OSError):  # Of itself it does not say where.
                place = str(self._out / link.name)
                raise OSError(error.errno, error.strerror or str(error), place) from error
            if link.local:
                raise
            if not link.missed:
                self._note(
                    f"The tracker {link.name} fails ({_one_line(error)}). Training goes on, "
                    f"{self._out} has all figures, and it is tried again every "
                    f"{PAUSE / 60:.0f} minutes."
                )
            link.missed += 1
            link.next_try = time.monotonic() + PAUSE


class _Link:
    """A tracker that runs, and how it does."""

    def __init__(self, name: str, tracker: Any) -> None:
        self.name, self.tracker = name, tracker
        self.local = name == "tensorboard"
        self.next_step = self.next_try = 0.0
        self.missed = 0
        kind = KINDS.get(name)
        self.id = kind.id_of(tracker.tracker) if kind is not None and kind.id_of else None


def _start(name: str, run: _Run) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # Accelerate's trackers ask it which process this is; training has made it.
    project = os.environ.get(PROJECT_VARIABLES.get(name, ""), PROJECT)
    title = TITLES[name](run) if name in TITLES else project
    cls: Any = LOGGER_TYPE_TO_CLASS[name]
    if name in KINDS:
        tracker = cls(title, **KINDS[name].options(run))
    else:  # One that the user has registered with accelerate.
        tracker = cls(title, *([str(run.out)] if cls.requires_logging_directory else []))
    if hasattr(tracker, "start"):  # Older versions of accelerate start it at once.
        tracker.start()
    return tracker


def _send_settings(name: str, tracker: Any, config: Settings, run_name: str) -> None:
    if name == "comet_ml":
        tracker.tracker.set_name(run_name)
    if not config:
        return
    if name != "tensorboard":
        tracker.store_init_configuration(dict(config))
        return
    # Accelerate's way would show the settings as a second run beside this one.
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(config), {"val/miou": 0.0}):
        tracker.tracker.file_writer.add_summary(summary)
    tracker.tracker.flush()


def _finish(link: _Link, finished: bool) -> None:
    if not finished and link.name == "wandb":
        link.tracker.tracker.finish(exit_code=1)
    elif not finished and link.name == "mlflow":
        import mlflow  # pyright: ignore[reportMissingImports]

        mlflow.end_run("KILLED")
    else:
        link.tracker.finish()


def _plain(name: str) -> str:
    """A name that all of them take: classes are called all sorts of things."""
    return re.sub(r"[^\w\-. /]+", "_", name)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _not_started(name: str, error: Exception, run: _Run) -> str:
    again = f", or remove {run.out / IDS_FILE} to begin a new record" if run.id else ""
    return (
        f"The tracker {name} does not start ({_one_line(error)}). See that its server can be "
        f"reached and that you are logged in, leave {name} out of the trackers{again}."
    )


def _read_ids(out: Path) -> dict[str, str]:
    file = out / IDS_FILE
    if not file.is_file():
        return {}
    try:
        ids = json.loads(file.read_text())
        return {str(name): str(value) for name, value in ids.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged ({error}). Remove it; trackers then begin a new record of the run."
        ) from error
