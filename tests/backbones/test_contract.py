"""What every backbone must do, whatever timm calls its parts."""

import copy
import warnings
from itertools import chain

import pytest
import torch
from torch import Tensor

from ccsnet.backbones._base import Backbone
from ccsnet.backbones.families import FAMILIES
from ccsnet.backbones.timm import backbone_names, create_backbone
from ccsnet.errors import InputError

STRIDES = (4, 8, 16, 32)
SIZES = [
    pytest.param((512, 512), marks=pytest.mark.slow),
    *((480, 640), (333, 500), (64, 96), (1, 1)),
]
# One of each kind; all others are slow.
FAST = {
    "resnet18": (64, 128, 256, 512),
    "hrnet_w18_small_v2": (18, 36, 72, 144),
    "mobilenetv3_small_100": (16, 24, 48, 576),
    "vit_small_patch16_224": (96, 192, 384, 384),
    "swin_tiny_patch4_window7_224": (96, 192, 384, 768),
    "twins_svt_small": (64, 128, 256, 512),
    "poolformer_s12": (64, 128, 320, 512),
    "mit_b0": (32, 64, 160, 256),
    "pvt_v2_b0": (32, 64, 160, 256),
    "vit_small_patch14_dinov2": (96, 192, 384, 384),
    "hiera_tiny_224": (96, 192, 384, 768),
    "tf_efficientnet_lite0": (24, 40, 112, 320),
}
# Not in the table of families, but each in a way of its own.
OTHERS = {
    "convnext_atto": (40, 80, 160, 320),
    "selecsls42": (128, 288, 480, 1024),  # A map at stride 64 follows, which must be left out.
    "hiera_small_abswin_256": (96, 192, 384, 768),  # Another position embedding.
    "vit_base_patch8_224": (384, 768, 768, 768),  # Finer patches than 16.
    "vit_base_patch32_224": (96, 192, 384, 768),  # Coarser ones.
}
CHANNELS = {
    **FAST,
    **OTHERS,
    "resnet50": (256, 512, 1024, 2048),
    "hrnet_w48": (48, 96, 192, 384),
    "mobilenetv2_100": (24, 32, 96, 320),
    "beit_base_patch16_224": (192, 384, 768, 768),
    "convnext_base": (128, 256, 512, 1024),
    "mit_b1": (64, 128, 320, 512),
}
NAMES = [
    pytest.param(name, marks=() if name in {*FAST, "convnext_atto"} else pytest.mark.slow)
    for name in dict.fromkeys([*FAST, *OTHERS, *chain.from_iterable(FAMILIES.values())])
]


@pytest.fixture(params=NAMES, scope="module")
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    backbone = create_backbone(request.param)
    assert backbone.channels == CHANNELS.get(request.param, backbone.channels)
    assert backbone.strides == STRIDES
    return backbone


