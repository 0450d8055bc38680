"""Other programs' checkpoints, written here under their names, become ours by the command."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ccsnet
from ccsnet.backbones._recognise import MIT_SIZES
from ccsnet.backbones.mit import _create_mit
from ccsnet.backbones.timm import create_backbone, timm
from ccsnet.checkpoint import read_checkpoint
from ccsnet.convert import convert
from ccsnet.datasets._folder import read_spec
from ccsnet.errors import InputError
from ccsnet.heads._base import HeadConfig
from ccsnet.segmenter import ModelConfig
from tests import pages
from tests.foreign import (
    B0,
    BACKBONES,
    backbone,
    ccs_head,
    hugging_face_backbone,
    layer,
    literal_segformer,
    meta,
    mmseg_backbone,
    release_backbone,
    segformer_head,
)
from tests.heads.test_reference import VECTORS, read_vectors, relative_error
from tests.shapes import make_shapes

NARROW = {"mit_narrow": (6, 8, 10, 12), "mit_narrow_wide": (8, 8, 12, 16)}
"""Mix Transformers whose maps have the channels of the two files of reference vectors."""


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """timm knows the narrow transformers for the time of a test."""

    def entry(channels):
        def make(pretrained=False, **options):
            options = {"num_heads": (1, 2, 1, 4), **options}
            return _create_mit(
                "mit_b0", pretrained, options, channels=channels, depths=(1, 1, 2, 1)
            )

        make.__module__ = "ccsnet.backbones.mit"
        return make

    for name, channels in NARROW.items():
        monkeypatch.setitem(timm.models._registry._model_entrypoints, name, entry(channels))


@pytest.fixture(autouse=True)
def _built_in(monkeypatch):
    """The data sets of today: one to come may have as many classes as one of them."""
    monkeypatch.setattr("ccsnet.convert.plugin_names", lambda _: ["ade20k", "cityscapes"])


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint of the release with three classes and the narrow backbone."""

    def write(drop=(), more=(), name="release.pth", **beside):
        torch.manual_seed(1)
        state = mmseg_backbone(backbone("mit_narrow").features.state_dict())
        state |= ccs_head(NARROW["mit_narrow"], 3)
        state = {k: v for k, v in state.items() if k not in drop} | dict(more)
        torch.save({"meta": meta(3), "state_dict": state, **beside}, tmp_path / name)
        return tmp_path / name

    return write


# The way through


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_the_reference_vectors_pass_through_the_command(path, tmp_path, call):
    vectors = read_vectors(path)
    num = vectors["logits"].shape[1]
    channels = tuple(vectors[f"feature.c{i}"].shape[1] for i in (1, 2, 3, 4))
    name = next(name for name, widths in NARROW.items() if widths == channels)
    source = backbone(name)
    dim = vectors["decode_head.1.k_proj.weight"].shape[0]
    state = mmseg_backbone(source.features.state_dict())
    state |= {k: v for k, v in vectors.items() if k.startswith("decode_head.")}
    state |= layer("decode_head.1.conv_seg", num, dim, 1, 1, bias=True)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6e-5}]}
    torch.save(
        {"meta": meta(num), "state_dict": state, "optimizer": optimizer}, tmp_path / "iter.pth"
    )

    out = tmp_path / "models" / "ccs.safetensors"
    status, printed, err = call("convert", tmp_path / "iter.pth", "--out", out, "--backbone", name)
    assert (status, err) == (0, "")
    assert re.search(rf"backbone {name} .* MMSegmentation .* {len(source.state_dict())} ", printed)
    assert re.search(r"coarse head .* CCSNet's release .* 8 ", printed)
    assert re.search(r"head ccs .* CCSNet's release .* 43 ", printed)
    assert re.search(r"decode_head\.1\.conv_seg, which is never used .* 2 ", printed)
    assert "skipped: optimizer" in printed
    assert f"{num} classes of unnamed, known from the file. The model is in {out}" in printed

    predictor = ccsnet.load(out)
    features = [vectors[f"feature.c{i}"] for i in (1, 2, 3, 4)]
    with torch.no_grad():
        output = predictor.model.head(features)
    assert relative_error(output.logits, vectors["logits"]) < 1e-5
    assert relative_error(output.coarse, vectors["coarse_logits"]) < 1e-5
    assert_same_maps(predictor.model.backbone, source)

    made = read_checkpoint(out)
    assert made.step == 0
    assert made.info.classes == meta(num)["CLASSES"]
    assert made.info.colours == tuple((i, 255 - i, 7) for i in range(num))
    coarse_dim = vectors["decode_head.0.conv_seg.weight"].shape[1]
    assert made.config.model == ModelConfig(
        backbone=name,
        head="ccs",
        head_config=HeadConfig(dim=dim, coarse_dim=coarse_dim),
        drop_path=0.0,
    )


