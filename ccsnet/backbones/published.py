"""Which weights are published for a backbone, and under which licence."""

from typing import NamedTuple

from timm.models import get_pretrained_cfg

import ccsnet.backbones.mit  # registers mit_b0 to mit_b5 with timm  # noqa: F401
from ccsnet.backbones.families import FAMILIES, MIT_WEIGHTS


class PublishedWeights(NamedTuple):
    """What "pretrained" stands for."""

    tag: str
    """timm's name for these weights; "-" where timm publishes none."""
    licence: str
    """As timm states it, or where to get weights that timm does not have."""
    mean: tuple[float, ...]
    """Channel means of the images that the weights were trained on, 0-255."""
    std: tuple[float, ...]
    """Channel deviations, likewise."""
    hub_id: str | None
    """Their repository on the Hugging Face hub, where they are there."""


def published_weights(name: str) -> PublishedWeights:
    """What timm says of the weights of a backbone; of its default ones if the name has no tag."""
    config = get_pretrained_cfg(name)
    assert config is not None, f"timm describes every model that it lists, {name!r} too"
    if config.has_weights:
        tag, licence = config.tag or "default", config.license or "not stated"
    else:
        tag, licence = "-", MIT_WEIGHTS if name in FAMILIES["MiT"] else "-"
    mean, std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
    hub_id = (config.hf_hub_id or None) if config.has_weights else None
    return PublishedWeights(tag, licence, mean, std, hub_id)
