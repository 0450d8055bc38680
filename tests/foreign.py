"""Checkpoints under other programs' names, and what those programs compute with them."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ccsnet.backbones._recognise import MIT_SIZES
from ccsnet.backbones.timm import create_backbone
from tests.heads.test_reference import VECTORS, read_vectors

B0 = MIT_SIZES["mit_b0"][0]

SHARED = ((r"^model\.stages\.", "stages."), (r"\.attention\.", ".attn."))
RELEASE = (
    *SHARED,
    (r"^stages\.(\d)\.embed\.", "patch_embed{}.proj."),
    (r"^stages\.(\d)\.embed_norm\.", "patch_embed{}.norm."),
    (r"^stages\.(\d)\.blocks\.", "block{}."),
    (r"^stages\.(\d)\.norm\.", "norm{}."),
    (r"\.reduce\.", ".sr."),
    (r"\.feed_forward\.expand\.", ".mlp.fc1."),
    (r"\.feed_forward\.depthwise\.", ".mlp.dwconv.dwconv."),
    (r"\.feed_forward\.project\.", ".mlp.fc2."),
)
MMSEG = (
    *SHARED,
    (r"^stages\.(\d)\.embed\.", r"layers.\1.0.projection."),
    (r"^stages\.(\d)\.embed_norm\.", r"layers.\1.0.norm."),
    (r"^stages\.(\d)\.blocks\.", r"layers.\1.1."),
    (r"^stages\.(\d)\.norm\.", r"layers.\1.2."),
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    (r"\.reduce\.", ".sr."),
    (r"\.feed_forward\.expand\.", ".ffn.layers.0."),
    (r"\.feed_forward\.depthwise\.", ".ffn.layers.1."),
    (r"\.feed_forward\.project\.", ".ffn.layers.4."),
)
HUGGING_FACE = (
    (r"^model\.stages\.(\d)\.embed\.", r"patch_embeddings.\1.proj."),
    (r"^model\.stages\.(\d)\.embed_norm\.", r"patch_embeddings.\1.layer_norm."),
    (r"^model\.stages\.(\d)\.blocks\.", r"block.\1."),
    (r"^model\.stages\.(\d)\.norm\.", r"layer_norm.\1."),
    (r"\.norm([12])\.", r".layer_norm_\1."),
    (r"\.attention\.proj\.", ".attention.output.dense."),
    (r"\.attention\.q\.", ".attention.self.query."),
    (r"\.attention\.kv\.", ".attention.self.kv."),
    (r"\.attention\.reduce\.", ".attention.self.sr."),
    (r"\.attention\.norm\.", ".attention.self.layer_norm."),
    (r"\.feed_forward\.expand\.", ".mlp.dense1."),
    (r"\.feed_forward\.depthwise\.", ".mlp.dwconv.dwconv."),
    (r"\.feed_forward\.project\.", ".mlp.dense2."),
)


def renamed(features: dict[str, Tensor], renames: tuple, prefix: str) -> dict[str, Tensor]:
    """The backbone's tensors under another program's names."""
    state = {}
    for key, tensor in features.items():
        for pattern, replacement in renames:
            found = re.match(pattern, key)
            if found and "{}" in replacement:  # Stages counted from 1.
                replacement = replacement.format(int(found[1]) + 1)
            key = re.sub(pattern, replacement, key)
        state[prefix + key] = tensor
    return state


def mmseg_backbone(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMSegmentation stacks query, key and value, and has 1x1 convolutions for linear layers."""
    state = renamed(features, MMSEG, "backbone.")
    for key in [key for key in state if ".attn.q." in key]:
        stack = torch.cat([state.pop(key), state.pop(key.replace(".q.", ".kv."))])
        state[key.replace(".q.", ".attn.in_proj_")] = stack
    return {
        k: v[..., None, None] if re.search(r"ffn\.layers\.[04]\.weight", k) else v
        for k, v in state.items()
    }


