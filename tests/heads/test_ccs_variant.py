"""Every variant of the head is what docs/variants.md says, alone and with the others."""

import itertools
from dataclasses import fields, replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.variants import table
from ccsnet.checkpoint import (
    Checkpoint,
    ClassInfo,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from ccsnet.errors import InputError
from ccsnet.export import ExportConfig, export
from ccsnet.export_forms import FORMATS
from ccsnet.heads._base import STRIDES, CCSVariant, HeadConfig
from ccsnet.heads._ccs_variant import CCSVariantHead, centre_logits
from ccsnet.heads.ccs import CCSHead, build
from ccsnet.heads.segformer import SegFormerHead
from ccsnet.preflight import check_model
from ccsnet.segmenter import create_segmenter
from tests.heads.literal_variant import literal_variant
from tests.shapes import CLASSES, COLOURS, OPTIONS, tiny_config, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "variants.md"
CHANNELS = (5, 6, 7, 8)
LEARNT = ("log_sharpness", "bias_scale", "parts.weight")
"""Parameters that only variants have and that, at their start, may leave others nothing to do."""

CHOICES = {
    "projections": ["shared", "separate"],
    "centres": ["c4", "c3+c4", "own"],
    "attending": [c for n in range(5) for c in itertools.combinations(STRIDES, n)],
    "coarse_gradient": ["kept", "stopped"],
    "coarse_bias": ["none", "learned", "fixed"],
    "attention_heads": [1, 2, 4],
    "centre_temperature": ["fixed", "learned"],
    "centres_per_class": [1, 2, 3],
    "attention_rounds": [1, 2, 3],
    "centre_loss_weight": [0.0, 0.5],
}


def together(chosen: dict) -> dict:
    """The settings, but for those that cannot go with the others."""
    if not chosen["attending"]:
        return {"attending": ()}
    once = chosen["attention_rounds"] == 1
    if chosen["centres"] == "own":
        only_coarsest = chosen["attending"] == (32,) and once
        return (
            chosen
            | ({"centres": "c4"} if only_coarsest else {"projections": "separate"})
            | ({"projections": "shared"} if only_coarsest else {})
        )
    if len(chosen["attending"]) == 1 and once:
        return chosen | {"projections": "shared"}
    return chosen


variants = st.fixed_dictionaries({n: st.sampled_from(c) for n, c in CHOICES.items()}).map(together)


def random_head(
    variant: CCSVariant, num_classes: int = 5, top_k: int = 3, seed: int = 0
) -> CCSVariantHead:
    torch.manual_seed(seed)
    config = HeadConfig(dim=8, coarse_dim=6, top_k=top_k, variant=variant)
    head = CCSVariantHead(CHANNELS, num_classes, config)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for name, parameter in head.named_parameters():
        if name.endswith(LEARNT[:2]):
            torch.nn.init.uniform_(parameter, 0.3, 1.5)
    return head.eval().double()


def random_features(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), dtype=torch.float64)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


