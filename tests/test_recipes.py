"""Every recipe resolves, trains, and says what was published."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ccsnet.backbones.published import published_weights
from ccsnet.checkpoint import LAST, read_checkpoint
from ccsnet.config import RunConfig, from_json, to_json
from ccsnet.optim import OptimConfig, optimizer_over
from ccsnet.plugins import plugin_names
from ccsnet.recipes import RECIPES, recipe
from ccsnet.runlog import LOG_FILE, read_log
from ccsnet.segmenter import IMAGENET_MEAN, IMAGENET_STD
from ccsnet.train import train

FAMILIES = (
    *("mit", "resnet", "resnext", "resnest", "hrnet", "mobilenetv2", "mobilenetv3", "vit", "beit"),
    *("mae", "dinov2", "swin", "twins_pcpvt", "twins_svt", "convnext", "poolformer", "pvt_v2"),
)
FAST = {"camvid_lite0", "ccsnet_mit_b1_ade20k", "ccsnet_mobilenetv2_ade20k"}
NAMES = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in RECIPES]


def test_every_family_has_one():
    for family in FAMILIES:
        assert [n for n in RECIPES if n.startswith(f"ccsnet_{family}") and n.endswith("_ade20k")]


@pytest.mark.parametrize("name", RECIPES)
def test_resolves(name: str):
    config = recipe(name)
    assert from_json(RunConfig, to_json(config)) == config
    if name.startswith("ccsnet_"):
        assert config.data.dataset == name.rpartition("_")[2]
        assert config.data.dataset in plugin_names("ccsnet.datasets")
        assert config.model.head == "ccs"
        assert config.model.head_config == recipe("ccsnet_mit_b1_ade20k").model.head_config
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_weights_exist_and_images_are_normalised_as_theirs(name: str):
    model = recipe(name).model
    published = published_weights(model.backbone)
    if model.backbone_weights == "none":
        assert published.tag == "-"
        return
    assert published.tag != "-"
    assert published.licence != "-"
    assert (model.mean or IMAGENET_MEAN) == pytest.approx(published.mean)
    assert (model.std or IMAGENET_STD) == pytest.approx(published.std)


def tiny(config: RunConfig, data: Path) -> RunConfig:
    """The same model and optimizer: smaller images, fewer of them, no download."""
    return replace(
        config,
        data=replace(
            config.data,
            dataset=str(data),
            crop=(64, 64),
            short_side=None,
            long_side=None,
            workers=0,
        ),
        model=replace(config.model, backbone_weights="none"),
        train=replace(
            config.train,
            steps=1,
            batch_size=2,
            validate_batch_size=2,
            precision="float32",
            cpu=True,
        ),
    )


@pytest.mark.parametrize("name", NAMES)
def test_builds_and_steps(name: str, shapes: Path, tmp_path: Path):
    config = tiny(recipe(name), shapes)
    result = train(config, tmp_path / "run")
    (row,) = read_log(tmp_path / "run" / LOG_FILE)
    assert 0 < row["loss"] < 10
    assert 0 <= result.best_miou <= 1
    stored = read_checkpoint(tmp_path / "run" / LAST).config
    assert stored.model == config.model
    assert stored.optim == config.optim


# Published figures, literally.


def made(optim: OptimConfig) -> dict:
    """The settings that the optimizer itself has."""
    return optimizer_over([{"params": [torch.nn.Parameter(torch.ones(1))]}], optim).defaults


def test_resnet_as_published():
    config = recipe("ccsnet_resnet50c_ade20k")
    optim = config.optim
    assert (optim.optimizer, optim.lr, made(optim)["momentum"]) == ("sgd", 0.01, 0.9)
    assert optim.weight_decay == 5e-4
    assert (optim.power, optim.min_lr, optim.warmup_steps) == (0.9, 1e-4, 0)
    assert (optim.head_lr_multiplier, optim.layer_decay) == (1.0, 1.0)
    assert (config.model.output_stride, config.model.drop_path) == (8, 0.0)
    assert (config.train.steps, config.train.batch_size) == (160_000, 16)


def test_swin_as_published():
    config = recipe("ccsnet_swin_tiny_ade20k")
    optim = config.optim
    assert (optim.optimizer, optim.lr, optim.weight_decay) == ("adamw", 6e-5, 0.01)
    assert made(optim)["betas"] == (0.9, 0.999)
    assert (optim.power, optim.min_lr, optim.warmup_steps) == (1.0, 0.0, 1500)
    assert config.model.drop_path == 0.3
    assert (config.train.steps, config.train.batch_size) == (160_000, 16)


def test_beit_as_published():
    config = recipe("ccsnet_beit_base_ade20k")
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_steps) == (3e-5, 0.05, 1500)
    assert (optim.layer_decay, optim.layer_decay_by, optim.layer_decay_layers) == (0.9, "block", 12)
    assert config.model.drop_path == 0.1
    assert (config.data.crop, config.data.short_side) == ((640, 640), 640)
    assert (config.train.steps, config.train.batch_size) == (160_000, 16)


def test_convnext_as_published():
    optim = recipe("ccsnet_convnext_tiny_ade20k").optim
    assert (optim.lr, optim.weight_decay) == (1e-4, 0.05)
    assert (optim.layer_decay, optim.layer_decay_by, optim.layer_decay_layers) == (0.9, "stage", 6)
    assert recipe("ccsnet_convnext_tiny_ade20k").model.drop_path == 0.4
