import inspect
import re
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import ccsnet.loss
from ccsnet.errors import InputError
from ccsnet.heads._base import Output
from ccsnet.loss import (
    SegmentationLoss,
    Term,
    cross_entropy,
    parse_loss,
    segmentation_loss,
)
from ccsnet.losses import _upsampled
from ccsnet.losses._base import total_weight
from ccsnet.losses._upsampled import upsampled_cross_entropy
from ccsnet.plugins import find_plugin, plugin_names
from tests import pages


def naive(logits: np.ndarray, label: np.ndarray, ignore_index: int) -> float:
    """Mean over valid pixels of -log softmax, pixel by pixel; logits at the label's size."""
    terms = []
    for b, row, column in np.ndindex(label.shape):
        if label[b, row, column] != ignore_index:
            scores = logits[b, :, row, column].astype(np.float64)
            log_sum = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
            terms.append(log_sum - scores[label[b, row, column]])
    return float(np.mean(terms)) if terms else 0.0


def example(seed: int, num_classes: int = 3, size: tuple[int, int] = (5, 7), ignored: float = 0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, num_classes, *size, generator=generator)
    label = torch.randint(num_classes, (2, *size), generator=generator)
    return logits, label.masked_fill(torch.rand(2, *size, generator=generator) < ignored, 255)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(2, 9), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_equals_the_definition(seed, num_classes, ignored):
    logits, label = example(seed, num_classes, ignored=ignored)
    expected = naive(logits.numpy(), label.numpy(), 255)
    assert cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("size", [(10, 14), (13, 5), (3, 3), (1, 1)])
def test_logits_are_resized_to_the_label(size):
    _, label = example(0, size=size)
    small = torch.randn(2, 3, 4, 6)
    full = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    expected = naive(full.numpy(), label.numpy(), 255)
    assert cross_entropy(small, label).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_batch_without_valid_pixels_teaches_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_have_no_gradient_and_others_the_right_one():
    logits, label = example(1)
    logits.requires_grad_()
    cross_entropy(logits, label).backward()
    ignored = (label == 255)[:, None].expand_as(logits)
    assert ignored.any()
    assert (logits.grad[ignored] == 0).all()
    plain = logits.detach().double().numpy()
    for place in [(0, 0, 0, 0), (1, 2, 3, 3), (0, 1, 4, 6), (1, 0, 2, 5)]:
        change = np.zeros_like(plain)
        change[place] = 1e-5
        high, low = (naive(plain + s * change, label.numpy(), 255) for s in (1, -1))
        slope = (high - low) / 2e-5
        assert logits.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_another_ignore_index():
    logits, label = example(2, num_classes=300)
    label[label == 255] = 65535
    label[0, 0, 0] = 255  # A class like any other here.
    expected = naive(logits.numpy(), label.numpy(), 65535)
    assert cross_entropy(logits, label, 65535).item() == pytest.approx(expected, rel=1e-5)


def test_the_terms_and_their_weights():
    logits, label = example(3)
    coarse = torch.randn(2, 3, 2, 2)
    terms = segmentation_loss(Output(logits, coarse), label, coarse_weight=0.25)
    assert list(terms) == ["final", "coarse"]
    assert terms["final"].item() == cross_entropy(logits, label).item()
    assert terms["coarse"].item() == pytest.approx(0.25 * cross_entropy(coarse, label).item())
    assert list(segmentation_loss(Output(logits), label)) == ["final"]


def test_bfloat16_logits_are_summed_in_float32():
    logits, label = example(4)
    loss = cross_entropy(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cross_entropy(logits, label).item(), rel=0.02)


