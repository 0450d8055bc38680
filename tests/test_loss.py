import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.heads._base import Output
from ccsnet.loss import cross_entropy, segmentation_loss


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
