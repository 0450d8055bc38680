"""`ccsnet bench`: what models cost here."""

import json

import pytest

from ccsnet.bench import bench
from ccsnet.bench_config import BenchConfig
from ccsnet.cli import run
from ccsnet.errors import InputError
from ccsnet.segmenter import ModelConfig, create_segmenter

TINY = "test_efficientnet"


def test_rows_are_of_what_was_asked_for():
    config = BenchConfig(
        sizes=(32, 64), precisions=("float32", "bf16"), classes=5, batch_size=2, rounds=1, cpu=True
    )
    rows = list(bench([TINY], config))
    asked = [(s, p) for s in (32, 64) for p in ("float32", "bf16")]
    assert [(row.size, row.precision) for row in rows] == asked
    model = create_segmenter(ModelConfig(backbone=TINY), num_classes=5)
    weights = sum(parameter.numel() for parameter in model.parameters())
    for row in rows:
        assert row.backbone == TINY
        assert row.parameters == weights
        assert row.latency > 0
        assert row.images_per_second > 0
        assert row.bytes > 4 * weights
    assert rows[2].bytes > rows[0].bytes


def test_the_verb(tmp_path, capsys):
    out = tmp_path / "cost.json"
    words = (TINY, "--sizes", "32", "--classes", "3", "--rounds", "1", "--precisions", "float32")
    assert run(["bench", *words, "--head", "fcn", "--cpu", "--json", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "head fcn, 3 classes" in printed[0]
    assert printed[1].split()[:2] == ["backbone", "size"]
    assert printed[2].split()[:3] == [TINY, "32", "float32"]
    found = json.loads(out.read_text())
    assert found["batch_size"] == 4
    assert [row["backbone"] for row in found["rows"]] == [TINY]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((TINY, "--sizes", "16"), "at least 32 pixels"),
        ((TINY, "--rounds", "0"), "rounds is 0; it must be at least 1"),
        ((TINY, "--classes", "1"), "classes is 1; it must be at least 2"),
        (("resnet17", "--sizes", "32"), "resnet18"),
        ((TINY, "--head", "csc"), "Perhaps you meant ccs?"),
    ],
)
def test_mistakes(words, text, capsys):
    assert run(["bench", *words, "--cpu"]) == 2
    assert text in " ".join(capsys.readouterr().err.split())  # Some of it is folded in a box.


def test_settings_are_checked_in_python_too():
    with pytest.raises(InputError, match="batch_size is 0"):
        BenchConfig(batch_size=0)
