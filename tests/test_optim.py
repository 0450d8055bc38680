import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccsnet.errors import InputError
from ccsnet.optim import OptimConfig, create_optimizer, lr_factor, parameter_groups, set_lr
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


def test_schedule_of_the_release():
    config = OptimConfig()
    factors = [lr_factor(step, 160_000, config) for step in (0, 750, 1500, 80_000, 159_999)]
    assert factors[0] == pytest.approx(1e-6)
    assert factors[1] == pytest.approx(0.5 * (1 - 750 / 160_000), rel=1e-5)
    assert factors[2] == pytest.approx(1 - 1500 / 160_000)
    assert factors[3] == pytest.approx(0.5)
    assert factors[4] == pytest.approx(1 / 160_000)


@given(st.integers(1, 5000), st.sampled_from([None, 0, 10]), st.sampled_from([0.9, 1.0, 2.0]))
def test_schedule_rises_then_falls(steps, warmup, power):
    config = OptimConfig(warmup_steps=warmup, power=power)
    factors = [lr_factor(step, steps, config) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert peak <= (min(1500, steps // 10) if warmup is None else warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert lr_factor(steps, steps, config) == 0


def test_short_runs_warm_up_for_a_tenth():
    config = OptimConfig()
    assert lr_factor(0, 100, config) == pytest.approx(1e-6)
    assert lr_factor(10, 100, config) == pytest.approx(0.9)
    assert lr_factor(0, 5, config) == 1  # No room for a warm-up.


def test_the_rate_needs_only_the_step(model):
    config = OptimConfig(lr=1e-3)
    steadily, resumed = (create_optimizer(model, config) for _ in range(2))
    for step in range(8):
        set_lr(steadily, step, 20, config)
    set_lr(resumed, 7, 20, config)
    rates = [[group["lr"] for group in o.param_groups] for o in (steadily, resumed)]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(1e-3 * lr_factor(7, 20, config))
