import copy

import pytest
import torch
from torch import nn

from ccsnet.backbones.timm import create_backbone
from ccsnet.batch_norm import freeze, synchronise
from ccsnet.errors import InputError
from ccsnet.heads.ccs import CCSHead
from ccsnet.plugins import find_plugin
from ccsnet.segmenter import Segmenter, create_segmenter
from tests.processes import in_processes
from tests.shapes import tiny_model

# What a process runs. Each knows the whole batch, and norms its own share of it.


def activated() -> nn.Module:
    """A BatchNorm of timm, which drops and activates as well."""
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(3, act_layer=nn.SiLU, drop_layer=nn.Identity)


NORMS = {
    "2d": (lambda: nn.BatchNorm2d(3), (2, 5)),
    "1d": (lambda: nn.BatchNorm1d(3, momentum=0.3), (7,)),
    "1d of rows": (lambda: nn.BatchNorm1d(3), ()),
    "3d": (lambda: nn.BatchNorm3d(3, eps=1e-3), (2, 1, 3)),
    "momentum none": (lambda: nn.BatchNorm2d(3, momentum=None), (2, 5)),
    "no affine": (lambda: nn.BatchNorm2d(3, affine=False), (2, 5)),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (2, 5)),
    "activated": (activated, (2, 5)),
}
SHARES = {2: ((2, 2), (1, 6), (0, 3)), 4: ((1, 1, 1, 1), (3, 0, 1, 4))}
TYPES = {torch.float64: 1e-6, torch.float32: 1e-5}


def made(kind: str, dtype: torch.dtype) -> nn.Module:
    """A norm whose scale and shift matter."""
    torch.manual_seed(1)
    norm = nn.Sequential(NORMS[kind][0]())
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return norm.to(dtype)


def normed(norm: nn.Module, images: torch.Tensor, wanted: torch.Tensor) -> list[torch.Tensor]:
    """Two steps of training: output and gradients of the second, and all that the norm holds."""
    norm.train()
    norm(images.flip(0) * 2)
    images = images.clone().requires_grad_()
    output = norm(images)
    (output * wanted).sum().backward()
    assert images.grad is not None
    return [output.detach(), images.grad, *(p.grad for p in norm.parameters())]


def compare_norms(shares: tuple[int, ...], offset: float) -> dict[str, float]:
    """The largest relative error of every norm's share, sums and statistics."""
    rank = torch.distributed.get_rank()
    errors = {}
    for dtype in TYPES:
        for kind, (_, places) in NORMS.items():
            torch.manual_seed(0)
            images = torch.randn(sum(shares), 3, *places).to(dtype) * 3 + offset
            wanted = torch.randn_like(images)
            whole, shared = made(kind, dtype), made(kind, dtype)
            names = list(shared.state_dict())
            assert synchronise(shared) is shared
            assert list(shared.state_dict()) == names
            # The flip within `normed` takes other images from each share, but all of them once.
            expected = normed(whole, images, wanted)
            mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
            got = normed(shared, images[mine], wanted[mine])
            expected[:2] = [tensor[mine] for tensor in expected[:2]]
            for gradient in got[2:]:
                torch.distributed.all_reduce(gradient)
            pairs = [*zip(got, expected, strict=True)]
            pairs += [*zip(shared.state_dict().values(), whole.state_dict().values(), strict=True)]
            errors[f"{kind} {dtype}"] = max(relative_error(a, b) for a, b in pairs)
            shared.eval()
            whole.load_state_dict(shared.state_dict())
            assert torch.equal(shared(images[mine]), whole.eval()(images[mine]))
    return errors


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    if not got.numel():
        return 0.0
    scale = max(1.0, float(expected.abs().max()))
    return float((got - expected).abs().max()) / scale


@pytest.mark.parametrize("num", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_shares_of_all_processes_are_one_batch(num):
    for result in in_processes(compare_all, num):
        for shares, errors in result.items():
            for name, error in errors.items():
                tolerance = 1e-6 if "float64" in name else 1e-5
                assert error < tolerance, (shares, name)


def compare_all() -> dict[tuple[int, ...], dict[str, float]]:
    """Even shares, uneven ones, and a process that has nothing."""
    shares = SHARES[torch.distributed.get_world_size()]
    return {share: compare_norms(share, offset=1.0) for share in shares}
