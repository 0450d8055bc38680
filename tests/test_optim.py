import math

import pytest
import torch
from torch import nn

from ccsnet.errors import InputError
from ccsnet.optim import (
    OptimConfig,
    check_optimizer,
    create_optimizer,
    lr_factor,
    optimizer_names,
    optimizer_over,
    parameter_groups,
    set_lr,
    state_share,
)
from ccsnet.segmenter import create_segmenter
from tests.shapes import tiny_model


@pytest.fixture(
    params=["test_efficientnet", "test_convnext", "mit_b0", "vit_tiny_patch16_224"], scope="module"
)
def model(request):
    return create_segmenter(tiny_model(backbone=request.param), num_classes=3)


def test_every_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, OptimConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len({group["name"] for group in groups}) == len(groups) == 4


def test_what_is_decayed(model):
    config = OptimConfig(weight_decay=0.02)
    decay_of = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, config)
        for p in group["params"]
    }
    norms = tuple(
        {type(m) for m in model.modules() if "Norm" in type(m).__name__} | {torch.nn.BatchNorm2d}
    )
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = parameter.ndim <= 1 or name in ("pos_embed", "cls_token")
            expected = 0.0 if isinstance(module, norms) or plain else 0.02
            assert decay_of[id(parameter)] == expected, (module, name)


def test_heads_learn_faster(model):
    config = OptimConfig(lr=1e-3, head_lr_multiplier=7.0)
    pretrained = {id(p) for p in model.backbone.features.parameters()}
    head = {id(p) for p in model.parameters()} - pretrained
    for group in parameter_groups(model, config):
        rate = 7e-3 if id(group["params"][0]) in head else 1e-3
        assert group["lr"] == pytest.approx(rate)
        assert len({id(p) in head for p in group["params"]}) == 1


def test_frozen_parameters_are_left_out():
    model = create_segmenter(tiny_model(), num_classes=3)
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig())
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.head.parameters()}


def rates(backbone: str, **options) -> dict[str, float]:
    """Share of the backbone's rate by parameter of its features."""
    model = create_segmenter(tiny_model(backbone=backbone), num_classes=3)
    name_of = {id(p): name for name, p in model.backbone.features.named_parameters()}
    return {
        name_of[id(p)]: group["lr"]
        for group in parameter_groups(model, OptimConfig(lr=1.0, **options))
        for p in group["params"]
        if id(p) in name_of
    }


def test_layer_decay_of_a_plain_transformer():
    """BEiT's and MAE's recipe: rate ** (L + 1 - id), the patches 0, the i-th block i."""
    share = rates("vit_tiny_patch16_224", layer_decay=0.65)
    assert share["model.patch_embed.proj.weight"] == pytest.approx(0.65**13)
    assert share["model.pos_embed"] == pytest.approx(0.65**13)
    assert share["model.blocks.0.mlp.fc1.weight"] == pytest.approx(0.65**12)
    assert share["model.blocks.11.norm1.bias"] == pytest.approx(0.65)
    assert all(0.65**13 <= s <= 0.65 for s in share.values())


def test_stage_decay_of_convnext():
    """ConvNeXt-T's recipe: by stages, counted from 6; downsampling layers count as the stem."""
    share = rates("convnext_atto", layer_decay=0.9, layer_decay_by="stage", layer_decay_layers=6)
    assert share["stem_0.weight"] == pytest.approx(0.9**7)
    assert share["stages_2.downsample.1.weight"] == pytest.approx(0.9**7)
    for stage in range(4):
        assert share[f"stages_{stage}.blocks.0.conv_dw.weight"] == pytest.approx(0.9 ** (6 - stage))


def test_layer_decay_of_mit():
    share = rates("mit_b0", layer_decay=0.5)
    assert share["model.stages.0.embed.weight"] == pytest.approx(0.5**9)
    assert share["model.stages.0.embed_norm.weight"] == pytest.approx(0.5**9)
    assert share["model.stages.1.embed.weight"] == pytest.approx(0.5**6)
    assert share["model.stages.1.blocks.0.attention.q.weight"] == pytest.approx(0.5**6)
    assert share["model.stages.3.norm.weight"] == pytest.approx(0.5)


def test_layer_decay_that_cannot_be():
    with pytest.raises(InputError, match="has no order of layers"):
        rates("poolformer_s12", layer_decay=0.9)
    with pytest.raises(InputError, match=r"layer_decay_layers is 3, but .* has 12 blocks"):
        rates("vit_tiny_patch16_224", layer_decay=0.9, layer_decay_layers=3)
    with pytest.raises(InputError, match=r"layer_decay is 1\.5"):
        OptimConfig(layer_decay=1.5)


