"""Why a class won at a pixel, for the page: what the head of a CCSNet weighed there."""

from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from ccsnet.app.results import Look, Result
from ccsnet.attention import attention_head, attention_of
from ccsnet.data.transforms import aligned_size, scaled_size
from ccsnet.errors import InputError
from ccsnet.predict import Predictor
from ccsnet.upsample import upsample_argmax

MAX_PIXELS = 2**21
"""Attention needs all of an image at once: one that would be seen at more is made smaller first."""


def why_not(predictor: Predictor) -> str | None:
    """Why nothing can be said of a model; None where it can."""
    try:
        attention_head(predictor)
    except InputError as error:
        return str(error).removesuffix(" Leave `relevant` out of --save.")
    return None


def look_at(result: Result, index: int, predictor: Predictor) -> Look:
    """What a model looked at in a result's image, all seen at once; worked out once.

    Raises:
        InputError: The model is not one of which it is known, or the image too long for it.
    """
    if index not in result.looks:
        image, info = _fitting(result.image, predictor), predictor.info
        attention = attention_of(predictor, image)
        seen = aligned_size(image.shape[:2], info.short_side, info.long_side)
        label = upsample_argmax(attention.logits[None], attention.size)[0]
        dtype = result.views[index].label.dtype
        result.looks[index] = Look(attention, label.numpy().astype(dtype), seen)
    return result.looks[index]


def _fitting(image: Num[np.ndarray, "H W C"], predictor: Predictor) -> Num[np.ndarray, "h w C"]:
    size = (image.shape[0], image.shape[1])
    height, width = scaled_size(size, predictor.info.short_side, predictor.info.long_side)
    factor = (MAX_PIXELS / (height * width)) ** 0.5
    if factor >= 1:
        return image
    if predictor.info.short_side is not None:  # Smaller, it would be made as large again.
        raise InputError(
            f"At the size of evaluation this image has {height} x {width} pixels: too many to look "
            "at all of it at once. Cut out a part."
        )
    smaller = (max(1, int(width * factor)), max(1, int(height * factor)))
    return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA).reshape(
        smaller[1], smaller[0], image.shape[2]
    )


def explain(look: Look, result: Result, index: int, row: int, column: int) -> dict[str, Any]:
    """What counted at a pixel of a result: classes with their scores, and where from.

    Args:
        look: What the model looked at in the image.
        result: The image and its label maps.
        index: Of the model, among the result's.
        row: Of the pixel, in the image as it was given.
        column: The same.

    Raises:
        InputError: The pixel is outside the image.
    """
    for value, side, word in zip((row, column), result.size, ("row", "column"), strict=True):
        if not 0 <= value < side:
            raise InputError(f"{word} {value} is not in the image, which has {side} {word}s.")
    attention = look.attention  # Of the image as the model saw it, which may be smaller.
    seen = [
        int((p + 0.5) * s / r)
        for p, s, r in zip((row, column), attention.size, result.size, strict=True)
    ]
    y, x = (
        int((p + 0.5) * g / s)
        for p, g, s in zip(seen, attention.coarse.shape[1:], attention.size, strict=True)
    )
    coarse = attention.coarse[:, y, x].softmax(0)
    reads = attention.read_at(seen[0], seen[1])
    relevant = attention.ranked()[:, y, x].tolist()
    label, winner = int(result.views[index].label[row, column]), int(look.label[seen[0], seen[1]])
    listed = [*relevant, *(i for i in dict.fromkeys((label, winner)) if i not in relevant)]
    return {
        "row": row,
        "column": column,
        "label": label,
        "winner": winner,
        "classes": [
            {
                "index": i,
                "coarse": round(float(coarse[i]), 4),
                "read": round(float(reads[i]), 4),
                "relevant": i in relevant,
                "centre": _parts(attention.sources[i]),
            }
            for i in listed
        ],
        "everything": _parts(attention.seen_from(seen[0], seen[1])),
        "grid": list(attention.sources.shape[1:]),
        "seen": [*look.seen],
    }


def _parts(weights: Float[Tensor, "y x"]) -> list[int]:
    """Weights in thousandths of the largest, row by row."""
    scaled = weights / weights.max().clamp(min=torch.finfo(torch.float32).tiny)
    return (scaled * 1000).round().int().flatten().tolist()
