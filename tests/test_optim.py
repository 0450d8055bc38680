import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccsnet.optim import OptimConfig, create_optimizer, lr_factor, parameter_groups, set_lr
from ccsnet.segmenter import create_segmenter
from tests.shapes import tiny_model


@pytest.fixture(params=["test_efficientnet", "test_convnext", "mit_b0"], scope="module")
def model(request):
    return create_segmenter(tiny_model(backbone=request.param), num_classes=3)


def test_every_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, OptimConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len({group["name"] for group in groups}) == len(groups) == 4


def test_what_is_decayed(model):
    config = OptimConfig(weight_decay=0.02)
    decay_of = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, config)
        for p in group["params"]
    }
    norms = tuple(
        {type(m) for m in model.modules() if "Norm" in type(m).__name__} | {torch.nn.BatchNorm2d}
    )
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            expected = 0.0 if isinstance(module, norms) or parameter.ndim <= 1 else 0.02
            assert decay_of[id(parameter)] == expected, (module, name)


def test_heads_learn_faster(model):
    config = OptimConfig(lr=1e-3, head_lr_multiplier=7.0)
    head = {id(p) for p in model.head.parameters()}
    for group in parameter_groups(model, config):
        rate = 7e-3 if id(group["params"][0]) in head else 1e-3
        assert group["lr"] == pytest.approx(rate)
        assert len({id(p) in head for p in group["params"]}) == 1


def test_frozen_parameters_are_left_out():
    model = create_segmenter(tiny_model(), num_classes=3)
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig())
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.head.parameters()}


def test_betas_reach_the_optimizer(model):
    optimizer = create_optimizer(model, OptimConfig(betas=(0.8, 0.95)))
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)


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


def test_the_rate_needs_only_the_step(model):
    config = OptimConfig(lr=1e-3)
    steadily, resumed = (create_optimizer(model, config) for _ in range(2))
    for step in range(8):
        set_lr(steadily, step, 20, config)
    set_lr(resumed, 7, 20, config)
    rates = [[group["lr"] for group in o.param_groups] for o in (steadily, resumed)]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(1e-3 * lr_factor(7, 20, config))
