"""The package's decoders on our maps. What all heads promise is in test_contract.py."""

import dataclasses
import importlib
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ccsnet
from ccsnet import segmenter
from ccsnet.errors import InputError
from ccsnet.heads._base import HeadConfig
from ccsnet.heads.smp import DECODERS, PACKAGE
from ccsnet.plugins import find_plugin, plugin_notes
from ccsnet.segmenter import create_segmenter
from ccsnet.train import train
from tests.shapes import tiny_config, tiny_model

smp = importlib.import_module(PACKAGE)  # After ccsnet, which makes torchvision importable.

CHANNELS = (8, 12, 16, 20)
NAMES = sorted(DECODERS)
DOUBLING = ("DPT", "FPN", "Linknet", "MAnet", "UnetPlusPlus")
"""Decoders that take maps whose sizes halve exactly."""
POOLING = ("DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet")
"""Decoders with a batch norm over one place an image."""


def head_of(name: str, channels=CHANNELS, config: HeadConfig | None = None) -> Any:
    torch.manual_seed(0)
    config = config or HeadConfig(dim=16)
    return find_plugin("ccsnet.heads", f"smp.{name}", "build")(channels, 5, config)


def maps(height: int, width: int, strides=(4, 8, 16, 32), batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s))
        for c, s in zip(CHANNELS, strides, strict=True)
    ]


def decoded(head: Any, features: list[torch.Tensor]) -> torch.Tensor:
    """What the classifier gets."""
    given = []
    handle = head.classifier.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    with torch.no_grad():
        head(features)
    handle.remove()
    return given[0]


def test_every_architecture_of_the_package_is_here():
    models = smp.MODEL_ARCHITECTURES_MAPPING.values()
    assert {model.__name__ for model in models} == set(NAMES)


# Against the package's own models


def theirs_of(name: str, **options) -> Any:
    """The package's model in its defaults, on an encoder that has no map at stride 2 either."""
    options = {"encoder_name": "tu-convnext_atto"} | options
    if name in ("DeepLabV3", "DeepLabV3Plus", "PAN"):
        options = {"encoder_output_stride": 16} | options
    if name == "PSPNet":  # Its default cuts the encoder at stride 8.
        options["encoder_depth"] = 5
    torch.manual_seed(0)
    return getattr(smp, name)(encoder_weights=None, classes=5, **options).eval()


# DPT's model takes plain transformers only, whose maps all have one stride.
COMPARED = [
    *((name, {}) for name in NAMES if name != "DPT"),
    *((name, {"encoder_output_stride": 8}) for name in ("DeepLabV3", "DeepLabV3Plus")),
    *((name, {"encoder_name": "resnet18"}) for name in ("UPerNet", "FPN", "DeepLabV3Plus")),
]


@pytest.mark.parametrize(("name", "options"), COMPARED)
def test_same_decoder_and_numbers_as_the_package(name, options):
    theirs = theirs_of(name, **options)
    for module in theirs.decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.rand(module.num_features) - 0.5
            module.running_var = torch.rand(module.num_features) + 0.5
    head = head_of(name, theirs.encoder.out_channels[-4:], HeadConfig()).eval()
    head.decoder.load_state_dict(theirs.decoder.state_dict())
    size = (128, 192) if name == "PAN" else (64, 96)  # Theirs needs 8 places a side.
    with torch.no_grad():
        features = theirs.encoder(torch.randn(2, 3, *size))
        expected = theirs.decoder(list(features))
    torch.testing.assert_close(decoded(head, features[-4:]), expected)


def test_dpt_is_the_package_s_decoder():
    head = head_of("DPT").eval()
    with torch.no_grad():
        expected = head.decoder(maps(64, 96), [None] * 4)
    torch.testing.assert_close(decoded(head, maps(64, 96)), expected)
    assert sum(p.numel() for p in head_of("DPT", config=HeadConfig()).decoder.parameters()) > 1e7


@pytest.mark.parametrize("name", [name for name in NAMES if name != "DPT"])
def test_weights_are_drawn_as_there(name):
    theirs = theirs_of(name)
    ours = head_of(name, theirs.encoder.out_channels[-4:], HeadConfig()).decoder.state_dict()
    compared = 0
    for key, weight in theirs.decoder.state_dict().items():
        if weight.ndim == 4 and weight.numel() > 10_000:
            torch.testing.assert_close(ours[key].std(), weight.std(), rtol=0.1, atol=0)
            compared += 1
    assert compared


# Sizes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strides", [(4, 8, 16, 16), (4, 8, 8, 8)])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (40, 500), (4, 4)])
def test_maps_of_dilated_backbones(name, strides, size):
    head = head_of(name).eval()
    features = maps(size[0], size[1], strides)
    logits = head(features).logits
    assert logits.isfinite().all()
    finest, coarsest = features[0].shape[-2:], features[-1].shape[-2:]
    times = {"DPT": 2, "Linknet": 4, "MAnet": 4, "Unet": 4, "UnetPlusPlus": 4}.get(name, 1)
    grid = coarsest if name in ("DeepLabV3", "PSPNet") else [times * side for side in finest]
    assert logits.shape[-2:] == torch.Size(grid)


