"""Images of other sizes than a model was built for: what timm gives when built for that size."""

import pytest
import timm
import torch

from ccsnet.backbones._sizes import resample_offsets
from ccsnet.backbones.timm import create_backbone


def raw_maps(backbone, image):
    """The maps before norms and pyramid, channels first."""
    with torch.no_grad():
        maps = backbone.features(image)
    return maps if backbone.channels_first else [m.movedim(-1, 1) for m in maps]


@pytest.mark.parametrize(
    "size",
    [(224, 224), pytest.param((448, 448), marks=pytest.mark.slow), (256, 320), (64, 96)],
)
def test_swin_is_what_timm_builds_for_that_size(size):
    torch.manual_seed(0)
    backbone = create_backbone("swin_tiny_patch4_window7_224").eval()
    # Built for this size, but with windows of 7 where timm would shrink or widen them.
    native = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=size, always_partition=True, num_classes=0
    ).eval()
    whole = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    state = {
        own: backbone.features.state_dict()[own.replace("layers.", "layers_", 1)]
        for own in whole.state_dict()
        if not own.startswith("norm.")
    }
    native.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = native.forward_intermediates(image, intermediates_only=True)
    for got, wanted in zip(raw_maps(backbone, image), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_beit_at_its_own_size_is_timms():
    torch.manual_seed(0)
    backbone = create_backbone("beit_base_patch16_224").eval()
    native = timm.create_model("beit_base_patch16_224", num_classes=0).eval()
    shake_tables(backbone.features.model)
    native.load_state_dict(backbone.features.model.state_dict(), strict=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = native.forward_intermediates(image, [2, 5, 8, 11], intermediates_only=True)
    for got, wanted in zip(raw_maps(backbone, image), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*(searchsorted|non-tuple sequence)")  # timm's own
@pytest.mark.parametrize("size", [(320, 256), pytest.param((512, 512), marks=pytest.mark.slow)])
def test_beit_at_a_larger_size_is_timms_resized_to_it(size):
    torch.manual_seed(0)
    backbone = create_backbone("beit_base_patch16_224").eval()
    shake_tables(backbone.features.model)
    native = timm.create_model("beit_base_patch16_224", num_classes=0).eval()
    native.load_state_dict(backbone.features.model.state_dict(), strict=False)
    native.set_input_size(size)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = native.forward_intermediates(image, [2, 5, 8, 11], intermediates_only=True)
    for got, wanted in zip(raw_maps(backbone, image), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def shake_tables(beit):
    """timm starts the tables at zero, which any resampling leaves as it is."""
    with torch.no_grad():
        for block in beit.blocks:
            block.attn.relative_position_bias_table.normal_()


def test_near_offsets_keep_their_values():
    table = torch.arange(27 * 27 + 3.0).unsqueeze(1)
    larger = resample_offsets(table, (14, 14), (32, 20))
    assert larger.shape == (63 * 39 + 3, 1)
    assert torch.equal(larger[-3:], table[-3:])
    old, new = table[:-3].view(27, 27), larger[:-3].view(63, 39)
    torch.testing.assert_close(new[31, 19], old[13, 13])  # the patch itself
    torch.testing.assert_close(new[30:33, 18:21], old[12:15, 12:15])  # its neighbours
    torch.testing.assert_close(new[0, 0], old[0, 0])  # the farthest
    torch.testing.assert_close(new[-1, -1], old[-1, -1])


def test_a_smaller_grid_takes_the_middle():
    table = torch.randn(27 * 27 + 3, 12)
    smaller = resample_offsets(table, (14, 14), (4, 6))
    middle = table[:-3].view(27, 27, 12)[10:17, 8:19]
    torch.testing.assert_close(smaller[:-3].view(7, 11, 12), middle)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_small_abswin_256"])
def test_hiera_is_what_timm_builds_for_that_size(name):
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    features = backbone.features.model
    native = timm.create_model(name, img_size=(288, 352), num_classes=0).eval()
    state = features.state_dict()
    if name == "hiera_tiny_224":
        state["pos_embed"] = timm.layers.resample_abs_pos_embed(
            state["pos_embed"], [72, 88], [56, 56], 0
        )
    native.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 288, 352)
    own = torch.randn(1, 3, *((224, 224) if name == "hiera_tiny_224" else (256, 256)))
    before = raw_maps(backbone, own)
    with torch.no_grad():
        expected = native.forward_intermediates(image, indices=4, intermediates_only=True)
    for got, wanted in zip(raw_maps(backbone, image), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(raw_maps(backbone, own), before, strict=True):  # and back
        torch.testing.assert_close(got, wanted)


def test_patches_of_14_pixels_lie_where_they_are_in_the_image():
    """A spot moves through the maps of stride 16 as it moves through the image."""
    torch.manual_seed(0)
    backbone = create_backbone("vit_small_patch14_dinov2").eval()
    ramp = torch.zeros(1, 384, 48, 48)
    ramp[:] = torch.arange(48.0).add(0.5).mul(14)  # The centres of the patches, in pixels.
    scaled = torch.nn.functional.interpolate(
        ramp, scale_factor=14 / 16, mode="bilinear", recompute_scale_factor=False
    )
    assert scaled.shape[-1] == 42
    expected = torch.arange(42.0).add(0.5).mul(16)
    torch.testing.assert_close(scaled[0, 0, 0, 1:-1], expected[1:-1])
    assert backbone.pyramid.scales == (0.875, 0.875, 0.875, 0.875)