@settings(max_examples=15)
@given(
    chosen=variants,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    num_classes=st.integers(2, 9),
    top_k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_equals_the_loops_at_any_size(chosen, height, width, num_classes, top_k, seed):
    head = random_head(CCSVariant(**chosen), num_classes, top_k, seed)
    features = random_features(height, width)
    with torch.no_grad():
        ours, loops = head(features), literal_variant(head, features)
    torch.testing.assert_close(ours.logits, loops[0])
    torch.testing.assert_close(ours.coarse, loops[1])
    assert ours.auxiliary is None
    assert ours.logits.shape == (2, num_classes, -(-height // 4), -(-width // 4))


def losses_of(output) -> torch.Tensor:
    return sum(x.square().mean() for x in output if x is not None)


@settings(max_examples=15)
@given(chosen=variants, size=st.sampled_from([(33, 20), (20, 40)]), seed=st.integers(0, 9))
def test_gradients_equal_the_loops_in_training_and_reach_everything(chosen, size, seed):
    variant = CCSVariant(**chosen)
    head = random_head(variant, seed=seed).train()
    head.dropout.p = head.coarse[1].p = 0.0
    features = random_features(*size)
    found = []
    for forward in (head, lambda f: literal_variant(head, f)):
        head.zero_grad()
        inputs = [f.clone().requires_grad_() for f in features]
        output = forward(inputs)
        losses_of(output).backward()
        found.append([*output, *(p.grad.clone() for p in (*inputs, *head.parameters()))])
    assert (found[0][2] is None) == (variant.centre_loss_weight == 0)
    for ours, loops in zip(*found, strict=True):
        assert (ours is None) == (loops is None)
        if ours is not None:
            torch.testing.assert_close(ours, loops)
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@settings(max_examples=15)
@given(chosen=variants, num_classes=st.integers(2, 30))
def test_images_do_not_meet_and_bfloat16_is_close(chosen, num_classes):
    head = random_head(CCSVariant(**chosen), num_classes).float()
    features = [f.float() for f in random_features(40, 72, batch=3)]
    with torch.no_grad():
        exact = head(features).logits
        one = head([f[1:2] for f in features]).logits
        with torch.autocast("cpu", torch.bfloat16):
            # The choice is another where rounding changes an order: of all classes none is made.
            head.top_k = num_classes
            rounded = head(features).logits
        exact_of_all = head(features).logits
    torch.testing.assert_close(exact[1:2], one, rtol=1e-4, atol=1e-5)
    assert (exact_of_all - rounded).abs().mean() < 0.05 * exact_of_all.std()


@settings(max_examples=10)
@given(chosen=variants)
def test_one_place_can_be_trained(chosen):
    """Maps of one place: what weighs places has nothing to weigh, and no gradient, but a value."""
    head = random_head(CCSVariant(**chosen)).train()
    output = head(random_features(4, 4, batch=2))
    losses_of(output).backward()
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


# Where settings amount to the paper's, the numbers are the paper's


def paper_head(top_k: int = 3) -> CCSHead:
    torch.manual_seed(3)
    head = CCSHead(CHANNELS, 6, HeadConfig(dim=8, coarse_dim=6, top_k=top_k))
    torch.nn.init.normal_(head.coarse[2].weight)
    torch.nn.init.normal_(head.classifier.weight)
    return head.eval().double()


def filled(variant: CCSVariant, paper: CCSHead) -> CCSVariantHead:
    """The variant's head as drawn, with the paper's weights wherever it has them."""
    torch.manual_seed(4)
    config = HeadConfig(dim=8, coarse_dim=6, top_k=paper.top_k, variant=variant)
    head = CCSVariantHead(CHANNELS, 6, config).eval().double()
    weights = paper.state_dict()
    for name, tensor in head.state_dict().items():
        ours = tensor
        theirs = weights.get(name)
        if theirs is None and name.startswith("stages.") and ("key." in name or "value." in name):
            theirs = weights[name.split(".", 2)[2]]
        if theirs is not None:
            ours[..., : theirs.shape[-1]].copy_(theirs) if ours.shape != theirs.shape else (
                ours.copy_(theirs)
            )
    return head


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (40, 72), (3, 5)])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"projections": "separate"},
        {"centres": "c3+c4"},
        {"coarse_bias": "learned"},
        {"centre_temperature": "learned"},
        {"coarse_gradient": "stopped"},
        {"centre_loss_weight": 0.3},
        {
            "projections": "separate",
            "centres": "c3+c4",
            "coarse_bias": "learned",
            "centre_temperature": "learned",
            "coarse_gradient": "stopped",
            "centre_loss_weight": 0.3,
        },
    ],
    ids=lambda c: "+".join(c) or "none",
)
def test_starts_as_the_paper(changed, size, training):
    paper = paper_head().train(training)
    head = filled(CCSVariant(**changed), paper).train(training)
    for each in (paper, head):
        each.dropout.p = each.coarse[1].p = 0.0
    features = random_features(*size)
    ours, theirs = head(features), paper(features)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.coarse, theirs.coarse, rtol=1e-6, atol=1e-6)


def test_one_head_and_gradients_are_the_paper_s():
    paper = paper_head()
    head = filled(CCSVariant(), paper)
    features = random_features(64, 64)
    for each in (paper, head):
        each(features).logits.square().mean().backward()
    theirs = dict(paper.named_parameters())
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-6, atol=1e-9)


