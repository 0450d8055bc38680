"""How others name the tensors of a backbone, and how they become timm's names.

A layout is a table of renamings for one family of models, which is one module of timm. Where timm
converts the authors' own files itself, a layout only has to lead there, not to timm's names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class Entry(NamedTuple):
    """A tensor, and the keys of the file that it was made from."""

    tensor: Tensor
    keys: tuple[str, ...]


Entries = dict[str, Entry]
Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way of naming the tensors of a family."""

    name: str
    """What a user knows it by."""
    renames: tuple[Rename, ...]
    """Patterns and what replaces them, applied to every key one after the other."""
    finish: tuple[Callable[[Entries, Mapping[str, Tensor]], Entries], ...] = ()
    """What renaming cannot do; each is handed the wanted tensors by timm's names as well."""


def _join(
    entries: Entries, wanted: Mapping[str, Tensor], *, parts: tuple[str, ...], into: str
) -> Entries:
    """Stack linear layers of one input, such as query, key and value, into one layer."""
    pattern = re.compile(rf"(.*\.)({'|'.join(parts)})(\.\w+)")
    groups: dict[str, dict[str, Entry]] = {}
    joined: Entries = {}
    for key, entry in entries.items():
        found = pattern.fullmatch(key)
        if found:
            groups.setdefault(f"{found[1]}{into}{found[3]}", {})[found[2]] = entry
        else:
            joined[key] = entry
    for key, group in groups.items():
        if set(group) == set(parts):
            ordered = [group[part] for part in parts]
            joined[key] = Entry(
                torch.cat([entry.tensor for entry in ordered]),
                tuple(source for entry in ordered for source in entry.keys),
            )
        else:
            # Not of this layout, or biases of which timm keeps only some: nothing to stack.
            joined |= {_put_part(key, into, part): entry for part, entry in group.items()}
    return joined


def _put_part(key: str, into: str, part: str) -> str:
    head, _, tail = key.rpartition(f"{into}.")
    return f"{head}{part}.{tail}"


def _split_query(entries: Entries, wanted: Mapping[str, Tensor]) -> Entries:
    """Part a stack of query, key and value into the query, and key with value."""
    split: Entries = {}
    for key, (tensor, keys) in entries.items():
        if ".q_kv." in key and tensor.ndim:
            channels = len(tensor) // 3
            split[key.replace(".q_kv.", ".q.")] = Entry(tensor[:channels], keys)
            split[key.replace(".q_kv.", ".kv.")] = Entry(tensor[channels:], keys)
        else:
            split[key] = Entry(tensor, keys)
    return split


def _order_patches(entries: Entries, wanted: Mapping[str, Tensor]) -> Entries:
    """Order what merges 2x2 patches as the authors do: by place first, then by channel.

    MMSegmentation unfolds, which puts the channels first and the places row by row; the authors
    put the four places side by side, column by column.
    """
    ordered = dict(entries)
    for key, (tensor, keys) in entries.items():
        if re.search(r"downsample\.(reduction|norm)\.", key):
            by_place = tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -2)
            ordered[key] = Entry(by_place.movedim(-3, -1).flatten(-3), keys)
    return ordered


def _zero_patch_bias(entries: Entries, wanted: Mapping[str, Tensor]) -> Entries:
    """Add the patches' bias, which MMSegmentation leaves out unless it is told otherwise."""
    weight = entries.get("patch_embed.proj.weight")
    if weight is None or "patch_embed.proj.bias" in entries:
        return entries
    return {
        **entries,
        "patch_embed.proj.bias": Entry(weight.tensor.new_zeros(len(weight.tensor)), ()),
    }


def _share_tables(entries: Entries, wanted: Mapping[str, Tensor]) -> Entries:
    """Give each block the relative positions that BEiT shares between blocks in pretraining."""
    shared = entries.get("rel_pos_bias.relative_position_bias_table")
    if shared is None:
        return entries
    places = [key for key in wanted if key.endswith(".relative_position_bias_table")]
    return {**{key: shared for key in places}, **entries}


def _number_blocks(entries: Entries, wanted: Mapping[str, Tensor]) -> Entries:
    """Turn MobileNetV3 blocks that are counted through into timm's, counted by stage."""
    blocks = list(
        dict.fromkeys(found[0] for key in wanted if (found := re.match(r"blocks\.\d+\.\d+\.", key)))
    )
    numbered: Entries = {}
    for key, entry in entries.items():
        found = re.match(r"layer(\d+)\.", key)
        number = int(found[1]) if found else 0
        if found and 1 <= number <= len(blocks):
            block = blocks[number - 1]
            name = key.removeprefix(found[0])
            # Blocks that do not expand have other names for the same two norms.
            if f"layer{number}.conv_pw.weight" not in entries:
                name = re.sub(r"^conv_pwl\.", "conv_pw.", name)
                name = re.sub(r"^bn(2|3)\.", lambda m: f"bn{int(m[1]) - 1}.", name)
            numbered[block + name] = entry
        else:
            numbered[key] = entry
    return numbered


