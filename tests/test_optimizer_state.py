import json
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from ccsnet.errors import InputError
from ccsnet.optim import OptimConfig, optimizer_names, optimizer_over, set_lr
from ccsnet.optimizer_state import REST, restore_state, state_tensors

STEPS, STOP = 7, 3  # Some optimizers change their rule in the fifth step.


class Net(nn.Module):
    """A layer of each kind; a scalar; one that is not reached, and so has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 18, 3)
        self.norm = nn.BatchNorm2d(18)
        self.depthwise = nn.Conv2d(18, 18, 3, groups=18)
        self.linear = nn.Linear(18, 20)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(2, 2)
        self.to(memory_format=torch.channels_last)  # Norms add up in the order in memory.

    def forward(self, image):
        maps = self.depthwise(self.norm(self.conv(image)).relu())
        return self.scale * self.linear(maps.mean(dim=(2, 3)))


def new(config: OptimConfig) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    spared = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"name": "head", "params": decayed, "lr": 10 * config.lr, "weight_decay": 0.01},
        {"name": "head (no decay)", "params": spared, "lr": config.lr, "weight_decay": 0.0},
    ]
    return net, optimizer_over(groups, config)


def go_on(net: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig, steps) -> None:
    for step in steps:
        set_lr(optimizer, step, STEPS, config)
        image = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(step))
        net(image).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(a, b) -> bool:
    """Equal to the bit, in type and dtype too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def resumed(config: OptimConfig, path) -> tuple[Net, torch.optim.Optimizer]:
    """Steps up to the stop, a file, and a new network and optimizer from that file."""
    net, optimizer = new(config)
    go_on(net, optimizer, config, range(STOP))
    save_file(state_tensors(optimizer), path)
    again, fresh = new(config)
    again.load_state_dict(net.state_dict())
    restore_state(fresh, load_file(path))
    set_lr(fresh, STOP - 1, STEPS, config)  # The rate is a function of the step, and no state.
    assert same(fresh.state_dict(), optimizer.state_dict())
    return again, fresh


@pytest.mark.parametrize("name", optimizer_names())
def test_a_stopped_run_goes_on_as_if_it_never_was(name, tmp_path):
    config = OptimConfig(optimizer=name, lr=1e-3, warmup_steps=2, schedule="cosine")
    net, optimizer = new(config)
    start = {key: value.clone() for key, value in net.state_dict().items()}
    go_on(net, optimizer, config, range(STEPS))
    assert not same(start, dict(net.state_dict()))  # It does train.
    assert all(value.isfinite().all() for value in net.state_dict().values())
    again, fresh = resumed(config, tmp_path / "state.safetensors")
    go_on(again, fresh, config, range(STOP, STEPS))
    assert same(dict(again.state_dict()), dict(net.state_dict()))
    assert same(fresh.state_dict(), optimizer.state_dict())


def test_the_moments_are_needed(tmp_path):
    """What the test above would find: weights alone do not go on alike."""
    config = OptimConfig(lr=1e-3, warmup_steps=0)
    net, optimizer = new(config)
    go_on(net, optimizer, config, range(STOP))
    again, fresh = new(config)
    again.load_state_dict(net.state_dict())
    for which in ((net, optimizer), (again, fresh)):
        go_on(*which, config, range(STOP, STEPS))
    assert not same(dict(again.state_dict()), dict(net.state_dict()))


def test_names_are_parameter_numbers():
    config = OptimConfig(lr=1e-3)
    net, optimizer = new(config)
    go_on(net, optimizer, config, range(1))
    tensors = state_tensors(optimizer)
    reached = [not name.startswith("unused") for name, p in net.named_parameters() if p.ndim > 1]
    numbers = {name.partition("/")[0] for name in tensors if name != REST}
    assert {"0/step", "0/exp_avg", "0/exp_avg_sq"} <= set(tensors)
    assert reached == [str(i) in numbers for i in range(len(reached))]
    assert tensors["0/exp_avg"].is_contiguous()
    assert not optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].is_contiguous()
    assert tensors[REST].dtype == torch.uint8
    json.loads(bytes(tensors[REST].tolist()))


class Odd(torch.optim.Optimizer):
    """Keeps what it is told to, and finds a rate of its own as Prodigy does."""

    def __init__(self, params, kept=None, **defaults) -> None:
        own = {"d": 1e-6, "k": 0, "past": []}  # The list is one object for defaults and groups.
        super().__init__(params, {"lr": 1.0, "betas": (0.9, 0.99), **own, **defaults})
        self.kept = kept

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["d"] = math.inf if group["k"] > 1 else 0.1 + 0.2
            group["past"].append(group["d"])
            group["seen"] = ("late", None, [group["k"]])  # Not there before the first step.
            for parameter in group["params"]:
                self.state[parameter]["kept"] = self.kept


def odd(kept=None, shape=(2, 3), **defaults) -> Odd:
    return Odd([nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(4))], kept, **defaults)


def kept_of(optimizer: Odd) -> Iterator:
    return (state["kept"] for state in optimizer.state.values())


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["int64", "bfloat16", "float64", "bool"]).map(
        lambda dtype: torch.arange(3).to(getattr(torch, dtype))
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 9) | st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_values_of_any_kind_come_back(value):
    optimizer, fresh = odd(value), odd()
    optimizer.step()
    restore_state(fresh, state_tensors(optimizer))
    assert all(same(kept, value) for kept in kept_of(fresh))
    assert len(fresh.state) == 2


