"""What a CCSNet looked at: the classes relevant at each place, and what a pixel read from where.

Letters: N classes, k of them relevant; h w the grid of stride 16, H W of a stage, (y x) of the
coarsest features; rows columns a size in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Num, UInt8
from torch import Tensor, nn

from ccsnet.data.loading import image_tensor
from ccsnet.data.transforms import resize_aligned
from ccsnet.draw import colourise, legend, rgb_of
from ccsnet.errors import InputError
from ccsnet.heads._base import resize
from ccsnet.heads._ccs_variant import CCSVariantHead, VariantAttention
from ccsnet.heads._classes import relevant_classes, window_of
from ccsnet.heads.ccs import CCSHead, ClassAttention
from ccsnet.pictures import mark, side_by_side
from ccsnet.predict import Predictor


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the head of a CCSNet weighed in one image, from its own tensors."""

    coarse: Float[Tensor, "N h w"]
    """Logits of the coarse prediction, by which classes are chosen; of its last refinement."""
    relevant: Bool[Tensor, "N h w"]
    """The classes that each place may read from."""
    sources: Float[Tensor, "N y x"]
    """Weight of each place of the coarsest features in a class's centre; a class's add up to 1."""
    reads: tuple[Float[Tensor, "_ _ N"], ...]
    """How much each place of a stage that attends, the finest first, reads from each class's
    centre; each place adds up to 1. Of several heads it is the mean."""
    logits: Float[Tensor, "N _ _"]
    """The final ones, as the model returns them."""
    size: tuple[int, int]
    """Rows and columns of the image as it was given; the model saw it resized."""

    def ranked(self) -> Int64[Tensor, "k h w"]:
        """The relevant classes of each place, the best first."""
        k = int(self.relevant[:, 0, 0].sum())
        return self.coarse.topk(k, dim=0).indices

    def winner(self, row: int, column: int) -> int:
        """The class that the final prediction finds likeliest at a pixel."""
        place = self._place((row, column), self.logits.shape[1:])
        return int(self.logits[:, place[0], place[1]].argmax())

    def read_at(self, row: int, column: int, stage: int = 0) -> Float[Tensor, " N"]:
        """How much a pixel's place in a stage, 0 the finest of `reads`, reads from each class."""
        reads = self.reads[stage]
        place = self._place((row, column), reads.shape[:2])
        return reads[place[0], place[1]]

    def seen_from(self, row: int, column: int, stage: int = 0) -> Float[Tensor, "y x"]:
        """How much a pixel's place in a stage reads from each place of the coarsest features.

        What it reads is a sum over classes, and a class's centre is a sum over places: both sums
        together are one over places, with these weights. They add up to 1.
        """
        return torch.einsum("n,nyx->yx", self.read_at(row, column, stage), self.sources)

    def _place(self, pixel: tuple[int, int], grid: torch.Size | tuple[int, ...]) -> list[int]:
        for value, side, word in zip(pixel, self.size, ("row", "column"), strict=True):
            if not 0 <= value < side:
                raise InputError(
                    f"{word} {value} is not in the image, which has {side} {word}s: count from 0 "
                    f"to {side - 1}."
                )
        return [int((p + 0.5) * g / s) for p, g, s in zip(pixel, grid, self.size, strict=True)]


def attention_head(predictor: Predictor) -> CCSHead | CCSVariantHead:
    """The head whose attention can be looked at.

    Raises:
        InputError: The model's is another, or a variant of ccs whose attention is no weight of
            each class, whose centre is a weight of each place of the coarsest features.
    """
    head = predictor.model.head
    if not isinstance(head, CCSHead | CCSVariantHead):
        raise InputError(
            f"What the network looked at is known of models with the head ccs; this one has "
            f"{type(head).__name__}. Leave `relevant` out of --save."
        )
    if isinstance(head, CCSVariantHead):
        variant = head.variant
        found = {
            "centres": (variant.centres, variant.centres == "c4"),
            "centres_per_class": (variant.centres_per_class, variant.centres_per_class == 1),
            "attending": (variant.attending, variant.attending != ()),
        }
        for name, (value, shown) in found.items():
            if not shown:
                raise InputError(
                    f"What the network looked at cannot be shown of a model with {name}={value!r}, "
                    "only where places read from one centre of each class, made of the coarsest "
                    "features. Leave `relevant` out of --save."
                )
    return head