def assert_same_maps(ours, source):
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for mine, theirs in zip(ours(image), source(image), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["mmseg", "release", "hf"])
def test_segformer_of_three_programs(kind, tmp_path):
    source = backbone()
    torch.manual_seed(2)
    head = segformer_head(kind, num=19)
    state = BACKBONES[kind](source.features.state_dict()) | head
    if kind == "hf":
        file = tmp_path / "model.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    else:
        file = tmp_path / "model.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    made = convert(file, tmp_path / "out.safetensors")
    assert made.config.model.head == ("segformer_mmseg" if kind == "mmseg" else "segformer")
    assert made.config.model.backbone == "mit_b0"
    assert made.config.model.head_config.dim == 16
    assert (made.info.dataset, made.classes_from) == ("cityscapes", "their number alone")
    assert (made.info.short_side, made.info.long_side) == (1024, 2048)
    names = {"mmseg": "MMSegmentation", "release": "SegFormer's release", "hf": "Hugging Face"}
    assert made.rows[0] == ("backbone mit_b0", names[kind], len(source.state_dict()))
    unused = [row for row in made.rows if "decode_head.conv_seg" in row[0]]
    assert len(unused) == (kind == "release")

    model = ccsnet.load(made.path).model
    assert_same_maps(model.backbone, source)
    features = [torch.randn(2, c, *size) for c, size in zip(B0, SIZES, strict=True)]
    with torch.no_grad():
        logits = model.head(features).logits
    assert relative_error(logits, literal_segformer(kind, head, features)) < 1e-5


SIZES = ((17, 24), (9, 12), (5, 6), (3, 3))
"""Of four maps, not all even."""


def test_the_two_forms_of_segformer_are_not_one():
    """Why MMSegmentation's has a head of its own: without its ReLU the result is another."""
    torch.manual_seed(2)
    head = segformer_head("mmseg", num=5)
    features = [torch.randn(1, c, *size) for c, size in zip(B0, SIZES, strict=True)]
    logits = literal_segformer("mmseg", head, features)
    plain = {k: v for k, v in head.items() if ".bn." not in k or "fusion" in k}
    for stage in range(4):  # Their norms folded into convolutions with a bias.
        bn = {k: head[f"decode_head.convs.{stage}.bn.{k}"] for k in
              ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        scale = bn["weight"] * (bn["running_var"] + 1e-5).rsqrt()
        name = f"decode_head.convs.{stage}.conv"
        plain[f"decode_head.linear_c.{stage}.proj.weight"] = (
            plain.pop(f"{name}.weight")[..., 0, 0] * scale[:, None]
        )
        plain[f"decode_head.linear_c.{stage}.proj.bias"] = bn["bias"] - bn["running_mean"] * scale
    renames = {"fusion_conv.conv": "linear_fuse", "fusion_conv.bn": "batch_norm",
               "conv_seg": "classifier"}  # fmt: skip
    for theirs, ours in renames.items():
        plain = {k.replace(f".{theirs}.", f".{ours}."): v for k, v in plain.items()}
    fuse = plain["decode_head.linear_fuse.weight"]
    plain["decode_head.linear_fuse.weight"] = torch.cat(fuse.chunk(4, 1)[::-1], 1)
    assert relative_error(literal_segformer("hf", plain, features), logits) > 0.1


@pytest.mark.parametrize("name", ["mit_b0", "mit_b1"])
def test_the_release_at_its_own_size(name, tmp_path):
    source = backbone(name)
    state = release_backbone(source.features.state_dict())
    state |= ccs_head(MIT_SIZES[name][0], 150)
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "ccs.pth")
    made = convert(tmp_path / "ccs.pth", tmp_path / "ccs.safetensors", head="ccs", top_k=7)
    assert (made.config.model.backbone, made.config.model.head) == (name, "ccs")
    assert made.config.model.head_config.top_k == 7
    assert (made.info.dataset, made.classes_from) == ("ade20k", "their number alone")
    assert made.config.data.dataset == "ade20k"
    model = ccsnet.load(made.path).model
    assert model.head.top_k == 7
    assert_same_maps(model.backbone, source)


