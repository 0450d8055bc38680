"""Each case in a process of its own: declarations last as long as the process."""

import subprocess
import sys

import pytest

COUNT = """
import torch
defined = []
class Library(torch.library.Library):
    def define(self, schema, *rest, **options):
        if self.ns == "torchvision":
            defined.append(schema)
        return super().define(schema, *rest, **options)
torch.library.Library = Library
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_timm_imports_after_ours():
    assert run("import ccsnet.backbones, timm; print(timm.is_model('resnet18'))") == "True"


@pytest.mark.slow
def test_declaring_again_does_nothing():
    code = COUNT + (
        "from ccsnet.backbones._torchvision import make_torchvision_importable as make\n"
        "print(len(defined) in (0, 2), make(), make(), len(defined) in (0, 2))"
    )
    assert run(code) == "True True True True"


def test_declares_nothing_where_torchvision_imports(tmp_path):
    (tmp_path / "torchvision.py").write_text("")
    code = COUNT + f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    assert run(code + "import ccsnet.backbones; print(defined)") == "[]"


def test_declares_nothing_where_torchvision_is_absent():
    code = COUNT + (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision':\n"
        "            raise ModuleNotFoundError('No torchvision', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from ccsnet.backbones._torchvision import make_torchvision_importable as make\n"
        "print(make(), defined)"
    )
    assert run(code) == "False []"


def test_other_failures_are_told(tmp_path):
    text = "PyTorch and torchvision were compiled with different CUDA versions"
    (tmp_path / "torchvision.py").write_text(f"raise RuntimeError({text!r})")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport ccsnet.backbones"
    with pytest.raises(AssertionError, match=text):
        run(code)
