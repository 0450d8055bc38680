"""Dilation, frozen stages, gradient checkpointing: each does what it says, or says it cannot."""

import copy

import pytest
import torch

from ccsnet.backbones.timm import create_backbone
from ccsnet.errors import InputError


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto"])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated(name: str, output_stride: int):
    backbone = create_backbone(name, output_stride=output_stride).eval()
    strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
    assert backbone.strides == strides
    assert backbone.channels == create_backbone(name).channels
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 75, 100))
    assert [m.shape[-2:] for m in maps] == [(-(-75 // s), -(-100 // s)) for s in strides]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small", "mit_b0"]
)
def test_what_cannot_be_dilated_says_so(name: str):
    with pytest.raises(InputError, match=f"{name!r} cannot be dilated to stride 8"):
        create_backbone(name, output_stride=8)


NAMES = ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mit_b0"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stages", [1, 3, 4])
def test_frozen_stages_stay_as_they_are(name: str, stages: int):
    """After a training step, their maps are equal to the last bit, and the others' are not."""
    torch.manual_seed(0)
    backbone = create_backbone(name, drop_path=0.5).train()
    backbone.freeze(stages)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = [m.clone() for m in copy.deepcopy(backbone).eval().features(images)]
    trained = [p for p in backbone.parameters() if p.requires_grad]
    maps = backbone(images)
    if trained:
        optimizer = torch.optim.SGD(trained, lr=0.1)
        sum(m.square().mean() for m in maps).backward()
        optimizer.step()
    after = backbone.eval().features(images)
    for stage, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        assert torch.equal(one, other) == (stage <= stages)


def test_frozen_parts_rest_in_training():
    backbone = create_backbone("resnet18").train()
    backbone.freeze(2)
    assert not backbone.features.bn1.training
    assert not backbone.features.layer2[0].bn1.training
    assert backbone.features.layer3[0].bn1.training
    backbone.eval().train()
    assert not backbone.features.bn1.training
    backbone.freeze(0)
    assert backbone.features.bn1.training
    assert all(p.requires_grad for p in backbone.parameters())


def test_a_pyramid_learns_on_a_frozen_model():
    backbone = create_backbone("vit_tiny_patch16_224")
    backbone.freeze(4)
    assert {n.partition(".")[0] for n, p in backbone.named_parameters() if p.requires_grad} == {
        "pyramid"
    }


def test_hrnets_first_map_needs_its_coarse_branches():
    """Its maps come out of one last stage: what the first needs is most of the model."""
    backbone = create_backbone("hrnet_w18_small")
    backbone.freeze(1)
    assert not backbone.features.stage4[0].branches[3][0].conv1.weight.requires_grad
    assert not backbone.features.stage4[0].fuse_layers[0][3][0].weight.requires_grad
    assert backbone.features.stage4[0].fuse_layers[3][0][0][0].weight.requires_grad


def test_more_stages_than_there_are():
    with pytest.raises(InputError, match="frozen_stages is 5"):
        create_backbone("resnet18").freeze(5)


@pytest.mark.parametrize("name", [*NAMES, "convnext_atto", "hiera_tiny_224", "pvt_v2_b0"])
def test_gradient_checkpointing_keeps_the_gradients_and_less_memory(name: str):
    torch.manual_seed(0)
    backbone = create_backbone(name).train()
    images = torch.randn(2, 3, 64, 64)
    kept, gradients = [], []
    for enable in (False, True):
        copied = copy.deepcopy(backbone)
        if enable:
            copied.set_grad_checkpointing()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = sum(m.square().mean() for m in copied(images))
        kept.append(saved)
        loss.backward()
        gradients.append([p.grad for p in copied.parameters()])
    assert kept[1] < 0.75 * kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "twins_svt_small"])
def test_no_gradient_checkpointing_says_so(name: str):
    with pytest.raises(InputError, match="has no gradient checkpointing"):
        create_backbone(name).set_grad_checkpointing()