def _lower(template: str) -> Callable[[re.Match[str]], str]:
    """A replacement whose first number counts from 0 where the found one counts from 1."""
    return lambda found: template.format(int(found[1]) - 1, *found.groups()[1:])


_QKV = partial(_join, parts=("query", "key", "value"), into="qkv")

# A multi-layer perceptron and an attention as MMSegmentation's shared layers name them.
_MM_MLP: tuple[Rename, ...] = (
    (r"\bffn\.layers\.0\.0\.", "mlp.fc1."),
    (r"\bffn\.layers\.1\.", "mlp.fc2."),
)

_HF_VIT = Layout(
    name="Hugging Face",
    renames=(
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^(?:encoder\.)?layer\.", "blocks."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.(?:norm1|layernorm_before)\.", ".norm1."),
        (r"\.(?:norm2|layernorm_after)\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.lambda_([12])$", r".gamma_\1"),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
        (r"^layernorm\.", "norm."),
    ),
    finish=(_QKV,),
)
_HF_BEIT = Layout(
    name="Hugging Face",
    renames=(
        *_HF_VIT.renames,
        (r"\.attn\.query\.bias$", ".attn.q_bias"),
        (r"\.attn\.value\.bias$", ".attn.v_bias"),
    ),
    finish=(_QKV,),
)
_MM_VIT = Layout(
    name="MMSegmentation",
    renames=(
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
        *_MM_MLP,
        (r"^ln1\.", "norm."),
    ),
    finish=(_zero_patch_bias,),
)
_MM_STEM = Layout(
    name="MMSegmentation",
    renames=((r"^stem\.7\.", "bn1."), (r"^stem\.", "conv1.")),
)
_SEGFORMER: tuple[Rename, ...] = (
    (r"^patch_embed(\d)\.proj\.", _lower("stages.{}.embed.")),
    (r"^patch_embed(\d)\.norm\.", _lower("stages.{}.embed_norm.")),
    (r"^block(\d)\.(\d+)\.", _lower("stages.{}.blocks.{}.")),
    (r"^norm(\d)\.", _lower("stages.{}.norm.")),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.sr\.", ".attention.reduce."),
    (r"\.mlp\.fc1\.", ".feed_forward.expand."),
    (r"\.mlp\.dwconv\.dwconv\.", ".feed_forward.depthwise."),
    (r"\.mlp\.fc2\.", ".feed_forward.project."),
)

