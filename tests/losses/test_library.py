"""Against segmentation_models_pytorch's losses, where both define the same.

Theirs are not used: dice and tversky divide by all classes, present or not, and make several
integer maps of all classes; lovasz cannot take an image without a valid pixel; focal is one of
independent classes.
"""

import importlib

import pytest
import torch

import ccsnet.backbones  # noqa: F401  # Before the package: it makes torchvision importable.
from tests.losses.test_contract import build, example, gradient

theirs = importlib.import_module("segmentation_models_pytorch.losses")
functional = importlib.import_module("segmentation_models_pytorch.losses._functional")


def of_one_image(name: str, options: dict, num_classes: int, num_present: int):
    """Their loss of one image as a mean over the classes present."""
    if name == "lovasz":
        return theirs.LovaszLoss("multiclass", ignore_index=255)
    kind = {"dice": theirs.DiceLoss, "tversky": theirs.TverskyLoss}[name]
    loss = kind("multiclass", ignore_index=255, **options)
    return lambda logits, label: loss(logits, label) * num_classes / num_present


@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize(
    ("name", "options"), [("dice", {}), ("tversky", {"alpha": 0.2, "beta": 0.9}), ("lovasz", {})]
)
def test_overlap_losses(name, options, ignored):
    logits, label = example(0, num_classes=30, ignored=ignored)
    logits = logits.float()
    loss = build(name, options)

    def expected(x):
        total = torch.zeros(())
        for b in range(len(label)):
            present = len(set(label[b].flatten().tolist()) - {255})
            image = of_one_image(name, options, 30, present)
            total = total + image(x[b : b + 1], label[b : b + 1])
        return total

    torch.testing.assert_close(loss.total(logits, label, 255, None), expected(logits))
    ours = gradient(lambda x: loss.total(x, label, 255, None), logits)
    torch.testing.assert_close(ours, gradient(expected, logits), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal(gamma):
    logits, label = example(1, ignored=0.0)
    loss = build("focal", {"gamma": gamma})

    def expected(x):
        return functional.softmax_focal_loss_with_logits(x, label, gamma=gamma, reduction="sum")

    def ours(x):
        return loss.total(x, label, 255, None)

    torch.testing.assert_close(ours(logits), expected(logits))
    torch.testing.assert_close(gradient(ours, logits), gradient(expected, logits))
