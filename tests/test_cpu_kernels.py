"""Linear layers, 1x1 convolutions and attention for processors, against torch's own."""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ccsnet import cpu_kernels
from ccsnet.cpu_kernels import faster_kernels
from ccsnet.heads._base import HeadConfig
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


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def attention_is_torchs(query, key, value, **options):
    expected, got = both(F.scaled_dot_product_attention, query, key, value, **options)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    tolerance = 1e-5 if got.dtype == torch.float32 else 8 * LEAST_BF16
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@DTYPES
def test_a_scale_of_zero_is_no_scale_left_out(dtype):
    """All keys count alike then."""
    query, key, value = (5 * torch.randn(2, 3, n, 4).to(dtype) for n in (5, 7, 7))
    attention_is_torchs(query, key, value, scale=0.0)


@DTYPES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("images", "queries", "keys"), [(0, 5, 7), (2, 0, 7), (2, 5, 0), (0, 0, 7), (2, 0, 0)]
)
def test_attention_of_nothing(images, queries, keys, masked, dtype):
    query, key, value = (torch.randn(images, 3, n, 4).to(dtype) for n in (queries, keys, keys))
    mask = torch.ones(queries, keys, dtype=torch.bool) if masked else None
    attention_is_torchs(query, key, value, attn_mask=mask)


@DTYPES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (1, 3), (1, 3)),
        ((2, 3), (2, 1), (2, 1)),
        ((1, 3), (2, 3), (2, 3)),
        ((2, 1), (1, 3), (2, 3)),
        ((2, 3), (3,), (3,)),
        ((2, 3), (2, 3), (1, 1)),
    ],
)
def test_batches_that_are_shared(shapes, masked, dtype):
    """Of one image for all, of one head for all, and of no images at all."""
    query, key, value = (
        torch.randn(*batch, n, 4).to(dtype) for batch, n in zip(shapes, (5, 7, 7), strict=True)
    )
    mask = torch.rand(2, 3, 5, 7) < 0.6 if masked else None
    attention_is_torchs(query, key, value, attn_mask=mask)


def test_what_is_no_number_stays_so():
    query = torch.full((1, 1, 2, 4), torch.nan)
    key = value = torch.ones(1, 1, 3, 4)
    _, got = both(F.scaled_dot_product_attention, query, key, value, attn_mask=torch.zeros(2, 3))
    assert got.isnan().all()


def gradients(function, *tensors):
    """The function's result and the gradients of a weighted sum of it, with and without them."""
    tensors = [t.requires_grad_() for t in tensors]
    found = []
    for context in (contextlib.nullcontext(), faster_kernels(CPU)):
        with context:
            result = function(*tensors)
        weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
        # Going backward no context is needed.
        found.append((result, *torch.autograd.grad(result, tensors, weights.to(result.dtype))))
    return found


@given(places=lengths, inputs=lengths, outputs=lengths, seed=seeds)
def test_gradients_of_linear_and_convolution(places, inputs, outputs, seed):
    torch.manual_seed(seed)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    cases = [
        (F.linear, torch.randn(2, places, inputs), weight, bias),
        (F.linear, torch.randn(places, inputs), weight),
        (
            F.conv2d,
            torch.randn(2, inputs, places, 3).to(memory_format=torch.channels_last),
            weight[:, :, None, None].clone(),
            bias.clone(),
        ),
    ]
    for function, *tensors in cases:
        for expected, got in zip(*gradients(function, *tensors), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@given(
    heads=st.integers(1, 3),
    queries=lengths,
    keys=lengths,
    dim=st.integers(3, 9),
    masked=st.booleans(),
    seed=seeds,
)
def test_gradients_of_attention(heads, queries, keys, dim, masked, seed):
    torch.manual_seed(seed)
    mask = torch.rand(2, 1, queries, keys) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0, :] = False  # A place that may read from nothing.
    tensors = [torch.randn(2, heads, n, dim) for n in (queries, keys, keys)]
    plain, faster = gradients(partial(F.scaled_dot_product_attention, attn_mask=mask), *tensors)
    for expected, got in zip(plain, faster, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_long_sequences_are_not_kept(used):
    """With a backward pass to come they would be; torch's own kernel computes them again."""
    query = torch.randn(1, 1, 80, 4, requires_grad=True)
    with faster_kernels(CPU):
        F.scaled_dot_product_attention(query, query, query)
        assert used == []
        F.scaled_dot_product_attention(query[..., :16, :], query[..., :16, :], query[..., :16, :])
        assert used == ["_attention"]


@pytest.mark.parametrize("head", ["ccs", "segformer"])
def test_a_training_step(used, head):
    torch.manual_seed(0)
    # All classes relevant: of nearly equal scores rounding would choose.
    settings = HeadConfig(top_k=21)
    config = ModelConfig(backbone="mit_b0", head=head, head_config=settings, drop_path=0.0)
    model = create_segmenter(config, num_classes=21).train()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)

    def step(context, half):
        model.zero_grad()
        torch.manual_seed(1)  # Dropout.
        with context, torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(image)
        output.logits.float().square().mean().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected = step(contextlib.nullcontext(), half=False)
    assert used == []
    got = step(faster_kernels(CPU), half=False)
    assert {"_linear", "_attention"} <= set(used)
    assert set(got) == set(expected)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        # Before a batch norm a bias has none: what is there is rounding.
        allowed = 1e-3 * gradient.abs().max() + 1e-5 * largest
        assert (got[name] - gradient).abs().max() <= allowed, name

    def distance(gradients):
        return sum((gradients[name] - expected[name]).square().sum() for name in expected) ** 0.5

    plain, got = step(contextlib.nullcontext(), half=True), step(faster_kernels(CPU), half=True)
    # No further from float32 than torch's own are.
    assert distance(got) < 1.5 * distance(plain)


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
