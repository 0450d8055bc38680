"""What every loss promises. A new file in ccsnet/losses is tested here by itself."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.losses._base import Loss
from ccsnet.plugins import find_plugin, plugin_names, plugin_notes
from tests.losses import naive

LOSSES = plugin_names("ccsnet.losses")
OPTIONS = {  # Apart from the defaults.
    "ce": {"label_smoothing": 0.1},
    "ohem": {"threshold": 0.4, "min_kept": 0.25},
    "focal": {"gamma": 0.5},
    "tversky": {"alpha": 0.8, "beta": 0.4},
    "boundary": {"radius": 1, "weight": 0.5},
}
CASES = [(name, {}) for name in LOSSES] + [(n, o) for n, o in OPTIONS.items() if n in LOSSES]
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])


def build(name: str, options: dict | None = None) -> Loss:
    return find_plugin("ccsnet.losses", name, "build")(**(options or {}))


def example(
    seed: int, batch: int = 3, ignored: float = 0.3, num_classes: int = 5, index: int = 255
):
    """Logits in float64, labels in which classes lie together, an ignored share of pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, num_classes, 6, 9, generator=generator, dtype=torch.float64)
    coarse = torch.randint(num_classes, (batch, 2, 3), generator=generator)
    label = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)
    noise = torch.rand(batch, 6, 9, generator=generator)
    return logits, label.masked_fill(noise < ignored, index)


def mean(loss: Loss, logits, label, ignore_index: int = 255, weights=None) -> torch.Tensor:
    total = loss.total(logits, label, ignore_index, weights)
    return total / loss.count(label, ignore_index, weights).clamp(min=1e-6)


def expected(name: str, logits, label, ignore_index: int = 255, weights=None, options=None):
    assert hasattr(naive, name), f"write the loss {name!r} once more in tests/losses/naive.py"
    of_weights = None if weights is None else weights.numpy()
    numbers = logits.detach().double().numpy(), label.numpy()
    return getattr(naive, name)(*numbers, ignore_index, of_weights, **(options or {}))


def gradient(value_of, logits) -> torch.Tensor:
    given = logits.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(value_of(given), given)
    return grad


