import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet import upsample
from ccsnet.upsample import upsample_argmax

SIDE = st.integers(1, 40)


def plain(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def assert_most_likely(labels, logits, size):
    """The labels are the argmax, but for places where two classes differ by a rounding error."""
    full = plain(logits.double(), size)
    assert labels.shape == (len(logits), *size)
    assert labels.dtype == torch.int64
    chosen = full.gather(1, labels[:, None])[:, 0]
    assert (chosen >= full.amax(1) - 1e-5).all()
    assert (labels == full.argmax(1)).float().mean() > 0.99


@pytest.mark.parametrize("band_bytes", [1, 5000, 2**26])
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(2, 7), SIDE, SIDE, SIDE, SIDE)
def test_equals_interpolation_then_argmax(band_bytes, seed, batch, num, rows, columns, high, wide):
    logits = torch.randn(batch, num, rows, columns, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "BAND_BYTES", band_bytes)
        labels = upsample_argmax(logits, (high, wide))
    assert_most_likely(labels, logits, (high, wide))


def test_bands_equal_the_whole_exactly(monkeypatch):
    logits = torch.randn(2, 19, 24, 33)
    whole = upsample_argmax(logits, (95, 130))
    monkeypatch.setattr(upsample, "BAND_BYTES", 4 * 2 * 19 * 130 * 7)
    assert torch.equal(upsample_argmax(logits, (95, 130)), whole)


@pytest.mark.parametrize("band_bytes", [1, 2**26])
def test_ties_go_to_the_first_class(monkeypatch, band_bytes):
    monkeypatch.setattr(upsample, "BAND_BYTES", band_bytes)
    logits = torch.zeros(1, 5, 3, 4)
    logits[:, 2] = logits[:, 4] = 1
    assert (upsample_argmax(logits, (13, 9)) == 2).all()


def test_half_precision_logits():
    logits = torch.randn(1, 4, 8, 8).bfloat16()
    assert torch.equal(upsample_argmax(logits, (31, 33)), upsample_argmax(logits.float(), (31, 33)))


def test_memory_is_bounded(monkeypatch):
    """No full-size map of all classes is made."""
    made = []
    interpolate = F.interpolate

    def watched(*args, **kwargs):
        result = interpolate(*args, **kwargs)
        made.append(result.numel() * 4)
        return result

    monkeypatch.setattr(upsample, "BAND_BYTES", 100_000)
    monkeypatch.setattr(upsample.F, "interpolate", watched)
    upsample_argmax(torch.randn(1, 20, 16, 16), (128, 128))
    assert max(made) <= 100_000
