"""Settings of a run that each must do what they say."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet.checkpoint import BEST, LAST, load_model, read_checkpoint, training_tensors
from ccsnet.compiled import check_compiler
from ccsnet.config import TrainConfig
from ccsnet.errors import InputError
from ccsnet.evaluate import Evaluation
from ccsnet.metrics import Metrics
from ccsnet.optim import OptimConfig, parameter_groups
from ccsnet.progress import Silent
from ccsnet.run_folder import kept
from ccsnet.runlog import LOG_FILE, VALIDATION_FILE, read_log
from ccsnet.segmenter import create_segmenter
from ccsnet.train import train
from tests.shapes import OPTIONS, make_shapes, tiny_config


def losses(out) -> list[float]:
    return [row["loss"] for row in read_log(out / LOG_FILE)]


def weights(out) -> dict[str, torch.Tensor]:
    return load_model(read_checkpoint(out / LAST)).state_dict()


def test_a_frozen_backbone_is_as_it_was(shapes, tmp_path):
    config = tiny_config(shapes, steps=2)
    config = replace(config, model=replace(config.model, frozen_stages=4))
    train(config, tmp_path / "run")
    torch.manual_seed(config.train.seed)
    initial = create_segmenter(config.model, num_classes=3).state_dict()
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, initial[name]) == (name.startswith("backbone.") or name in fixed)


fixed = ("mean", "std")


def test_a_dilated_backbone_trains(shapes, tmp_path):
    config = tiny_config(shapes, steps=1)
    model = replace(config.model, output_stride=8)
    train(replace(config, model=model), tmp_path / "run")
    assert load_model(read_checkpoint(tmp_path / "run")).backbone.strides == (4, 8, 8, 8)


def test_sgd_goes_on_where_it_was(shapes, tmp_path):
    config = tiny_config(shapes, steps=4, validate_every=2)
    config = replace(config, optim=OptimConfig(optimizer="sgd", lr=0.01, min_lr=1e-3))
    train(config, tmp_path / "whole")

    with pytest.raises(Stopped):
        train(config, tmp_path / "halved", reporter=StopAt(2))
    train(config, tmp_path / "halved", resume=True)
    assert losses(tmp_path / "halved") == losses(tmp_path / "whole")
    whole, halved = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


def test_gradient_checkpointing_learns_the_same(shapes, tmp_path, monkeypatch):
    # Other kernels round differently: here only what is computed twice may differ.
    monkeypatch.setattr(TrainConfig, "takes_faster_kernels", False)
    for name, enable in (("plain", False), ("checkpointing", True)):
        config = tiny_config(shapes, steps=3, grad_checkpointing=enable)
        model = replace(config.model, backbone="test_convnext")
        train(replace(config, model=model), tmp_path / name)
    assert losses(tmp_path / "checkpointing") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_gradient_checkpointing_that_there_is_none_of(shapes, tmp_path):
    config = tiny_config(shapes, grad_checkpointing=True)
    model = replace(config.model, backbone="hrnet_w18_small")
    with pytest.raises(InputError, match="has no gradient checkpointing"):
        train(replace(config, model=model), tmp_path / "run")


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(shapes, tmp_path):
    """In processes of their own: the tests' checks of shapes are not made to be compiled."""
    for name in ("compile", "no-compile"):
        arguments = (str(shapes), *OPTIONS, "--steps", "3", "--out", str(tmp_path / name))
        command = [sys.executable, "-m", "ccsnet", "train", *arguments, f"--{name}"]
        subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "compile") == pytest.approx(losses(tmp_path / "no-compile"), rel=1e-3)
    # The checkpoint is the plain network's.
    assert weights(tmp_path / "compile").keys() == weights(tmp_path / "no-compile").keys()


