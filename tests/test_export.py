"""Exported files label as their checkpoint does, or are not written."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import ccsnet
from ccsnet import cli_export, export_forms
from ccsnet.backbones._sizes import Conv2dSame, make_exportable, resample_offsets
from ccsnet.checkpoint import read_checkpoint
from ccsnet.errors import InputError
from ccsnet.export import ExportConfig, export, made_images, parity_images
from ccsnet.export_forms import FORMATS
from ccsnet.runtime import ExportedModel, load
from tests.test_runtime import BLOCKED, picture

ROOT = Path(__file__).parents[1]
TORCH_FREE = ROOT / ".venv" / "torch-free" / "bin"
FORMS = ("onnx", "torchscript", "torch-export", "openvino")


@pytest.fixture(autouse=True)
def _shapes_are_not_checked(monkeypatch):
    """Where a graph is made, sizes are symbols and tensors, which the tests' check refuses."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def checkpoint(run):
    return read_checkpoint(run.out)


@pytest.fixture(scope="module")
def predictor(run):
    return ccsnet.load(run.out, device="cpu")


def need(to):
    for module in FORMATS[to].needs:
        pytest.importorskip(module)


def written(checkpoint, folder, to, **settings):
    need(to)
    return export(checkpoint, folder / f"m{FORMATS[to].suffix}", ExportConfig(to=to, **settings))


# Settings and sources


@pytest.mark.parametrize("size", [(0, 64), (64, 65), (-32, 32)])
def test_sizes_are_multiples_of_32(size):
    with pytest.raises(InputError, match=f"size is {size[0]} x {size[1]}; both sides must be"):
        ExportConfig(size=size)


def test_an_unknown_form():
    with pytest.raises(InputError, match=r"No form of export is called 'onnxx'.*meant onnx"):
        ExportConfig(to="onnxx")


def test_another_ending(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"m\.onnx does not end in \.pt,.*Write to .*m\.pt"):
        export(checkpoint, tmp_path / "m.onnx", ExportConfig(to="torchscript"))


