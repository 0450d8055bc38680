"""Others' files load, and compute what the others compute.

The folder `layouts` holds, for the smallest model of each layout, the names and shapes of its
tensors ("{0..3}" stands for the numbers from 0 to 3), and figures of the four maps that the library
itself computes from the tensors and the image that `made` gives: mean, standard deviation, first
and last value. They are of MMSegmentation 1.2.2 and mmpretrain 1.2.0 (`*_mmseg`), of transformers
4.53.3 (`*_hf`), and of MMSegmentation after its own converters (`mit_segformer`, `swin_authors`).
"""

import itertools
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

import ccsnet.backbones.mit  # noqa: F401
from ccsnet.backbones.weights import LoadedWeights, load_state

FOLDER = Path(__file__).parent / "layouts"
OUTPUTS = json.loads((FOLDER / "outputs.json").read_text(encoding="utf-8"))


class Case(NamedTuple):
    """A list of tensors, the model that they are for, and what the loader is to say of them."""

    model: str
    layout: str
    options: dict[str, Any] = {}  # noqa: RUF012
    norm: Any = None
    """What stands behind the maps."""
    eps: float | None = None
    """Of the norms, where the library's differs from timm's."""
    skipped: str = "(?!)"
    """What of the list the backbone has no place for."""


VIT = {"out_indices": (2, 5, 8, 11)}
SMALL_BEIT = {**VIT, "embed_dim": 192, "num_heads": 3}
SWIN = {"strict_img_size": False, "always_partition": True}
SVT_NORMS = r"backbone\.norm_list\."
CASES = {
    "mit_segformer": Case("mit_b0", "SegFormer's release", skipped="head"),
    "mit_hf": Case("mit_b0", "Hugging Face", eps=1e-5, skipped="classifier"),
    "mit_mmseg": Case("mit_b0", "MMSegmentation"),
    "swin_authors": Case(
        "swin_tiny_patch4_window7_224", "the authors' release", SWIN, skipped=r"norm\.|head"
    ),
    # It does not shift windows that are as large as the map, as timm without "always_partition".
    "swin_hf": Case("swin_tiny_patch4_window7_224", "Hugging Face", skipped="layernorm"),
    "swin_mmseg": Case("swin_tiny_patch4_window7_224", "MMSegmentation", SWIN, norm=LayerNorm2d),
    "twins_pcpvt_mmseg": Case("twins_pcpvt_small", "MMSegmentation", eps=1e-5),
    "twins_svt_mmseg": Case("twins_svt_small", "MMSegmentation", eps=1e-5, skipped=SVT_NORMS),
    "vit_mmseg": Case("vit_tiny_patch16_224", "MMSegmentation", VIT),
    "vit_hf": Case("vit_tiny_patch16_224", "Hugging Face", VIT, skipped=r"vit\.layernorm|class"),
    "beit_mmseg": Case("beit_base_patch16_224", "MMSegmentation", SMALL_BEIT),
    "beit_hf": Case(
        "beit_base_patch16_224", "Hugging Face", SMALL_BEIT, skipped="pooler|.*mask_token"
    ),
    "dinov2_hf": Case(
        "vit_small_patch14_dinov2", "Hugging Face", VIT, skipped="layernorm|.*mask_token"
    ),
    "dinov2_registers_hf": Case(
        "vit_small_patch14_reg4_dinov2",
        "Hugging Face",
        VIT,
        skipped=r"\w+\.layernorm|classifier|.*mask_token",
    ),
    "convnext_hf": Case("convnext_atto", "Hugging Face", skipped="layernorm"),
    "convnext_mmseg": Case("convnext_atto", "MMSegmentation", norm=LayerNorm2d),
    "poolformer_mmseg": Case(
        "poolformer_s12", "the authors' release", norm=lambda channels: nn.GroupNorm(1, channels)
    ),
    "resnetv1c_mmseg": Case("resnet50c", "MMSegmentation"),
    "resnest_mmseg": Case("resnest50d", "MMSegmentation"),
    "mobilenetv2_mmseg": Case("mobilenetv2_100", "MMSegmentation"),
    "mobilenetv3_mmseg": Case("tf_mobilenetv3_small_100", "MMSegmentation", eps=1e-5),
}
SLOW = ("dinov2_hf", "dinov2_registers_hf")


