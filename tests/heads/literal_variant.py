"""The variants of CCSNet's head as docs/variants.md tells them: loops over places and centres.

Slow and obvious. It takes its weights from a `CCSVariantHead` and shares none of its code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccsnet.heads._ccs_variant import CCSVariantHead

STRIDES = (4, 8, 16, 32)


def literal_variant(
    head: CCSVariantHead, features: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Final, coarse and auxiliary logits."""
    variant = head.variant
    coarse = head.coarse(features[2])
    centres = {}
    for refinement in head.refinements:
        seen = coarse.detach() if variant.coarse_gradient == "stopped" else coarse
        centres = {i: _centres(head, seen, i, features[i]) for i in head.maps}
        read = _attend(head, refinement.attention, 2, features, seen, centres)
        coarse = coarse + refinement.classifier(read)
    seen = coarse.detach() if variant.coarse_gradient == "stopped" else coarse
    centres = {i: _centres(head, seen, i, features[i]) for i in head.maps}
    maps = []
    for i, stage in enumerate(head.stages):
        if STRIDES[i] in variant.attending:
            out = _attend(head, stage, i, features, seen, centres)
        else:
            out = stage.query(features[i])
        maps.append(_bilinear(out, features[0].shape[2:]))
    fused = torch.relu(head.fusion.norm(head.fusion.conv(torch.cat(maps[::-1], dim=1))))
    auxiliary = None
    if head.training and variant.centre_loss_weight > 0:
        auxiliary = _auxiliary(centres[head.maps[-1]], features[head.maps[-1]])
    return head.classifier(head.dropout(fused)), coarse, auxiliary


def _bilinear(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _centres(head: CCSVariantHead, coarse: Tensor, number: int, feature: Tensor) -> Tensor:
    """Of a map: batch, class, centre of the class, channel."""
    module = head.centres[head.maps.index(number)]
    scores = _bilinear(coarse, feature.shape[2:])
    if head.variant.centre_temperature == "learned":
        scores = scores * torch.exp(module.log_sharpness)
    parts = [torch.zeros_like(feature[:, :1])]
    if head.variant.centres_per_class > 1:
        parts += module.parts(feature).split(1, dim=1)
    images = []
    for b in range(len(coarse)):
        classes = []
        for n in range(coarse.shape[1]):
            ways = []
            for part in parts:
                weights = torch.softmax((scores[b, n] + part[b, 0]).reshape(-1), dim=0)
                ways.append((feature[b].reshape(len(feature[b]), -1) * weights).sum(1))
            classes.append(torch.stack(ways))
        images.append(torch.stack(classes))
    return torch.stack(images)


def _attend(head, attention, number, features, coarse, centres) -> Tensor:
    variant = head.variant
    cells = coarse.shape[2:]
    size = features[min(number, 2)].shape[2:]
    query = attention.query(features[number])
    if query.shape[2:] != size:
        query = _bilinear(query, size)
    sources = {"c4": [3], "c3+c4": [3, 2], "own": [number]}[variant.centres]
    centre = torch.cat([centres[i] for i in sources], dim=3)
    owner = attention if variant.projections == "separate" else head
    keys, values = owner.key(centre), owner.value(centre)  # batch, class, centre of it, channel
    log_probs = torch.log_softmax(coarse, dim=1)
    best = coarse.topk(min(head.top_k, coarse.shape[1]), dim=1).indices
    heads = variant.attention_heads
    width = query.shape[1] // heads
    read = torch.zeros_like(query)
    for b in range(len(query)):
        for y in range(size[0]):
            for x in range(size[1]):
                i, j = y * cells[0] // size[0], x * cells[1] // size[1]
                chosen = best[b, :, i, j]
                k, v = keys[b, chosen], values[b, chosen]
                for part in (slice(h * width, (h + 1) * width) for h in range(heads)):
                    scores = (k[..., part] * query[b, part, y, x]).sum(-1) / width**0.5
                    if variant.coarse_bias != "none":
                        scale = 1.0 if variant.coarse_bias == "fixed" else attention.bias_scale
                        scores = scores + (scale * log_probs[b, chosen, i, j])[:, None]
                    weights = torch.softmax(scores.reshape(-1), dim=0)
                    mixed = (weights[:, None] * v[..., part].reshape(-1, width)).sum(0)
                    read[b, part, y, x] = mixed
    return query + torch.relu(attention.norm(attention.conv(read)))


def _auxiliary(centres: Tensor, feature: Tensor) -> Tensor:
    """Cosines over 0.1, the centres of a class added up as probabilities."""
    batch, num_classes = centres.shape[:2]
    logits = feature.new_zeros(batch, num_classes, *feature.shape[2:])
    for b in range(batch):
        for n in range(num_classes):
            terms = [
                torch.exp(
                    (feature[b] * centre[:, None, None]).sum(0)
                    / (feature[b].square().sum(0) + 1e-6).sqrt()
                    / (centre.square().sum() + 1e-6).sqrt()
                    / 0.1
                )
                for centre in centres[b, n]
            ]
            logits[b, n] = torch.stack(terms).sum(0).log()
    return logits