@pytest.mark.parametrize(
    ("backbone", "part"),
    [
        ("swin_tiny_patch4_window7_224", "relative_position_bias_table"),
        ("twins_svt_small", "pos_block"),
        ("vit_tiny_patch16_224", "pos_embed"),
        pytest.param("beit_base_patch16_224", "relative_position", marks=pytest.mark.slow),
    ],
)
def test_positions_are_not_decayed(backbone, part):
    model = create_segmenter(tiny_model(backbone=backbone), num_classes=3)
    positions = {id(p) for name, p in model.named_parameters() if part in name}
    assert positions
    for group in parameter_groups(model, OptimConfig()):
        inside = positions & {id(p) for p in group["params"]}
        assert not inside or group["weight_decay"] == 0


def test_sgd_keeps_momentum(model):
    optimizer = create_optimizer(model, OptimConfig(optimizer="sgd", betas=(0.8, 0.9)))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(g["momentum"] == 0.8 and not g["nesterov"] for g in optimizer.param_groups)


def test_the_rate_decays_to_its_floor(model):
    """(peak - floor) x polynomial + floor, as the published SGD recipes have it."""
    config = OptimConfig(
        optimizer="sgd", lr=0.01, head_lr_multiplier=1.0, power=0.9, min_lr=1e-4, warmup_steps=0
    )
    optimizer = create_optimizer(model, config)
    for step, expected in ((0, 0.01), (500, 0.0099 * 0.5**0.9 + 1e-4), (1000, 1e-4)):
        set_lr(optimizer, step, 1000, config)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_betas_reach_the_optimizer(model):
    optimizer = create_optimizer(model, OptimConfig(betas=(0.8, 0.95)))
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)


def test_the_rate_needs_only_the_step(model):
    config = OptimConfig(lr=1e-3)
    steadily, resumed = (create_optimizer(model, config) for _ in range(2))
    for step in range(8):
        set_lr(steadily, step, 20, config)
    set_lr(resumed, 7, 20, config)
    rates = [[group["lr"] for group in o.param_groups] for o in (steadily, resumed)]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(1e-3 * lr_factor(7, 20, config))


# Optimizers of timm's.


def two_groups(lr: float = 0.5) -> list[dict]:
    """A matrix at five times the rate, and a vector that is not decayed."""
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))
    return [
        {"name": "head", "params": [matrix], "lr": 5 * lr, "weight_decay": 0.1},
        {"name": "head (no decay)", "params": [vector], "lr": lr, "weight_decay": 0.0},
    ]