def test_equal_centres_of_a_class_are_one():
    paper = paper_head()
    head = filled(CCSVariant(centres_per_class=3), paper)
    torch.nn.init.zeros_(head.centres[0].parts.weight)
    features = random_features(64, 64)
    torch.testing.assert_close(head(features).logits, paper(features).logits, rtol=1e-6, atol=1e-6)


def test_a_refinement_that_changes_nothing():
    paper = paper_head()
    head = filled(CCSVariant(attention_rounds=3), paper)
    for refinement in head.refinements:
        torch.nn.init.zeros_(refinement.classifier.weight)
    features = random_features(64, 64)
    torch.testing.assert_close(head(features).logits, paper(features).logits, rtol=1e-6, atol=1e-6)


def test_c3_alone_starts_with_nothing_to_say():
    head = filled(CCSVariant(centres="c3+c4"), paper_head())
    assert head.key.weight.shape == (8, 8 + 7)
    assert head.key.weight[:, 8:].count_nonzero() == 0
    assert head.value.weight[:, 8:].count_nonzero() == 0


def test_a_bias_of_log_probabilities_stands_instead_of_the_choice():
    """With all classes a certain coarse prediction reads from its class alone, as k = 1 does."""
    one = paper_head(top_k=1)
    for parameter in one.coarse[2].parameters():
        torch.nn.init.normal_(parameter, std=1e4)
    head = filled(CCSVariant(coarse_bias="fixed"), one)
    head.top_k = 6
    features = random_features(64, 64)
    torch.testing.assert_close(head(features).logits, one(features).logits, rtol=1e-6, atol=1e-6)


def test_without_attention_it_is_segformer():
    torch.manual_seed(0)
    config = HeadConfig(dim=8, variant=CCSVariant(attending=()))
    head, segformer = CCSVariantHead(CHANNELS, 6, config), SegFormerHead(CHANNELS, 6, config)
    weights = {k.replace("projections.", "stages."): v for k, v in segformer.state_dict().items()}
    weights = {
        f"{k[:8]}.query{k[8:]}" if k.startswith("stages.") else k: v for k, v in weights.items()
    }
    missing, unexpected = head.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.startswith("coarse.") for name in missing)
    features = [f.float() for f in random_features(72, 40)]
    expected = segformer.eval()(features).logits
    torch.testing.assert_close(head.eval()(features).logits, expected)


def test_whether_few_or_many_centres_several_heads_read_the_same():
    """Folding the convolution into the values or not is a matter of speed."""
    for num_classes in (2, 40):
        head = random_head(CCSVariant(attention_heads=4), num_classes, top_k=2)
        features = random_features(32, 32)
        expected = literal_variant(head, features)[0]
        torch.testing.assert_close(head(features).logits, expected)


# The gradient into the coarse head