# By the last part of the module in which the family's models are defined.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mit": (
        Layout(name="SegFormer's release", renames=_SEGFORMER),
        Layout(
            name="Hugging Face",
            renames=(
                (r"^patch_embeddings\.(\d)\.proj\.", r"stages.\1.embed."),
                (r"^patch_embeddings\.(\d)\.layer_norm\.", r"stages.\1.embed_norm."),
                (r"^block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
                (r"\.layer_norm_([12])\.", r".norm\1."),
                (r"\.attention\.output\.dense\.", ".attention.proj."),
                (r"\.attention\.self\.query\.", ".attention.q."),
                (r"\.attention\.self\.layer_norm\.", ".attention.norm."),
                (r"\.attention\.self\.sr\.", ".attention.reduce."),
                (r"\.attention\.self\.", ".attention."),
                (r"\.mlp\.dense1\.", ".feed_forward.expand."),
                (r"\.mlp\.dwconv\.dwconv\.", ".feed_forward.depthwise."),
                (r"\.mlp\.dense2\.", ".feed_forward.project."),
            ),
            finish=(partial(_join, parts=("key", "value"), into="kv"),),
        ),
        Layout(
            name="MMSegmentation",
            renames=(
                (r"^layers\.(\d)\.0\.projection\.", r"stages.\1.embed."),
                (r"^layers\.(\d)\.0\.norm\.", r"stages.\1.embed_norm."),
                (r"^layers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"^layers\.(\d)\.2\.", r"stages.\1.norm."),
                (r"\.attn\.attn\.in_proj_", ".attention.q_kv."),
                (r"\.attn\.attn\.out_proj\.", ".attention.proj."),
                (r"\.attn\.", ".attention."),
                (r"\.attention\.sr\.", ".attention.reduce."),
                (r"\.ffn\.layers\.0\.", ".feed_forward.expand."),
                (r"\.ffn\.layers\.1\.", ".feed_forward.depthwise."),
                (r"\.ffn\.layers\.4\.", ".feed_forward.project."),
            ),
            finish=(_split_query,),
        ),
    ),
    "vision_transformer": (
        _HF_VIT,
        _MM_VIT,
        # Blocks in chunks, as DINOv2's own training code stores them.
        Layout(name="the authors' training", renames=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)),
    ),
    "deit": (
        Layout(name="the authors' release", renames=((r"\.gamma_([12])$", r".ls\1.gamma"),)),
        _HF_VIT,
        _MM_VIT,
    ),
    "beit": (
        Layout(name="the authors' pretraining", renames=(), finish=(_share_tables,)),
        _HF_BEIT,
        _MM_VIT,
    ),
    "swin_transformer": (
        Layout(
            name="Hugging Face",
            renames=(
                (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
                (r"^embeddings\.norm\.", "patch_embed.norm."),
                (r"^encoder\.layers\.", "layers."),
                (r"\.layernorm_before\.", ".norm1."),
                (r"\.layernorm_after\.", ".norm2."),
                (r"\.attention\.output\.dense\.", ".attn.proj."),
                (r"\.attention\.self\.", ".attn."),
                (r"\.intermediate\.dense\.", ".mlp.fc1."),
                (r"\.output\.dense\.", ".mlp.fc2."),
                (r"^layernorm\.", "norm."),
            ),
            finish=(_QKV,),
        ),
        Layout(
            name="MMSegmentation",
            renames=(
                (r"^patch_embed\.projection\.", "patch_embed.proj."),
                (r"^stages\.", "layers."),
                (r"\.attn\.w_msa\.", ".attn."),
                *_MM_MLP,
            ),
            finish=(_order_patches,),
        ),
    ),
    "twins": (
        Layout(
            name="MMSegmentation",
            renames=(
                (r"^patch_embeds\.(\d)\.projection\.", r"patch_embeds.\1.proj."),
                (r"^position_encodings\.(\d)\.proj\.", r"pos_block.\1.proj.0."),
                (r"^layers\.", "blocks."),
                (r"\.attn\.attn\.in_proj_", ".attn.q_kv."),
                (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
                *_MM_MLP,
                (r"^norm_list\.(\d)\.", r"norm\1."),
            ),
            finish=(_split_query,),
        ),
    ),
    "pvt_v2": (
        Layout(
            name="MMDetection",
            renames=(
                (r"^layers\.0\.0\.projection\.", "patch_embed.proj."),
                (r"^layers\.0\.0\.norm\.", "patch_embed.norm."),
                (r"^layers\.(\d)\.0\.projection\.", r"stages.\1.downsample.proj."),
                (r"^layers\.(\d)\.0\.norm\.", r"stages.\1.downsample.norm."),
                (r"^layers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"^layers\.(\d)\.2\.", r"stages.\1.norm."),
                (r"\.attn\.attn\.in_proj_", ".attn.q_kv."),
                (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
                (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
                (r"\.ffn\.layers\.1\.", ".mlp.dwconv."),
                (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
            ),
            finish=(_split_query,),
        ),
    ),
    "convnext": (
        Layout(
            name="Hugging Face",
            renames=(
                (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
                (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
                (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1."),
                (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1."),
                (r"^(stages\..*)\.layernorm\.", r"\1.norm."),
                (r"\.layer_scale_parameter$", ".gamma"),
                (r"\.grn\.weight$", ".grn.gamma"),
                (r"\.grn\.bias$", ".grn.beta"),
            ),
        ),
        Layout(
            name="MMSegmentation",
            renames=(
                (r"\.depthwise_conv\.", ".dwconv."),
                (r"\.pointwise_conv([12])\.", r".pwconv\1."),
            ),
        ),
    ),
    "resnet": (_MM_STEM,),
    "resnest": (_MM_STEM,),
    "mobilenetv3": (
        Layout(
            name="MMSegmentation",
            renames=(
                (r"^layer0\.conv\.", "conv_stem."),
                (r"^layer0\.bn\.", "bn1."),
                (r"\.expand_conv\.conv\.", ".conv_pw."),
                (r"\.expand_conv\.bn\.", ".bn1."),
                (r"\.depthwise_conv\.conv\.", ".conv_dw."),
                (r"\.depthwise_conv\.bn\.", ".bn2."),
                (r"\.linear_conv\.conv\.", ".conv_pwl."),
                (r"\.linear_conv\.bn\.", ".bn3."),
                (r"\.se\.conv1\.conv\.", ".se.conv_reduce."),
                (r"\.se\.conv2\.conv\.", ".se.conv_expand."),
                (r"^(layer\d+)\.bn\.", r"\1.bn1."),
            ),
            finish=(_number_blocks,),
        ),
    ),
    # MobileNetV2 lives there; only its first block does not expand.
    "efficientnet": (
        Layout(
            name="MMSegmentation",
            renames=(
                (r"^conv1\.conv\.", "conv_stem."),
                (r"^conv1\.bn\.", "bn1."),
                (r"^layer1\.0\.conv\.0\.conv\.", "blocks.0.0.conv_dw."),
                (r"^layer1\.0\.conv\.1\.conv\.", "blocks.0.0.conv_pw."),
                (r"^layer1\.0\.conv\.0\.bn\.", "blocks.0.0.bn1."),
                (r"^layer1\.0\.conv\.1\.bn\.", "blocks.0.0.bn2."),
                (r"^layer(\d)\.(\d+)\.conv\.", _lower("blocks.{}.{}.conv.")),
                (r"\.conv\.0\.conv\.", ".conv_pw."),
                (r"\.conv\.1\.conv\.", ".conv_dw."),
                (r"\.conv\.2\.conv\.", ".conv_pwl."),
                (r"\.conv\.(\d)\.bn\.", lambda found: f".bn{int(found[1]) + 1}."),
            ),
        ),
    ),
}
