"""Networks are traced by torch.compile as a whole, and compute the same when compiled.

All in processes of their own: the tests' checks of shapes are not made to be compiled.
"""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ccsnet import compiled, inference
from ccsnet.bench import bench
from ccsnet.bench_config import BenchConfig
from ccsnet.heads._base import Output
from ccsnet.predict import load
from ccsnet.predict_config import PredictConfig
from tests.processes import ENVIRONMENT, ROOT
from tests.shapes import BACKBONE

NAMES = ("resnet18", "mit_b0", "swin_tiny_patch4_window7_224", "vit_small_patch16_224")
"""A network of convolutions, the paper's, one with windows and one of a single scale: to trace one
of each family takes too long for every time."""

BUILD = """
import json, sys, warnings
import torch
from torch._dynamo.testing import CompileCounter
from ccsnet.compiled import Compiled
from ccsnet.heads._base import HeadConfig
from ccsnet.loss import SegmentationLoss
from ccsnet.segmenter import ModelConfig, create_segmenter

small = HeadConfig(dim=16, coarse_dim=16, top_k=2)
config = ModelConfig(backbone=sys.argv[1], head="ccs", head_config=small, drop_path=0.0)
torch.manual_seed(0)
model = create_segmenter(config, num_classes=5).eval()

def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)
"""

WHOLE = """
image, label = images(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
loss = SegmentationLoss(ignore_index=255)

def step(image, label):
    return torch.stack(list(loss(model(image), label).values())).sum()

counter = CompileCounter()
with torch.inference_mode():
    torch.compile(model, backend=counter, fullgraph=True)(image)
model.train()
torch.compile(step, backend=counter, fullgraph=True)(image, label)
print(counter.frame_count)
"""

SIZES = """
counter = CompileCounter()
compiled = torch.compile(model, backend=counter, fullgraph=True)
for size in ((64, 96), (96, 64), (128, 160), (65, 97), (50, 131)):
    compiled(images(1, 3, *size))
print(counter.frame_count)
"""

SAME = """
compiled = Compiled(model, torch.device("cpu"))
image = images(2, 3, 64, 96)
with torch.inference_mode():
    pairs = list(zip(compiled(image)[:2], model(image)[:2]))
print(max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs))
"""

MANY = """
import ccsnet.compiled
ccsnet.compiled.COMPILED_SHAPES = 2
counter = CompileCounter()
torch.compile = lambda network, compile=torch.compile, **_: compile(
    network, backend=counter, dynamic=False
)
ccsnet.compiled.check_compiler = lambda device: None
found = []
with warnings.catch_warnings(record=True) as told, torch.inference_mode():
    warnings.simplefilter("always")
    compiled = Compiled(model, torch.device("cpu"))
    for side in (32, 64, 96, 32, 128):
        image = images(1, 3, side, side)
        found.append(torch.equal(compiled(image).logits, model(image).logits))
texts = [str(one.message) for one in told if "--window" in str(one.message)]
print(json.dumps([found, counter.frame_count, texts]))
"""


def python(code, backbone):
    """What a program prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD + code, backbone],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NAMES)
def test_the_whole_model_is_one_graph(backbone):
    """In evaluation, and in training with its loss; anything that breaks the graph is an error."""
    assert python(WHOLE, backbone) == 2


@pytest.mark.slow
def test_one_graph_serves_all_further_sizes():
    """Of networks without windows; torch makes it when it sees a second size."""
    assert python(SIZES, "mit_b0") <= 3


@pytest.mark.slow
def test_a_compiled_network_predicts_the_same():
    assert python(SAME, "mit_b0") < 1e-5


@pytest.mark.slow
def test_shapes_beyond_those_that_are_compiled():
    equal, graphs, told = python(MANY, BACKBONE)
    assert equal == [True] * 5
    assert graphs == 2
    assert len(told) == 1
    assert "compiled for 2 shapes" in told[0]


class Noted(nn.Module):
    """Stands for a compiled network."""

    made: list["Noted"] = []  # noqa: RUF012

    def __init__(self, network, device):
        super().__init__()
        self.network, self.device, self.calls = network, device, 0
        self.made.append(self)

    def forward(self, image):
        self.calls += 1
        return self.network(image)


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(inference, "Compiled", Noted)
    monkeypatch.setattr(Noted, "made", [])
    return Noted.made


def test_a_predictor_compiles_each_of_its_networks_once(run, noted):
    predictor = load(run.out, "cpu", also=[run.out])
    image = np.zeros((64, 64, 3), np.uint8)
    predictor.predict(image)
    assert noted == []
    for _ in range(3):
        predictor.predict(image, PredictConfig(compile=True))
    assert [one.calls for one in noted] == [3, 3]


def test_bench_compiles(noted):
    config = BenchConfig(
        sizes=(32,), precisions=("float32",), classes=3, batch_size=1, rounds=1, cpu=True
    )
    list(bench([BACKBONE], config))
    assert noted == []
    list(bench([BACKBONE], dataclasses.replace(config, compile=True)))
    assert len(noted) == 1
    assert noted[0].calls > 0


def test_what_a_cuda_graph_returned_outlives_its_next_replay(monkeypatch):
    """Without a GPU: a stand-in that writes to the same memory every time, as graphs do."""
    memory, asked, steps = torch.zeros(1, 2, 4, 4), [], []

    def replayed(network, **options):
        asked.append(options)
        return lambda image: Output(memory.copy_(network(image)), memory)

    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", replayed)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    network = compiled.Compiled(nn.Identity(), torch.device("cuda"))
    returned = [network(torch.full((1, 2, 4, 4), float(number))) for number in range(3)]
    assert [float(output.logits.mean()) for output in returned] == [0, 1, 2]
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
    assert len(steps) == 3


@pytest.mark.slow
def test_predict_takes_the_option(run, tmp_path):
    image = sorted((run.data / "images" / "val").iterdir())[0]
    labels = []
    for name in ("compile", "no-compile"):
        out = tmp_path / name
        words = ("predict", run.out, image, "--save", "index", "--out", out, f"--{name}", "--cpu")
        subprocess.run(
            [sys.executable, "-m", "ccsnet", *map(str, words)],
            check=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
        )
        labels.append(np.asarray(Image.open(out / "index" / image.name)))
    assert (labels[0] == labels[1]).mean() > 0.999