@pytest.mark.parametrize("bias", ["none", "learned", "fixed"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_stopped_gradient_leaves_the_coarse_head_its_own_loss(bias, rounds):
    variant = CCSVariant(
        coarse_gradient="stopped",
        coarse_bias=bias,
        attention_rounds=rounds,
        centre_loss_weight=0.5,
        centre_temperature="learned",
    )
    head = random_head(variant).train()
    output = head(random_features(64, 64))
    (output.logits.square().sum() + output.auxiliary.square().sum()).backward(retain_graph=True)
    assert all(p.grad is None for p in head.coarse.parameters())
    output.coarse.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.coarse.parameters())


def test_a_kept_gradient_reaches_the_coarse_head():
    head = random_head(CCSVariant(centre_temperature="learned"))
    head(random_features(64, 64)).logits.square().sum().backward()
    assert head.coarse[2].weight.grad.abs().sum() > 0


# The centre loss


def test_places_like_a_class_s_centre_are_its_own():
    centres = torch.tensor([[[3.0, 0.0], [0.0, 0.5]]])
    features = torch.tensor([[[[2.0, 0.1]], [[0.1, 7.0]]]])
    probs = centre_logits(centres, features, 2).softmax(1)[0, :, 0]
    assert probs[0, 0] > 0.99
    assert probs[1, 1] > 0.99


def test_places_of_zeros_have_a_bounded_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    centres = torch.randn(1, 3, 4)
    centre_logits(centres, features, 3)[:, 0].sum().backward()
    assert features.grad.abs().max() < 1e5


# Settings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"attention_heads": 0}, "attention_heads is 0; it must be at least 1"),
        ({"centres_per_class": 0}, "centres_per_class is 0; it must be at least 1"),
        ({"attention_rounds": -1}, "attention_rounds is -1; it must be at least 1"),
        ({"centre_loss_weight": -0.1}, r"centre_loss_weight is -0\.1"),
        ({"centre_loss_weight": float("nan")}, "centre_loss_weight is nan"),
        ({"centre_loss_weight": float("inf")}, "centre_loss_weight is inf"),
        ({"attending": (4, 5)}, r"attending is \(4, 5\).*4, 8, 16, 32"),
        ({"attending": (8, 4)}, r"attending is \(8, 4\).*in this order"),
        ({"attending": (4, 4)}, r"attending is \(4, 4\)"),
        ({"centres": "own"}, "Set projections to separate"),
        ({"projections": "separate", "attending": (8,)}, "a single stage attends"),
        ({"projections": "separate", "centres": "own", "attending": (32,)}, "whose own map is c4"),
        ({"attending": (), "attention_heads": 2}, "names no stage and attention_heads is 2"),
        ({"attending": (), "coarse_gradient": "stopped"}, "names no stage and coarse_gradient"),
    ],
)
def test_settings_that_cannot_be(bad, message):
    with pytest.raises(InputError, match=message):
        CCSVariant(**bad)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("projections", "shared, separate"),
        ("centres", r"c4, c3\+c4, own"),
        ("coarse_bias", "none, learned, fixed"),
        ("coarse_gradient", "kept, stopped"),
        ("centre_temperature", "fixed, learned"),
    ],
)
def test_words_that_are_none(name, allowed):
    """As a file of settings may hold them: the constructor's types are checked in tests alone."""
    variant = CCSVariant()
    object.__setattr__(variant, name, "other")
    with pytest.raises(InputError, match=f"{name} is 'other'; it must be one of: {allowed}"):
        variant.__post_init__()


def test_heads_divide_the_width():
    with pytest.raises(InputError, match="attention_heads is 3 and dim is 256"):
        HeadConfig(variant=CCSVariant(attention_heads=3))


def test_the_default_is_the_paper_s_head():
    assert isinstance(build(CHANNELS, 5), CCSHead)
    assert isinstance(build(CHANNELS, 5, HeadConfig(dim=8, top_k=2)), CCSHead)


@pytest.mark.parametrize("head", ["fcn", "segformer", "smp.FPN"])
def test_other_heads_have_no_variants(head):
    variant = CCSVariant(coarse_bias="fixed", attention_rounds=2)
    config = replace(tiny_model(head), head_config=HeadConfig(variant=variant))
    with pytest.raises(InputError, match=f"^coarse_bias, attention_rounds are .*'{head}' has no"):
        create_segmenter(config, num_classes=3)


@pytest.mark.parametrize("name", CHOICES)
def test_every_setting_changes_the_head(name):
    """Alone against the paper's; `own` and `separate` go together."""
    base = CCSVariant(projections="separate") if name == "centres" else CCSVariant()
    features = random_features(64, 64)
    assert set(CHOICES) == {f.name for f in fields(CCSVariant)}
    for value in CHOICES[name]:
        if value == getattr(base, name):
            continue
        variant = replace(base, **{name: value})
        assert isinstance(build(CHANNELS, 5, HeadConfig(dim=8, variant=variant)), CCSVariantHead)
        found = []
        for each in (base, variant):
            head = random_head(each).train()
            shared = random_head(base).state_dict()
            head.load_state_dict(
                shared | head.state_dict() if each != base else shared, strict=False
            )
            own = {k: v for k, v in shared.items() if k in head.state_dict()}
            own = {k: v for k, v in own.items() if v.shape == head.state_dict()[k].shape}
            head.load_state_dict(own, strict=False)
            head.dropout.p = head.coarse[1].p = 0.0
            output = head(features)
            losses_of(output).backward()
            found.append((losses_of(output), head.coarse[0][0].weight.grad))
        assert any((a - b).abs().max() > 1e-9 for a, b in zip(*found, strict=True)), value


