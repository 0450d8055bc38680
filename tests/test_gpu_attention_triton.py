"""The Triton kernels of `benchmarks.gpu_attention`, as far as they can be tested without a GPU.

Triton is in no list of requirements: it comes with torch where that is built for GPUs. `make slow`
puts one into a folder of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED_MEMORY = 227 * 2**10
"""Of a program on an H100. Source: CUDA's programming guide, compute capability 9.0."""

OWN = ROOT / ".venv/triton"
"""What `make slow` installs; elsewhere, so that torch does not see it in other tests."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not (OWN / "triton").is_dir(),
    reason="Triton is not installed",
)


def run(*words, **environment):
    """What one of the programs finds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_attention", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(OWN), **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(found):
    """Of bf16 held against torch's: the interpreter cuts bits off where a GPU rounds."""
    far = {
        name: both
        for name, both in found.items()
        if both[0] > (3 * both[1] if "bfloat16" in name else 1e-5)
    }
    assert far == {}
    assert len(found) == 2 * (2 + 3 + 3) + 7


@pytest.mark.slow
def test_interpreted_they_read_what_the_literal_attention_reads():
    check(run("compare", "cpu", TRITON_INTERPRET="1"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_they_read_what_the_literal_attention_reads():
    check(run("compare", "cuda"))


@pytest.mark.slow
def test_compiled_for_an_h100_they_fit_its_shared_memory():
    """Which needs no GPU; the interpreter takes what the compiler refuses."""
    found = run("compile")
    assert len(found) == 7
    assert {name: size for name, size in found.items() if size > SHARED_MEMORY} == {}
