import pytest
import timm
import torch
import torch.nn.functional as F

from ccsnet.backbones.mit import EfficientSelfAttention, MixFeedForward, MixTransformer


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_attention_equals_the_obvious_one(reduction: int):
    torch.manual_seed(0)
    heads, channels, height, width = 3, 24, 9, 14
    layer = EfficientSelfAttention(channels, heads, reduction).double()
    tokens = torch.randn(2, height * width, channels, dtype=torch.float64)

    coarse = tokens
    if reduction > 1:
        grid = tokens.mT.reshape(2, channels, height, width)
        grid = F.conv2d(grid, layer.reduce.weight, layer.reduce.bias, stride=reduction)
        coarse = F.layer_norm(
            grid.flatten(2).mT, (channels,), layer.norm.weight, layer.norm.bias, 1e-6
        )
    queries = layer.q(tokens)
    keys, values = layer.kv(coarse).split(channels, dim=-1)
    size = channels // heads
    read = torch.zeros_like(tokens)
    for image in range(2):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for position in range(height * width):
                scores = keys[image, :, part] @ queries[image, position, part] / size**0.5
                read[image, position, part] = scores.softmax(0) @ values[image, :, part]
    features = tokens.unflatten(1, (height, width))
    torch.testing.assert_close(layer(features).flatten(1, 2), layer.proj(read))


def test_feed_forward_sees_the_neighbours_only():
    torch.manual_seed(0)
    layer = MixFeedForward(8, 4)
    features = torch.randn(1, 5, 7, 8)
    changed = features.clone()
    changed[0, 2, 3] += 1.0
    differs = (layer(features) != layer(changed)).any(-1)[0]
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(differs, expected)


# Source: SegFormer, table 6, gives 3.7, 14.0, 25.4, 45.2, 62.6 and 82.0 M with the classifier;
# exactly these follow from its table of widths and depths.
@pytest.mark.parametrize(
    ("size", "encoder", "published"),
    [
        (0, 3_319_392, 3.7),
        (1, 13_151_424, 14.0),
        (2, 24_196_288, 25.4),
        (3, 44_072_128, 45.2),
        (4, 60_842_688, 62.6),
        (5, 81_443_008, 82.0),
    ],
)
def test_parameter_counts(size: int, encoder: int, published: float):
    with torch.device("meta"):
        model = timm.create_model(f"mit_b{size}")
    count = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.head.parameters())
    assert count - head == encoder
    assert count / 1e6 == pytest.approx(published, rel=0.04)


def small(**options) -> MixTransformer:
    torch.manual_seed(0)
    return timm.create_model("mit_b0", **options)


def test_classifies():
    model = small(num_classes=7, in_chans=2).eval()
    image = torch.randn(2, 2, 70, 45)
    logits = model(image)
    assert logits.shape == (2, 7)
    last, maps = model.forward_intermediates(image)
    torch.testing.assert_close(model.get_classifier()(last.mean((2, 3))), logits)
    torch.testing.assert_close(maps[3], last)
    assert len(model.forward_intermediates(image, [1], intermediates_only=True)) == 1
    model.reset_classifier(0)
    assert model(image).shape == (2, 256)


def test_takes_only_maps():
    with pytest.raises(ValueError, match="NLC"):
        small().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")


def test_features_of_some_stages_drop_the_rest():
    model = small(features_only=True, out_indices=(0, 2))
    assert model.feature_info.channels() == [32, 160]
    assert model.feature_info.reduction() == [4, 16]
    assert [tuple(m.shape[1:]) for m in model(torch.randn(1, 3, 64, 64))] == [
        (32, 16, 16),
        (160, 4, 4),
    ]
    assert len(model.model.stages) == 3


def test_stochastic_depth_rises_linearly():
    model = small(drop_path_rate=0.7)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in model.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_checkpointing_changes_no_gradient():
    image = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model = small(num_classes=3).train()
        model.set_grad_checkpointing(enable)
        model(image).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_initial_weights():
    model = small()
    block = model.stages[3].blocks[0]
    assert block.attention.q.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    # Fan-out of a depthwise 3x3: nine.
    assert block.feed_forward.depthwise.weight.detach().std() == pytest.approx(
        (2 / 9) ** 0.5, rel=0.05
    )
    assert not block.attention.q.bias.any()
