import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from ccsnet.backbones._sync import BatchNormAct2d
from ccsnet.batch_norm import freeze, synchronise
from ccsnet.errors import InputError
from ccsnet.heads._base import HeadConfig
from ccsnet.segmenter import ModelConfig, Segmenter, create_segmenter
from tests.processes import in_processes
from tests.shapes import tiny_model

# What a process runs. Each knows the whole batch, and norms its own share of it.

NORMS = {
    "2d": (lambda: nn.BatchNorm2d(3), (2, 5)),
    "1d": (lambda: nn.BatchNorm1d(3, momentum=0.3), (7,)),
    "1d of rows": (lambda: nn.BatchNorm1d(3), ()),
    "3d": (lambda: nn.BatchNorm3d(3, eps=1e-3), (2, 1, 3)),
    "momentum none": (lambda: nn.BatchNorm2d(3, momentum=None), (2, 5)),
    "no affine": (lambda: nn.BatchNorm2d(3, affine=False), (2, 5)),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (2, 5)),
    "activated": (lambda: BatchNormAct2d(3, act_layer=nn.SiLU), (2, 5)),
}
SHARES = {2: ((2, 2), (1, 6), (0, 3)), 4: ((1, 1, 1, 1), (3, 0, 1, 4))}
HEADS = ("ccs", "segformer_mmseg", "fcn", "smp.Unet")
MORE_HEADS = ("segformer", "smp.DeepLabV3Plus", "smp.UPerNet", "smp.PSPNet", "smp.MAnet")
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-5}