def made(key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that are the same in every library: drawn from the name, scaled by what it is of."""
    numbers = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    tensor = torch.from_numpy(np.asarray(numbers, dtype=np.float32))
    kind = key.rpartition(".")[2]
    if key == "image":
        return tensor
    if kind == "running_var":
        return 1 + 0.1 * tensor.abs()
    biases = ("bias", "q_bias", "v_bias", "in_proj_bias", "running_mean")
    if tensor.ndim == 1 and kind not in biases:
        return 1 + 0.1 * tensor
    if tensor.ndim < 2 or kind not in ("weight", "in_proj_weight"):
        return 0.1 * tensor
    return tensor / math.sqrt(tensor[0].numel())


def listed(name: str) -> dict[str, Tensor]:
    """The tensors of a list."""
    state = {}
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        keys, shape = line.split()
        parts = re.split(r"\{(\d+)\.\.(\d+)\}", keys)
        ranges = [range(int(a), int(b) + 1) for a, b in zip(parts[1::3], parts[2::3], strict=True)]
        for numbers in itertools.product(*ranges):
            key = parts[0] + "".join(f"{n}{p}" for n, p in zip(numbers, parts[3::3], strict=True))
            state[key] = made(key, tuple(map(int, shape.split("x"))))
    return state


def loaded(name: str) -> tuple[nn.Module, nn.ModuleList | None, LoadedWeights, dict[str, Tensor]]:
    case = CASES[name]
    features = timm.create_model(case.model, features_only=True, **case.options).eval()
    channels = features.feature_info.channels()[-4:]
    norms = nn.ModuleList(map(case.norm, channels)) if case.norm else None
    state = listed(name)
    return features, norms, load_state(case.model, features, state, name, 3, norms), state


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def test_the_maps_are_the_library_s_own(name: str):
    case, expected = CASES[name], OUTPUTS[name]
    features, norms, report, state = loaded(name)
    assert report.layout == case.layout
    assert report.resized == report.adapted == ()
    assert {key for key in state if key not in report.skipped} == {
        key for key in state if not re.match(case.skipped, key)
    }
    tensors = [key for key in features.state_dict() if not key.endswith("num_batches_tracked")]
    assert report.matched == len(tensors) + (8 if norms else 0)
    for module in features.modules():
        if case.eps and isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.eps = case.eps
    with torch.no_grad():
        maps = features(made("image", (1, 3, expected["size"], expected["size"])))
        if maps[0].shape[-1] != maps[0].shape[-2]:
            maps = [each.movedim(-1, 1) for each in maps]
        maps = maps[-len(expected["maps"]) :]
        if norms:
            maps = [norm(each) for norm, each in zip(norms, maps, strict=True)]
    figures = torch.tensor(
        [[each.mean(), each.std(), each[0, 0, 0, 0], each[0, -1, -1, -1]] for each in maps]
    )
    torch.testing.assert_close(figures, torch.tensor(expected["maps"]), atol=2e-3, rtol=1e-3)


def test_every_list_is_tried():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES) == set(OUTPUTS)


def test_norms_of_twins_are_filled():
    features = timm.create_model("twins_svt_small", features_only=True)
    norms = nn.ModuleList(map(LayerNorm2d, (64, 128, 256, 512)))
    state = listed("twins_svt_mmseg")
    report = load_state("twins_svt_small", features, state, "svt", 3, norms)
    assert report.skipped == ()
    for index, norm in enumerate(norms):
        torch.testing.assert_close(norm.bias.data, state[f"backbone.norm_list.{index}.bias"])


def test_norms_are_left_alone_if_one_is_missing():
    features = timm.create_model("convnext_atto", features_only=True)
    norms = nn.ModuleList(map(LayerNorm2d, (40, 80, 160, 320)))
    state = listed("convnext_mmseg")
    del state["backbone.norm2.bias"]
    report = load_state("convnext_atto", features, state, "convnext", 3, norms)
    assert len(report.skipped) == 7
    assert all((norm.weight == 1).all() for norm in norms)


def test_merging_patches_is_unfolding():
    """MMSegmentation merges what `nn.Unfold` gives; ours must do so with the same numbers."""
    features, _, _, state = loaded("swin_mmseg")
    image = torch.randn(1, 96, 8, 8)
    prefix = "backbone.stages.0.downsample."
    columns = nn.Unfold(2, stride=2)(image).transpose(1, 2)
    normed = nn.functional.layer_norm(
        columns, (384,), state[f"{prefix}norm.weight"], state[f"{prefix}norm.bias"]
    )
    expected = nn.functional.linear(normed, state[f"{prefix}reduction.weight"])
    merged = features.layers_1.downsample(image.movedim(1, -1))
    torch.testing.assert_close(merged.flatten(1, 2), expected)


def attention_of(state: dict[str, Tensor], prefix: str, channels: int, heads: int):
    """PyTorch's own attention, with the tensors as MMSegmentation stores them."""
    attention = nn.MultiheadAttention(channels, heads, batch_first=True)
    attention.load_state_dict(
        {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    )
    return attention


def test_a_stack_of_query_key_and_value():
    features, _, _, state = loaded("vit_mmseg")
    attention = attention_of(state, "backbone.layers.3.attn.attn.", 192, 3)
    tokens = torch.randn(2, 10, 192)
    expected, _ = attention(tokens, tokens, tokens)
    torch.testing.assert_close(features.model.blocks[3].attn(tokens), expected)


def test_a_query_apart_from_key_and_value():
    """The last stage of a Mix Transformer does not reduce its keys: it is plain attention."""
    features, _, _, state = loaded("mit_mmseg")
    attention = attention_of(state, "backbone.layers.3.1.1.attn.attn.", 256, 8)
    tokens = torch.randn(1, 2, 3, 256)
    expected, _ = attention(*[tokens.flatten(1, 2)] * 3)
    found = features.model.stages[3].blocks[1].attention(tokens)
    torch.testing.assert_close(found.flatten(1, 2), expected)


def test_separate_key_and_value():
    features, _, _, state = loaded("mit_hf")
    prefix = "segformer.encoder.block.1.0.attention.self."
    found = features.model.stages[1].blocks[0].attention.kv
    tokens = torch.randn(5, 64)
    for part, name in zip(found(tokens).chunk(2, dim=-1), ("key", "value"), strict=True):
        expected = nn.functional.linear(
            tokens, state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"]
        )
        torch.testing.assert_close(part, expected)


def test_shared_relative_positions():
    """BEiT's pretraining has one table for all blocks, which fine-tuning gives to each."""
    model = timm.create_model("beit_base_patch16_224", embed_dim=48, num_heads=3)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("bias_table")}
    shared = torch.randn(732, 3)
    state |= {"rel_pos_bias.relative_position_bias_table": shared, "mask_token": torch.zeros(1)}
    features = timm.create_model(
        "beit_base_patch16_224", embed_dim=48, num_heads=3, features_only=True, **VIT
    )
    report = load_state("beit_base_patch16_224", features, state, "beit", 3)
    assert report.layout == "the authors' pretraining"
    assert "rel_pos_bias.relative_position_bias_table" not in report.skipped
    assert "mask_token" in report.skipped
    for block in features.model.blocks:
        torch.testing.assert_close(block.attn.relative_position_bias_table.data, shared)


RELEASES = {
    "pvt_v2_b0": (
        (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
        (r"\.dwconv\.", ".dwconv.dwconv."),
    ),
    "convnext_tiny": (
        (r"^stem\.", "downsample_layers.0."),
        (r"\.downsample\.", "."),
        (r"^stages\.(\d)\.(\d)\.(weight|bias)", r"downsample_layers.\1.\2.\3"),
        (r"\.blocks\.", "."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    ),
    "deit3_small_patch16_224": ((r"\.ls([12])\.gamma", r".gamma_\1"),),
    # In chunks of three, as its training stores them.
    "vit_small_patch14_dinov2": (
        (r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}."),
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_the_authors_names(name: str):
    options = VIT if "vit" in name or "deit" in name else {}
    if "dinov2" in name:
        options = {**options, "img_size": 70}
    features = timm.create_model(name, features_only=True, **options)
    whole = timm.create_model(name, **{k: v for k, v in options.items() if k == "img_size"})
    state = {}
    for key, tensor in whole.state_dict().items():
        for pattern, replacement in RELEASES[name]:
            key = re.sub(pattern, replacement, key)
        state[f"module.{key}"] = tensor + torch.rand_like(tensor)
    report = load_state(name, features, state, "release", 3)
    assert report.layout in ("the authors' release", "the authors' training")
    values = zip(whole.state_dict(), state.values(), strict=True)
    by_plain = {key.replace(".", "_"): tensor for key, tensor in values}
    for key, tensor in features.state_dict().items():
        torch.testing.assert_close(tensor, by_plain[key.removeprefix("model.").replace(".", "_")])


def test_registers_of_dinov2_have_no_position():
    """The release adds the class token's position each time; timm keeps the sum of the two."""
    name = "vit_small_patch14_reg4_dinov2"
    state = dict(timm.create_model(name, img_size=70).state_dict())
    state["register_tokens"] = state.pop("reg_token")
    position = torch.randn(1, 1, 384)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 384)
    features = timm.create_model(name, features_only=True, img_size=70, **VIT)
    report = load_state(name, features, state, "release", 3)
    assert report.resized == ()
    assert "cls_token" not in report.skipped
    torch.testing.assert_close(features.model.cls_token.data, state["cls_token"] + position)
    torch.testing.assert_close(features.model.pos_embed.data, state["pos_embed"][:, 1:])
