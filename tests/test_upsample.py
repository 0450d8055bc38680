import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ccsnet import upsample
from ccsnet.errors import InputError
from ccsnet.upsample import upsample_argmax

SIDE = st.integers(1, 40)
OUT = st.integers(1, 150)


def plain(logits, size):
    """The reference: everything interpolated, then argmax; few classes in the order given."""
    last = logits.is_contiguous(memory_format=torch.channels_last)
    few = logits.shape[1] <= upsample.PLAIN_CLASSES
    logits = logits.float() if last and few else logits.float().contiguous()
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)


def ordinary(random, shape):
    return torch.randn(shape, generator=random) * 5


def tied(random, shape):
    return torch.randint(-2, 3, shape, generator=random).float()


def tied_and_rounded(random, shape):
    """Ties of values whose products with the weights are rounded."""
    return torch.randint(0, 2, shape, generator=random) * 0.1 + 0.3


def one_step_apart(random, shape):
    """Values between which there is no other float32: interpolation makes them level."""
    return 1 + torch.randint(0, 4, shape, generator=random) * 2.0**-23


def masked(random, shape):
    """A third of the classes ruled out."""
    logits = ordinary(random, shape)
    logits[:, 1::3] = -1e9
    return logits


def half(random, shape):
    return ordinary(random, shape).bfloat16()


def flat(random, shape):
    """Areas of ties, as from logits that were enlarged before."""
    batch, num, rows, columns = shape
    return F.interpolate(
        tied(random, (batch, num, 1 + rows // 5, 1 + columns // 5)), size=(rows, columns)
    )


KINDS = [ordinary, tied, tied_and_rounded, one_step_apart, masked, half, flat]
NINE_CLASSES = {"seed": 0, "batch": 1, "num": 9, "chunk_bytes": 2**21, "plain_classes": 0}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 2),
    num=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 17, 33]),
    grid=st.tuples(SIDE, SIDE).filter(lambda grid: grid != (1, 1)),
    size=st.tuples(OUT, OUT),
    last=st.booleans(),
    chunk_bytes=st.sampled_from([3000, 2**21]),
    plain_classes=st.sampled_from([0, 24]),
)
@example(**NINE_CLASSES, grid=(32, 32), size=(128, 128), last=True)
@example(**NINE_CLASSES, grid=(13, 40), size=(141, 137), last=False)
@example(**NINE_CLASSES, grid=(1, 2), size=(1, 150), last=False)
def test_equals_interpolation_then_argmax(
    kind, seed, batch, num, grid, size, last, chunk_bytes, plain_classes
):
    logits = kind(torch.Generator().manual_seed(seed), (batch, num, *grid))
    order = torch.channels_last if last else torch.contiguous_format
    logits = logits.contiguous(memory_format=order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(upsample, "PLAIN_CLASSES", plain_classes)
        labels = upsample_argmax(logits, size)
        expected = plain(logits, size)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)