def assert_close(one: Tensor, other: Tensor):
    """Equal but for the order of sums; an untrained network's maps may be of any magnitude."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("size", SIZES)
def test_four_maps_of_any_size(backbone: Backbone, size: tuple[int, int]):
    backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(backbone.channels, STRIDES, strict=True)
    ]
    assert all(m.isfinite().all() for m in maps)


def test_gradient_reaches_every_parameter(backbone: Backbone):
    # A copy, shaken: timm starts some norms and scales at zero, which hides what lies behind.
    backbone = copy.deepcopy(backbone).train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 65, 97))).backward()
    parameters = dict(backbone.named_parameters())
    assert all(p.requires_grad for p in parameters.values())
    without = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    # A softmax does not change when one number is added to all of its logits.
    assert [name for name in without if not name.endswith(("k.bias", "kv.bias"))] == []


def test_an_image_does_not_depend_on_its_batch(backbone: Backbone):
    """In float64: sums in another order must not count, and in a deep network they would."""
    backbone.eval().double()
    image = torch.randn(3, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        together, alone = backbone(image), backbone(image[1:2])
    backbone.float()
    for in_batch, single in zip(together, alone, strict=True):
        assert_close(in_batch[1:2], single)


def test_bfloat16_is_close(backbone: Backbone):
    """Within a fifth of the deviation, for every map that float32 itself gets right.

    A deep network that has learnt nothing may enlarge any rounding by 10^5 (efficientnetv2_rw_s at
    its last map): there float32 is a per cent off, and nothing can be asked of a shorter format.
    """
    backbone.eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        single = backbone(image)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(image)
        exact = backbone.double()(image.double())
    backbone.float()
    right = [(o - e).std() < 1e-4 * e.std() for o, e in zip(single, exact, strict=True)]
    assert right[:3] == [True, True, True]
    for one, other, counts in zip(single, rounded, right, strict=True):
        assert not counts or (one - other.float()).std() < 0.2 * one.std()


def test_padding_is_zeros_at_the_bottom_and_the_right(backbone: Backbone):
    backbone.eval()
    image = torch.randn(1, 3, 40, 60)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :40, :60] = image
    with torch.no_grad():
        for cropped, whole in zip(backbone(image), backbone(padded), strict=True):
            height, width = cropped.shape[-2:]
            assert_close(cropped, whole[..., :height, :width])


def test_state_dict_round_trip(backbone: Backbone, request: pytest.FixtureRequest):
    backbone.eval()
    name = request.node.callspec.params["backbone"]
    other = create_backbone(name).eval()
    other.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 33, 50)
    with torch.no_grad():
        for got, expected in zip(other(image), backbone(image), strict=True):
            assert_close(got, expected)


@pytest.mark.parametrize("in_channels", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_input_channels(name: str, in_channels: int):
    backbone = create_backbone(name, in_channels=in_channels).eval()
    with torch.no_grad():
        assert len(backbone(torch.randn(1, in_channels, 40, 40))) == 4


@pytest.mark.parametrize("name", ["convnext_atto", "tf_efficientnet_lite0", "mit_b0"])
def test_drop_path_acts_in_training(name: str):
    torch.manual_seed(0)
    backbone = create_backbone(name, drop_path=0.9).eval()
    image = torch.randn(4, 3, 64, 64)
    for module in backbone.modules():
        if type(module).__name__ == "DropPath":
            module.train()
    with torch.no_grad():
        assert not torch.equal(backbone(image)[3], backbone(image)[3])


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_drop_path_of_zero_is_zero(name: str):
    """Some of timm's models have a default of their own."""
    backbone = create_backbone(name).train()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(image)[3], backbone(image)[3])


@pytest.mark.parametrize("name", ["hrnet_w18_small", "selecsls42"])
def test_drop_path_that_a_backbone_lacks_warns(name: str):
    with pytest.warns(UserWarning, match="no stochastic depth"):
        create_backbone(name, drop_path=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mit_b0"])
def test_exports_for_all_sizes(name: str):
    backbone = create_backbone(name).eval()
    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own parts
        program = torch.export.export(
            backbone, (torch.randn(2, 3, 65, 97),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
        )
    for size in [(64, 64), (50, 131)]:
        image = torch.randn(3, 3, *size)
        with torch.no_grad():
            for got, expected in zip(program.module()(image), backbone(image), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_names():
    assert {"resnet50", "mit_b0", "mit_b5"} <= set(backbone_names())


def test_unknown_name_suggests():
    with pytest.raises(InputError, match=r"Perhaps you meant .*resnet18"):
        create_backbone("resnet81")


def test_unknown_tag_suggests():
    with pytest.raises(InputError, match=r"resnet18\.a1_in1k"):
        create_backbone("resnet18.a1_in2k")


def test_other_places_are_no_names():
    with pytest.raises(InputError, match="No backbone is called"):
        create_backbone("hf-hub:timm/resnet18")


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("levit_256", "64x96"),
        ("maxvit_tiny_tf_224", "divisible by window"),
        ("mvitv2_tiny", "288x256"),
    ],
)
def test_bound_to_a_size(name: str, finding: str):
    with pytest.raises(InputError, match=finding):
        create_backbone(name)


def test_numbers_out_of_range():
    with pytest.raises(InputError, match="not 0"):
        create_backbone("resnet18", in_channels=0)
    with pytest.raises(InputError, match=r"not 1\.0"):
        create_backbone("resnet18", drop_path=1.0)
    with pytest.raises(InputError, match=r"output_stride is 4; allowed: 32, 16, 8"):
        create_backbone("resnet18", output_stride=4)
