import inspect

import numpy as np
import pytest
import torch
from torch import nn

from ccsnet.attention import (
    Attention,
    attention_head,
    attention_of,
    pixel_picture,
    relevant_arrays,
    relevant_picture,
)
from ccsnet.checkpoint import ClassInfo
from ccsnet.errors import InputError
from ccsnet.heads._base import CCSVariant, HeadConfig
from ccsnet.predict import Predictor
from ccsnet.segmenter import ModelConfig, create_segmenter
from tests.shapes import BACKBONE

NAMES = tuple("abcde")
PAINTS = tuple((40 * i, 255 - 40 * i, 90) for i in range(5))
TOP_K = 3


def make_predictor(head: str = "ccs", **variant: object) -> Predictor:
    torch.manual_seed(0)
    settings = HeadConfig(dim=16, coarse_dim=16, top_k=TOP_K, variant=CCSVariant(**variant))
    config = ModelConfig(backbone=BACKBONE, head=head, head_config=settings)
    model = create_segmenter(config, num_classes=len(NAMES)).eval()
    for module in model.head.modules():  # So that classes and places differ.
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return Predictor(model, ClassInfo(dataset="letters", classes=NAMES, colours=PAINTS))


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def found(predictor, picture):
    return attention_of(predictor, picture)


@pytest.fixture(scope="module")
def inside(predictor, picture):
    """Features, and the output of the network, of the same image."""
    from ccsnet.data.loading import image_tensor
    from ccsnet.data.transforms import resize_aligned

    model = predictor.model
    seen = image_tensor(resize_aligned(picture, None, None))[None].float()
    with torch.no_grad():
        features = model.backbone((seen - model.mean) / model.std)
        return features, model.head(features)


def test_shapes_and_logits_are_the_model_s(found, inside):
    features, output = inside
    assert torch.equal(found.coarse, output.coarse[0])
    assert torch.equal(found.logits, output.logits[0])
    assert found.relevant.sum(0).unique().tolist() == [TOP_K]
    assert found.sources.shape == (len(NAMES), *features[-1].shape[-2:])
    grids = [features[min(i, 2)].shape[-2:] for i in range(4)]
    assert [r.shape for r in found.reads] == [(*grid, len(NAMES)) for grid in grids]


def test_relevant_classes_are_ranked(found):
    ranked = found.ranked()
    assert ranked.shape == (TOP_K, *found.coarse.shape[1:])
    for row in range(ranked.shape[1]):
        for column in range(ranked.shape[2]):
            scores = found.coarse[:, row, column].tolist()
            best = sorted(range(len(NAMES)), key=lambda i: -scores[i])[:TOP_K]
            assert ranked[:, row, column].tolist() == best
            assert found.relevant[:, row, column].nonzero().flatten().tolist() == sorted(best)