# What is written


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ce", [(1, "ce", {})]),
        (" ce ", [(1, "ce", {})]),
        ("ce:1+dice:3", [(1, "ce", {}), (3, "dice", {})]),
        ("ce : 0.5 + dice", [(0.5, "ce", {}), (1, "dice", {})]),
        ("ce:1e+3+dice:1e-3", [(1000, "ce", {}), (0.001, "dice", {})]),
        ("ce:0+dice:.5", [(0, "ce", {}), (0.5, "dice", {})]),
        ("ohem(threshold=0.6):0.5+dice", [(0.5, "ohem", {"threshold": 0.6}), (1, "dice", {})]),
        ("focal( gamma = 2 )", [(1, "focal", {"gamma": 2.0})]),
        ("dice()", [(1, "dice", {})]),
        ("tversky(alpha=1e+0, beta=+2):2", [(2, "tversky", {"alpha": 1.0, "beta": 2.0})]),
        ("boundary(radius=2,weight=4)", [(1, "boundary", {"radius": 2, "weight": 4.0})]),
        ("ce+ce", [(1, "ce", {}), (1, "ce", {})]),
    ],
)
def test_a_text_names_terms(text, terms):
    parsed = parse_loss(text)
    assert parsed == tuple(Term(*term) for term in terms)
    for term, (_, _, options) in zip(parsed, terms, strict=True):
        assert [type(v) for v in term.options.values()] == [type(v) for v in options.values()]
    SegmentationLoss(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The loss is empty"),
        (" ", "The loss is empty"),
        ("dise", "No loss is called 'dise'. Perhaps you meant dice?"),
        ("cross", "Known: boundary, ce, dice, focal, lovasz, ohem, tversky."),
        ("ce.dice", "No loss is called"),
        ("ce+", "The term '' of the loss 'ce+' cannot be read"),
        ("+ce", "The term '' of the loss"),
        ("ce++dice", "The term '' of the loss"),
        ("ce:1:2", "No loss is called 'ce:1'|needs the module 'ce'"),
        (":2", "No loss is called ''"),
        ("()", "cannot be read"),
        ("(gamma=2)", "cannot be read"),
        ("focal(gamma=2", "cannot be read"),
        ("focal gamma=2)", "cannot be read"),
        ("focal(gamma=2)3", "cannot be read"),
        ("focal((gamma=2))", "cannot be read"),
        ("focal(gama=2)", "No option of 'focal' is called 'gama'. Perhaps you meant gamma?"),
        ("ohem(x=2)", "Known: min_kept, threshold. It has: threshold, min_kept."),
        ("dice(smooth=1)", "The loss 'dice' has no options; got 'smooth'"),
        ("focal(2)", "'2' in the loss 'focal(2)' is no option of 'focal'; write it as"),
        ("focal(gamma=)", "The option gamma of 'focal' is '' in the loss"),
        ("focal(gamma=two)", "'two' in the loss 'focal(gamma=two)'; it must be a number"),
        ("focal(gamma=inf)", "must be a number"),
        ("focal(gamma=nan)", "must be a number"),
        ("focal(gamma=1,gamma=2)", "has gamma twice"),
        ("focal(gamma=-1)", "The loss 'focal' has gamma=-1.0; it must be 0 or more. Write focal("),
        ("ce(label_smoothing=1)", "from 0 to below 1"),
        ("ohem(threshold=1.1)", "from 0 to 1"),
        ("ohem(min_kept=100000)", "from 0 to 1"),
        ("tversky(alpha=-0.1)", "must be 0 or more"),
        ("tversky(beta=0)", "must be more than 0"),
        ("boundary(radius=0)", "a whole number from 1 on"),
        ("boundary(radius=1.5)", "has radius=1.5; it must be a whole number"),
        ("boundary(weight=-2)", "must be 0 or more"),
        ("ce:", "The weight of 'ce' is '' in the loss 'ce:'; it must be a number"),
        ("ce:much", "The weight of 'ce' is 'much'"),
        ("ce:nan", "The weight of 'ce' is 'nan'"),
        ("ce:1e999", "The weight of 'ce' is '1e999'"),
        ("ce:-1", "The weight of 'ce' is -1 in the loss 'ce:-1'"),
        ("ce+dice:-0.5", "The weight of 'dice' is -0.5"),
        ("ce:1+2", "The weight of 'ce' is '1+2'"),
        ("no_such_module:loss:2", "needs the module 'no_such_module'"),
    ],
)
def test_mistakes_are_told(text, message):
    with pytest.raises(InputError) as told:
        SegmentationLoss(text)
    assert any(part in str(told.value) for part in message.split("|")), str(told.value)