def made(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A norm whose scale and shift matter."""
    torch.manual_seed(1)
    norm = nn.Sequential(NORMS[kind][0]())
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return norm.to(dtype)


def normed(norm: nn.Module, images: Tensor, wanted: Tensor) -> list[Tensor]:
    """Two steps of training: output and gradients of the second."""
    norm(images * 2)
    images = images.clone().requires_grad_()
    output = norm(images)
    (output * wanted).sum().backward()
    gradients = [images.grad, *(parameter.grad for parameter in norm.parameters())]
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None)]


def share_of(shares: tuple[int, ...]) -> slice:
    """Which of the images are this process's."""
    rank = torch.distributed.get_rank()
    return slice(sum(shares[:rank]), sum(shares[: rank + 1]))


def error_of(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative where values are large."""
    assert got.shape == expected.shape
    if not got.numel():
        return 0.0
    return float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def norm_errors(shares: tuple[int, ...], kind: str, dtype: torch.dtype) -> float:
    """How far shares that are normed together are from the whole batch normed at once."""
    torch.manual_seed(0)
    images = torch.randn(sum(shares), 3, *NORMS[kind][1]).to(dtype) * 3 + 1
    wanted = torch.randn_like(images)
    whole, shared = made(kind, dtype), made(kind, dtype)
    names = list(shared.state_dict())
    assert synchronise(shared) is shared
    assert list(shared.state_dict()) == names
    mine = share_of(shares)
    expected = normed(whole, images, wanted)
    got = normed(shared, images[mine], wanted[mine])
    assert len(got) == len(expected)
    expected[:2] = [tensor[mine] for tensor in expected[:2]]
    for gradient in got[2:]:
        torch.distributed.all_reduce(gradient)
    pairs = list(zip(got, expected, strict=True))
    for name, tensor in whole.state_dict().items():
        pairs.append((shared.state_dict()[name], tensor))
    whole.load_state_dict(shared.state_dict())
    assert torch.equal(shared.eval()(images[mine]), whole.eval()(images[mine]))
    return max(error_of(*pair) for pair in pairs)


def model_error(head: str) -> float:
    """The same of a whole model's gradients and statistics."""
    torch.manual_seed(0)
    settings = HeadConfig(dim=16, coarse_dim=16, top_k=2, dropout=0.0)
    config = ModelConfig(
        backbone=tiny_model().backbone, head=head, head_config=settings, drop_path=0.0
    )
    whole = create_segmenter(config, num_classes=3).double().train()
    for parameter in whole.head.parameters():  # Some start at 0, and hide the others.
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    shared = copy.deepcopy(whole)
    synchronise(shared)
    num = torch.distributed.get_world_size()
    images = torch.randn(2 * num, 3, 64, 64, dtype=torch.float64)
    for model, part in ((whole, images), (shared, images[share_of((2,) * num)])):
        output = model.head(model.backbone(part))
        torch.stack([maps.square().sum() for maps in output if maps is not None]).sum().backward()
    for parameter in shared.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
    pairs = list(zip(shared.buffers(), whole.buffers(), strict=True))
    for mine, other in zip(shared.parameters(), whole.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and other.grad is not None:
            pairs.append((mine.grad, other.grad))
    return max(error_of(*pair) for pair in pairs)


def far_from_zero() -> float:
    """Error of float32 where the mean is thousands of times the deviation."""
    torch.manual_seed(0)
    images = torch.randn(2 * torch.distributed.get_world_size(), 3, 8, 8) + 3000
    shared = made("2d")
    synchronise(shared)
    mine = share_of((2,) * torch.distributed.get_world_size())
    expected = made("2d", torch.float64)(images.double())[mine]
    return error_of(shared(images[mine]).double(), expected)


def in_bf16() -> tuple[float, bool]:
    """Error of maps in bf16 with statistics in float32, and whether both keep their types."""
    torch.manual_seed(0)
    num = torch.distributed.get_world_size()
    images, wanted = torch.randn(2, 2 * num, 3, 8, 8)
    mine = share_of((2,) * num)
    whole, shared = made("2d"), made("2d")
    synchronise(shared)
    expected = normed(whole, images, wanted)
    got = normed(shared, images[mine].bfloat16(), wanted[mine].bfloat16())
    error = max(error_of(got[i].float(), expected[i][mine]) for i in (0, 1))
    types = [tensor.dtype for tensor in got]
    return error, types == [torch.bfloat16] * 2 + [torch.float32] * 2


def one_value() -> str:
    """What is said where all processes together have one value for each channel."""
    shared = made("1d of rows")
    synchronise(shared)
    with pytest.raises(ValueError, match="one value") as raised:
        shared(torch.ones(int(torch.distributed.get_rank() == 0), 3))
    return str(raised.value)


def all_results(heads: tuple[str, ...]) -> dict[str, object]:
    """Everything in one start of the processes, which takes longer than what they do."""
    num = torch.distributed.get_world_size()
    norms = {
        (shares, kind, dtype): norm_errors(shares, kind, dtype)
        for shares in SHARES[num]
        for kind in NORMS
        for dtype in TOLERANCES
    }
    return {
        "norms": norms,
        "models": {head: model_error(head) for head in heads},
        "far": far_from_zero(),
        "bf16": in_bf16(),
        "one value": one_value(),
    }


# Several processes


@functools.cache
def results(num: int) -> list[dict]:
    heads = HEADS if num == 2 else HEADS + MORE_HEADS
    return in_processes(all_results, num, heads, timeout=240)


NUMBERS = pytest.mark.parametrize("num", [2, pytest.param(4, marks=pytest.mark.slow)])


@NUMBERS
def test_shares_are_normed_as_one_batch(num):
    """Output, gradients and statistics; even shares, uneven ones, and a process with nothing."""
    for result in results(num):
        assert len(result["norms"]) == len(SHARES[num]) * len(NORMS) * len(TOLERANCES)
        for case, error in result["norms"].items():
            assert error < TOLERANCES[case[2]], case


@NUMBERS
def test_models_learn_from_shares_as_from_one_batch(num):
    """So every head norms by its BatchNorms alone."""
    for result in results(num):
        assert set(HEADS) <= set(result["models"])
        for head, error in result["models"].items():
            assert error < 1e-6, head


@NUMBERS
def test_rounding(num):
    for result in results(num):
        assert result["far"] < 1e-3
        error, types_kept = result["bf16"]
        assert error < 0.02
        assert types_kept


@NUMBERS
def test_one_value_in_all_is_too_few(num):
    for result in results(num):
        assert "--batch-size" in result["one value"]


# One process


@pytest.mark.parametrize("kind", NORMS)
def test_alone_nothing_changes(kind):
    images, wanted = torch.randn(2, 4, 3, *NORMS[kind][1])
    plain, shared = made(kind), made(kind)
    synchronise(shared)
    for got, expected in zip(
        normed(shared, images, wanted), normed(plain, images, wanted), strict=True
    ):
        assert torch.equal(got, expected)
    assert isinstance(shared[0], type(plain[0]))  # pyright: ignore[reportIndexIssue]
    assert torch.equal(copy.deepcopy(shared)(images), shared(images))


def test_what_cannot_be_synchronised():
    class Doubling(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(InputError, match=r"^0 is a Doubling, .* Use torch's"):
        synchronise(nn.Sequential(Doubling(3)))


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return create_segmenter(tiny_model(), num_classes=3)


@pytest.mark.parametrize("synchronised", ["before", "after", "not"])
def test_frozen_norms_keep_their_statistics(model, synchronised):
    names = list(model.state_dict())
    if synchronised == "before":
        synchronise(model)
    freeze(model)
    if synchronised == "after":
        synchronise(model)
    freeze(model)  # Once more does no harm.
    assert list(model.state_dict()) == names
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model = copy.deepcopy(model)
    model.eval().train()
    images = torch.rand(2, 3, 64, 64) * 255
    model(images).logits.square().sum().backward()
    changed = {
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    }
    assert changed
    assert all(name.startswith("head.") for name in changed)
    for norm in model.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert not norm.training
            assert norm.weight.grad is not None
    assert model.backbone.training
    assert model.head.training


def test_frozen_norms_compute_as_in_evaluation(model):
    """Whatever else is in the batch; what follows the norm in the same module is in training."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    expected = model.backbone.eval()(images)
    freeze(model)
    for got, other in zip(model.backbone.train()(images), expected, strict=True):
        torch.testing.assert_close(got, other)
    assert {m.training for m in model.backbone.modules() if not isinstance(m, nn.BatchNorm2d)} == {
        True
    }
