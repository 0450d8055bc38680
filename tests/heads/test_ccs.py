"""The fast head is the literal method, at any size, in values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.heads._base import HeadConfig
from ccsnet.heads.ccs import CCSHead, class_centres, relevant_classes, window_of
from tests.heads.literal import literal_forward

CHANNELS = (5, 6, 7, 8)


def random_head(num_classes: int, top_k: int, seed: int = 0) -> CCSHead:
    torch.manual_seed(seed)
    config = HeadConfig(dim=12, coarse_dim=9, top_k=top_k)
    head = CCSHead(CHANNELS, num_classes, config)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
    torch.nn.init.normal_(head.coarse[2].weight)
    torch.nn.init.normal_(head.classifier.weight)
    return head.eval().double()


def random_features(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), dtype=torch.float64)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    num_classes=st.integers(2, 30),
    top_k=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_equals_the_literal_method_at_any_size(height, width, num_classes, top_k, seed):
    head = random_head(num_classes, top_k, seed)
    features = random_features(height, width)
    with torch.no_grad():
        logits, coarse, _ = head(features)
        expected_logits, expected_coarse = literal_forward(head, features)
    torch.testing.assert_close(coarse, expected_coarse)
    torch.testing.assert_close(logits, expected_logits)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (40, 72), (8, 8)])
def test_gradients_equal_the_literal_method(training, size):
    """Also in training, where batch norm sees what was read, not what it was read from."""
    head = random_head(num_classes=11, top_k=3).train(training)
    head.dropout.p = head.coarse[1].p = 0.0
    features = random_features(*size)
    gradients = []
    for forward in (lambda f: head(f).logits, lambda f: literal_forward(head, f)[0]):
        head.zero_grad()
        inputs = [f.clone().requires_grad_() for f in features]
        forward(inputs).square().mean().backward()
        gradients.append([p.grad.clone() for p in (*inputs, *head.parameters())])
    for ours, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, literal)


def test_a_class_that_is_nowhere_relevant_is_never_read():
    head = random_head(num_classes=4, top_k=2)
    with torch.no_grad():
        head.coarse[2].bias.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0]))
        features = random_features(64, 64)
        before = head(features).logits
        # Classes 2 and 3 change their coarse logits, stay irrelevant, and change nothing.
        head.coarse[2].weight[2:] *= -1
        after = head(features).logits
    torch.testing.assert_close(before, after)


def test_class_centre_is_where_the_class_is_likely():
    coarse = torch.full((1, 2, 2, 2), -100.0)
    coarse[0, 0, 0, 0] = coarse[0, 1, 1, 1] = 100.0
    features = torch.arange(12.0).reshape(1, 3, 2, 2)
    centres = class_centres(coarse, features)
    torch.testing.assert_close(centres[0, 0], features[0, :, 0, 0])
    torch.testing.assert_close(centres[0, 1], features[0, :, 1, 1])


@given(num_classes=st.integers(2, 40), top_k=st.integers(1, 50))
def test_exactly_k_classes_are_relevant(num_classes, top_k):
    coarse = torch.randn(2, num_classes, 3, 5)
    relevant = relevant_classes(coarse, top_k)
    assert (relevant.sum(1) == min(top_k, num_classes)).all()
    if top_k < num_classes:
        worst_chosen = coarse.masked_fill(~relevant, torch.inf).amin(1)
        best_left = coarse.masked_fill(relevant, -torch.inf).amax(1)
        assert (worst_chosen >= best_left).all()


def test_windows_are_squares_where_sizes_divide():
    cells = torch.rand(1, 2, 3, 5)
    fine = window_of(cells, (8, 12))
    torch.testing.assert_close(fine, cells.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2))
    assert window_of(cells, (2, 3)) is cells


def test_no_gradient_through_the_choice():
    """The coarse head learns from its loss and through the centres, never through top-k."""
    head = random_head(num_classes=6, top_k=2)
    features = random_features(64, 64)
    coarse = head.coarse(features[2])
    assert not relevant_classes(coarse, 2).requires_grad
    head(features).logits.sum().backward()
    assert head.coarse[2].weight.grad.abs().sum() > 0
