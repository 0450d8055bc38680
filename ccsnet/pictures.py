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
from ccsnet.draw import colourise, error_map

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
        image: Of any number of bands (see `rgb_of`); scaled to the label's size.
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


def rgb_of(
    image: Num[np.ndarray, "H W C"], size: tuple[int, ...] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any bands and depth as a screen can show it.

    RGB of 8 bits is shown as it is. Of other images the first three bands, or the first alone as
    grey, are stretched between their darkest and brightest hundredth.

    Args:
        image: Values as in the file.
        size: Height and width to scale it to; none: as it is.
    """
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    if bands.dtype not in (np.uint8, np.uint16):  # Tensors of 16-bit images are int32.
        bands = bands.clip(0, 65535).astype(np.uint16)
    if size is not None and tuple(size) != bands.shape[:2]:
        bands = cv2.resize(
            np.ascontiguousarray(bands), (size[1], size[0]), interpolation=cv2.INTER_AREA
        )
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.ascontiguousarray(bands)
    low, high = np.percentile(bands, (1, 99))
    stretched = (bands - low) / max(float(high - low), 1e-9) * 255
    return stretched.clip(0, 255).astype(np.uint8)


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