def test_a_loss_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "class Constant:\n"
        "    def __init__(self, value, times=1.0): self.value = value * times\n"
        "    def count(self, label, *_): return (label != 255).sum().float()\n"
        "    def total(self, logits, label, *_): return self.value * self.count(label)\n"
        "def free(**options): return Constant(options['anything'])\n"
        "def nothing(): return 3\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    logits, label = example(0)
    for text, value in {
        "my_losses:Constant(value=2)": 2,
        "my_losses:Constant(value=2,times=3):0.5": 3,
        "my_losses:free(anything=7)+my_losses:Constant(value=1):2": 9,
    }.items():
        assert SegmentationLoss(text)(Output(logits), label)["final"].item() == value
    assert parse_loss("my_losses:nothing:2") == (Term(2.0, "my_losses:nothing", {}),)
    for text, message in {
        "my_losses:Constant": "The loss 'my_losses:Constant' needs 'value'",
        "my_losses:Constant(value=1,tims=2)": "Perhaps you meant times?",
        "my_losses:nothing": "made a int, which lacks the methods",
        "my_losses:number": "is no function or class",
        "my_losses:other": "The module 'my_losses' has no 'other', which the loss",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            SegmentationLoss(text)


# Both predictions


def test_plain_cross_entropy_written_out():
    """Of both predictions and their gradients, in double precision."""
    for weights in (None, torch.tensor([0.3, 1.7, 2.0])):
        final, label = example(5, size=(12, 20), ignored=0.2)
        coarse = torch.randn(2, 3, 3, 5)
        maps = [x[:, :, ::2, ::2].clone().requires_grad_() for x in (final, coarse)]
        terms = list(SegmentationLoss(class_weights=weights)(Output(*maps), label).values())
        torch.stack(terms).sum().backward()
        exact = [x.detach().double().requires_grad_() for x in maps]
        expected = []
        for x, factor in zip(exact, (1, 0.4), strict=True):
            full = F.interpolate(x, size=(12, 20), mode="bilinear", align_corners=False)
            double = None if weights is None else weights.double()
            expected.append(factor * F.cross_entropy(full, label, double, ignore_index=255))
        torch.stack(expected).sum().backward()
        for got, wanted in zip(
            [*terms, *(x.grad for x in maps)], [*expected, *(x.grad for x in exact)], strict=True
        ):
            torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-8)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    num_classes=st.integers(2, 5),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    weighted=st.booleans(),
    last=st.booleans(),
    strip=st.sampled_from([1, 300, 2**20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_cross_entropy_without_the_full_size_map(
    grid, size, num_classes, ignored, weighted, last, strip, seed
):
    """Whatever the sizes, memory order and strips: torch's, of the resized logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, num_classes, *grid, generator=generator)
    label = torch.randint(num_classes, (2, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < ignored] = 255
    weights = torch.rand(num_classes, generator=generator) if weighted else None
    exact = logits.double().requires_grad_()
    full = F.interpolate(exact, size=size, mode="bilinear", align_corners=False)
    double = None if weights is None else weights.double()
    expected = F.cross_entropy(full, label, double, ignore_index=255, reduction="sum")
    order = torch.channels_last if last else torch.contiguous_format
    mine = logits.to(memory_format=order).requires_grad_()
    with mock.patch.dict(_upsampled.STRIP, cpu=strip):
        got = upsampled_cross_entropy(mine, label, 255, weights)
    torch.testing.assert_close(got.double(), expected, rtol=3e-6, atol=1e-5)
    with torch.no_grad():
        assert upsampled_cross_entropy(mine, label, 255, weights) == got or strip < 2**20
    (3 * got).backward()
    (3 * expected).backward()
    assert mine.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)


def test_a_loss_without_the_full_size_map_takes_no_full_size_memory():
    logits = torch.randn(1, 150, 32, 32, requires_grad=True)
    label = torch.randint(150, (1, 256, 256))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        upsampled_cross_entropy(logits, label, 255).backward()
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert 0 < largest < 150 * 256 * 256 * 4 / 2


def test_what_is_no_number_counts_only_where_it_stands():
    logits = torch.zeros(1, 3, 4, 4)
    logits[..., 3, 3] = torch.nan
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    assert upsampled_cross_entropy(logits, label, 255).isnan()
    label[:, 9:] = 255
    label[:, :, 9:] = 255
    assert upsampled_cross_entropy(logits, label, 255).item() == pytest.approx(81 * np.log(3))


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_that_logits_have_not_is_told(wrong):
    label = torch.full((1, 8, 8), wrong)
    with pytest.raises(RuntimeError, match=f"index {wrong} is out of bounds"):
        upsampled_cross_entropy(torch.zeros(1, 3, 2, 2), label, 255)


def test_terms_are_weighted_and_added():
    logits, label = example(6)
    output = Output(logits)
    alone = {name: SegmentationLoss(name)(output, label)["final"] for name in ("ce", "dice")}
    both = SegmentationLoss("ce:0.5+dice:3")(output, label)["final"]
    assert both.item() == pytest.approx((0.5 * alone["ce"] + 3 * alone["dice"]).item())


def test_the_coarse_prediction_has_its_own_loss():
    logits, label = example(7)
    coarse = torch.randn(2, 3, 2, 2)
    terms = SegmentationLoss("lovasz", "focal+dice:2", coarse_weight=0.25)(
        Output(logits, coarse), label
    )
    alone = {
        name: SegmentationLoss(name)(Output(coarse), label)["final"] for name in ("focal", "dice")
    }
    assert list(terms) == ["final", "coarse"]
    assert (
        terms["final"].item() == SegmentationLoss("lovasz")(Output(logits), label)["final"].item()
    )
    expected = 0.25 * (alone["focal"] + 2 * alone["dice"])
    assert terms["coarse"].item() == pytest.approx(expected.item())
    same = SegmentationLoss("lovasz", coarse_weight=0.25)(Output(logits, coarse), label)
    expected = 0.25 * SegmentationLoss("lovasz")(Output(coarse), label)["final"]
    assert same["coarse"].item() == expected.item()
    assert list(SegmentationLoss("lovasz", "ce")(Output(logits), label)) == ["final"]


def test_the_auxiliary_prediction_has_the_coarse_one_s_loss_and_its_own_weight():
    logits, label = example(8)
    coarse, auxiliary = torch.randn(2, 2, 3, 2, 2).unbind()
    loss = SegmentationLoss("lovasz", "focal", coarse_weight=0.25, auxiliary_weight=0.1)
    terms = loss(Output(logits, coarse, auxiliary), label)
    assert list(terms) == ["final", "coarse", "auxiliary"]
    expected = 0.1 * SegmentationLoss("focal")(Output(auxiliary), label)["final"]
    assert terms["auxiliary"].item() == pytest.approx(expected.item())
    without = loss(Output(logits, coarse), label)
    assert [terms[name] for name in without] == list(without.values())


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["coarse_weight", "auxiliary_weight"])
def test_weights_that_cannot_be(name, weight):
    with pytest.raises(InputError, match=f"{name} is {weight}; it must be a number from 0 on"):
        SegmentationLoss(**{name: weight})


ALL = "+".join(plugin_names("ccsnet.losses"))


@settings(max_examples=10)
@given(
    st.integers(0, 999),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.sampled_from([None, [0.5, 2.0, 1.0]]),
)
def test_parts_with_the_whole_s_counts_add_up(seed, parts, weights):
    """Loss and gradients of a small network, with a part that has no valid pixel among them."""
    torch.manual_seed(seed)
    network = torch.nn.Conv2d(2, 9, 3, padding=1)
    image = torch.randn(4, 2, 5, 7)
    label = torch.randint(3, (4, 10, 14))
    label[torch.rand(4, 10, 14) < torch.tensor([0.0, 0.5, 0.95, 1.0])[:, None, None]] = 255
    loss = SegmentationLoss(
        ALL,
        "dice+ce",
        class_weights=None if weights is None else torch.tensor(weights),
        auxiliary_weight=0.7,
    )

    def backward(image, label, counts) -> list[float]:
        final, coarse, auxiliary = network(image).chunk(3, dim=1)
        output = Output(final, F.avg_pool2d(coarse, 2), F.avg_pool2d(auxiliary, 3))
        terms = loss(output, label, counts)
        torch.stack(list(terms.values())).sum().backward()
        return [term.item() for term in terms.values()]

    whole = backward(image, label, None)
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    members = [torch.tensor(parts) == part for part in set(parts)]
    counts = torch.stack([loss.counts(label[m]) for m in members]).sum(0)
    torch.testing.assert_close(counts, loss.counts(label))
    assert counts.shape == (9,)
    values = [backward(image[m], label[m], counts) for m in members]
    assert np.sum(values, 0) == pytest.approx(whole, rel=1e-5)
    for p, grad in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", plugin_names("ccsnet.losses"))
def test_half_precision_logits_are_made_float32(name, dtype):
    logits, label = example(8)
    half = logits.to(dtype).requires_grad_()
    value = SegmentationLoss(name)(Output(half), label)["final"]
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == SegmentationLoss(name)(Output(half.float()), label)["final"].item()
    assert half.grad.dtype == dtype
    ignored = (label == 255)[:, None].expand_as(half)
    assert (half.grad[ignored] == 0).all()


def test_all_losses_of_nothing_are_0_and_teach_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    coarse = torch.randn(2, 3, 2, 2, requires_grad=True)
    terms = SegmentationLoss(ALL)(Output(logits, coarse), torch.full((2, 8, 8), 255))
    torch.stack(list(terms.values())).sum().backward()
    assert [term.item() for term in terms.values()] == [0, 0]
    for x in (logits, coarse):
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_each_prediction_is_resized_once(monkeypatch):
    calls = []
    resize = ccsnet.loss.resize
    monkeypatch.setattr(ccsnet.loss, "resize", lambda *a: calls.append(a) or resize(*a))
    logits, label = example(9, size=(8, 8))
    SegmentationLoss(ALL)(Output(logits[..., :4], logits[..., :2]), label)
    assert len(calls) == 2


def test_class_weights_that_nothing_uses_are_refused():
    logits, label = example(10)
    weights = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="class weights, and the loss 'dice\\+lovasz' has no use"):
        SegmentationLoss("dice+lovasz", class_weights=weights)
    SegmentationLoss("dice", "ce", class_weights=weights)
    mixed = SegmentationLoss("ce+tversky", class_weights=weights)(Output(logits), label)["final"]
    expected = cross_entropy(logits, label, 255, weights)
    expected += SegmentationLoss("tversky")(Output(logits), label)["final"]
    assert mixed.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_coarse_weight_is_a_number_from_0_on(weight):
    with pytest.raises(InputError, match="coarse_weight is"):
        SegmentationLoss(coarse_weight=weight)


def test_total_weight_is_cross_entropy_s_count():
    _, label = example(11)
    assert total_weight(label).item() == SegmentationLoss().counts(label)[0].item()
    weights = torch.tensor([1.0, 0.0, 2.5])
    expected = sum(weights[c].item() for c in label.flatten().tolist() if c != 255)
    assert total_weight(label, 255, weights).item() == pytest.approx(expected)
    loss = SegmentationLoss(class_weights=weights)
    assert loss.counts(label)[0].item() == pytest.approx(expected)


# The document

DOCUMENT = pages.text_of("docs/losses.md")


@pytest.mark.parametrize("name", plugin_names("ccsnet.losses"))
def test_the_document_tells_options_and_defaults(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*$", DOCUMENT, re.MULTILINE)
    options = inspect.signature(find_plugin("ccsnet.losses", name, "build")).parameters
    for option in options.values():
        assert f"`{option.name}={option.default:g}`" in row


def test_the_document_s_examples_work(tmp_path, monkeypatch):
    texts, own = pages.all_blocks("docs/losses.md")
    (tmp_path / "my_documented.py").write_text(own.text)
    monkeypatch.syspath_prepend(tmp_path)
    for line in texts.text.splitlines()[:-1]:
        parse_loss(re.split(r"  +", line)[0])
    logits, label = example(12)
    value = SegmentationLoss("my_documented:Brier")(Output(logits), label)["final"].item()
    truth = F.one_hot(label.where(label != 255, 0), 3).movedim(-1, 1)
    squares = ((logits.softmax(1) - truth) ** 2).sum(1)
    assert value == pytest.approx(squares[label != 255].mean().item())
