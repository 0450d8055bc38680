"""What `benchmarks.gpu` compares is the same."""

import re

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_attention import (
    ATTENTIONS,
    ONLY_COMPILED,
    ONLY_ON_A_GPU,
    difference,
    in_type,
    make_inputs,
    runs_here,
    with_gradients,
)
from tests.literal_attention import literal_attention


@pytest.mark.parametrize(("size", "classes", "top_k"), [(64, 5, 2), (72, 16, 16), (40, 11, 3)])
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in ONLY_ON_A_GPU])
def test_all_attentions_are_the_same(name, size, classes, top_k):
    made = make_inputs(2, size, classes, 16, top_k, "cpu")
    weights = [weight.double() for weight in made.weights]
    inputs = in_type(made, torch.float64)._replace(weights=weights)
    expected = with_gradients(literal_attention, inputs)
    if name in ONLY_COMPILED:  # No gradients on a processor.
        found, expected = ATTENTIONS[name](inputs), expected[: len(inputs.sizes)]
    else:
        found = with_gradients(ATTENTIONS[name], inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert difference(found, expected) < 1e-6


CPU = torch.device("cpu")
SMALL = (
    "gpu",
    "--device",
    "cpu",
    "--size",
    "64",
    "--batch",
    "1",
    "--classes",
    "5",
    "--rounds",
    "1",
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--parts", "attention"), [name for name in ATTENTIONS if runs_here(name, CPU)] * 2),
        pytest.param(
            ("--parts", "train", "predict"),
            ["ccs", "smp Segformer", "segformer"] * 2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_table(monkeypatch, capfd, options, expected):
    monkeypatch.setattr("sys.argv", [*SMALL, *options])
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    gpu.main()
    said = capfd.readouterr().out
    assert "hf Segformer is left out: transformers is not installed." in said
    lines = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")][1:]
    assert [line[1] for line in lines] == expected
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", line[2]) for line in lines)
    assert {float(line[3]) for line in lines if line[1] == expected[0]} == {1.0}


def test_what_refuses_is_said():
    def broken():
        raise RuntimeError("no kernel for this\nand so on")

    jobs = {("step", "ours", "eager"): lambda: list, ("step", "theirs", "eager"): broken}
    found, refused = gpu.measure(jobs, 2, CPU)
    assert list(found) == [("step", "ours", "eager")]
    table = list(gpu.rows(found, refused, ["eager"]))
    assert [line[:2] for line in table] == [["step", "ours"], ["step", "theirs"]]
    assert table[1][2:] == ["no kernel for this", "", ""]


def test_what_is_not_ready_in_time_is_left_out():
    jobs = {("step", "ours", "eager"): lambda: list, ("step", "ours", "compiled"): lambda: list}
    found, left_out = gpu.measure(jobs, 2, CPU, until=0)
    assert list(gpu.rows(found, left_out, ["eager", "compiled"])) == [
        ["step", "ours", "no time left", "", "", "no time left", "", ""]
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device cpu" in capsys.readouterr().err
