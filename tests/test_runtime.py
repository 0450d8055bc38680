"""Labelling in NumPy gives what labelling in torch gives, and needs no torch."""

import dataclasses
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ccsnet
from ccsnet import runtime, runtime_maps
from ccsnet.errors import InputError
from ccsnet.predict import PredictConfig
from ccsnet.runtime import ExportedModel, ExportInfo
from ccsnet.sliding import sliding_logits
from tests.shapes import CLASSES, COLOURS

INFO = ExportInfo(
    dataset="shapes",
    classes=CLASSES,
    colours=COLOURS,
    channels=3,
    short_side=None,
    long_side=None,
    window=None,
    label_map=False,
    size=None,
    versions=(("ccsnet", "0.1"),),
    run=(("backbone", "resnet18"), ("miou", 0.5)),
)

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'timm', 'accelerate', 'torchvision'):
            raise ModuleNotFoundError(f'{name} is not installed here', name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def predictor(run):
    return ccsnet.load(run.out, device="cpu")


@pytest.fixture(scope="module")
def network(predictor):
    """The checkpoint's network as an exported one is called."""

    def network(image):
        with torch.inference_mode():
            return predictor.model(torch.from_numpy(image)).logits.numpy()

    return network


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# From logits to label maps


def interpolated(logits, size):
    wide = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False
    )
    return wide[0].numpy()


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 8)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
def test_label_maps_are_those_of_interpolation(shape, size, seed):
    logits = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    wide = interpolated(logits, size)
    label = runtime_maps.upsample_argmax(logits, size)
    assert label.shape == size
    # The class that is chosen has the largest value there, up to rounding.
    chosen = np.take_along_axis(wide, label[None], 0)[0]
    np.testing.assert_allclose(chosen, wide.max(0), atol=2e-6)
    np.testing.assert_allclose(runtime_maps.resize_logits(logits, size), wide, atol=2e-6)


def test_pixels_are_interpolated_in_chunks(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(5, 12, 12)).astype(np.float32)
    whole = runtime_maps.upsample_argmax(logits, (48, 40))
    monkeypatch.setattr(runtime_maps, "CHUNK_BYTES", 16 * 5 * 7)  # Seven pixels.
    assert np.array_equal(runtime_maps.upsample_argmax(logits, (48, 40)), whole)


@pytest.mark.parametrize("size", [(64, 64), (50, 200), (130, 97)])
@pytest.mark.parametrize("stride", [48, 43])
def test_windows_are_those_of_torch(predictor, network, size, stride):
    image = picture(*size)
    found, cell = runtime_maps.sliding_logits(network, image, (64, 64), (stride, stride), 4)
    wanted, wanted_cell = sliding_logits(
        predictor.model,
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        len(CLASSES),
        window=64,
        stride=stride,
    )
    assert cell == wanted_cell
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_nearest_places():
    label = np.array([[0, 1], [2, 3]])
    assert runtime_maps.resize_nearest(label, (4, 2)).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert runtime_maps.resize_nearest(label, (1, 1)).tolist() == [[0]]


# A model


def share_equal(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    return (found == wanted).mean()


@pytest.mark.parametrize("size", [(1, 1), (72, 96), (33, 65), (90, 61), (200, 31)])
@pytest.mark.parametrize("sides", [(None, None), (64, 100)])
def test_whole_images_are_labelled_as_predict_does(predictor, network, size, sides):
    info = dataclasses.replace(INFO, short_side=sides[0], long_side=sides[1])
    other = type(predictor)(
        predictor.model,
        dataclasses.replace(predictor.info, short_side=sides[0], long_side=sides[1]),
    )
    found = ExportedModel(network, info).predict(picture(*size))
    assert share_equal(found, other.predict(picture(*size)).label) >= 0.999


@pytest.mark.parametrize("size", [(40, 50), (72, 96), (129, 200)])
@pytest.mark.parametrize("sides", [(None, None), (80, 160)])
def test_windows_of_the_data_set_are_used(predictor, network, size, sides):
    changes = {"window": (64, 42), "short_side": sides[0], "long_side": sides[1]}
    other = type(predictor)(predictor.model, dataclasses.replace(predictor.info, **changes))
    model = ExportedModel(network, dataclasses.replace(INFO, **changes))
    assert model.uses_windows
    wanted = other.predict(picture(*size)).label
    assert share_equal(model.predict(picture(*size)), wanted) >= 0.999


def test_one_size_is_a_window(predictor, network):
    seen = []

    def watched(image):
        seen.append(image.shape)
        return network(image)

    model = ExportedModel(watched, dataclasses.replace(INFO, size=(64, 64)))
    wanted = predictor.predict(picture(150, 130), PredictConfig(window=64)).label
    assert share_equal(model.predict(picture(150, 130), batch_size=3), wanted) >= 0.999
    assert {shape[2:] for shape in seen} == {(64, 64)}
    assert max(shape[0] for shape in seen) == 3


def test_a_network_of_label_maps_sees_whole_images(network):
    def labels(image):
        return network(image).argmax(1).repeat(4, 1).repeat(4, 2)

    model = ExportedModel(labels, dataclasses.replace(INFO, label_map=True, window=(64, 42)))
    assert not model.uses_windows
    assert model.predict(picture(64, 96)).tolist() == (
        labels(runtime.as_input(picture(64, 96)))[0].tolist()
    )
    assert model.predict(picture(50, 70)).shape == (50, 70)


def test_the_least_side_is_kept(network):
    model = ExportedModel(network, dataclasses.replace(INFO, smallest=256))
    assert model.seen_size((20, 300)) == (256, 320)
    assert model.predict(picture(20, 300)).shape == (20, 300)


def test_what_the_network_sees():
    whole = ExportedModel(lambda image: image, INFO)
    assert [part.shape for part in whole.network_inputs(picture(50, 70))] == [(1, 3, 64, 96)]
    windows = ExportedModel(lambda image: image, dataclasses.replace(INFO, size=(64, 32)))
    assert [part.shape for part in windows.network_inputs(picture(50, 70))] == [(1, 3, 64, 32)] * 3


def test_another_number_of_channels(network):
    with pytest.raises(InputError, match="this model takes height x width x 3 channels"):
        ExportedModel(network, INFO).predict(np.zeros((8, 8, 4), np.uint8))


# What a file says


def test_metadata_is_read_as_written(tmp_path):
    info = dataclasses.replace(INFO, window=(64, 42), size=(64, 96))
    assert ExportInfo.from_json(info.to_json(), tmp_path) == info
    assert ExportInfo.from_json(INFO.to_json(), tmp_path) == INFO


@pytest.mark.parametrize("text", [None, "", "[]", '{"format": "other"}', "{", '{"classes": 3}'])
def test_a_file_of_something_else(tmp_path, text):
    with pytest.raises(InputError, match=r"m\.onnx does not say what its classes are"):
        ExportInfo.from_json(text, tmp_path / "m.onnx")


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"model\.pt is no \.onnx or \.xml file"):
        runtime.load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"No file .*model\.onnx"):
        runtime.load(tmp_path / "model.onnx")