@pytest.mark.parametrize("name", MIT_SIZES)
def test_sizes_are_those_of_the_backbones(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    widths = tuple(stage.embed.out_channels for stage in model.stages)
    assert (widths, tuple(len(stage.blocks) for stage in model.stages)) == MIT_SIZES[name]


@pytest.mark.filterwarnings("always:The data set 'shapes' names")
def test_predict_and_evaluate_take_the_model(checkpoint, tmp_path, call):
    data = make_shapes(tmp_path / "shapes", train=1, val=2)
    out = tmp_path / "model.safetensors"
    file = checkpoint(optimizer={})
    status, printed, err = call(
        *("convert", file, "--out", out, "--backbone", "mit_narrow", "--dataset", data)
    )
    assert status == 0
    assert "3 classes of shapes, known from --dataset" in printed
    assert "'ground' for 'thing 0'" in err
    image = data / "images" / "val" / "0.png"
    status, printed, err = call("predict", out, image, "--out", tmp_path / "maps")
    assert (status, err) == (0, "")
    with Image.open(tmp_path / "maps" / "color" / "0.png") as made, Image.open(image) as photo:
        assert made.size == photo.size
        assert set(np.unique(np.asarray(made))) <= {0, 1, 2}
    status, printed, _ = call("evaluate", out)
    assert status == 0
    assert "2 images" in printed


def test_another_backbone_by_name(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model("test_efficientnet").state_dict()
    features = create_backbone("test_efficientnet")
    kept = {k: whole[k] for k in features.features.state_dict()}
    state = {f"backbone.{k}": v for k, v in kept.items()}
    state |= segformer_head("release", 19, channels=features.channels)
    file = tmp_path / "conv.pth"
    torch.save(state, file)
    made = convert(file, tmp_path / "a.safetensors", backbone="test_efficientnet")
    counters = sum(k.endswith("num_batches_tracked") for k in kept)
    assert made.rows[0] == ("backbone test_efficientnet", "timm", len(kept) - counters)
    assert ("skipped: counters of batches", "SegFormer's release", counters) in made.rows
    loaded = ccsnet.load(made.path).model.backbone.features.state_dict()
    for key, tensor in kept.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded[key], tensor)
    with pytest.raises(InputError, match=r"no Mix Transformer.*--backbone"):
        convert(file, tmp_path / "b.safetensors")
    torch.save(state | {"backbone.conv_head.weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"1 tensors that have no place in the backbone"):
        convert(file, tmp_path / "b.safetensors", backbone="test_efficientnet")


def test_commands_and_code_of_the_docs_run(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    made = backbone().features.state_dict()
    release = release_backbone(made)
    torch.save({"state_dict": release | ccs_head(B0, 150)}, "iter_160000.pth")
    theirs = release | segformer_head("release", 150)
    torch.save({"state_dict": theirs}, "segformer.b0.512x512.ade.160k.pth")
    faces = hugging_face_backbone(made) | segformer_head("hf", 19)
    save_file({k: v.contiguous() for k, v in faces.items()}, "model.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(
        "street.jpg"
    )
    ran = 0
    for block in pages.blocks("docs/convert.md"):
        if block.kind == "python":
            pages.execute(block)
        for command in pages.lines(block) if block.kind == "bash" else []:
            status, _, err = call(*command[1:])
            assert (status, err) == (0, "")
            ran += 1
    assert ran >= 4


# Classes


def test_classes_of_the_file_since_version_1(checkpoint, tmp_path):
    names = {"classes": ["road ", "sky", "car"], "palette": None}
    file = checkpoint(meta={"dataset_meta": names})
    made = convert(file, tmp_path / "a.safetensors", backbone="mit_narrow")
    assert made.info.classes == ("road", "sky", "car")
    assert len(set(made.info.colours)) == 3
    assert made.classes_from == "the file"


def test_classes_of_a_built_in_data_set_are_known_by_their_names(tmp_path):
    from ccsnet.datasets.cityscapes import SPEC

    state = release_backbone(backbone("mit_narrow").features.state_dict())
    state |= segformer_head("release", 19, channels=NARROW["mit_narrow"])
    theirs = {"CLASSES": [f"{name.title()} " for name in SPEC.classes], "PALETTE": "random"}
    torch.save({"meta": theirs, "state_dict": state}, tmp_path / "f.pth")
    made = convert(tmp_path / "f.pth", tmp_path / "a.safetensors", backbone="mit_narrow")
    assert (made.info.dataset, made.classes_from) == ("cityscapes", "the file")
    assert made.info.classes == SPEC.classes
    assert made.info.colours == SPEC.colours


@pytest.mark.parametrize(
    ("beside", "dataset", "message"),
    [
        ({}, "ade20k", r"has 3 classes, the data set 'ade20k' has 150.*--dataset"),
        ({"meta": {"CLASSES": ["a", "b"]}}, None, r"has 3 classes, but the file names 2: a, b\."),
        ({"meta": {}}, None, r"does not name the 3 classes .* no built-in data set has as many: "
                             r"ade20k \(150\).*--dataset"),
        ({"meta": {"CLASSES": ["a", "a", "b"]}}, None, "does not name the 3 classes"),
        ({}, "ade20", "Perhaps you meant ade20k"),
    ],
)  # fmt: skip
def test_classes_that_do_not_match(checkpoint, tmp_path, beside, dataset, message):
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=message):
        convert(checkpoint(**beside), out, backbone="mit_narrow", dataset=dataset)
    assert not out.exists()


def test_several_data_sets_with_as_many_classes(checkpoint, tmp_path, shapes, monkeypatch):
    spec, _ = read_spec(shapes)
    monkeypatch.setattr("ccsnet.convert.find_plugin", lambda *_: spec)
    with pytest.raises(InputError, match=r"several built-in data sets have as many: .*--dataset"):
        convert(checkpoint(meta={}), tmp_path / "a.safetensors", backbone="mit_narrow")


def test_a_data_set_that_is_not_rgb(checkpoint, tmp_path):
    bands = make_shapes(tmp_path / "bands", train=1, val=1)
    with (bands / "dataset.yaml").open("a") as yaml:
        yaml.write("channels: 5\n")
    with pytest.raises(InputError, match="5 channels; these models take RGB"):
        convert(checkpoint(), tmp_path / "a.safetensors", backbone="mit_narrow", dataset=str(bands))


# What is refused

K, BLOCK = "decode_head.1.k_proj.weight", "backbone.layers.2.1.1.norm1.weight"


@pytest.mark.parametrize(
    ("drop", "more", "message"),
    [
        ([K], {}, r"not a checkpoint of CCSNet's release: 1 of its 20 layers .*k_proj\.weight"),
        (["decode_head.1.k_proj.bias"], {}, r"do not fit together.*key\.bias"),
        ([], {K: torch.zeros(16, 9, 1, 1)}, r"do not fit together.*key\.weight"),
        ([], {"decode_head.1.extra.weight": torch.zeros(1)},
         r"1 tensors that have no place in CCSNet's release: decode_head\.1\.extra\.weight"),
        ([], {"loss.centre": torch.zeros(1)},
         r"1 tensors that have no place in backbone, decode head .*: loss\.centre"),
        ([BLOCK], {}, r"do not fit the backbone 'mit_narrow'.*stages\.2\.blocks\.1\.norm1\.weight"),
        ([], {BLOCK.replace("2.1.1", "2.1.2"): torch.zeros(10)}, "another size of the family"),
        ([], {"backbone.head.weight": torch.zeros(3, 12)},
         r"no place in the backbone 'mit_narrow': head\.weight"),
    ],
)  # fmt: skip
def test_what_is_missing_or_left_over(checkpoint, tmp_path, drop, more, message):
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=f"(?s){message}"):
        convert(checkpoint(drop, more), out, backbone="mit_narrow")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["release.pth"]


def test_the_auxiliary_head_is_left_out(checkpoint, tmp_path):
    file = checkpoint(more={"auxiliary_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)})
    made = convert(file, tmp_path / "a.safetensors", backbone="mit_narrow")
    assert ("skipped: auxiliary head", "CCSNet's release", 1) in made.rows


def test_norms_that_the_file_lacks(tmp_path):
    """Maps of ConvNeXt get a norm each, which no one may leave as drawn."""
    made = create_backbone("test_convnext")
    state = {f"backbone.{k}": v for k, v in made.features.state_dict().items()}
    state |= segformer_head("hf", 19, channels=made.channels)
    torch.save(state, tmp_path / "f.pth")
    with pytest.raises(InputError, match=r"no numbers for 8 tensors .*backbone\.norms\.0\.weight"):
        convert(tmp_path / "f.pth", tmp_path / "a.safetensors", backbone="test_convnext")


@pytest.mark.parametrize(
    "key", ["decode_head.1.linear_fuse.bn.running_var", "backbone.layers.0.1.0.norm1.bias"]
)
def test_weights_that_are_no_numbers(checkpoint, tmp_path, key):
    nan = torch.zeros(16 if "running_var" in key else 6)
    nan[2] = torch.nan
    with pytest.raises(InputError, match=r"no numbers for 1 tensors .* they hold NaN"):
        convert(checkpoint(more={key: nan}), tmp_path / "a.safetensors", backbone="mit_narrow")


def test_the_wrong_backbone(checkpoint, tmp_path):
    file, out = checkpoint(), tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"\(6, 8, 10, 12\) channels and \(1, 1, 2, 1\) blocks"):
        convert(file, out)
    with pytest.raises(InputError, match="do not fit the backbone 'mit_b0'"):
        convert(file, out, backbone="mit_b0")
    with pytest.raises(InputError, match="No backbone is called 'mit_b9'"):
        convert(file, out, backbone="mit_b9")


def test_heads_that_are_not_there(checkpoint, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"none of MMSegmentation's SegFormer, .*Leave out --head"):
        convert(checkpoint(), out, head="segformer")
    with pytest.raises(InputError, match="No head to convert is called 'fcn'"):
        convert(checkpoint(), out, head="fcn")
    alone = {k: v for k, v in mmseg_backbone(backbone("mit_narrow").features.state_dict()).items()}
    torch.save(alone, tmp_path / "alone.pth")
    with pytest.raises(InputError, match="For a backbone alone, train with --backbone-weights"):
        convert(tmp_path / "alone.pth", out)
    torch.save(ccs_head(B0, 3), tmp_path / "head.pth")
    with pytest.raises(InputError, match="a head without its backbone"):
        convert(tmp_path / "head.pth", out)


def test_a_setting_of_the_other_head_warns(tmp_path):
    state = release_backbone(backbone("mit_narrow").features.state_dict())
    state |= segformer_head("release", 19, channels=NARROW["mit_narrow"])
    torch.save(state, tmp_path / "s.pth")
    with pytest.warns(UserWarning, match="top_k=5 is a setting of ccs"):
        convert(tmp_path / "s.pth", tmp_path / "a.safetensors", backbone="mit_narrow", top_k=5)


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_cannot_be_read(checkpoint, tmp_path, call):
    file, out = checkpoint(), tmp_path / "a.safetensors"

    def refused(*arguments):
        status, printed, err = call("convert", *arguments, "--backbone", "mit_narrow")
        assert (status, printed) == (2, "")
        assert "Traceback" not in err
        return err

    trace = tmp_path / "executed"
    torch.save({"state_dict": {}, "meta": Attack(trace)}, tmp_path / "attack.pth")
    assert "could run code" in refused(tmp_path / "attack.pth", "--out", out)
    assert not trace.exists()
    (tmp_path / "half.pth").write_bytes(file.read_bytes()[:5000])
    assert "cannot be read as weights" in refused(tmp_path / "half.pth", "--out", out)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "holds no weights" in refused(tmp_path / "none.pth", "--out", out)
    assert "There is no file" in refused(tmp_path / "nowhere.pth", "--out", out)
    assert "First comes the file" in refused("--out", out)
    assert "written as .safetensors" in refused(file, "--out", tmp_path / "a.pth")
    assert "top_k is 0; it must be at least 1" in refused(file, "--out", out, "--top-k", 0)
    assert not out.exists()
    out.write_text("mine")
    assert "is not replaced" in refused(file, "--out", out)
    assert out.read_text() == "mine"


def test_help_and_a_missing_name(checkpoint, call):
    assert "--dataset" in call("convert", "--help")[1]
    assert "--dataset" in call("convert")[1]
    assert call("convert", checkpoint())[0] == 2  # Where to?


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    file = checkpoint()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ccsnet.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert(file, tmp_path / "a.safetensors", backbone="mit_narrow")
    assert [p.name for p in tmp_path.iterdir()] == ["release.pth"]