def test_a_missing_package_is_named_before_any_work(checkpoint, tmp_path, monkeypatch):
    def nothing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(InputError, match=r"needs the package onnx.*'ccsnet\[export\]'"):
        export(checkpoint, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_images_to_compare_on(run, checkpoint, tmp_path):
    images, source = parity_images(checkpoint, ExportConfig())
    assert source == "the split 'val' of shapes"
    assert {image.shape for image in images} == {(72, 96, 3), (64, 80, 3), (90, 61, 3)}

    for i in range(20):
        Image.fromarray(picture(8, 8 + i)).save(tmp_path / f"{i:02}.png")
    images, source = parity_images(checkpoint, ExportConfig(images=tmp_path))
    assert source == str(tmp_path)
    assert [image.shape[1] - 8 for image in images] == [0, 2, 4, 6, 8, 10, 12, 14]

    gone = dataclasses.replace(checkpoint.config.data, dataset=str(tmp_path / "gone"))
    moved = dataclasses.replace(
        checkpoint, config=dataclasses.replace(checkpoint.config, data=gone)
    )
    images, source = parity_images(moved, ExportConfig())
    assert source == "made pictures"
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        parity_images(moved, ExportConfig(images=tmp_path / "nowhere"))


def test_made_images_have_the_channels(checkpoint):
    info = dataclasses.replace(checkpoint.info, channels=5)
    assert {image.shape[2] for image in made_images(info)} == {5}


# What is written


@pytest.mark.parametrize("label_map", [False, True])
def test_a_trace_takes_all_sizes(checkpoint, tmp_path, label_map):
    made = written(checkpoint, tmp_path, "torchscript", label_map=label_map)
    assert made.different == 0
    assert (made.images, made.source) == (4, "the split 'val' of shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    texts = {"ccsnet": ""}
    with export_forms.quiet():
        program = torch.jit.load(made.path, _extra_files=texts)
    said = json.loads(texts["ccsnet"])
    assert said["classes"] == ["ground", "disc", "box"]
    assert said["run"]["step"] == checkpoint.step
    assert said["versions"]["torch"] == torch.__version__
    for batch, height, width in ((1, 64, 64), (3, 96, 160)):
        shape = program(torch.rand(batch, 3, height, width)).shape
        wanted = (batch, 3, height // 4, width // 4)
        assert shape == ((batch, height, width) if label_map else wanted)


def test_one_size(checkpoint, tmp_path):
    made = written(checkpoint, tmp_path, "torchscript", size=(64, 96))
    assert made.info.size == (64, 96)
    assert FORMATS["torchscript"].open(made.path).info == made.info


def test_a_network_that_labels_otherwise_is_not_kept(checkpoint, tmp_path, monkeypatch):
    """Its file is removed, and one that was there before stays."""
    form = FORMATS["torchscript"]

    class Wrong(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, image):
            return self.network(image).flip(1)

    wrong = dataclasses.replace(form, write=lambda n, p, i: form.write(Wrong(n), p, i))
    monkeypatch.setattr(export_forms, "FORMATS", {"torchscript": wrong})
    monkeypatch.setattr("ccsnet.export.FORMATS", {"torchscript": wrong})
    (tmp_path / "m.pt").write_text("before")
    with pytest.raises(InputError, match=r"labels \d+\.\d+ % of the pixels of the split 'val'"):
        export(checkpoint, tmp_path / "m.pt", ExportConfig(to="torchscript"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert (tmp_path / "m.pt").read_text() == "before"


def test_a_network_that_fails_on_an_image_is_not_kept(checkpoint, tmp_path, monkeypatch):
    form = FORMATS["torchscript"]

    def fails(image):
        raise RuntimeError("index out of bounds")

    def opened(path):
        return ExportedModel(fails, form.open(path).info)

    broken = dataclasses.replace(form, open=opened)
    monkeypatch.setattr("ccsnet.export.FORMATS", {"torchscript": broken})
    with pytest.raises(InputError, match=r"it fails at 72 x 96\).*--size 512 512"):
        export(checkpoint, tmp_path / "m.pt", ExportConfig(to="torchscript"))
    assert not list(tmp_path.iterdir())


def test_a_trace_that_holds_for_one_size_only(checkpoint, tmp_path):
    class OneSize(torch.nn.Module):
        def forward(self, image):
            return image.new_ones(image.shape[0], 3, int(image.shape[2]) // 4, 5)

    info = dataclasses.replace(load_info(checkpoint), size=None)
    with (
        pytest.raises(InputError, match=r"not be written for all sizes at once.*--size 512 512"),
        export_forms.quiet(),
    ):
        FORMATS["torchscript"].write(OneSize(), tmp_path / "m.pt", info)


def load_info(checkpoint):
    from ccsnet.export import _info_of

    return _info_of(checkpoint, ExportConfig(to="torchscript"))


# What symbols cannot do


def graph_of(network, size):
    rows, columns = (32 * torch.export.Dim(name, min=2) for name in ("rows", "columns"))
    with export_forms.quiet(), torch.no_grad():
        made = torch.export.export(
            network, (torch.rand(2, 3, *size),), dynamic_shapes=({2: rows, 3: columns},)
        )
    return made.module()


@pytest.mark.slow
def test_same_convolutions_in_a_graph():
    """Each pads by what is left of its map's size: of symbols, terms that grow with every layer."""
    kinds = ((3, 2, 1), (5, 2, 1), (2, 2, 1), (3, 1, 2), ((3, 5), (2, 1), 1))
    layers = [Conv2dSame(3, 3, size, stride, dilation=d) for size, stride, d in kinds]
    network = torch.nn.Sequential(*layers)
    image = torch.rand(1, 3, 64, 160)
    with torch.no_grad():
        wanted = network(image)
        make_exportable(network)
        assert torch.equal(network(image), wanted)
        found = graph_of(network, (96, 128))(image.expand(2, -1, -1, -1))[:1]
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_relative_positions_in_a_graph():
    """BEiT's tables are resampled inside it, to the grid of the image that comes."""

    class Offsets(torch.nn.Module):
        def forward(self, image):
            return resample_offsets(table, (6, 4), (image.shape[2] // 16, image.shape[3] // 16))

    torch.manual_seed(0)
    table = torch.randn(11 * 7 + 3, 2)
    made = graph_of(Offsets(), (320, 384))
    with export_forms.quiet():
        traced = torch.jit.trace(Offsets(), torch.rand(2, 3, 320, 384), check_trace=False)
    for size in ((64, 64), (96, 64), (448, 128)):
        wanted = Offsets()(torch.rand(2, 3, *size))
        assert torch.equal(made(torch.rand(2, 3, *size)), wanted)
        assert torch.equal(traced(torch.rand(2, 3, *size)), wanted)


@pytest.mark.slow
def test_what_a_graph_takes_for_granted_is_tried(checkpoint, monkeypatch):
    """One that enlarges small maps is good from a larger side on only, or not at all."""

    class Enlarges(torch.nn.Module):
        def forward(self, image):
            small = torch.nn.functional.avg_pool2d(image, 32)
            height, width = (max(side, 8) for side in small.shape[2:])
            return small if (height, width) == tuple(small.shape[2:]) else small.new_zeros(1)

    class Pools(torch.nn.Module):
        def forward(self, image):
            places = torch.nn.functional.avg_pool2d(image, 256)
            return image + (0 if places.shape[2] == places.shape[3] == 1 else 1)

    info = dataclasses.replace(load_info(checkpoint), size=None)
    with export_forms.quiet(), torch.no_grad():
        _, smallest = export_forms._program(Enlarges(), info)
        with pytest.raises(InputError, match=r"all sizes at once.*--size 512 512"):
            export_forms._program(Pools(), info)
    assert smallest == 256


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_what_would_not_end_is_refused(checkpoint, backbone):
    info = dataclasses.replace(load_info(checkpoint), size=None, run=(("backbone", backbone),))
    with pytest.raises(InputError, match=r"does not come to an end.*--size 512 512"):
        export_forms._program(torch.nn.Identity(), info)


# Every form, with its own packages


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("settings", [{}, {"label_map": True}, {"size": (96, 64)}])
def test_every_form_labels_as_the_checkpoint(checkpoint, predictor, tmp_path, to, settings):
    made = written(checkpoint, tmp_path, to, **settings)
    assert made.different <= 0.001
    model = FORMATS[to].open(made.path)
    assert model.info == made.info
    assert model.classes == predictor.classes
    size = settings.get("size")
    for batch in (1, 2, 5):
        image = np.stack([picture(*(size or (128, 96)), i) for i in range(batch)])
        image = np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)
        with torch.no_grad():
            logits = predictor.model(torch.from_numpy(image)).logits
        found = model.network(image)
        if settings.get("label_map"):
            wide = torch.nn.functional.interpolate(logits, size=image.shape[2:], mode="bilinear")
            assert (found == wide.argmax(1).numpy()).mean() >= 0.999
        else:
            np.testing.assert_allclose(found, logits.numpy(), atol=1e-3 * float(logits.std()))
    if not settings:
        for height, width in ((72, 96), (200, 131), (70, 300)):
            wanted = predictor.predict(picture(height, width)).label
            assert (model.predict(picture(height, width)) == wanted).mean() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_files_for_other_programs_are_opened_by_name(checkpoint, tmp_path, to):
    made = written(checkpoint, tmp_path, to, size=(64, 64))
    assert load(made.path, threads=1).info == made.info
    made.path.write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot open"):
        load(made.path)


@pytest.mark.slow
def test_predict_uses_the_file_alone(run, checkpoint, predictor, tmp_path):
    """In a process that cannot import torch, with the run out of reach."""
    made = written(checkpoint, tmp_path, "onnx")
    images = sorted((run.data / "images" / "val").iterdir())
    words = ["--runtime", "onnxruntime", str(made.path), *map(str, images)]
    words += ["--out", str(tmp_path / "out"), "--save", "index"]
    code = f"from ccsnet.cli_export import predict_exported; predict_exported({words!r})"
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 images: index" in done.stdout
    for image in images:
        label = np.asarray(Image.open(tmp_path / "out" / "index" / image.name))
        assert (label == predictor.predict(image).label).mean() >= 0.999


@pytest.mark.slow
def test_predict_where_torch_is_not_installed(run, checkpoint, predictor, tmp_path):
    """In an environment of its own, with no path back to this one."""
    if not TORCH_FREE.is_dir():
        pytest.skip("no environment without torch: make .venv/torch-free/installed")
    made = written(checkpoint, tmp_path, "onnx")
    images = sorted((run.data / "images" / "val").iterdir())
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def ran(*words):
        return subprocess.run(
            [TORCH_FREE / words[0], *map(str, words[1:])],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=own,
        )

    find = "import importlib.util as i; print(*map(i.find_spec, ('torch', 'timm', 'torchvision')))"
    assert ran("python", "-c", find).stdout.split() == ["None"] * 3
    done = ran(
        *("ccsnet", "predict", "--runtime", "onnxruntime", made.path, *images),
        *("--out", "out", "--save", "index", "color", "overlay"),
    )
    assert done.returncode == 0, done.stderr
    assert "4 images: index, color, overlay in out" in done.stdout
    for image in images:
        label = np.asarray(Image.open(tmp_path / "out" / "index" / image.name))
        assert np.array_equal(label, load(made.path).predict(image))
        assert (label == predictor.predict(image).label).mean() >= 0.999
    done = ran("ccsnet", "predict", run.out, images[0])
    assert done.returncode == 2
    assert "error: This needs the package torch" in done.stderr


def test_the_packages_without_torch_are_those_of_the_page():
    """What the page tells to install is what the test above has."""
    made = re.search(r"^RUNTIME_PACKAGES := (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    assert made is not None
    assert f"pip install {made[1]}\n" in page


@pytest.mark.slow
def test_eight_bits(run, checkpoint, tmp_path):
    from ccsnet.quantise import quantise

    made = written(checkpoint, tmp_path, "onnx")
    calibration = run.data / "images" / "train"
    small = quantise(made.path, tmp_path / "m-int8.onnx", calibration, checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m-int8.json",
        "m-int8.onnx",
        "m.onnx",
    ]
    assert small.calibration_images == 8
    assert (small.compared, small.num_compared) == ("the split 'val' of shapes", 4)
    assert small.miou_before == pytest.approx(run.best.miou, abs=2e-3)
    assert small.miou_after == pytest.approx(small.miou_before, abs=0.1)
    assert small.agreement > 0.9
    assert json.loads((tmp_path / "m-int8.json").read_text())["miou_after"] == small.miou_after
    assert load(small.path).info == made.info


@pytest.mark.slow
def test_eight_bits_where_the_classes_have_changed_since(run, checkpoint, tmp_path):
    """No mIoU is told of labels that mean something else by now."""
    from ccsnet.quantise import quantise

    made = written(checkpoint, tmp_path, "onnx")
    data = tmp_path / "shapes"
    shutil.copytree(run.data, data)
    text = (data / "dataset.yaml").read_text()
    (data / "dataset.yaml").write_text(text.replace("[ground, disc, box", "[disc, ground, box"))
    config = checkpoint.config
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset=str(data)))
    changed = dataclasses.replace(checkpoint, config=moved)
    small = quantise(made.path, tmp_path / "m-int8.onnx", run.data / "images" / "train", changed)
    assert small.compared == "the calibration images"
    assert small.miou_before is None


@pytest.mark.slow
def test_the_verb(run, tmp_path, capsys):
    need("onnx")
    out = tmp_path / "m.onnx"
    calibration = run.data / "images" / "train"
    words = [str(run.out), "--out", str(out), "--int8", str(calibration)]
    assert cli_export.export(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "any size, 3 classes of shapes. On 4 images (the split 'val' of shapes)" in printed
    assert "m-int8.onnx: 8 bits" in printed
    assert "mIoU" in printed


def test_the_verb_traces(run, tmp_path, capsys):
    out = tmp_path / "m.pt"
    words = [str(run.out), "--to", "torchscript", "--out", str(out), "--size", "64", "96"]
    assert cli_export.export(words) == 0
    assert "images of 64 x 96" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--int8 is for ONNX .*Leave out --to torchscript"):
        cli_export.export([*words, "--int8", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--runtime", "onnxruntime", "m.onnx"], "Which file and which images"),
        (["--runtime", "onnxruntime", "m.xml", "x.png"], r"takes \.onnx files, not m\.xml"),
        (["m.onnx", "x.png", "--runtime=openvino"], r"takes \.xml files, not m\.onnx"),
        (["--runtime", "openvino", "m.xml", "x.png", "--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_mistakes_with_a_runtime(words, text):
    with pytest.raises(InputError, match=text):
        cli_export.predict_exported(words)