def test_what_the_optimizer_changes_in_its_groups_comes_back():
    for steps in (1, 2):
        optimizer, fresh = odd(), odd()
        for _ in range(steps):
            optimizer.step()
        restore_state(fresh, state_tensors(optimizer))
        assert same(fresh.state_dict(), optimizer.state_dict())
    assert fresh.param_groups[0]["d"] == math.inf


def test_settings_are_those_of_the_run_that_goes_on():
    optimizer, fresh = odd(betas=(0.9, 0.99)), odd(lr=0.5, betas=(0.8, 0.99))
    optimizer.step()
    restore_state(fresh, state_tensors(optimizer))
    group = fresh.param_groups[0]
    assert (group["k"], group["lr"], group["betas"]) == (1, 0.5, (0.8, 0.99))


def test_the_parameter_s_precision_does_not_change_the_state():
    """torch's own loading would make 16 bits of it."""
    kept = [torch.rand(2, 3, dtype=torch.float64), torch.tensor(2**40)]
    optimizer, fresh = odd(kept), odd()
    optimizer.step()
    for parameter in fresh.param_groups[0]["params"]:
        parameter.data = parameter.data.bfloat16()
    restore_state(fresh, state_tensors(optimizer))
    assert all(same(value, kept) for value in kept_of(fresh))


def test_what_comes_back_is_a_copy():
    kept = torch.ones(2, 3)
    optimizer, fresh = odd(kept), odd()
    optimizer.step()
    restore_state(fresh, state_tensors(optimizer))
    kept.zero_()
    assert all((value == 1).all() for value in kept_of(fresh))


def test_sharded_state_is_gathered_and_scattered():
    """Here the shard of a process is the first row."""
    whole = torch.arange(6.0).reshape(2, 3)
    optimizer, fresh = odd([whole[:1], torch.tensor(3)]), odd()
    optimizer.step()
    tensors = state_tensors(optimizer, gather=lambda t: whole if t.ndim else t)
    assert torch.equal(tensors["0/kept/0"], whole)
    seen = []

    def scatter(value, parameter):
        seen.append(tuple(parameter.shape))
        return value[:1].clone()

    restore_state(fresh, tensors, scatter=scatter)
    assert all(same(value, [whole[:1], torch.tensor(3)]) for value in kept_of(fresh))
    assert seen == [(2, 3), (4,)]  # Counts are not sharded.


def test_counts_stay_off_the_accelerator():
    optimizer, fresh = odd([torch.ones(2, 3), torch.tensor(3)]), odd()
    for which in (optimizer, fresh):  # A device that every machine has.
        which.param_groups[0]["params"] = [nn.Parameter(torch.zeros(2, 3, device="meta"))]
    optimizer.step()
    restore_state(fresh, state_tensors(optimizer))
    ((moment, count),) = kept_of(fresh)
    assert (moment.device.type, count.device.type) == ("meta", "cpu")


def test_before_the_first_step_there_is_nothing():
    optimizer, fresh = odd(), odd()
    restore_state(fresh, state_tensors(optimizer))
    assert not fresh.state


def stepped(**options) -> dict[str, torch.Tensor]:
    optimizer = odd(torch.ones(2), **options)
    optimizer.step()
    return state_tensors(optimizer)


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds weights alone"),
        ({"optimizer/0/exp_avg": torch.ones(2)}, "another version"),
        (without(stepped(), "1/kept"), "lists 2 tensors, and 1 are there; '1/kept'"),
        (stepped() | {"2/kept": torch.ones(2)}, "lists 2 tensors, and 3 are there; '2/kept'"),
        (stepped() | {REST: stepped()[REST][:-9]}, r"is damaged .* Copy the checkpoint again"),
        (stepped() | {REST: torch.tensor([123, 125], dtype=torch.uint8)}, "is damaged"),
        (stepped(shape=(3, 2)), r"parameter 0 is \(3, 2\), and in this run it is \(2, 3\)"),
    ],
)
def test_what_cannot_be_restored(tensors, message):
    fresh = odd()
    with pytest.raises(InputError, match=message):
        restore_state(fresh, tensors)
    assert not fresh.state
    assert fresh.param_groups[0]["k"] == 0


def test_the_state_of_another_optimizer_or_model():
    _, lion = new(OptimConfig(optimizer="lion"))
    _, adamw = new(OptimConfig())
    with pytest.raises(InputError, match=r"that of Lion, and this run has AdamW\. Resume with"):
        restore_state(adamw, state_tensors(lion))
    fewer = torch.optim.AdamW(Net().conv.parameters())
    with pytest.raises(InputError, match="of 11 parameters, and this run trains 2"):
        restore_state(fewer, state_tensors(adamw))
    regrouped = torch.optim.AdamW([p for g in adamw.param_groups for p in g["params"]])
    with pytest.raises(InputError, match="in 2 groups, and this run has them in 1"):
        restore_state(regrouped, state_tensors(adamw))


def test_what_cannot_be_saved():
    optimizer = odd(torch.float16)
    optimizer.step()
    with pytest.raises(InputError, match=r"keeps a dtype as '0/kept'"):
        state_tensors(optimizer)


def test_a_wrapper_hides_its_state():
    from timm.optim import Lookahead

    config = OptimConfig(lr=1e-3)
    net, optimizer = new(config)
    wrapper = Lookahead(optimizer)
    go_on(net, wrapper, config, range(1))
    with pytest.raises(InputError, match="Lookahead keeps something beside"):
        state_tensors(wrapper)