@torch.no_grad()  # Not inference mode: who gets the figures may compute with them.
def attention_of(predictor: Predictor, image: Num[np.ndarray, "rows columns C"]) -> Attention:
    """What the head weighed when the model saw the image, as a whole at the size of evaluation.

    A model that is evaluated in windows sees all of the image at once here, too.

    Args:
        predictor: A model with the head ccs, or most of its variants.
        image: Pixel values, as `ccsnet.data.images.read_image` gives them.

    Raises:
        InputError: The model has another head.
    """
    head, info = attention_head(predictor), predictor.info
    seen = image_tensor(resize_aligned(image, info.short_side, info.long_side))
    stages = [s for s in head.stages if isinstance(s, ClassAttention | VariantAttention)]
    calls: dict[nn.Module, tuple[Any, ...]] = {}

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls[module] = arguments

    hooks = [module.register_forward_pre_hook(keep) for module in (head, *stages)]
    try:
        output = predictor.model(seen[None].to(next(predictor.model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    (features,) = calls[head]
    assert output.coarse is not None, "a CCSNet makes a coarse prediction"
    grid = (features[-1].shape[-2], features[-1].shape[-1])
    return Attention(
        coarse=output.coarse[0].float().cpu(),
        relevant=relevant_classes(output.coarse, head.top_k)[0].cpu(),
        sources=_source_weights(head, output.coarse.float(), grid)[0].cpu(),
        reads=tuple(_read_weights(stage, *calls[stage])[0].cpu() for stage in stages),
        logits=output.logits[0].float().cpu(),
        size=(image.shape[0], image.shape[1]),
    )


def _source_weights(
    head: CCSHead | CCSVariantHead, coarse: Float[Tensor, "B N h w"], grid: tuple[int, int]
) -> Float[Tensor, "B N y x"]:
    """The weights of `ccsnet.heads._classes.class_centres`."""
    if isinstance(head, CCSVariantHead):
        coarse = coarse * head.sharpness()
    return resize(coarse, grid).flatten(2).softmax(-1).unflatten(2, grid)


def _read_weights(
    stage: ClassAttention | VariantAttention,
    feature: Float[Tensor, "B _ _ _"],
    keys: Float[Tensor, "B N D"],
    values: Float[Tensor, "B N D"],
    bias: Float[Tensor, "B h w N"],
    size: tuple[int, int],
) -> Float[Tensor, "B H W N"]:
    """The attention weights of a stage, which its fused kernel does not give away."""
    query = resize(stage.query(feature), size).float()
    if isinstance(stage, VariantAttention):
        mask = window_of(bias.float(), size).flatten(1, 2).unsqueeze(1)
        return stage.weights(query, keys.float(), mask).mean(1).unflatten(1, size)
    scores = torch.einsum("bdhw,bnd->bhwn", query, keys.float()) * query.shape[1] ** -0.5
    return (scores + window_of(bias.float(), size)).softmax(-1)


# Pictures

LISTED_CLASSES = 12  # In a legend; the others together take little.


def relevant_picture(
    image: Num[np.ndarray, "rows columns C"],
    attention: Attention,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...],
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image beside the classes found relevant: the best of each place, and the one most read.

    Below stand the classes that most is read from, with the share of places where they are
    relevant and the share of all reading, on the finest grid.
    """
    size = attention.size
    best = attention.coarse.argmax(0).numpy()
    read = attention.reads[0].argmax(-1).numpy()
    panels = [rgb_of(image), *(_enlarged(colourise(m, colours), size) for m in (best, read))]
    reading = attention.reads[0].mean((0, 1))
    places = attention.relevant.float().mean((1, 2))
    shown = [i for i in reading.argsort(descending=True).tolist() if places[i] > 0]
    shown = shown[:LISTED_CLASSES]
    names = [f"{classes[i]}: in {places[i]:.0%}, read {reading[i]:.0%}" for i in shown]
    return _above(side_by_side(panels), legend(names, [colours[i] for i in shown]))


def pixel_picture(
    image: Num[np.ndarray, "rows columns C"],
    attention: Attention,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...],
    row: int,
    column: int,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image with a ring at a pixel, where its class's centre came from, and all that it read.

    The brighter, the more. Below stand the classes that the pixel's place read from, on the finest
    grid.

    Raises:
        InputError: The pixel is outside the image.
    """
    rgb, winner = rgb_of(image), attention.winner(row, column)
    maps = (attention.sources[winner], attention.seen_from(row, column))
    panels = [mark(rgb, row, column)]
    panels += [mark(_heat(rgb, part.numpy()), row, column) for part in maps]
    read = attention.read_at(row, column)
    shown = [i for i in read.argsort(descending=True).tolist() if read[i] > 0][:LISTED_CLASSES]
    names = [f"{classes[i]}: read {read[i]:.0%}{' (wins)' * (i == winner)}" for i in shown]
    return _above(side_by_side(panels), legend(names, [colours[i] for i in shown]))


def relevant_arrays(attention: Attention) -> Mapping[str, np.ndarray]:
    """For a file: the relevant classes of each stride-16 place, best first, and the weights."""
    return {
        "relevant": attention.ranked().permute(1, 2, 0).numpy().astype(np.uint16),
        "coarse": attention.coarse.softmax(0).permute(1, 2, 0).numpy().astype(np.float16),
        "read": attention.reads[0].numpy().astype(np.float16),
    }


def _enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST)


def _heat(
    rgb: UInt8[np.ndarray, "rows columns 3"], weights: np.ndarray
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Weights as heat over the darkened image; the largest is the brightest."""
    scaled = weights / max(float(weights.max()), 1e-12)
    large = cv2.resize(scaled, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)
    bytes_ = np.rint(large.clip(0, 1) * 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(bytes_, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(rgb, 0.35, heat, 0.65, 0)


def _above(picture: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Two pictures, one above the other, white beside the narrower."""
    width = max(picture.shape[1], below.shape[1])
    parts = [
        np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in (picture, below)
    ]
    return np.concatenate(parts)