def test_weights_are_those_of_a_literal_computation(predictor, found, inside):
    """Place by place, class by class, in plain Python; then what is read gives the output back."""
    features, output = inside
    head = predictor.model.head
    deep = features[-1][0]
    height, width = deep.shape[1:]
    coarse = torch.nn.functional.interpolate(
        output.coarse, size=(height, width), mode="bilinear", align_corners=False
    )[0]
    with torch.no_grad():
        keys = []
        for n in range(len(NAMES)):
            exponents = [[coarse[n, y, x].exp() for x in range(width)] for y in range(height)]
            total = sum(sum(row) for row in exponents)
            centre = torch.zeros(deep.shape[0])
            for y in range(height):
                for x in range(width):
                    weight = exponents[y][x] / total
                    assert found.sources[n, y, x] == pytest.approx(float(weight), abs=1e-6)
                    centre += weight * deep[:, y, x]
            keys.append(head.key(centre))
        h, w = found.coarse.shape[1:]
        for stage, reads in zip(head.stages, found.reads, strict=True):
            number = list(head.stages).index(stage)
            query = stage.query(features[number])
            rows, columns = reads.shape[:2]
            if query.shape[-2:] != (rows, columns):
                query = torch.nn.functional.interpolate(
                    query, size=(rows, columns), mode="bilinear", align_corners=False
                )
            for y in range(0, rows, 3):
                for x in range(0, columns, 5):
                    cell = found.relevant[:, y * h // rows, x * w // columns]
                    scores = [
                        float(query[0, :, y, x] @ keys[n]) / 16**0.5 if cell[n] else -np.inf
                        for n in range(len(NAMES))
                    ]
                    weights = np.exp(np.array(scores) - max(scores))
                    weights /= weights.sum()
                    assert reads[y, x].numpy() == pytest.approx(weights, abs=1e-4)


def test_weights_give_the_stage_s_own_output(predictor, found, inside):
    """The fused kernel gives only what was read: the weights must lead to the same."""
    features, _ = inside
    head, outputs = predictor.model.head, []
    hooks = [s.register_forward_hook(lambda _, __, made: outputs.append(made)) for s in head.stages]
    with torch.no_grad():
        head(features)
        centres = torch.einsum("nyx,cyx->nc", found.sources, features[-1][0])
        for number, (stage, reads) in enumerate(zip(head.stages, found.reads, strict=True)):
            query = torch.nn.functional.interpolate(
                stage.query(features[number]), size=reads.shape[:2], mode="bilinear"
            )
            read = torch.einsum("hwn,nd->dhw", reads, head.value(centres))[None]
            read = stage.norm(stage.conv(read)).relu()
            assert torch.allclose(query + read, outputs[number], rtol=1e-4, atol=1e-4)
    for hook in hooks:
        hook.remove()


def test_all_that_a_pixel_read_is_one_sum_over_places(predictor, found, inside):
    """What the finest stage reads equals the values of the deep features under `seen_from`."""
    deep = inside[0][-1][0]
    value = predictor.model.head.value.weight.detach()
    centres = torch.einsum("nyx,cyx->nc", found.sources, deep)
    for row, column in ((0, 0), (44, 71), (89, 149)):
        weights = found.seen_from(row, column)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        direct = value @ torch.einsum("yx,cyx->c", weights, deep)
        by_classes = found.read_at(row, column) @ (centres @ value.T)
        assert torch.allclose(direct, by_classes, rtol=1e-4, atol=1e-4)


def test_weights_add_up_to_one(found):
    assert torch.allclose(found.sources.sum((1, 2)), torch.ones(len(NAMES)))
    for reads in found.reads:
        assert torch.allclose(reads.sum(-1), torch.ones(reads.shape[:2]))
        assert (reads > 0).sum(-1).max() <= TOP_K


def test_pixels_are_those_of_the_image(found):
    grid = found.logits.shape[1:]
    for row, column in ((0, 0), (89, 149), (13, 100)):
        y, x = int((row + 0.5) / 90 * grid[0]), int((column + 0.5) / 150 * grid[1])
        assert found.winner(row, column) == int(found.logits[:, y, x].argmax())
        assert torch.equal(found.read_at(row, column), found.reads[0][y, x])
    with pytest.raises(InputError, match="row 90 is not in the image, which has 90 rows"):
        found.winner(90, 0)
    with pytest.raises(InputError, match="column -1 is not in the image"):
        found.read_at(0, -1)


def test_looking_changes_nothing(predictor, picture):
    before = predictor.predict(picture).label
    attention_of(predictor, picture)
    assert np.array_equal(predictor.predict(picture).label, before)
    assert not predictor.model.head._forward_pre_hooks


def test_pictures(found, picture):
    whole = relevant_picture(picture, found, NAMES, PAINTS)
    assert whole.dtype == np.uint8
    assert np.array_equal(whole[:90, :150], picture)
    best = found.coarse.argmax(0)
    middle = whole[:90, 156:306]  # Behind the gap of 6 pixels.
    assert tuple(middle[0, 0]) == PAINTS[int(best[0, 0])]
    assert tuple(middle[89, 149]) == PAINTS[int(best[-1, -1])]
    pixel = pixel_picture(picture, found, NAMES, PAINTS, 40, 70)
    assert np.array_equal(pixel[:20, :20], picture[:20, :20])
    other = pixel_picture(picture, found, NAMES, PAINTS, 80, 10)
    assert not np.array_equal(pixel[:90, 156:306], other[:90, 156:306])


def test_heat_is_brightest_where_the_weight_is(picture):
    sources = torch.full((2, 3, 5), 1e-3)
    sources[1, 2, 4] = 1.0
    made = Attention(
        coarse=torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 6, 10),
        relevant=torch.ones(2, 6, 10, dtype=torch.bool),
        sources=sources,
        reads=(torch.tensor([0.0, 1.0]).expand(24, 40, 2),),
        logits=torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 24, 40),
        size=(90, 150),
    )
    grey = np.full_like(picture, 100)
    heat = pixel_picture(grey, made, NAMES[:2], PAINTS[:2], 45, 75)[:90, 156:306]
    assert heat[88, 148].sum() > 2 * heat[10, 10].astype(int).sum()


