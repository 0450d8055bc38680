import dataclasses

import numpy as np
import pytest
from PIL import Image

from ccsnet.errors import InputError
from ccsnet.find_lr import RangeTest, draw_range_test, find_lr
from tests.shapes import OPTIONS, tiny_config


def test_the_rate_at_which_the_loss_falls_fastest():
    rates = np.logspace(-7, 0, 141)
    # A slope in the middle of 1e-3, a valley at 1e-2, and then the explosion.
    exponent = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-6 * (exponent + 3))) + 10.0 ** (2 * (exponent + 0.5))
    test = RangeTest(rates, losses)
    assert test.steepest == pytest.approx(1e-3, rel=0.2)
    assert 1e-3 < test.largest * 10 < 0.1


def test_a_curve_that_only_rises():
    test = RangeTest(np.logspace(-7, 0, 30), np.linspace(1, 3, 30))
    assert test.steepest == test.rates[0]


def test_the_shapes_like_some_rates_better(shapes, tmp_path):
    config = tiny_config(shapes, batch_size=4)
    found = find_lr(config, lowest=1e-6, highest=100.0, steps=40)
    assert found.rates[0] == pytest.approx(1e-6)
    assert (np.diff(np.log(found.rates)).std()) < 1e-6
    assert len(found.rates) < 40  # It exploded before the end.
    assert found.losses.min() < found.losses[0]
    assert 1e-5 < found.steepest < 1
    draw_range_test(found, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size > (300, 200)


def test_what_cannot_be_tried(shapes):
    config = tiny_config(shapes)
    for options in ({"lowest": 0.0}, {"lowest": 2.0}, {"steps": 5}):
        with pytest.raises(InputError, match="above 0 and grow, in at least 20 steps"):
            find_lr(config, **options)
    model = dataclasses.replace(config.model, std=(1e-42,) * 3, mean=(0.0,) * 3)
    with pytest.raises(InputError, match="no number, or exploded, within"):
        find_lr(dataclasses.replace(config, model=model), steps=20)


def test_from_the_command_line(shapes, tmp_path, capsys):
    from ccsnet.cli import run

    curve = tmp_path / "curve.png"
    assert run(["find-lr", str(shapes), *OPTIONS, "--steps", "20", "--out", str(curve)]) == 0
    assert "The loss falls fastest at --lr" in capsys.readouterr().out
    assert curve.exists()
    assert run(["find-lr", str(shapes), *OPTIONS, "--out", "curve.jpg"]) == 2
    assert "the curve is a PNG" in capsys.readouterr().err