@pytest.mark.parametrize("name", DOUBLING)
def test_padding_repeats_the_edge_and_is_cropped(name):
    head = head_of(name).eval()
    features = maps(65, 97)
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4)]
    padded = [
        F.pad(f, (0, w - f.shape[-1], 0, h - f.shape[-2]), mode="replicate")
        for f, (h, w) in zip(features, sizes, strict=True)
    ]
    logits = head(features).logits
    height, width = logits.shape[-2:]
    assert (height % 17, width % 25) == (0, 0)
    torch.testing.assert_close(logits, head(padded).logits[..., :height, :width])


def test_deeplab_works_at_stride_16():
    """A coarsest map at stride 32 is resized to that stride, corners not aligned."""
    for name in ("DeepLabV3", "DeepLabV3Plus"):
        head = head_of(name).eval()
        features = maps(64, 96)
        enlarged = F.interpolate(features[3], size=(4, 6), mode="bilinear", align_corners=False)
        expected = head([*features[:3], enlarged]).logits
        torch.testing.assert_close(head(features).logits, expected)
    assert head_of("DeepLabV3").eval()(maps(65, 97)).logits.shape[-2:] == (5, 7)


def test_small_maps_are_enlarged_for_pan():
    head = head_of("PAN").eval()
    features = maps(64, 400)
    enlarged = F.interpolate(features[3], size=(8, 13), mode="bilinear", align_corners=False)
    expected = head([*features[:3], enlarged]).logits
    torch.testing.assert_close(head(features).logits, expected)


# Settings


def test_dropout_is_the_decoder_s():
    rates = {
        name: {m.p for m in head_of(name, config=HeadConfig(dropout=0.3)).modules() if _drops(m)}
        for name in NAMES
    }
    having = {"DeepLabV3", "DeepLabV3Plus", "FPN", "PSPNet"}
    assert rates == {name: {0.3} if name in having else set() for name in NAMES}


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout | nn.Dropout2d)


@pytest.mark.parametrize("name", NAMES)
def test_dim_is_the_width(name):
    small, large = (
        sum(p.numel() for p in head_of(name, config=HeadConfig(dim=dim)).parameters())
        for dim in (64, 128)
    )
    assert small < large


@pytest.mark.parametrize(("dim", "width"), [(1, 32), (64, 32), (66, 64), (256, 128), (512, 256)])
def test_fpn_s_width_divides_into_groups(dim, width):
    assert head_of("FPN", config=HeadConfig(dim=dim)).classifier.in_channels == width


# Mistakes


@pytest.mark.parametrize("name", NAMES)
def test_one_image_in_a_training_step(name):
    head = head_of(name).train()
    if name not in POOLING:
        head(maps(128, 128, batch=1)).logits.sum().backward()
        return
    with pytest.raises(InputError, match=rf"'smp.{name}' .* one image. Raise --batch-size"):
        head(maps(128, 128, batch=1))
    head.eval()(maps(128, 128, batch=1))


def test_other_errors_are_their_own(monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError("something else")

    head = head_of("FPN")
    monkeypatch.setattr(head.decoder, "forward", fail)
    with pytest.raises(ValueError, match="something else"):
        head(maps(64, 64))


def test_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    notes = plugin_notes("ccsnet.heads")
    for name in NAMES:
        assert notes[f"smp.{name}"].endswith("Needs: pip install 'ccsnet[smp]'")
    assert "ccsnet[smp]" not in notes["ccs"]
    monkeypatch.setattr(segmenter, "create_backbone", partial(pytest.fail, "weights come later"))
    with pytest.raises(InputError, match=r"'smp.FPN' needs .*: pip install 'ccsnet\[smp\]'"):
        create_segmenter(tiny_model("smp.FPN"), num_classes=3)


def test_names_are_listed_without_the_package():
    code = (
        "import sys; from ccsnet.plugins import find_plugin, plugin_notes\n"
        "plugin_notes('ccsnet.heads'); find_plugin('ccsnet.heads', 'smp.FPN', 'build')\n"
        f"print({{'timm', {PACKAGE!r}}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# From training to prediction


@pytest.mark.parametrize("name", ["FPN", "Unet"])  # Logits at stride 4, at stride 1.
def test_trains_saves_loads_and_predicts(name, shapes, tmp_path):
    config = dataclasses.replace(tiny_config(shapes, steps=2), model=tiny_model(f"smp.{name}"))
    result = train(config, tmp_path)
    assert 0 <= result.best_miou <= 1
    predictor = ccsnet.load(tmp_path)
    assert predictor.model.head.name == name
    image = np.random.default_rng(0).integers(0, 256, (70, 91, 3), np.uint8)
    for window in (None, 64):
        label = predictor.predict(image, ccsnet.PredictConfig(window=window)).label
        assert label.shape == (70, 91)
        assert label.max() < 3