def test_a_runtime_that_is_not_installed(tmp_path, monkeypatch):
    def nothing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    for name, package in (("model.onnx", "onnxruntime"), ("model.xml", "openvino")):
        (tmp_path / name).write_bytes(b"any")
        with pytest.raises(InputError, match=rf"{package}, which is not .*'ccsnet\["):
            runtime.load(tmp_path / name)


# Files


def test_files_are_written(network, tmp_path):
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(picture(40, 50)).save(tmp_path / name)
    images = [tmp_path / "a/x.png", tmp_path / "b/x.png"]
    model, out = ExportedModel(network, INFO), tmp_path / "out"
    done = list(runtime.predict_files(model, images, out, save=("index", "color", "overlay")))
    assert [image for image, _, _ in done] == images
    for _, label, files in done:
        assert np.array_equal(np.asarray(Image.open(files[0])), label)
        assert np.array_equal(np.asarray(Image.open(files[1])), label)
        assert np.asarray(Image.open(files[2])).shape == (40, 50, 3)
    with pytest.raises(InputError, match=r"is there already.*--overwrite"):
        list(runtime.predict_files(model, images, out))
    assert len(list(runtime.predict_files(model, images, out, overwrite=True))) == 2
    (tmp_path / "a/empty.png").touch()
    damaged = [tmp_path / "a/empty.png", *images]
    first, *others = runtime.predict_files(model, damaged, tmp_path / "damaged")
    assert isinstance(first[1], InputError)
    assert first[2] == ()
    assert [image for image, _, _ in others] == images
    same = [tmp_path / "a/x.png", tmp_path / "a/x.jpg"]
    with pytest.raises(InputError, match="would both be written"):
        list(runtime.predict_files(model, same, tmp_path / "other"))


# Without torch


def python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_of_it_needs_torch():
    code = (
        "import ccsnet.runtime, ccsnet.cli_export, ccsnet.cli, ccsnet.terminal\n"
        "import ccsnet.data.files\n"
        "import sys; print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    assert python(code) == "False False"


VERB = f"""
import sys
import numpy as np
from ccsnet import cli_export, runtime
info = runtime.ExportInfo.from_json({INFO.to_json()!r}, None)
def network(image):
    b, c, h, w = image.shape
    return image.reshape(b, c, h // 4, 4, w // 4, 4).mean((3, 5))
runtime._LOADERS['.onnx'] = lambda path, threads: (network, info.to_json())
file, *words = sys.argv[1:]
status = cli_export.predict_exported(['--runtime', 'onnxruntime', file, *words, '--save', 'index'])
print('status', status)
"""


def test_predicting_without_torch(tmp_path):
    """The verb itself, with a network that needs no runtime: brightest channel, in 4 x 4 cells."""
    Image.fromarray(picture(72, 96)).save(tmp_path / "x.png")
    (tmp_path / "m.onnx").write_bytes(b"any")
    out = tmp_path / "out"
    printed = python(VERB, tmp_path / "m.onnx", tmp_path / "x.png", "--out", out)
    assert "1 image: index" in printed
    assert printed.endswith("status 0")
    # In its folder, earlier results and a damaged file: those are no images, this fails alone.
    (tmp_path / "damaged.png").touch()
    printed = python(VERB, tmp_path / "m.onnx", tmp_path, "--out", out, "--overwrite")
    assert "1 image: index" in printed
    assert "1 failed" in printed
    assert printed.endswith("status 1")
    assert [path.name for path in out.rglob("*.png")] == ["x.png"]
    label = np.asarray(Image.open(tmp_path / "out" / "index" / "x.png"))
    assert label.shape == (72, 96)
    assert set(np.unique(label)) == {0, 1, 2}
