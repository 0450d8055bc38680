"""Pictures for people: image, truth, prediction and errors side by side, at a size to look at.

Letters: H W a size as read, h w a size as shown.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Int, Integer, Num, UInt8
from torch import Tensor

from ccsnet.data.loading import Sample
from ccsnet.datasets._spec import Colour, DatasetSpec
from ccsnet.draw import colourise, error_map, rgb_of

GAP = 6  # White pixels between pictures that stand side by side.
MAX_HEIGHT, MAX_WIDTH = 512, 1024  # Of one picture among those.
MAX_PICTURES = 4  # Of a validation.


def validation_pictures(
    samples: Iterable[Sample], predictions: Iterable[Int[Tensor, "_ _"]], spec: DatasetSpec
) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    """Image, truth, prediction and errors of a few images, by the image's name.

    Args:
        samples: As the model was given them; the first four are shown.
        predictions: Their label maps, at the labels' own size.
        spec: Classes' colours, and what is ignored.
    """
    shown = {}
    for sample, prediction in zip(samples, predictions, strict=False):
        shown[sample.name] = comparison(
            sample.image.permute(1, 2, 0).cpu().numpy(),
            sample.label.cpu().numpy(),
            prediction.cpu().numpy(),
            spec.colours,
            spec.ignore_index,
            max_size=(MAX_HEIGHT, MAX_WIDTH),
        )
        if len(shown) == MAX_PICTURES:
            break
    return shown


def comparison(
    image: Num[np.ndarray, "_ _ C"],
    label: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    colours: Sequence[Colour],
    ignore_index: int = 255,
    *,
    max_size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "h _ 3"]:
    """Image, truth, prediction and errors side by side.

    Args:
        image: Of any number of bands (see `ccsnet.draw.rgb_of`); scaled to the label's size.
        label: Truth.
        prediction: Of the same size.
        colours: One for each class.
        ignore_index: The label that counts nowhere.
        max_size: The most height and width of each of the four; none: as large as the label.
    """
    size = label.shape if max_size is None else fitting_size(label.shape, max_size)
    small = [
        cv2.resize(m.astype(np.uint16), size[::-1], interpolation=cv2.INTER_NEAREST)
        for m in (label, prediction)
    ]
    return side_by_side(
        [
            rgb_of(image, size),
            *(colourise(part, colours) for part in small),
            error_map(small[0], small[1], ignore_index),
        ]
    )


def fitting_size(size: tuple[int, ...], most: tuple[int, int]) -> tuple[int, int]:
    """Height and width scaled down, never up, until both fit."""
    scale = min(1.0, most[0] / size[0], most[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def side_by_side(pictures: Sequence[UInt8[np.ndarray, "H _ 3"]]) -> UInt8[np.ndarray, "H _ 3"]:
    """Pictures of one height in a row, white between them."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for item in pictures for part in (item, gap)]
    return np.concatenate(row[:-1], axis=1)


def mark(
    image: UInt8[np.ndarray, "H W 3"], row: int, column: int, radius: int = 9
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy with a ring around a place."""
    marked = image.copy()
    for width, colour in ((5, (0, 0, 0)), (2, (255, 255, 255))):
        cv2.circle(marked, (column, row), radius, colour, width, cv2.LINE_AA)
    return marked
