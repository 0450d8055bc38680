"""What `benchmarks.gpu` compares is the same."""

import re

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_attention import ATTENTIONS, ONLY_COMPILED, Inputs, make_inputs


def results(name, inputs: Inputs):
    """What is read, and gradients of all that it is made of, where torch has them here."""
    if name in ONLY_COMPILED:
        return ATTENTIONS[name](inputs)
    queries, weights = ([t.requires_grad_() for t in ts] for ts in (inputs.queries, inputs.weights))
    leaves = [*queries, inputs.keys.requires_grad_(), inputs.values.requires_grad_(), *weights]
    reads = ATTENTIONS[name](inputs)
    weighted = [read * torch.linspace(-1, 1, read.numel()).view_as(read) for read in reads]
    return [*reads, *torch.autograd.grad(torch.cat([w.flatten() for w in weighted]).sum(), leaves)]


@pytest.mark.parametrize(("size", "classes", "top_k"), [(64, 5, 2), (72, 16, 16), (40, 11, 3)])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_all_attentions_are_the_same(name, size, classes, top_k):
    made = make_inputs(2, size, classes, 16, top_k, "cpu")
    inputs = made._replace(
        queries=[q.double() for q in made.queries],
        keys=made.keys.double(),
        values=made.values.double(),
        weights=[w.double() for w in made.weights],
    )
    found, expected = results(name, inputs), literal(inputs)
    assert len(found) in (len(expected), len(inputs.sizes))
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other)


def literal(inputs: Inputs):
    """Place by place, from the relevant classes alone."""
    leaves = [*inputs.queries, inputs.keys, inputs.values, *inputs.weights]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    number = len(inputs.queries)
    queries, (keys, values), weights = (
        leaves[:number],
        leaves[number : number + 2],
        leaves[number + 2 :],
    )
    reads = []
    for query, weight, (height, width) in zip(queries, weights, inputs.sizes, strict=True):
        read = []
        for image, relevant in enumerate(inputs.relevant):
            for place, q in enumerate(query[image]):
                row = place // width * relevant.shape[0] // height
                column = place % width * relevant.shape[1] // width
                chosen = relevant[row, column].nonzero().flatten()
                scores = keys[image, chosen] @ q * q.numel() ** -0.5
                read.append(weight @ (scores.softmax(0) @ values[image, chosen]))
        reads.append(torch.stack(read).view_as(query))
    weighted = [read * torch.linspace(-1, 1, read.numel()).view_as(read) for read in reads]
    gradients = torch.autograd.grad(torch.cat([w.flatten() for w in weighted]).sum(), leaves)
    return [*reads, *gradients]


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
        (("--parts", "attention"), [name for name in ATTENTIONS if name not in ONLY_COMPILED] * 2),
        pytest.param(
            ("--parts", "train", "predict"),
            ["ccs", "segformer", "smp Segformer"] * 2,
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

    device = torch.device("cpu")
    jobs = {("step", "ours", "eager"): lambda: list, ("step", "theirs", "eager"): broken}
    found, refused = gpu.measure(jobs, 2, device)
    assert list(found) == [("step", "ours", "eager")]
    table = list(gpu.rows(found, refused, ["eager"]))
    assert [line[:2] for line in table] == [["step", "ours"], ["step", "theirs"]]
    assert table[1][2:] == ["no kernel for this", "", ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device cpu" in capsys.readouterr().err