# What docs/variants.md says


@pytest.mark.slow
def test_the_page_s_costs_are_those_of_the_benchmark():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_setting():
    text = PAGE.read_text(encoding="utf-8")
    for setting in fields(CCSVariant):
        assert f"`--{setting.name.replace('_', '-')} " in text, setting.name


# In files

EVERYTHING = CCSVariant(
    projections="separate",
    centres="c3+c4",
    attending=(4, 16, 32),
    coarse_bias="learned",
    attention_heads=2,
    centre_temperature="learned",
    centres_per_class=2,
    attention_rounds=2,
    centre_loss_weight=0.1,
)


def saved(path: Path, variant: CCSVariant) -> Checkpoint:
    """A checkpoint of a small model, its head drawn so that classes and places differ."""
    tiny = tiny_config(Path("shapes"))
    settings = replace(tiny.model.head_config, variant=variant)
    config = replace(tiny, model=replace(tiny.model, head_config=settings))
    torch.manual_seed(0)
    model = create_segmenter(config.model, num_classes=3)
    for module in model.head.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS)
    save_checkpoint(path, model.state_dict(), config, info, step=1)
    return read_checkpoint(path)


def test_a_checkpoint_brings_the_variant_back(tmp_path):
    found = saved(tmp_path / "m.safetensors", EVERYTHING)
    head = load_model(found).head
    assert isinstance(head, CCSVariantHead)
    assert head.variant == EVERYTHING
    check_model(found, found.config.model)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"centres": "c4"}, r"has centres='c3\+c4', not 'c4'"),
        ({"attending": (4, 16)}, r"has attending=\(4, 16, 32\)"),
        ({"centre_loss_weight": 0.7}, None),
    ],
)
def test_a_run_goes_on_with_its_variant_alone(tmp_path, changed, refused):
    """But for the weight of a loss, which no weight of the network depends on."""
    found = saved(tmp_path / "m.safetensors", EVERYTHING)
    model = found.config.model
    variant = replace(EVERYTHING, **changed)
    model = replace(model, head_config=replace(model.head_config, variant=variant))
    if refused is None:
        check_model(found, model)
    else:
        with pytest.raises(InputError, match=refused):
            check_model(found, model)


FILES = {
    "everything": EVERYTHING,
    "own": CCSVariant(centres="own", projections="separate", attending=(4, 8)),
    "heads": CCSVariant(attention_heads=4, centres_per_class=2, attention_rounds=3),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "name"),
    [("onnx", "everything"), ("onnx", "heads"), *(("torchscript", name) for name in FILES)],
)
def test_exported_files_label_as_the_checkpoint(tmp_path, monkeypatch, to, name):
    """`export` compares the two on images, and raises where they differ."""
    pytest.importorskip("onnxscript" if to == "onnx" else "torch")
    # Where a graph is made, sizes are symbols and tensors, which the tests' check refuses.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    found = saved(tmp_path / "m.safetensors", FILES[name])
    path = tmp_path / f"m{FORMATS[to].suffix}"
    export(found, path, ExportConfig(to=to))
    assert path.stat().st_size > 0


@pytest.mark.slow
def test_a_run_with_everything_from_the_command_line(shapes, tmp_path, call):
    out, words = tmp_path / "run", []
    for setting in fields(CCSVariant):
        value = getattr(EVERYTHING, setting.name)
        words.append(f"--{setting.name.replace('_', '-')}")
        words += map(str, value if isinstance(value, tuple) else [value])
    assert call("train", shapes, "--out", out, "--steps", 2, *OPTIONS, *words)[0] == 0
    assert read_checkpoint(out).config.model.head_config.variant == EVERYTHING
    assert call("evaluate", out)[0] == 0


def test_words_on_the_command_line_that_cannot_be(shapes, tmp_path, call):
    out = tmp_path / "run"
    status, _, errors = call("train", shapes, "--out", out, *OPTIONS, "--centres", "own")
    assert status == 2
    assert "Set projections to separate" in " ".join(errors.split())
    assert not out.exists()
