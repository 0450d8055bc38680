"""What every head promises. A new file in ccsnet/heads is tested here by itself."""

import pytest
import torch

import ccsnet.backbones  # noqa: F401  # Before smp: it makes torchvision importable.
from ccsnet.heads._base import CCSVariant, HeadConfig
from ccsnet.plugins import find_plugin, plugin_notes

CHANNELS = (8, 12, 16, 20)
STRIDES = (4, 8, 16, 32)
VARIANTS = {
    f"ccs {' '.join(f'{k}={v}' for k, v in settings.items())}": CCSVariant(**settings)
    for settings in (
        {"projections": "separate"},
        {"centres": "c3+c4"},
        {"centres": "own", "projections": "separate"},
        {"attending": (8, 32)},
        {"attending": ()},
        {"coarse_gradient": "stopped"},
        {"coarse_bias": "learned"},
        {"coarse_bias": "fixed"},
        {"attention_heads": 4},
        {"centre_temperature": "learned"},
        {"centres_per_class": 3},
        {"attention_rounds": 2},
        {"centre_loss_weight": 0.1},
    )
}
HEADS = [*plugin_notes("ccsnet.heads"), *VARIANTS]
FINER = {"smp.DPT": 2} | dict.fromkeys(
    ("smp.Linknet", "smp.MAnet", "smp.Unet", "smp.UnetPlusPlus"), 4
)
"""Decoders that go on beyond the finest map, and how often its size."""
WIDER = {"smp.MAnet": (128, 128, 128, 128)}
"""Its squeezes are a sixteenth as wide as the maps: of one channel, a ReLU can stop all."""
CANCELLED = {"smp.PAN": ".conv.bias"}
"""Biases right before a batch norm, which subtracts them in training: no gradient can come."""


def build(name: str, num_classes: int = 5, channels: tuple[int, ...] = CHANNELS) -> torch.nn.Module:
    torch.manual_seed(0)
    variant = VARIANTS.get(name, CCSVariant())
    config = HeadConfig(dim=16, coarse_dim=16, top_k=3, variant=variant)
    head = "ccs" if name in VARIANTS else name
    return find_plugin("ccsnet.heads", head, "build")(channels, num_classes, config)


def features(
    height: int, width: int, batch: int = 2, channels: tuple[int, ...] = CHANNELS
) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s))
        for c, s in zip(channels, STRIDES, strict=True)
    ]


def test_the_three_heads_are_here():
    assert {"ccs", "fcn", "segformer"} <= set(HEADS)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 500), (4, 4)])
def test_any_size(name, size):
    output = build(name).eval()(features(*size))
    batch, num_classes, height, width = output.logits.shape
    assert (batch, num_classes) == (2, 5)
    strides = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
    times = FINER.get(name, 1)
    assert (height // times, width // times) in strides
    assert (height % times, width % times) == (0, 0)
    if output.coarse is not None:
        assert output.coarse.shape == (2, 5, *strides[2])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("num_classes", [2, 19, 1000])
def test_any_number_of_classes(name, num_classes):
    output = build(name, num_classes).eval()(features(32, 32))
    assert output.logits.shape[1] == num_classes


@pytest.mark.parametrize("name", HEADS)
def test_images_of_a_batch_do_not_meet(name):
    head = build(name).eval()
    both = head(features(64, 64)).logits
    one = head([f[1:] for f in features(64, 64)]).logits
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradient_reaches_every_parameter(name):
    channels = WIDER.get(name, CHANNELS)
    head = build(name, channels=channels).train()
    output = head(features(64, 64, channels=channels))
    loss = output.logits.square().sum()
    if output.coarse is not None:
        loss = loss + output.coarse.square().sum()
    loss.backward()
    cancelled = CANCELLED.get(name, "none")
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        if not parameter_name.endswith(cancelled):
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CANCELLED)
def test_cancelled_biases_change_nothing_in_training(name):
    head = build(name).train()
    before = head(features(64, 64)).logits
    biases = [p for n, p in head.named_parameters() if n.endswith(CANCELLED[name])]
    assert biases
    for bias in biases:
        torch.nn.init.constant_(bias, 1.0)
    torch.testing.assert_close(head(features(64, 64)).logits, before)
    head.eval()
    before = head(features(64, 64)).logits
    for bias in biases:
        torch.nn.init.constant_(bias, 2.0)
    assert (head(features(64, 64)).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:DeprecationWarning")
def test_exports(name):
    head = build(name).eval()
    inputs = features(64, 96)
    exported = torch.export.export(head, (inputs,)).module()
    torch.testing.assert_close(exported(inputs).logits, head(inputs).logits)


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_is_close(name):
    head = build(name).eval()
    inputs = features(64, 64)
    with torch.no_grad():
        exact = head(inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounded = head(inputs).logits
    assert (exact - rounded).abs().mean() < 0.05 * exact.std() + 1e-3


@pytest.mark.parametrize("bad", [{"dim": 0}, {"top_k": 0}, {"dropout": 1.0}])
def test_settings_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HeadConfig(**bad)
