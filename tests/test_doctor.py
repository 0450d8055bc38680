"""`ccsnet doctor`: what it finds on machines of all kinds, and that it fails on none."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from collections import namedtuple
from pathlib import Path

import pytest

import ccsnet
from ccsnet import doctor

ROOT = Path(ccsnet.__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of no project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HOME", raising=False)
    return tmp_path


def found(part=None):
    """Findings by what they are about."""
    return {f.what: f for f in doctor.examine() if part in (None, f.part)}


def versions(monkeypatch, **changed):
    """Let packages have other versions, or none."""
    real = importlib.metadata.version

    def version(name):
        if name in changed:
            if changed[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return changed[name]
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_sound_machine(place, call, monkeypatch):
    status, printed, err = call("doctor", "--json", "doctor.json")
    told = json.loads((place / "doctor.json").read_text())
    assert status == bool(told["broken"])
    assert err == ""
    assert {row["part"] for row in told["findings"]} == set(doctor.LOOKS)
    for row in told["findings"]:
        assert row["what"] in printed
        assert "cannot be examined" not in row["found"]
        assert row["state"] in ("good", "note", "broken")
        assert row["mend"] or row["state"] != "broken"
    for package in ("torch", "timm", "numpy"):
        assert importlib.metadata.version(package) in printed


def test_nothing_to_mend_and_something(call, monkeypatch):
    one = doctor.Finding("Versions", "good", "Python", "3.11.7")
    two = doctor.Finding("Room", "broken", "open files", "at most 100", "ulimit -n 4096")
    monkeypatch.setattr(doctor, "examine", lambda: [one])
    status, printed, _ = call("doctor")
    assert status == 0
    assert "Nothing to mend." in printed
    monkeypatch.setattr(doctor, "examine", lambda: [one, two])
    status, printed, _ = call("doctor")
    assert status == 1
    assert "MEND open files             at most 100: ulimit -n 4096" in printed
    assert "1 thing to mend." in printed


def test_packages(place, monkeypatch):
    versions(monkeypatch, timm="0.9.2", numpy=None, onnx=None)
    told = found()
    assert told["timm"].state == "broken"
    assert "older than 1.0.20" in told["timm"].found
    assert told["timm"].mend == "pip install --upgrade 'timm>=1.0.20'"
    assert told["numpy"].mend.startswith("pip install 'numpy>=")
    assert (told["export"].state, told["export"].mend) == ("note", "pip install 'ccsnet[export]'")
    assert "onnx" in told["export"].found


def test_another_opencv_serves(place, monkeypatch):
    versions(monkeypatch, **{"opencv-python-headless": None, "opencv-python": "4.12.0"})
    assert found("Versions")["opencv-python-headless"].found == "4.12.0"


def test_extras_are_those_of_the_project(place):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(found("Extras")) == set(project["optional-dependencies"]) - {"dev"}


def test_what_is_noted_of_an_installed_package(place, monkeypatch):
    """Outside a checkout the installed package tells what it needs."""
    lines = ["timm>=1.0.20", "numpy>=1.26", 'onnx>=1.17; extra == "export"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor.ccsnet, "__file__", str(place / "ccsnet" / "__init__.py"))
    needed, extras = doctor._declared()
    assert needed == lines[:2]
    assert [doctor._name(line) for line in extras["export"]] == ["onnx"]


def test_a_torch_that_cannot_be_imported(place, monkeypatch):
    monkeypatch.setattr(doctor, "_why_not", lambda name: "ImportError: libcudart.so.13")
    told = found()
    assert told["torch"].state == "broken"
    assert "libcudart" in told["torch"].found
    assert told["torch"].mend == "pip install --force-reinstall torch torchvision"
    assert "GPU" not in told


@pytest.mark.parametrize(("built", "cause"), [(None, "a torch"), ("13.0", "a newer driver")])
def test_a_gpu_that_this_torch_cannot_use(place, monkeypatch, built, cause):
    import torch

    program = place / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: Some Card 24GB (UUID: GPU-1234)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    told = found("Devices")["GPU"]
    assert (told.state, told.found) == ("broken", "Some Card 24GB, which this torch cannot use")
    assert cause in told.mend
    program.write_text("#!/bin/sh\necho 'no devices' >&2; exit 9\n")
    assert found("Devices")["GPU"].state == "note"


def test_a_gpu(place, monkeypatch):
    import torch

    about = types.SimpleNamespace(name="Card", total_memory=24 * 2**30, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    told = found("Devices")
    assert told["GPU 0"].found == "Card, 24.0 GiB, compute capability 8.9"
    assert "cuda has bf16" in told["--precision auto"].found


def test_room(place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(2**26, 0, 2**20))
    told = found("Room")
    assert told["disk: runs"].state == "broken"
    if Path("/dev/shm").is_dir():
        assert "--shm-size" in told["shared memory"].mend


def test_few_open_files(place, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert found("Room")["open files"][1:] == (
        *("broken", "open files", "at most 256", "ulimit -n 4096"),
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(place):
    place.chmod(0o500)
    try:
        assert found("Room")["disk: runs"].state == "broken"
    finally:
        place.chmod(0o700)


def test_data_runs_and_weights(place, monkeypatch):
    for name in ("data/loveda/x", "runs/a/best.safetensors", "runs/s/b/best.safetensors"):
        (place / name).parent.mkdir(parents=True)
        (place / name).touch()
    (place / "cache/huggingface/hub/models--timm--resnet18").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    told = found()
    assert told["loveda"].found == "in data/loveda"
    assert "loveda" not in told["not here"].found
    assert told["runs"].found.startswith("2 in")
    assert told["Hugging Face"].found.startswith("1 model in")
    assert told["HF_HUB_OFFLINE"].mend == "unset HF_HUB_OFFLINE"


def test_a_look_that_fails_is_a_finding(place, monkeypatch):
    def fails():
        raise OSError("no such thing")

    monkeypatch.setitem(doctor.LOOKS, "Room", fails)
    told = found("Room")["room"]
    assert (told.state, told.found) == ("note", "cannot be examined (OSError: no such thing)")


def test_the_commit(place, monkeypatch):
    monkeypatch.setattr(doctor.ccsnet, "__file__", str(place / "ccsnet" / "__init__.py"))
    git = place / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs/heads/main").write_text("0123456789abcdef\n")
    assert doctor._commit() == ", commit 0123456"
    (git / "refs/heads/main").unlink()
    (git / "packed-refs").write_text("# pack\nfedcba9876543210 refs/heads/main\n")
    assert doctor._commit() == ", commit fedcba9"
    (git / "HEAD").write_text("aaaaaaaaaaaaaaaa\n")
    assert doctor._commit() == ", commit aaaaaaa"
    (git / "HEAD").unlink()
    noted = {"vcs_info": {"commit_id": "bbbbbbbbbbbb"}}
    one = types.SimpleNamespace(read_text=lambda name: json.dumps(noted))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: one)
    assert doctor._commit() == ", commit bbbbbbb"


def test_without_torch(place):
    """In a process in which torch, timm and tyro cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision', 'tyro'): sys.modules[name] = None\n"
        "import importlib.metadata as m; real = m.version\n"
        "def version(name):\n"
        "    if name in ('torch', 'timm', 'torchvision'): raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from ccsnet.doctor import examine\n"
        "found = {f.what: f for f in examine()}\n"
        "assert found['torch'].state == 'broken', found\n"
        "assert not [f for f in found.values() if 'cannot be examined' in f.found], found\n"
        "print(found['torch'].mend)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("pip install 'torch>=")


def test_what_is_refused(call):
    assert call("doctor", "runs/x")[0] == 2
    assert call("doctor", "--jsn", "x")[0] == 2