def hugging_face_backbone(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face has a layer each for key and value."""
    state = renamed(features, HUGGING_FACE, "segformer.encoder.")
    for key in [key for key in state if ".kv." in key]:
        keys, values = state.pop(key).chunk(2)
        state[key.replace(".kv.", ".key.")] = keys
        state[key.replace(".kv.", ".value.")] = values
    return state


def release_backbone(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed(features, RELEASE, "backbone.")


def layer(name: str, *shape: int, bias: bool = False) -> dict[str, Tensor]:
    weights = {f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5}
    return weights | ({f"{name}.bias": torch.randn(shape[0])} if bias else {})


def norm(name: str, dim: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(dim) + 0.5,
        f"{name}.bias": torch.randn(dim),
        f"{name}.running_mean": torch.randn(dim),
        f"{name}.running_var": torch.rand(dim) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def segformer_head(kind: str, num: int, dim: int = 16, channels=B0) -> dict[str, Tensor]:
    """A SegFormer head of random weights as one of three programs stores it."""
    linear, fuse, fuse_norm, classify = {
        "mmseg": ("convs.{}.conv", "fusion_conv.conv", "fusion_conv.bn", "conv_seg"),
        "release": ("linear_c{}.proj", "linear_fuse.conv", "linear_fuse.bn", "linear_pred"),
        "hf": ("linear_c.{}.proj", "linear_fuse", "batch_norm", "classifier"),
    }[kind]
    state = {}
    for stage, width in enumerate(channels):
        if kind == "mmseg":
            state |= layer(linear.format(stage), dim, width, 1, 1)
            state |= norm(f"convs.{stage}.bn", dim)
        else:
            state |= layer(linear.format(stage + (kind == "release")), dim, width, bias=True)
    state |= layer(fuse, dim, 4 * dim, 1, 1) | norm(fuse_norm, dim)
    state |= layer(classify, num, dim, 1, 1, bias=True)
    if kind == "release":
        state |= layer("conv_seg", num, dim, 1, 1, bias=True)
    return {f"decode_head.{key}": tensor for key, tensor in state.items()}


def literal_segformer(kind: str, state: dict[str, Tensor], features: list[Tensor]) -> Tensor:
    """What the three programs compute, step by step."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"decode_head.{name}.{leaf}"]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"decode_head.{name}.weight"]
        weight = weight if weight.ndim == 4 else weight[..., None, None]
        return F.conv2d(x, weight, state.get(f"decode_head.{name}.bias"))

    maps = []
    for stage, feature in enumerate(features):
        if kind == "mmseg":
            x = normed(conv(feature, f"convs.{stage}.conv"), f"convs.{stage}.bn").relu()
        else:
            name = f"linear_c{stage + 1}.proj" if kind == "release" else f"linear_c.{stage}.proj"
            x = conv(feature, name)
        size = features[0].shape[-2:]
        maps.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    if kind == "mmseg":
        x = normed(conv(torch.cat(maps, 1), "fusion_conv.conv"), "fusion_conv.bn").relu()
        return conv(x, "conv_seg")
    release = kind == "release"
    x = conv(torch.cat(maps[::-1], 1), "linear_fuse.conv" if release else "linear_fuse")
    x = normed(x, "linear_fuse.bn" if release else "batch_norm").relu()
    return conv(x, "linear_pred" if release else "classifier")


def ccs_head(channels, num: int) -> dict[str, Tensor]:
    """A head of CCSNet's release of random weights: the reference's names, any widths."""
    widths = dict(zip(("c1_proj", "c2_proj", "c3_proj", "c4_proj"), channels, strict=True))
    widths |= {"k_proj": channels[3], "v_proj": channels[3], "convs.0.conv": channels[2]}
    vectors = read_vectors(VECTORS[1])
    state = {}
    for key, tensor in vectors.items():
        if not key.startswith("decode_head."):
            continue
        shape = list(tensor.shape)
        for name, width in widths.items():
            if key.endswith(f"{name}.weight"):
                shape[1] = width
        if "conv_seg." in key or "linear_pred." in key:
            shape[0] = num
        random = torch.rand(shape) + 0.5 if "running_var" in key else torch.randn(shape)
        state[key] = random if shape else tensor
    return state | layer("decode_head.1.conv_seg", num, 16, 1, 1, bias=True)


def backbone(name: str = "mit_b0"):
    """A backbone whose weights and biases are all random."""
    torch.manual_seed(5)
    made = create_backbone(name).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 10)
    return made


def meta(num: int) -> dict:
    """What MMSegmentation said of the classes before its version 1."""
    return {
        "mmseg_version": "0.29.1",
        "CLASSES": tuple(f"thing {i}" for i in range(num)),
        "PALETTE": [[i, 255 - i, 7] for i in range(num)],
    }


BACKBONES = {
    "mmseg": mmseg_backbone,
    "release": release_backbone,
    "hf": hugging_face_backbone,
}
