import copy

import pytest
import torch
from torch import nn

from ccsnet import precision
from ccsnet.precision import Mode, autocast, choose_mode, has_bf16, in_memory_order

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()


def loss(network, image):
    return network(image.float()).square().mean()


def test_what_is_settled_is_not_tried(model, monkeypatch):
    monkeypatch.setattr(precision, "_time", None)
    image = torch.zeros(2, 3, 8, 8)
    for name in ("float32", "bf16"):
        for order in (True, False):
            found = choose_mode(model, image, loss, precision=name, channels_last=order)
            assert found == (Mode(name, order), {})


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("order", [None, True, False])
def test_the_fastest_wins(model, monkeypatch, bf16, order):
    tried = []

    def timed(network, image, loss, mode):
        tried.append(mode)
        assert len(image) == precision.TRIAL_BATCH
        return {Mode("bf16", True): 1.0, Mode("float32", False): 2.0}.get(mode, 3.0)

    monkeypatch.setattr(precision, "_time", timed)
    monkeypatch.setattr(precision, "has_bf16", lambda device: bf16)
    mode, seconds = choose_mode(model, torch.zeros(8, 3, 8, 8), loss, channels_last=order)
    names = ["float32", "bf16"] if bf16 else ["float32"]
    orders = [False, True] if order is None else [order]
    candidates = [Mode(name, o) for name in names for o in orders]
    assert tried == list(seconds) == (candidates if len(candidates) > 1 else [])
    assert mode == min(tried or candidates, key=lambda m: seconds.get(m, 0))


def test_a_trial_leaves_everything_as_it_was(model, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    before = copy.deepcopy(model.state_dict())
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    random = torch.get_rng_state()
    pixels = image.clone()
    _, seconds = choose_mode(model, image, loss)
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds.values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(image, pixels)


def test_autocast_in_each_mode():
    conv, image = nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)
    with autocast(Mode("bf16", False), CPU):
        assert conv(image).dtype == torch.bfloat16
    with autocast(Mode("float32", False), CPU):
        assert conv(image).dtype == torch.float32


def test_memory_order():
    image = torch.zeros(2, 3, 4, 5)
    for order, expected in ((True, torch.channels_last), (False, torch.contiguous_format)):
        made = in_memory_order(image, Mode("float32", order))
        assert made.is_contiguous(memory_format=expected)
    conv = in_memory_order(nn.Conv2d(3, 4, 3), Mode("float32", True))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_is_known_for_every_device():
    assert isinstance(has_bf16(CPU), bool)
    assert not has_bf16(torch.device("mps"))
