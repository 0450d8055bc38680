import contextlib
import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import ccsnet.train as training
from ccsnet.checkpoint import BEST, LAST, load_model, read_checkpoint, training_tensors
from ccsnet.config import RunConfig, from_json
from ccsnet.data.loading import Batch
from ccsnet.errors import InputError
from ccsnet.preflight import check_shares
from ccsnet.progress import Silent
from ccsnet.run_folder import BEST_FILE
from ccsnet.runlog import COLUMNS, LOG_FILE, VALIDATION_FILE, read_log
from ccsnet.stopping import StopSignals
from ccsnet.train import Interrupted, train
from tests.shapes import YAML, make_shapes, tiny_config

# Learning


def test_the_shapes_are_learnt(run):
    losses = [row["loss"] for row in read_log(run.out / LOG_FILE)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert run.result.best_miou > 0.5
    assert run.result.metrics.images == 4


def test_what_a_run_leaves(run):
    names = {path.name for path in run.out.iterdir()}
    files = {"config.json", "metrics.json", "best.json", "log.csv", "validation.csv", "tensorboard"}
    assert names == files | {BEST, LAST, "last-00000054.safetensors"}
    assert list((run.out / "tensorboard").iterdir())
    for name, columns in COLUMNS.items():
        assert (run.out / name).read_text().splitlines()[0] == ",".join(columns)
    rows, validations = read_log(run.out / LOG_FILE), read_log(run.out / VALIDATION_FILE)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in validations] == list(range(6, 61, 6))
    assert rows[-1]["epoch"] == 30
    assert rows[-1]["seconds"] == pytest.approx(run.result.seconds, abs=1e-3)
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert metrics["step"] == 60
    assert metrics["best_miou"] == max(row["miou"] for row in validations)


def test_best_and_last_checkpoint(run):
    rows = read_log(run.out / VALIDATION_FILE)
    best, last = (read_checkpoint(run.out / name) for name in (BEST, LAST))
    top = max(rows, key=lambda row: row["miou"])
    assert (best.step, best.miou) == (top["step"], top["miou"])
    assert (last.step, last.miou) == (60, rows[-1]["miou"])
    assert last.best_miou == best.miou
    assert training_tensors(run.out / BEST) == {}
    assert training_tensors(run.out / LAST)
    assert best.info.classes == ("ground", "disc", "box")


def test_the_stored_config_is_resolved(run):
    stored = from_json(RunConfig, (run.out / "config.json").read_text())
    assert stored == read_checkpoint(run.out).config
    assert stored.train.channels_last is True
    assert stored.train.precision == "float32"
    assert dataclasses.replace(stored, train=run.config.train) == run.config