def test_arrays_for_a_file(found):
    arrays = relevant_arrays(found)
    assert arrays["relevant"].shape == (*found.coarse.shape[1:], TOP_K)
    assert np.array_equal(arrays["relevant"][..., 0], found.coarse.argmax(0).numpy())
    assert arrays["coarse"].sum(-1) == pytest.approx(1, abs=2e-3)
    assert arrays["read"].shape == found.reads[0].shape


def test_other_heads_are_refused():
    other = make_predictor("segformer")
    with pytest.raises(InputError, match="models with the head ccs; this one has SegFormer"):
        inspect.unwrap(attention_head)(other)


# Variants of the head


@pytest.mark.parametrize(
    "variant",
    [
        {"projections": "separate", "attending": (8, 32)},
        {"centre_temperature": "learned", "coarse_bias": "learned"},
        {"attention_heads": 4, "coarse_bias": "fixed", "coarse_gradient": "stopped"},
        {"attention_rounds": 2, "centre_loss_weight": 0.1},
    ],
    ids=lambda v: "+".join(v),
)
def test_variants_by_a_literal_computation(variant, picture):
    predictor = make_predictor(**variant)
    head = predictor.model.head
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith(("log_sharpness", "bias_scale")):
                parameter.fill_(0.7)
    found = attention_of(predictor, picture)
    seen = {}
    hook = head.register_forward_pre_hook(lambda _, given: seen.update(features=given[0]))
    attention_of(predictor, picture)
    hook.remove()
    features = seen["features"]
    sharp = np.exp(0.7) if "centre_temperature" in variant else 1.0
    heads = variant.get("attention_heads", 1)
    scale = {"learned": 0.7, "fixed": 1.0}.get(variant.get("coarse_bias", "none"), 0.0)
    stages = [
        i for i, s in enumerate((4, 8, 16, 32)) if s in variant.get("attending", (4, 8, 16, 32))
    ]
    on_c4 = torch.nn.functional.interpolate(
        found.coarse[None], size=features[3].shape[-2:], mode="bilinear", align_corners=False
    )[0]
    sources = (on_c4 * sharp).flatten(1).softmax(1)
    torch.testing.assert_close(found.sources.flatten(1), sources)
    log_probs = found.coarse.log_softmax(0)
    h, w = found.coarse.shape[1:]
    assert len(found.reads) == len(stages)
    with torch.no_grad():
        centres = sources @ features[3][0].flatten(1).T
        for number, reads in zip(stages, found.reads, strict=True):
            stage = head.stages[number]
            keys = (head.key or stage.key)(centres)
            query = stage.query(features[number])
            rows, columns = reads.shape[:2]
            if number == 3:
                query = torch.nn.functional.interpolate(
                    query, size=(rows, columns), mode="bilinear", align_corners=False
                )
            for y in range(0, rows, 3):
                for x in range(0, columns, 5):
                    i, j = y * h // rows, x * w // columns
                    expected = torch.zeros(len(NAMES))
                    for part in torch.arange(16).chunk(heads):
                        scores = keys[:, part] @ query[0, part, y, x] / len(part) ** 0.5
                        scores = scores + scale * log_probs[:, i, j]
                        scores[~found.relevant[:, i, j]] = -torch.inf
                        expected += scores.softmax(0) / heads
                    torch.testing.assert_close(reads[y, x], expected, rtol=1e-3, atol=1e-5)
    names = relevant_picture(picture, found, NAMES, PAINTS)
    assert names.ndim == 3
    torch.testing.assert_close(found.seen_from(5, 7).sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ({"centres": "c3+c4"}, r"centres='c3\+c4'"),
        ({"centres": "own", "projections": "separate"}, "centres='own'"),
        ({"centres_per_class": 2}, "centres_per_class=2"),
        ({"attending": ()}, r"attending=\(\)"),
    ],
)
def test_variants_that_cannot_be_shown(variant, named):
    with pytest.raises(InputError, match=f"cannot be shown of a model with {named}"):
        attention_head(make_predictor(**variant))
