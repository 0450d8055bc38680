"""Linear layers, 1x1 convolutions and attention for processors, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ccsnet import cpu_kernels
from ccsnet.cpu_kernels import faster_kernels
from ccsnet.precision import has_bf16
from ccsnet.segmenter import ModelConfig, create_segmenter

CPU = torch.device("cpu")
LEAST_BF16 = 2**-8
"""Half of the distance between 1 and the next number of bf16 is 2 ** -9; sums add up several."""

lengths = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """What is for some processors is tested on all."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu_kernels, "onednn_is_faster", lambda: True)


@pytest.fixture
def used(monkeypatch):
    """Which replacements were used."""
    names = []

    def noted(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if result is not None:
                names.append(function.__name__)
            return result

        return call

    replacements = {f: noted(r) for f, r in cpu_kernels._REPLACEMENTS.items()}
    monkeypatch.setattr(cpu_kernels, "_REPLACEMENTS", replacements)
    return names


def both(function, *args, **kwargs):
    """A function's result without and with the faster kernels."""
    with torch.inference_mode():
        expected = function(*args, **kwargs)
        with faster_kernels(CPU):
            return expected, function(*args, **kwargs)


@given(places=lengths, inputs=lengths, outputs=lengths, seed=seeds, bias=st.booleans())
def test_linear(places, inputs, outputs, seed, bias):
    torch.manual_seed(seed)
    # Parts of larger tensors, as a fusion that is split into its inputs has them.
    image = torch.randn(2, places, inputs + 3)[..., 1:-2]
    weight = torch.randn(outputs, inputs + 5)[:, 2:-3]
    expected, got = both(F.linear, image, weight, torch.randn(outputs) if bias else None)
    torch.testing.assert_close(got, expected)


@given(height=lengths, width=lengths, channels=lengths, outputs=lengths, seed=seeds)
def test_1x1_convolution(height, width, channels, outputs, seed):
    torch.manual_seed(seed)
    image = torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, channels, 1, 1), torch.randn(outputs)
    for options in ({}, {"stride": (2, 2)}, {"padding": 1}, {"padding": "same"}):
        expected, got = both(F.conv2d, image, weight, bias, **options)
        torch.testing.assert_close(got, expected)


@given(
    heads=lengths,
    queries=st.integers(1, 40),
    keys=lengths,
    dim=lengths,
    block=st.integers(1, 200),
    mask=st.sampled_from(["none", "bool", "float", "of all heads"]),
    scale=st.sampled_from([None, 0.5]),
    seed=seeds,
)
def test_attention(heads, queries, keys, dim, block, mask, scale, seed):
    torch.manual_seed(seed)
    shape = (2, heads)
    query = torch.randn(2, queries, heads, dim).transpose(1, 2)  # As heads are split.
    key, value = torch.randn(*shape, keys, dim), torch.randn(*shape, keys, dim + 1)
    allowed = torch.rand(*(shape if mask != "of all heads" else (2, 1)), queries, keys) < 0.6
    bias = torch.where(allowed, torch.randn(allowed.shape), -torch.inf)
    attn_mask = {"none": None, "bool": allowed}.get(mask, bias)
    before = cpu_kernels.MAX_SCORES
    cpu_kernels.MAX_SCORES = block
    try:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 8 * LEAST_BF16)):
            q, k, v = (t.to(dtype) for t in (query, key, value))
            m = attn_mask.to(dtype) if mask in ("float", "of all heads") else attn_mask
            expected, got = both(F.scaled_dot_product_attention, q, k, v, attn_mask=m, scale=scale)
            assert got.dtype == dtype
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    finally:
        cpu_kernels.MAX_SCORES = before


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 0, 4)])
def test_a_vector_and_nothing_at_all(shape):
    expected, got = both(F.linear, torch.ones(shape), torch.ones(3, 4), torch.ones(3))
    assert torch.equal(got, expected)


def test_what_is_no_number_stays_so():
    query = torch.full((1, 1, 2, 4), torch.nan)
    key = value = torch.ones(1, 1, 3, 4)
    _, got = both(F.scaled_dot_product_attention, query, key, value, attn_mask=torch.zeros(2, 3))
    assert got.isnan().all()


def test_gradients_are_torchs(used):
    weight = torch.randn(3, 4, requires_grad=True)
    image = torch.randn(2, 4)
    with faster_kernels(CPU):
        loss = F.linear(image, weight).sum()
        loss = loss + F.scaled_dot_product_attention(weight[None], weight[None], weight[None]).sum()
    loss.backward()
    assert weight.grad is not None
    assert used == []


@pytest.mark.parametrize("head", ["ccs", "segformer"])
def test_a_network(used, head):
    torch.manual_seed(0)
    model = create_segmenter(ModelConfig(backbone="mit_b0", head=head), num_classes=21).eval()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    expected, got = both(lambda: model(image).logits)
    assert {"_linear", "_conv2d", "_attention"} <= set(used)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    used.clear()
    with torch.autocast("cpu", torch.bfloat16):
        half, got = both(lambda: model(image).logits)
    assert set(used) == ({"_attention"} if has_bf16(CPU) else set())
    # No further from float32 than torch's own are.
    assert (got - expected).norm() < 1.5 * (half - expected).norm()


def test_on_other_devices_nothing_changes(used):
    with faster_kernels(torch.device("meta")):
        F.linear(torch.ones(1, 2), torch.ones(3, 2))
    assert used == []