def test_auto_precision_is_tried_and_noted_and_kept(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notes = []

    class Listener(Silent):
        def note(self, text):
            notes.append(text)

    config = tiny_config(shapes, steps=1, precision="auto")
    train(config, tmp_path / "run", reporter=Listener())
    stored = from_json(RunConfig, (tmp_path / "run" / "config.json").read_text())
    assert stored.train.precision in ("float32", "bf16")
    assert isinstance(stored.train.channels_last, bool)
    assert notes[-1].startswith(f"Precision {stored.train.precision}")
    assert "(tried: float32" in notes[-1]
    train(config, tmp_path / "again", reporter=Listener())
    assert "(kept from an earlier trial; delete" in notes[-1]
    assert from_json(RunConfig, (tmp_path / "again" / "config.json").read_text()) == stored


def test_seeds_decide_everything(shapes, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_config(shapes, steps=2, seed=seed), tmp_path / name)
    weights = [load_model(read_checkpoint(tmp_path / n / LAST)).state_dict() for n in "abc"]
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def same(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


# Interruption


class Stopper(Silent):
    """Presses Ctrl-C so many times at a moment of the run."""

    def __init__(self, stage, unit, times=1):
        self.when, self.times, self.now, self.done = (stage, unit), times, "", 0

    def start(self, stage, total, done=0):
        self.now, self.done = stage, done
        self._stop()

    def advance(self, units=1, **values):
        self.done += units
        self._stop()

    def _stop(self):
        if (self.now, self.done) == self.when:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def straight(shapes, tmp_path_factory):
    """Six steps without a stop, dropout and all augmentation included."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(tiny_config(shapes, steps=6, validate_every=2), out)
    return out


@pytest.mark.parametrize(
    ("stage", "unit", "step"),
    [
        ("training", 0, 0),
        ("training", 3, 3),
        ("training", 4, 4),  # A step that validates.
        ("validating", 0, 4),
        ("validating", 3, 4),
        ("training", 6, 6),
    ],
)
def test_resuming_equals_never_stopping(shapes, tmp_path, straight, stage, unit, step):
    out = tmp_path / "run"
    config = tiny_config(shapes, steps=6, validate_every=2)
    if stage == "validating":
        start_once(config, out)
    stopper = Stopper(stage, unit)
    resume = stage == "validating"
    with pytest.raises(Interrupted, match=f"after step {step} of 6; .* --resume {out}"):
        train(config, out, resume=resume, reporter=stopper)
    assert read_checkpoint(out / LAST).step == step
    assert [row["step"] for row in read_log(out / LOG_FILE)] == list(range(1, step + 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, out, resume=True)
    for name in (BEST, LAST):
        ours, theirs = (read_checkpoint(folder / name) for folder in (out, straight))
        assert (ours.step, ours.miou, ours.best_miou) == (
            *(theirs.step, theirs.miou, theirs.best_miou),
        )
        assert same(load_model(ours).state_dict(), load_model(theirs).state_dict())
    moments, expected = training_tensors(out / LAST), training_tensors(straight / LAST)
    assert same(moments, expected)
    assert read_log(out / VALIDATION_FILE) == read_log(straight / VALIDATION_FILE)
    kept = ("step", "epoch", "lr", "loss", "coarse_loss")
    logs = [[[row[k] for k in kept] for row in read_log(o / LOG_FILE)] for o in (out, straight)]
    assert logs[0] == logs[1]


def start_once(config, out):
    """Three steps, so that the next validation is that of step 4."""
    with pytest.raises(Interrupted):
        train(config, out, reporter=Stopper("training", 3))


def test_an_interrupt_keeps_what_was_measured(shapes, tmp_path):
    class StopAfterValidation(Silent):
        def start(self, stage, total, done=0):
            if stage == "training" and done:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(tiny_config(shapes, validate_every=2), tmp_path / "r", reporter=StopAfterValidation())
    last = read_checkpoint(tmp_path / "r" / LAST)
    assert last.step == 2
    assert last.miou == last.best_miou is not None


def test_an_interrupt_while_a_best_is_kept(shapes, tmp_path, monkeypatch):
    """The best checkpoint, its figures and the last checkpoint say the same."""
    told, out = training.evaluation_to_json, tmp_path / "run"

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return told(*arguments)

    monkeypatch.setattr(training, "evaluation_to_json", interrupted)
    with pytest.raises(Interrupted, match="after step 2 of 4; all is saved"):
        train(tiny_config(shapes, validate_every=2), out)
    best, last = (read_checkpoint(out / name) for name in (BEST, LAST))
    assert best.step == last.step == 2
    assert best.miou == last.best_miou == last.miou
    assert json.loads((out / BEST_FILE).read_text())["step"] == 2


def test_the_second_interrupt_does_not_wait(shapes, tmp_path):
    asked = []

    class Impatient(Silent):
        def advance(self, units=1, **values):
            if not values:  # The check of the labels.
                return
            for press in ("first", "second", "third"):
                asked.append(press)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 1 of 4"):
        train(tiny_config(shapes), tmp_path / "run", reporter=Impatient())
    assert asked == ["first", "second"]


def test_half_a_step_is_not_saved(shapes, tmp_path, monkeypatch):
    def torn(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", torn)
    with pytest.raises(Interrupted, match="within step 1 of 4, which cannot be saved"):
        train(tiny_config(shapes), tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()
    with pytest.raises(InputError, match="no checkpoint to go on from: delete it"):
        train(tiny_config(shapes), tmp_path / "run")


def test_resuming_a_finished_run_measures_again(shapes, tmp_path):
    config = tiny_config(shapes, steps=2)
    first = train(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.csv").read_text()
    again = train(config, tmp_path / "run", resume=True)
    assert again.metrics.to_dict() == first.metrics.to_dict()
    assert again.best_miou == first.best_miou
    assert (tmp_path / "run" / "log.csv").read_text() == log


# Accumulation


def one_step(shapes, out, accumulate):
    """A step of plain gradient descent in evaluation mode: no batch statistics, no dropout."""
    config = tiny_config(shapes, batch_size=4, accumulate=accumulate)
    stack = contextlib.ExitStack()
    run = training._Run(config, out / str(accumulate), False, Silent(), StopSignals(), stack)
    run.model.eval()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    run.optimizer.param_groups[0]["peak_lr"] = 1.0
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(0, 3, (4, 32, 32), generator=generator),
        list("abcd"),
    )
    batch.label[0, :20] = 255  # Passes differ in how many pixels count.
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.optimize(batch)
    stack.close()
    (row,) = read_log(run.out / LOG_FILE)
    changes = {name: p.detach() - before[name] for name, p in run.model.named_parameters()}
    return (row["loss"], row["coarse_loss"]), changes


@pytest.mark.parametrize("accumulate", [2, 4])
def test_passes_add_up_to_one_step(shapes, tmp_path, accumulate):
    losses, changes = one_step(shapes, tmp_path, 1)
    losses_in_parts, changes_in_parts = one_step(shapes, tmp_path, accumulate)
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)
    assert any(change.abs().max() > 1e-3 for change in changes.values())
    for name, change in changes.items():
        torch.testing.assert_close(changes_in_parts[name], change, rtol=1e-5, atol=1e-6)


def test_accumulated_run(shapes, tmp_path):
    result = train(tiny_config(shapes, steps=1, batch_size=4, accumulate=2), tmp_path / "run")
    assert result.metrics.images == 4


def test_gradients_are_clipped(shapes, tmp_path):
    config = tiny_config(shapes, steps=1)
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        for name, clip in (("free", None), ("clipped", 0.01)):
            optim = dataclasses.replace(config.optim, clip_norm=clip)
            train(dataclasses.replace(config, optim=optim), tmp_path / name)
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


# Other data


def test_two_classes(tmp_path):
    yaml = YAML.replace("[ground, disc, box]", "[other, box]").replace("[30, 120, 40], ", "")
    yaml += "raw_values: {0: other, 1: other, 2: box}\n"
    data = make_shapes(tmp_path / "two", train=4, val=2, yaml=yaml)
    result = train(tiny_config(data, steps=2), tmp_path / "run")
    assert result.metrics.classes == ("other", "box")
    assert load_model(read_checkpoint(tmp_path / "run")).head.classifier.out_channels == 2


def test_four_bands_are_measured(tmp_path):
    yaml = YAML.replace("images/{split}/*.png", "images/{split}/*.tif") + "channels: 4\n"
    data = make_shapes(tmp_path / "bands", train=4, val=2, yaml=yaml)
    bands = []
    for path in sorted((data / "images").rglob("*.png")):
        rgb = np.asarray(Image.open(path)).astype(np.uint16)
        image = np.concatenate([rgb, 1000 + 10 * rgb[..., :1]], axis=2)
        tifffile.imwrite(
            path.with_suffix(".tif"), image, photometric="minisblack", planarconfig="contig"
        )
        if path.parent.name == "train":
            bands.append(image.reshape(-1, 4))
    config = tiny_config(data, steps=2)
    train(config, tmp_path / "run")
    stored = read_checkpoint(tmp_path / "run")
    assert stored.info.channels == 4
    np.testing.assert_allclose(stored.config.model.mean, np.concatenate(bands).mean(0))
    np.testing.assert_allclose(stored.config.model.std, np.concatenate(bands).std(0), rtol=1e-6)
    train(dataclasses.replace(config), tmp_path / "run", resume=True)
    given = dataclasses.replace(config.model, mean=(1000.0,) * 4, std=(2.0,) * 4)
    train(dataclasses.replace(config, model=given), tmp_path / "given")
    assert read_checkpoint(tmp_path / "given").config.model.mean == (1000.0,) * 4


# Bad input


def test_a_loss_that_is_no_number(shapes, tmp_path):
    config = tiny_config(shapes, steps=9, validate_every=9)
    optim = dataclasses.replace(config.optim, lr=1e30)
    with pytest.raises(
        FloatingPointError, match=r"step \d is not a number .* images were \d, \d\."
    ):
        train(dataclasses.replace(config, optim=optim), tmp_path / "run")


def test_predictions_that_are_no_numbers(shapes, tmp_path):
    """Found where the model is validated: it is not saved."""
    config = tiny_config(shapes, steps=9, validate_every=1)
    optim = dataclasses.replace(config.optim, lr=1e30, warmup_steps=0)
    with pytest.raises(FloatingPointError, match=r"After step 1 the model .* NaN or infinite"):
        train(dataclasses.replace(config, optim=optim), tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()


def test_an_existing_run_is_kept(run):
    with pytest.raises(
        InputError, match=f"already holds a run. Go on with it by --resume {run.out}"
    ):
        train(run.config, run.out)


def test_nothing_to_resume(shapes, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No .*last\.safetensors to resume from"):
        train(tiny_config(shapes), tmp_path / "run", resume=True)


def test_resuming_with_other_classes(shapes, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(shapes, steps=1), out)
    other = make_shapes(tmp_path / "other", yaml=YAML.replace("disc", "ring"))
    with pytest.raises(InputError, match="'disc' as class 1, the data set 'other' has 'ring'"):
        train(tiny_config(other, steps=2), out, resume=True)


def test_batch_that_does_not_divide(shapes):
    with pytest.raises(InputError, match="divide among 3 processes x 1 passes"):
        check_shares(tiny_config(shapes), 3)


def test_bad_labels_are_found_before_the_first_step(tmp_path):
    data = make_shapes(tmp_path / "bad", train=3, val=2)
    Image.fromarray(np.full((64, 80), 7, np.uint8)).save(data / "labels/val/1.png")
    with pytest.raises(InputError, match=r"labels/val/1\.png holds 7"):
        train(tiny_config(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kill_right_after_the_first_best(shapes, tmp_path, monkeypatch):
    """What is in the folder at that moment is enough to go on from."""
    out, left = tmp_path / "whole", tmp_path / "left"
    told = training.evaluation_to_json

    def killed_here(*arguments):
        if not left.exists():
            assert (out / BEST).exists()
            shutil.copytree(out, left, ignore=shutil.ignore_patterns(".lock"))
        return told(*arguments)

    monkeypatch.setattr(training, "evaluation_to_json", killed_here)
    config = tiny_config(shapes, steps=4, validate_every=2)
    train(config, out)
    train(config, left, resume="auto")
    for name in (BEST, LAST):
        whole, resumed = (training_tensors(folder / name) for folder in (out, left))
        assert all(torch.equal(whole[key], tensor) for key, tensor in resumed.items())
    assert read_log(out / VALIDATION_FILE) == read_log(left / VALIDATION_FILE)
