import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from ccsnet.errors import InputError
from ccsnet.optim import OptimConfig, lr_factor, set_lr, warm_up


def rates_of(config: OptimConfig, steps: int) -> list[float]:
    """The rate of every step of a run, as the loop sets it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    optimizer.param_groups[0]["peak_lr"] = config.lr
    found = []
    for step in range(steps):
        set_lr(optimizer, step, steps, config)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def torch_rates(schedule, lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    with warnings.catch_warnings():  # SequentialLR calls its parts as it tells others not to.
        warnings.simplefilter("ignore")
        scheduler = schedule(optimizer)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(found) < steps:  # One cycle allows no step after its last.
                scheduler.step()
    return found


def exactly(rates: list[float]):
    return pytest.approx(rates, rel=1e-9, abs=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
@pytest.mark.parametrize("power", [0.0, 0.9, 1.0, 2.0])
def test_poly_is_torch_s(steps, power):
    config = OptimConfig(lr=0.02, warmup_steps=0, power=power)
    expected = torch_rates(
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=steps, power=power), 0.02, steps
    )
    assert rates_of(config, steps) == exactly(expected)


@given(
    st.integers(1, 3000),
    st.sampled_from([None, 0, 1, 50]),
    st.sampled_from([0.9, 1.0, 2.0]),
    st.sampled_from([0.0, 1e-6, 1.0]),
    st.data(),
)
def test_poly_is_what_it_was(steps, warmup, power, min_lr, data):
    """Bit for bit: runs of earlier versions go on as they began."""
    config = OptimConfig(lr=6e-5, warmup_steps=warmup, power=power, min_lr=min_lr)
    step = data.draw(st.integers(0, steps - 1))
    rise = min(1500, steps // 10) if warmup is None else warmup
    warm = 1e-6 + (1 - 1e-6) * step / rise if step < rise else 1.0
    factor = (1 - step / steps) ** power * warm
    floor = min(min_lr, 6e-5)
    assert warm_up(step, steps, config) == warm
    assert lr_factor(step, steps, config) == factor
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=6e-5)
    optimizer.param_groups[0]["peak_lr"] = 6e-5
    set_lr(optimizer, step, steps, config)
    assert optimizer.param_groups[0]["lr"] == floor * (warm - factor) + 6e-5 * factor


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
@pytest.mark.parametrize("min_lr", [0.0, 1e-4])
def test_cosine_is_torch_s(steps, min_lr):
    config = OptimConfig(schedule="cosine", lr=0.02, warmup_steps=0, min_lr=min_lr)
    expected = torch_rates(
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=min_lr), 0.02, steps
    )
    assert rates_of(config, steps) == exactly(expected)


def test_cosine_begins_where_the_warm_up_ends():
    config = OptimConfig(schedule="cosine", lr=0.02, warmup_steps=20, min_lr=1e-4)
    expected = torch_rates(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=1e-6, total_iters=20),
                lr_scheduler.CosineAnnealingLR(o, T_max=180, eta_min=1e-4),
            ],
            milestones=[20],
        ),
        0.02,
        200,
    )
    found = rates_of(config, 200)
    assert found == exactly(expected)
    assert found[20] == 0.02


@pytest.mark.parametrize("steps", [4, 7, 200, 1001])
def test_one_cycle_is_torch_s(steps):
    config = OptimConfig(schedule="onecycle", lr=0.02)
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=steps, cycle_momentum=False),
        0.02,
        steps,
    )
    assert rates_of(config, steps) == exactly(expected)


def test_one_cycle_with_a_rise_and_an_end_of_its_own():
    config = OptimConfig(schedule="onecycle", lr=0.02, warmup_steps=19, min_lr=1e-5)
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.02, total_steps=200, pct_start=0.1, final_div_factor=0.02 / 25 / 1e-5
        ),
        0.02,
        200,
    )
    assert rates_of(config, 200) == exactly(expected)


@given(
    st.sampled_from(["poly", "cosine", "onecycle"]),
    st.integers(1, 120),
    st.none() | st.integers(0, 150),
    st.sampled_from([0.0, 1e-7, 1e-3, 1.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_every_schedule_rises_then_falls(schedule, steps, warmup, min_lr, power):
    peak = 0.01
    if schedule == "poly" and warmup is not None:
        # The warm-up multiplies the decay: one longer than this ends in what already falls.
        warmup = min(warmup, int(steps / (1 + power)))
    config = OptimConfig(
        lr=peak, schedule=schedule, warmup_steps=warmup, min_lr=min_lr, power=power
    )
    rates = rates_of(config, steps)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    if warmup is None:
        rise = 0.3 * steps if schedule == "onecycle" else min(1500, steps // 10)
    else:
        rise = warmup
    slack = 1e-12 * peak
    top = next(step for step, rate in enumerate(rates) if rate >= max(rates) - slack)
    assert top <= rise
    assert all(after >= before - slack for before, after in pairwise(rates[: top + 1]))
    assert all(after <= before + slack for before, after in pairwise(rates[top:]))
    if steps - 1 > rise:
        floor = min(min_lr, peak)
        if schedule == "onecycle":  # Its last step is at the end; the others' would be the next.
            assert rates[-1] == pytest.approx(max(floor, peak / 250_000), rel=1e-9)
        else:
            assert lr_factor(steps, steps, config) == 0
            assert rates[-1] >= floor * (1 - 1e-12)


def test_unknown_schedule():
    config = OptimConfig()
    object.__setattr__(config, "schedule", "cosin")  # The tests check types, programs do not.
    with pytest.raises(InputError, match=r"No schedule is called 'cosin'\. Perhaps you meant cos"):
        config.__post_init__()


def test_schedule_of_the_release():
    config = OptimConfig()
    factors = [lr_factor(step, 160_000, config) for step in (0, 750, 1500, 80_000, 159_999)]
    assert factors[0] == pytest.approx(1e-6)
    assert factors[1] == pytest.approx(0.5 * (1 - 750 / 160_000), rel=1e-5)
    assert factors[2] == pytest.approx(1 - 1500 / 160_000)
    assert factors[3] == pytest.approx(0.5)
    assert factors[4] == pytest.approx(1 / 160_000)


@given(st.integers(1, 5000), st.sampled_from([None, 0, 10]), st.sampled_from([0.9, 1.0, 2.0]))
def test_schedule_rises_then_falls(steps, warmup, power):
    config = OptimConfig(warmup_steps=warmup, power=power)
    factors = [lr_factor(step, steps, config) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert peak <= (min(1500, steps // 10) if warmup is None else warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert lr_factor(steps, steps, config) == 0


def test_short_runs_warm_up_for_a_tenth():
    config = OptimConfig()
    assert lr_factor(0, 100, config) == pytest.approx(1e-6)
    assert lr_factor(10, 100, config) == pytest.approx(0.9)
    assert lr_factor(0, 5, config) == 1  # No room for a warm-up.
