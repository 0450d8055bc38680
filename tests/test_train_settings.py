"""Settings of a run that each must do what they say."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ccsnet.checkpoint import LAST, load_model, read_checkpoint
from ccsnet.errors import InputError
from ccsnet.optim import OptimConfig
from ccsnet.preflight import check_compiler
from ccsnet.runlog import LOG_FILE, read_log
from ccsnet.segmenter import create_segmenter
from ccsnet.train import train
from tests.shapes import OPTIONS, tiny_config


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

    class Stopped(Exception):
        pass

    from ccsnet.progress import Silent

    class Stop(Silent):
        def start(self, task, total, done=0):
            if task == "training" and done == 2:
                raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path / "halved", reporter=Stop())
    train(config, tmp_path / "halved", resume=True)
    assert losses(tmp_path / "halved") == losses(tmp_path / "whole")
    whole, halved = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


def test_gradient_checkpointing_learns_the_same(shapes, tmp_path):
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


def test_without_a_compiler(monkeypatch):
    def fail(function):
        raise RuntimeError("no working C++ compiler\nand so on")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"no working C\+\+ compiler\). It needs .* leave out"):
        check_compiler(torch.device("cpu"))