def test_the_losses_are_here():
    assert {"ce", "ohem", "focal", "dice", "tversky", "lovasz", "boundary"} <= set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_what_it_is_and_where_from(name):
    module = importlib.import_module(type(build(name)).__module__)
    assert plugin_notes("ccsnet.losses")[name].endswith(".")
    assert isinstance(build(name), Loss)
    assert "Source:" in inspect.getsource(module)


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(max_examples=10)
@given(
    seed=st.integers(0, 9999),
    num_classes=st.integers(2, 9),
    ignored=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
)
def test_equals_the_definition(name, options, seed, num_classes, ignored):
    logits, label = example(seed, ignored=ignored, num_classes=num_classes)
    value = expected(name, logits, label, options=options)
    loss = build(name, options)
    assert mean(loss, logits, label).item() == pytest.approx(value, rel=1e-6, abs=1e-9)
    single = mean(loss, logits.float(), label).item()
    assert single == pytest.approx(expected(name, logits.float(), label, options=options), rel=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_gradient_is_the_slope_of_the_definition(name, options, weights):
    logits, label = example(1)
    loss = build(name, options)
    grad = gradient(lambda x: mean(loss, x, label, weights=weights), logits)
    assert grad.isfinite().all()
    ignored = (label == 255)[:, None].expand_as(grad)
    assert ignored.any()
    assert (grad[ignored] == 0).all()
    rng = np.random.default_rng(0)
    places = rng.permutation(list(np.ndindex(*logits.shape)))[:24]
    for place in map(tuple, places):
        values = []
        for step in (1e-6, -1e-6):
            moved = logits.clone()
            moved[place] += step
            values.append(expected(name, moved, label, weights=weights, options=options))
        slope = (values[0] - values[1]) / 2e-6
        assert grad[place].item() == pytest.approx(slope, rel=1e-3, abs=2e-9)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_ignored_pixels_hold_changes_nothing(name, options, dtype):
    logits, label = example(2)
    logits = logits.to(dtype)
    other = torch.where((label == 255)[:, None], 40 * torch.randn_like(logits), logits)
    loss = build(name, options)
    for weights in (None, WEIGHTS):
        assert torch.equal(
            loss.total(logits, label, 255, weights), loss.total(other, label, 255, weights)
        )


@pytest.mark.parametrize(("name", "options"), CASES)
def test_nothing_valid_is_0_and_teaches_nothing(name, options):
    logits, label = example(3)
    loss = build(name, options)
    nothing = torch.full_like(label, 255)
    for weights in (None, WEIGHTS):
        assert loss.count(nothing, 255, weights).item() == 0
        assert mean(loss, logits, nothing, weights=weights).item() == 0
        grad = gradient(lambda x, weights=weights: mean(loss, x, nothing, weights=weights), logits)
        assert torch.equal(grad, torch.zeros_like(grad))
    one_void = label.clone()
    one_void[1] = 255
    grad = gradient(lambda x: mean(loss, x, one_void), logits)
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))
    rest = [0, 2]
    assert mean(loss, logits, one_void).item() == pytest.approx(
        mean(loss, logits[rest], one_void[rest]).item()
    )


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(max_examples=10)
@given(
    seed=st.integers(0, 9999),
    parts=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    weights=st.sampled_from([None, WEIGHTS]),
    ignored=st.sampled_from([0.0, 0.3, 0.98]),
)
def test_the_same_however_the_batch_is_split(name, options, seed, parts, weights, ignored):
    """Values and gradients, of any images in any part; only the counts are shared."""
    logits, label = example(seed, batch=5, ignored=ignored)
    loss = build(name, options)
    whole = gradient(lambda x: mean(loss, x, label, weights=weights), logits)
    part = torch.tensor(parts)
    members = [part == number for number in part.unique()]
    count = torch.stack([loss.count(label[m], 255, weights) for m in members]).sum()
    assert count.item() == pytest.approx(loss.count(label, 255, weights).item())
    totals, grads = 0.0, torch.zeros_like(logits)
    for m in members:
        total = loss.total(logits[m], label[m], 255, weights) / count.clamp(min=1e-6)
        totals += total.item()
        grads[m] = gradient(
            lambda x, m=m: loss.total(x, label[m], 255, weights) / count.clamp(min=1e-6), logits[m]
        )
    assert totals == pytest.approx(mean(loss, logits, label, weights=weights).item())
    torch.testing.assert_close(grads, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_counts_need_no_logits_and_are_positive_for_a_valid_pixel(name, options):
    label = torch.full((2, 6, 9), 255)
    label[1, 5, 8] = 1
    count = build(name, options).count(label, 255, None)
    assert (count.item(), count.dtype, count.shape) == (1, torch.float32, ())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_class_weights(name, options):
    logits, label = example(4)
    loss = build(name, options)
    value = mean(loss, logits, label, weights=WEIGHTS).item()
    assert value == pytest.approx(
        expected(name, logits, label, weights=WEIGHTS, options=options), rel=1e-6
    )
    plain = mean(loss, logits, label).item()
    if getattr(loss, "ignores_class_weights", False):
        assert value == plain
    else:
        assert value != pytest.approx(plain, rel=1e-3)
    equal = mean(loss, logits, label, weights=torch.full((5,), 7.0)).item()
    assert equal == pytest.approx(plain)
    weightless = torch.zeros(5)
    if not getattr(loss, "ignores_class_weights", False):
        assert mean(loss, logits, label, weights=weightless).item() == 0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_another_ignore_index(name, options):
    logits, label = example(5, num_classes=300, index=65535)
    label[0, 0, :4] = 255  # A class like any other here.
    loss = build(name, options)
    value = mean(loss, logits, label, 65535).item()
    assert value == pytest.approx(expected(name, logits, label, 65535, options=options), rel=1e-6)
    as_class = example(6, index=0)  # Also one of the classes may be what is ignored.
    value = mean(loss, *as_class, 0).item()
    assert value == pytest.approx(expected(name, *as_class, 0, options=options), rel=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("num_classes", [2, 1000])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_any_size_and_number_of_classes(name, options, num_classes, size):
    torch.manual_seed(0)
    logits = torch.randn(2, num_classes, *size)
    label = torch.randint(num_classes, (2, *size))
    value = mean(build(name, options), logits, label).item()
    assert value == pytest.approx(expected(name, logits, label, options=options), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_prediction_has_a_lower_loss_and_a_perfect_one_none(name):
    _, label = example(7, ignored=0.2)
    truth = torch.nn.functional.one_hot(label.where(label != 255, 0), 5).movedim(-1, 1).float()
    loss = build(name)
    values = [mean(loss, margin * truth, label).item() for margin in (-4, -1, 0, 1, 2, 4, 8, 40)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("scale", [1e3, 1e-30])
def test_extreme_logits_have_finite_gradients(name, options, scale):
    """Certain and right, certain and wrong, and no opinion at all."""
    logits, label = example(8)
    loss = build(name, options)
    for x in ((scale * logits).float(), torch.zeros_like(logits).float()):
        grad = gradient(lambda given: mean(loss, given, label), x)
        assert mean(loss, x, label).isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_following_the_gradient_finds_the_label(name):
    logits, label = example(9, ignored=0.2)
    x = (0.01 * logits).float().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    loss = build(name)
    for _ in range(80):
        optimizer.zero_grad()
        mean(loss, x, label).backward()
        optimizer.step()
    valid = label != 255
    assert (x.argmax(1) == label)[valid].float().mean() > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_on_a_gpu(name, options):
    logits, label = example(10)
    loss = build(name, options)
    for weights in (None, WEIGHTS):
        here = mean(loss, logits.float(), label, weights=weights)
        there = mean(loss, logits.float().cuda(), label.cuda(), weights=weights)
        torch.testing.assert_close(there.cpu(), here)
