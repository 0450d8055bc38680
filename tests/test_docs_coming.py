"""What docs/from-smp.md says of checkpoints of segmentation_models_pytorch."""

import pytest
import torch
from safetensors.torch import save_file

from ccsnet.backbones.timm import create_backbone
from ccsnet.convert import convert
from ccsnet.errors import InputError
from tests import pages

smp = pytest.importorskip("segmentation_models_pytorch")
PAGE = pages.text_of("docs/from-smp.md")
LOADED = {
    "resnet18": "resnet18",
    "mit_b0": "mit_b0",
    "timm-efficientnet-b0": "tf_efficientnet_b0",
    "tu-resnet18": "resnet18",
}
REFUSED = {"efficientnet-b0": "efficientnet_b0", "mobilenet_v2": "mobilenetv2_100"}


def made(encoder, decoder="Unet"):
    torch.manual_seed(0)
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=3).state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize("encoder", LOADED)
def test_encoders_that_are_loaded(encoder, tmp_path):
    state = made(encoder, "Segformer" if encoder == "mit_b0" else "Unet")
    file = tmp_path / "smp.pth"
    torch.save(state, file)
    backbone = create_backbone(LOADED[encoder], weights=str(file))
    assert backbone.loaded_weights is not None
    stem = next(tensor for name, tensor in state.items() if name.startswith("encoder."))
    assert any(torch.equal(stem, p) for p in backbone.features.state_dict().values())
    assert f"`{encoder.split('resnet18')[0] if encoder.startswith('tu-') else encoder}`" in PAGE


@pytest.mark.slow
def test_other_files_of_the_same_encoder(tmp_path):
    state = made("resnet18")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    lightning = {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}
    torch.save(lightning, tmp_path / "last.ckpt")
    assert create_backbone("resnet18", weights=str(tmp_path / "model.safetensors")).loaded_weights
    with pytest.raises(InputError, match="of no known kind"):
        create_backbone("resnet18", weights=str(tmp_path / "last.ckpt"))
    (tmp_path / "last.ckpt").rename(tmp_path / "last.pth")
    assert create_backbone("resnet18", weights=str(tmp_path / "last.pth")).loaded_weights


@pytest.mark.slow
@pytest.mark.parametrize("encoder", REFUSED)
def test_encoders_that_are_refused(encoder, tmp_path):
    torch.save(made(encoder), tmp_path / "smp.pth")
    with pytest.raises(InputError, match="do not fit the backbone"):
        create_backbone(REFUSED[encoder], weights=str(tmp_path / "smp.pth"))
    assert f"`{encoder}`" in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet"])
def test_whole_models_are_not_converted(decoder, tmp_path):
    torch.save(made("resnet18", decoder), tmp_path / "smp.pth")
    with pytest.raises(InputError, match="no model that can be converted"):
        convert(tmp_path / "smp.pth", tmp_path / "out.safetensors")
