"""Trackers: asked for by name, told everything, and never the end of a run."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import sys
import types

import accelerate.tracking
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ccsnet import trackers
from ccsnet.errors import InputError
from ccsnet.runlog import LOG_FILE, RunLog, read_log
from ccsnet.trackers import KINDS, check_trackers, flat_settings


class Wandb(types.ModuleType):
    """As much of the library as accelerate calls; it remembers what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun, self.logged, self.ended, self.settings = [], [], [], {}
        self.config = types.SimpleNamespace(update=lambda v, **_: self.settings.update(v))
        self.down = False
        self.calls = 0

    def init(self, **options):
        self.begun.append(options)
        return types.SimpleNamespace(id=options["id"], log=self.log, finish=self.finish)

    def log(self, values, step=None):
        self.calls += 1
        if self.down:
            raise ConnectionError("the server\nis down")
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.ended.append(exit_code)

    def Image(self, pixels):
        return ("picture", pixels.shape)


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "SERVER_INTERVAL", 0.0)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def add_step(log, step, loss=0.5):
    log.step(
        step=step,
        epoch=step / 2,
        seconds=float(step),
        lr=0.1,
        loss=loss,
        coarse_loss=0.1,
        images_per_second=4.0,
    )


# Names


def test_names_are_checked_before_anything_is_written(tmp_path, monkeypatch):
    check_trackers(("tensorboard",))
    check_trackers(())
    with pytest.raises(InputError, match=r"No tracker is called 'wandbb'. Perhaps you meant wandb"):
        check_trackers(("wandbb",))
    with pytest.raises(InputError, match="tensorboard is named twice"):
        check_trackers(("tensorboard", "tensorboard"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="tracker mlflow needs the package mlflow: pip install mlflow"
    ):
        RunLog(tmp_path / "run", trackers=("mlflow",))
    assert not list((tmp_path / "run").iterdir())


def test_all_trackers_of_accelerate_are_known():
    assert set(KINDS) == set(accelerate.tracking.LOGGER_TYPE_TO_CLASS)
    for name, kind in KINDS.items():
        cls = accelerate.tracking.LOGGER_TYPE_TO_CLASS[name]
        assert (kind.images is not None) == hasattr(cls, "log_images")


def test_settings_become_flat():
    @dataclasses.dataclass
    class Inner:
        top_k: int = 3
        mean: tuple = (1.0, 2.0)

    @dataclasses.dataclass
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        ema: float | None = None
        flip: bool = True

    flat = {"inner.top_k": 3, "inner.mean": "(1.0, 2.0)", "ema": "None", "flip": True}
    assert flat_settings(Outer()) == flat
    assert flat_settings({"inner": {"top_k": 3}}) == {"inner.top_k": 3}


# What they are told


def test_a_tracker_is_told_everything(wandb, tmp_path):
    out = tmp_path / "shapes-ccs"
    log = RunLog(out, trackers=("wandb",), config={"train": {"steps": 2}})
    add_step(log, 1)
    log.validation(
        step=1, miou=0.5, pixel_accuracy=0.9, class_iou={"a & <b>": 0.25, "none": float("nan")}
    )
    log.pictures(1, {"photo": np.zeros((4, 6, 3), np.uint8)})
    log.close(finished=False)
    (begun,) = wandb.begun
    assert begun["project"] == "ccsnet"
    assert (begun["name"], begun["resume"], begun["dir"]) == ("shapes-ccs", "allow", str(out))
    assert wandb.settings == {"train.steps": 2}
    (_, step), (_, validation), (_, pictures) = wandb.logged
    assert [number for number, _ in wandb.logged] == [1, 1, 1]
    assert step["train/loss"] == 0.5
    assert "train/wait" not in step  # Not known, so no number.
    assert validation == {"val/miou": 0.5, "val/pixel_accuracy": 0.9, "val/iou/a _ _b_": 0.25}
    assert pictures == {"val/photo": [("picture", (4, 6, 3))]}
    assert wandb.ended == [1]


def test_a_resumed_run_goes_on_in_the_tracker(wandb, tmp_path):
    for resume_at in (0, 2):
        log = RunLog(
            tmp_path, trackers=("wandb",), config={"at": resume_at}, name="n", resume_at=resume_at
        )
        add_step(log, resume_at + 1)
        log.close()
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert json.loads((tmp_path / trackers.IDS_FILE).read_text()) == {"wandb": first["id"]}
    assert wandb.settings == {"at": 0}
    assert wandb.ended == [0, 0]


def test_a_tracker_that_joins_later_is_told_the_settings(wandb, tmp_path):
    """A record that is begun when a run is resumed is as whole as any other."""
    RunLog(
        tmp_path, trackers=("wandb",), config={"train": {"steps": 2}}, name="n", resume_at=2
    ).close()
    assert wandb.settings == {"train.steps": 2}


def test_a_new_run_is_a_new_one_in_the_tracker(wandb, tmp_path):
    for name in "ab":
        RunLog(tmp_path / name, trackers=("wandb",)).close()
    assert wandb.begun[0]["id"] != wandb.begun[1]["id"]


def test_servers_are_not_told_of_every_step(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "SERVER_INTERVAL", 1000.0)
    log = RunLog(tmp_path, trackers=("wandb",))
    for step in (1, 2, 3):
        add_step(log, step)
    log.validation(step=3, miou=0.5, pixel_accuracy=0.9)
    log.close()
    assert [step for step, _ in wandb.logged] == [1, 3]
    assert [row["step"] for row in read_log(tmp_path / LOG_FILE)] == [1, 2, 3]


def test_a_server_that_is_down_costs_figures_not_the_run(wandb, tmp_path):
    notes = []
    log = RunLog(tmp_path, trackers=("wandb",), note=notes.append)
    wandb.down = True
    for step in (1, 2, 3):
        add_step(log, step)
    assert wandb.calls == 1  # It is not asked again at once.
    (note,) = notes
    assert "tracker wandb fails (ConnectionError: the server is down). Training goes on" in note
    log.close()
    assert "wandb missed 3 messages" in notes[1]
    assert len(read_log(tmp_path / LOG_FILE)) == 3


def test_a_server_that_is_back_is_used_again(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PAUSE", 0.0)
    notes = []
    log = RunLog(tmp_path, trackers=("wandb",), note=notes.append)
    for step, down in ((1, True), (2, True), (3, False)):
        wandb.down = down
        add_step(log, step)
    log.close()
    assert [step for step, _ in wandb.logged] == [3]
    assert len(notes) == 2


def test_a_tracker_that_does_not_start(wandb, tmp_path, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match=r"wandb does not start \(RuntimeError: api key not conf"):
        RunLog(tmp_path, trackers=("tensorboard", "wandb"))
    assert not (tmp_path / LOG_FILE).exists()


def test_damaged_ids(wandb, tmp_path):
    (tmp_path / trackers.IDS_FILE).write_text("[")
    with pytest.raises(InputError, match=r"trackers\.json is damaged .* Remove it"):
        RunLog(tmp_path, trackers=("wandb",))


def test_a_users_own_tracker(tmp_path, monkeypatch):
    told = []

    class Own(accelerate.tracking.GeneralTracker):
        name = "own"
        requires_logging_directory = True
        tracker = None

        def __init__(self, title, folder):
            super().__init__()
            told.append((title, folder))

        def log(self, values, step=None, **_):
            told.append((step, values["train/loss"]))

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "own", Own)
    monkeypatch.setattr(trackers, "SERVER_INTERVAL", 0.0)
    log = RunLog(tmp_path, trackers=("own",))
    add_step(log, 1)
    log.pictures(1, {"photo": np.zeros((4, 6, 3), np.uint8)})
    log.close()
    assert told == [("ccsnet", str(tmp_path)), (1, 0.5)]


# TensorBoard


def events(out):
    accumulator = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    return accumulator.Reload()


def test_tensorboard_shows_each_step_once(tmp_path):
    config = {"train": {"steps": 4}, "data": {"dataset": "x"}}
    log = RunLog(tmp_path, config=config)
    for step in (1, 2, 3):
        add_step(log, step, loss=1 / step)
    log.validation(step=2, miou=0.25, pixel_accuracy=0.5)
    log.pictures(2, {"photo": np.full((4, 6, 3), 7, np.uint8)})
    log.close(finished=False)
    log = RunLog(tmp_path, config=config, resume_at=2)
    for step in (3, 4):
        add_step(log, step, loss=1 / step)
    found = events(tmp_path)  # A log that is still open has all in its files.
    log.close()
    assert [e.step for e in found.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [(e.step, e.value) for e in found.Scalars("val/miou")] == [(2, 0.25)]
    (image,) = found.Images("val/photo")
    assert (image.step, image.height, image.width) == (2, 4, 6)
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir())  # One run.
    plugins = found.summary_metadata
    assert any(data.plugin_data.plugin_name == "hparams" for data in plugins.values())


def test_tensorboards_full_disk_is_an_error(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    add_step(log, 1)

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full)
        with pytest.raises(OSError, match=r"No space left on device: .*tensorboard"):
            add_step(log, 2)
    log.close()