def test_averaged_weights_follow_those_of_the_steps(shapes, tmp_path):
    """Held against the definition, over the weights that a run without average has."""
    every_step: list[dict[str, torch.Tensor]] = []

    def keep(self, *arguments, step=torch.optim.AdamW.step, **options):
        step(self, *arguments, **options)
        every_step.append({name: p.detach().clone() for name, p in model_of(self)})

    config = tiny_config(shapes, steps=4, validate_every=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", keep)
        train(config, tmp_path / "plain")
    train(replace(config, train=replace(config.train, ema=0.8)), tmp_path / "averaged")
    torch.manual_seed(config.train.seed)
    model = create_segmenter(config.model, num_classes=3)
    parameters = [p.detach().clone() for group in groups_of(model) for p in group]
    for number, step in enumerate(every_step, start=1):
        decay = min(0.8, (1 + number) / (10 + number))
        parameters = [
            decay * mean + (1 - decay) * new
            for mean, new in zip(parameters, step.values(), strict=True)
        ]
    for name in (LAST, BEST):
        averaged = load_model(read_checkpoint(tmp_path / "averaged" / name))
        found = [p for group in groups_of(averaged) for p in group]
        for ours, expected in zip(found, parameters, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    # Those of the last step are kept beside, to go on from.
    raw = training_tensors(tmp_path / "averaged" / LAST)
    plain = weights(tmp_path / "plain")
    assert all(torch.equal(raw[f"model/{name}"], plain[name]) for name in plain)
    assert losses(tmp_path / "averaged") == losses(tmp_path / "plain")


def model_of(optimizer) -> list[tuple[str, torch.Tensor]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(str(number), p) for number, p in enumerate(parameters)]


def groups_of(model) -> list[list[torch.Tensor]]:
    return [group["params"] for group in parameter_groups(model, OptimConfig())]


def test_averages_go_on_where_they_were(shapes, tmp_path):
    config = tiny_config(shapes, steps=4, validate_every=2, ema=0.9)
    train(config, tmp_path / "whole")
    halved = replace(config, train=replace(config.train, steps=2))
    # The schedule of the whole run, stopped after half of it.
    optim = replace(config.optim, power=1e-9, warmup_steps=0)
    config, halved = (replace(c, optim=optim) for c in (config, halved))
    train(config, tmp_path / "a")
    train(halved, tmp_path / "b")
    train(config, tmp_path / "b", resume=True)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precision_learns_nearly_the_same(shapes, tmp_path, precision, tolerance):
    for name in ("float32", precision):
        train(tiny_config(shapes, steps=3, precision=name), tmp_path / name)
    expected = losses(tmp_path / "float32")
    assert losses(tmp_path / precision) == pytest.approx(expected, rel=tolerance)
    assert losses(tmp_path / precision) != expected
    assert all(t.dtype != torch.half for t in weights(tmp_path / precision).values())


def test_the_scale_of_fp16_goes_on(shapes, tmp_path):
    config = tiny_config(shapes, steps=4, validate_every=2, precision="fp16")
    train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "halved", reporter=StopAt(2))
    scale = training_tensors(tmp_path / "halved" / LAST)["scaler/scale"]
    assert scale.item() == 65536
    train(config, tmp_path / "halved", resume=True)
    whole, halved = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


def test_an_fp16_step_that_overflows_is_left_out(shapes, tmp_path):
    config = tiny_config(shapes, steps=2, precision="fp16")

    def huge(self, loss, scale=torch.amp.GradScaler.scale):
        return scale(self, loss) * float("inf")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp.GradScaler, "scale", huge)
        train(config, tmp_path / "run")
    torch.manual_seed(config.train.seed)
    initial = create_segmenter(config.model, num_classes=3).state_dict()
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, initial[name]) or "running" in name or "num_batches" in name
    assert training_tensors(tmp_path / "run" / LAST)["scaler/scale"].item() == 65536 / 4


def test_frozen_statistics(shapes, tmp_path):
    config = tiny_config(shapes, steps=2, batch_norm="frozen")
    train(config, tmp_path / "run")
    for name, tensor in weights(tmp_path / "run").items():
        if name.endswith(("running_mean", "running_var")):
            start = torch.zeros_like(tensor) if name.endswith("mean") else torch.ones_like(tensor)
            assert torch.equal(tensor, start) == name.startswith("backbone."), name


def test_early_stopping(shapes, tmp_path, monkeypatch):
    """The second validation is the best; two later ones are not."""
    figures = iter((0.2, 0.5, 0.4, 0.5, 0.9))
    monkeypatch.setattr("ccsnet.metrics.Metrics.miou", property(lambda self: self.pixel_share))
    notes = []

    class Listener(Silent):
        def note(self, text):
            notes.append(text)

    def measure(self):
        return Evaluation(Figures(next(figures)), [])

    monkeypatch.setattr("ccsnet.train._Run._measure", measure)
    config = tiny_config(shapes, steps=10, validate_every=1, patience=2)
    result = train(config, tmp_path / "run", reporter=Listener())
    assert [row["step"] for row in read_log(tmp_path / "run" / VALIDATION_FILE)] == [1, 2, 3, 4]
    assert result.best_miou == 0.5
    assert read_checkpoint(tmp_path / "run" / BEST).step == 2
    assert "Stopped at step 4: no better mIoU for 2 validations." in notes
    # Resumed, it is over already.
    monkeypatch.setattr("ccsnet.train._Run._measure", lambda self: Evaluation(Figures(0.5), []))
    train(config, tmp_path / "run", resume=True)
    assert len(read_log(tmp_path / "run" / LOG_FILE)) == 4