def one_step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The weights after a step along a fixed gradient."""
    torch.manual_seed(1)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_takes_our_groups(name):
    config = OptimConfig(optimizer=name, lr=0.5)
    optimizer = optimizer_over(two_groups(), config)
    seen = [(g["name"], g["lr"], g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert seen == [("head", 2.5, 2.5, 0.1), ("head (no decay)", 0.5, 0.5, 0.0)]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("betas", [None, (0.8, 0.95)])
def test_ours_are_torch_s(name, betas):
    momentum = (betas or (0.9, 0.999))[0]
    plain = {
        "adamw": lambda groups: torch.optim.AdamW(groups, betas=betas or (0.9, 0.999)),
        "sgd": lambda groups: torch.optim.SGD(groups, momentum=momentum),
    }[name](two_groups())
    ours = optimizer_over(two_groups(), OptimConfig(optimizer=name, betas=betas, lr=0.5))
    assert type(ours) is type(plain)
    for _ in range(3):
        assert torch.equal(one_step(ours), one_step(plain))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("adamc", "adamwlegacy"),
        ("sgdc", "sgdw"),
        ("adoptc", "adoptw"),
        ("lambcd", "lambw"),
        ("lionc", "lion"),
        ("lapropc", "laprop"),
        ("nadamc", "nadamw"),
        ("novogradc", "novogradw"),
        ("rmsproptfc", "rmsproptfw"),
    ],
)
def test_corrected_decay_knows_each_group_s_peak(name, plain):
    """At the peak it decays as the plain one does, and with the square of the rate below it."""
    corrected, other = (
        optimizer_over(two_groups(), OptimConfig(optimizer=n, lr=0.5)) for n in (name, plain)
    )
    assert torch.allclose(one_step(corrected), one_step(other), rtol=1e-6)
    assert [g.get("max_lr_snapshot") for g in corrected.param_groups] == [2.5, 0.5]


def test_muon_is_for_matrices():
    tables = two_groups()
    tables[1]["params"] = [nn.Parameter(torch.randn(8, 8))]
    optimizer = optimizer_over(tables, OptimConfig(optimizer="muon", lr=0.5))
    one_step(optimizer)
    states = [optimizer.state[group["params"][0]] for group in optimizer.param_groups]
    assert [set(state) for state in states] == [
        {"use_muon", "momentum_buffer"},
        {"use_muon", "step", "exp_avg", "exp_avg_sq"},
    ]


@pytest.mark.parametrize(
    ("name", "own", "given"),
    [
        ("adamw", {"betas": (0.9, 0.999)}, {"betas": (0.7, 0.8)}),
        ("sgd", {"momentum": 0.9, "nesterov": False}, {"momentum": 0.7, "nesterov": False}),
        ("nesterov", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.7, "nesterov": True}),
        ("lars", {"momentum": 0.9}, {"momentum": 0.7}),
        ("lion", {"betas": (0.9, 0.99)}, {"betas": (0.7, 0.8)}),
        ("adafactor", {"beta1": None}, {"beta1": 0.7}),
        (
            "muon",
            {"momentum": 0.95, "betas": (0.9, 0.95)},
            {"momentum": 0.7, "betas": (0.7, 0.8)},
        ),
    ],
)
def test_betas_are_the_optimizer_s_own_until_given(name, own, given):
    for betas, expected in ((None, own), ((0.7, 0.8), given)):
        config = OptimConfig(optimizer=name, betas=betas)
        group = optimizer_over(two_groups(), config).param_groups[0]
        assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["adanw", "adagrad"])
def test_betas_that_are_not_taken_warn(name):
    with pytest.warns(UserWarning, match=f"{name}.* betas=\\(0.7, 0.8\\) is not used"):
        optimizer_over(two_groups(), OptimConfig(optimizer=name, betas=(0.7, 0.8)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adahessian", "differentiates the gradients a second time"),
        ("kron", "a random generator that checkpoints do not hold"),
        ("lookahead_adamw", "a second set of weights that only it knows of"),
        ("bnbadam8bit", r"part of another package, bitsandbytes\."),
        ("fusedlamb", r"part of another package, apex\."),
        ("AdamW", r"No optimizer is called 'AdamW'\. Perhaps you meant adamw\?"),
        ("lyon", "Perhaps you meant lion"),
    ],
)
def test_optimizers_that_cannot_be(name, message):
    with pytest.raises(InputError, match=message):
        check_optimizer(name)
    with pytest.raises(InputError, match=message):
        optimizer_over(two_groups(), OptimConfig(optimizer=name))
    assert name not in optimizer_names()


def test_names_have_a_line_each():
    names = optimizer_names()
    assert list(names) == sorted(names)
    assert {"adamw", "sgd", "lion", "lamb", "adopt", "muon"} <= set(names)
    assert all(line and "\n" not in line for line in names.values())


@pytest.mark.parametrize(
    ("name", "share"), [("adamw", 2), ("sgd", 1), ("lion", 1), ("adafactorbv", 0.51), ("adanw", 4)]
)
def test_what_the_optimizer_keeps(name, share):
    assert state_share(OptimConfig(optimizer=name)) == share


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("lr", 0.0, "above 0"),
        ("lr", math.inf, "above 0"),
        ("head_lr_multiplier", 0.0, "above 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("betas", (-0.1, 0.9), "two numbers from 0 to below 1"),
        ("layer_decay", 0.0, "above 0, at most 1"),
        ("layer_decay_layers", 0, "1 or more"),
        ("warmup_steps", -1, "0 or more, or none"),
        ("power", -1.0, "0 or more"),
        ("min_lr", -1e-6, "0 or more"),
        ("min_lr", math.nan, "0 or more"),
        ("clip_norm", 0.0, "above 0, or none"),
    ],
)
def test_settings_out_of_range(setting, value, allowed):
    with pytest.raises(InputError, match=f"^{setting} is .*; it must be {allowed}"):
        OptimConfig(**{setting: value})


def test_one_cycle_leaves_the_momentum(model):
    config = OptimConfig(optimizer="sgd", schedule="onecycle")
    optimizer = create_optimizer(model, config)
    for step in range(10):
        set_lr(optimizer, step, 10, config)
        assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
