"""Backbones: an image becomes four maps, at strides 4, 8, 16 and 32."""

from ccsnet.backbones._torchvision import make_torchvision_importable

# Before any module of this package imports timm, which imports torchvision.
make_torchvision_importable()