def smooth(num_classes, seed=0, side=64):
    """Logits with areas and boundaries, channels-last as the heads give them."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, num_classes, 4, 4, generator=random)
    logits = 8 * F.interpolate(coarse, size=(side, side), mode="bicubic")
    logits += 0.2 * torch.randn(logits.shape, generator=random)
    return logits.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [(256, 256), (171, 230), (40, 100)])
def test_equals_the_plain_form_on_many_classes(dtype, size):
    logits = smooth(150).to(dtype)
    assert torch.equal(upsample_argmax(logits, size), plain(logits, size))


@pytest.mark.parametrize("source", [1, 2, 3, 5, 17, 128, 171])
@pytest.mark.parametrize("target", [1, 2, 100, 131, 512, 683])
def test_weights_are_those_of_interpolate(source, target):
    axis = upsample._axis(source, target, torch.device("cpu"))
    dense = torch.zeros(target, source, dtype=torch.float64)
    dense.scatter_add_(1, axis.places, axis.weights.double())
    size = (129, target)  # the way that large maps take
    answer = F.interpolate(torch.eye(source)[None, :, None], size=size, mode="bilinear")[0, :, 0]
    # On the last place torch splits the weight of one and adds the parts up again.
    assert torch.allclose(dense.T, answer.double(), rtol=0, atol=2**-24)
    inside = axis.places[:, 1] > axis.places[:, 0]
    assert torch.equal(dense.T.float()[:, inside], answer[:, inside])


def test_level_after_rounding_goes_to_the_first_class():
    """All four neighbours prefer the later class, by one step, and rounding makes it level."""
    logits = torch.full((1, 9, 12, 12), -1.0)
    logits[:, 3] = 1 + torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
    logits[:, 6] = logits[:, 3].nextafter(torch.tensor(2.0))
    assert (logits.argmax(1) == 6).all()
    labels = upsample_argmax(logits, (130, 140))
    assert torch.equal(labels, plain(logits, (130, 140)))
    assert set(labels.unique().tolist()) == {3, 6}


def test_grid_of_one_place():
    logits = torch.tensor([0.1, 3, 0.3, 3, 0, 0, 0, 0, 0, 0]).view(1, 10, 1, 1)
    assert (upsample_argmax(logits, (200, 90)) == 1).all()


def test_one_pixel_and_one_class():
    assert upsample_argmax(torch.tensor([0.0, 2, 1]).view(1, 3, 1, 1), (1, 1)).tolist() == [[[1]]]
    assert (upsample_argmax(torch.randn(2, 1, 5, 4), (90, 91)) == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num", [2, 30])
def test_values_that_are_no_numbers_are_refused(value, num):
    logits = torch.randn(2, num, 20, 20)
    logits[1, 1, 3, 7] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        upsample_argmax(logits, (160, 160))


def test_large_numbers_are_not_refused():
    """Their sum is infinite, they are not."""
    logits = torch.full((1, 12, 20, 20), 3e38)
    logits[:, 5:] = 2e38
    assert (upsample_argmax(logits, (160, 160)) == 0).all()
    with pytest.raises(InputError, match="NaN or infinite"):
        upsample_argmax(logits.double() * 1e10, (160, 160))


def test_leaves_the_logits_alone():
    logits = smooth(20).requires_grad_()
    before = logits.detach().clone()
    assert not upsample_argmax(logits, (200, 200)).requires_grad
    assert torch.equal(logits, before)


class LabelMap(torch.nn.Module):
    def forward(self, logits):
        return upsample_argmax(logits, (200, 130))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_graph_takes_the_plain_form():
    traced = torch.jit.trace(LabelMap(), smooth(11, seed=1))
    assert isinstance(traced, torch.jit.ScriptModule)
    graph = str(traced.inlined_graph)
    assert "upsample_bilinear2d" in graph
    assert "embedding" not in graph
    logits = smooth(11)
    # The graph keeps the memory order, and so may round otherwise.
    assert (traced(logits) == upsample_argmax(logits, (200, 130))).float().mean() > 0.999


@pytest.mark.slow
def test_an_exported_graph_takes_the_plain_form():
    exported = torch.export.export(LabelMap(), (smooth(11, seed=1),))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert any("upsample_bilinear2d" in target for target in targets)
    assert not any("embedding" in target for target in targets)
    logits = smooth(11)
    expected = upsample_argmax(logits, (200, 130))
    assert (exported.module()(logits) == expected).float().mean() > 0.999


def peak_made(logits, size):
    """The largest tensor of floats made, in bytes, and how often F.interpolate made a map."""
    sizes, maps = [0], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for made in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(made, torch.Tensor) and made.is_floating_point():
                    sizes.append(made.numel() * made.element_size())
            maps.extend([func] * ("upsample_bilinear2d" in str(func)))
            return result

    with Watch():
        upsample_argmax(logits, size)
    return max(sizes), len(maps)


def test_memory_is_bounded():
    """Nothing larger than a chunk and the grid itself, however large the map."""
    logits = smooth(60, side=32)
    grid = logits.numel() * 4
    for size in ((256, 256), (512, 512)):
        largest, _ = peak_made(logits, size)
        # Chunks, the grid, or the maps of four classes where float32 has to decide.
        assert largest <= max(upsample.CHUNK_BYTES, grid, 4 * 4 * size[0] * size[1])
    assert largest < 60 * 512 * 512 * 4 / 10


def test_half_precision_ties_need_no_full_size_maps():
    """On 4 times the grid nothing is rounded: ties inside the map are settled as they are."""
    _, maps = peak_made(smooth(150).bfloat16(), (256, 256))
    assert maps <= 2 + 3  # two for the weights; classes tied on the last row or column


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_form_on_a_gpu(kind):
    logits = kind(torch.Generator().manual_seed(0), (2, 33, 30, 41)).cuda()
    for size in ((120, 164), (131, 200), (20, 150), (60, 60)):
        assert torch.equal(upsample_argmax(logits, size), plain(logits, size))