class Figures(Metrics):
    """Metrics with a given mIoU."""

    def __init__(self, miou: float) -> None:
        super().__init__(classes=("ground", "disc", "box"), confusion=np.eye(3, dtype=np.int64))
        object.__setattr__(self, "pixel_share", miou)


def test_checkpoints_that_are_kept(shapes, tmp_path):
    config = tiny_config(shapes, steps=7, validate_every=7, save_every=2, keep_last=3)
    train(config, tmp_path / "run")
    found = [read_checkpoint(path).step for path in kept(tmp_path / "run", LAST)]
    assert found == [7, 6, 4]


def test_the_loss_that_is_named(shapes, tmp_path):
    for name, loss, coarse in (("ce", "ce", None), ("sum", "ce:2+dice", "ce")):
        config = tiny_config(shapes, steps=1, loss=loss, coarse_loss=coarse)
        train(config, tmp_path / name)
    (one,), (other,) = (read_log(tmp_path / name / LOG_FILE) for name in ("ce", "sum"))
    assert other["coarse_loss"] == one["coarse_loss"]
    final = one["loss"] - one["coarse_loss"]
    assert 0 < other["loss"] - other["coarse_loss"] - 2 * final < 1  # What Dice adds.


def test_a_loss_that_there_is_not(shapes, tmp_path):
    with pytest.raises(InputError, match="Perhaps you meant dice"):
        train(tiny_config(shapes, loss="ce+dise"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimizer_of_timm(shapes, tmp_path):
    config = tiny_config(shapes, steps=4, validate_every=2)
    config = replace(config, optim=OptimConfig(optimizer="lion", lr=1e-3, schedule="cosine"))
    train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "halved", reporter=StopAt(2))
    other = replace(config, optim=replace(config.optim, optimizer="adamw"))
    with pytest.raises(InputError, match=r"Lion.*AdamW|AdamW.*Lion"):
        train(other, tmp_path / "halved", resume=True)
    train(config, tmp_path / "halved", resume=True)
    whole, halved = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("another backbone", {"backbone": "test_convnext"}, "has backbone='test_efficientnet'"),
        ("another head", {"head": "segformer"}, "has head='ccs', not 'segformer'"),
    ],
)
def test_a_checkpoint_of_another_model(shapes, tmp_path, name, change, text):
    config = tiny_config(shapes, steps=2)
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / LAST).read_bytes()
    other = replace(config, model=replace(config.model, **change))
    with pytest.raises(InputError, match=text):
        train(other, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / LAST).read_bytes() == before


def test_nothing_to_learn_from(tmp_path):
    """Labels without a single valid pixel."""
    data = make_shapes(tmp_path / "void", train=2, val=1)
    for path in (data / "labels").rglob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    with pytest.raises(InputError, match="No pixel of the 2 labels has a class"):
        train(tiny_config(data), tmp_path / "run")


def test_no_images_at_all(tmp_path):
    data = make_shapes(tmp_path / "none", train=0, val=1)
    with pytest.raises((InputError, FileNotFoundError), match="train"):
        train(tiny_config(data), tmp_path / "run")


@pytest.mark.slow
def test_a_loss_that_becomes_no_number_late(shapes, tmp_path):
    """At step 1000 one weight becomes infinite; what was saved before it is whole."""
    config = tiny_config(shapes, steps=1100, validate_every=500, save_every=100)
    step = torch.optim.AdamW.step
    calls = []

    def poisoned(self, *arguments, **options):
        step(self, *arguments, **options)
        calls.append(1)
        if len(calls) == 999:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", poisoned)
        with pytest.raises(FloatingPointError, match=r"step 1000 is not .* images were \d, \d\."):
            train(config, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / LAST).step == 900
    assert all(t.isfinite().all() for t in weights(tmp_path / "run").values())
    train(config, tmp_path / "run", resume=True)
    assert read_checkpoint(tmp_path / "run" / LAST).step == 1100


class Stopped(Exception):
    pass


class StopAt(Silent):
    """Ends a run, as a crash would, behind a validation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, stage, total, done=0):
        if stage == "training" and done == self.step:
            raise Stopped


def test_without_a_compiler(monkeypatch):
    def fail(function):
        raise RuntimeError("no working C++ compiler\nand so on")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"no working C\+\+ compiler\). It needs .* leave out"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize("order", [True, False])
def test_the_memory_order_that_is_asked_for(shapes, tmp_path, order):
    config = tiny_config(shapes, steps=1, channels_last=order)
    train(config, tmp_path / "run")
    model = load_model(read_checkpoint(tmp_path / "run"))
    kernels = [p for p in model.backbone.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    for kernel in kernels:
        assert kernel.is_contiguous(memory_format=torch.channels_last) == order
