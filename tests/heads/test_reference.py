"""The head reproduces the numbers of the authors' release."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccsnet.errors import InputError
from ccsnet.heads.ccs import from_release

VECTORS = sorted((Path(__file__).parents[1] / "data").glob("ccsnet_head_*.npz"))


def read_vectors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def relative_error(got: Tensor, expected: Tensor) -> float:
    got = got.detach()
    return ((got - expected).abs().max() / expected.abs().max()).item()


def release_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over all pixels, the ignored ones included: the release's fault, kept to compare."""
    full = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, label.long(), ignore_index=255, reduction="none").mean()


def test_both_files_are_here():
    assert len(VECTORS) == 2


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_logits_losses_and_gradients(path):
    vectors = read_vectors(path)
    weights = {k: v for k, v in vectors.items() if k.startswith("decode_head.")}
    head = from_release(weights)
    features = [vectors[f"feature.c{i}"].requires_grad_() for i in (1, 2, 3, 4)]
    output = head(features)
    assert relative_error(output.logits, vectors["logits"]) < 1e-5
    assert relative_error(output.coarse, vectors["coarse_logits"]) < 1e-5

    coarse_loss = release_loss(output.coarse, vectors["label"])
    final_loss = release_loss(output.logits, vectors["label"])
    torch.testing.assert_close(coarse_loss, vectors["loss.coarse"], rtol=1e-5, atol=0)
    torch.testing.assert_close(final_loss, vectors["loss.final"], rtol=1e-5, atol=0)

    (0.4 * coarse_loss + 1.0 * final_loss).backward()
    ours = {
        **{f"feature.c{i}": feature.grad for i, feature in enumerate(features, 1)},
        "decode_head.1.k_proj.weight": head.key.weight.grad,
        "decode_head.1.v_proj.weight": head.value.weight.grad,
        "decode_head.1.c1_proj.weight": head.stages[0].query.weight.grad,
        "decode_head.1.linear_fuse.conv.weight": head.fusion.conv.weight.grad,
        "decode_head.1.object_context_block_c2.out_proj.conv.weight": head.stages[
            1
        ].conv.weight.grad,
        "decode_head.0.conv_seg.weight": head.coarse[2].weight.grad,
    }
    expected = {k.removeprefix("grad."): v for k, v in vectors.items() if k.startswith("grad.")}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(ours[name].reshape(gradient.shape), gradient) < 1e-4, name


def test_unused_layer_and_backbone_of_the_release_are_left_out():
    weights = read_vectors(VECTORS[0])
    extra = {
        "decode_head.1.conv_seg.weight": torch.zeros(24, 16, 1, 1),
        "decode_head.1.conv_seg.bias": torch.zeros(24),
        "backbone.patch_embed1.proj.weight": torch.zeros(1),
    }
    from_release({**weights, **extra})


def test_what_is_not_a_release_checkpoint_is_refused():
    weights = read_vectors(VECTORS[0])
    with pytest.raises(InputError, match=r"1 of its 20 layers are missing.*k_proj"):
        from_release({k: v for k, v in weights.items() if "k_proj" not in k})
    with pytest.raises(InputError, match="do not fit together"):
        from_release({**weights, "decode_head.1.c2_proj.weight": torch.zeros(16, 9, 1, 1)})
