"""Paint label maps: colours, overlays, legends."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8

from ccsnet.datasets._spec import Colour

UNLABELLED: Colour = (0, 0, 0)


def colourise(
    label: Integer[np.ndarray, "H W"], colours: Sequence[Colour]
) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel in its class's colour; what is no class is black."""
    table = np.array([*colours, UNLABELLED], np.uint8)
    return table[np.minimum(label, len(colours))]


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    label: Integer[np.ndarray, "H W"],
    colours: Sequence[Colour],
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with its classes painted over it; unlabelled pixels stay as they are.

    Args:
        image: RGB.
        label: Class indices, at the image's size.
        colours: One for each class.
        opacity: Of the paint, 0 to 1.
    """
    blend = cv2.addWeighted(image, 1 - opacity, colourise(label, colours), opacity, 0)
    return np.where((label < len(colours))[..., None], blend, image)


def legend(
    classes: Sequence[str], colours: Sequence[Colour], *, row_height: int = 22, columns: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """A white picture with a swatch and the name of every class, column by column."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, row_height / 44
    widths = [cv2.getTextSize(name, font, scale, 1)[0][0] for name in classes]
    column_width = int(2.4 * row_height) + max(widths, default=0)
    rows = -(-len(classes) // columns)
    picture = np.full((rows * row_height + 4, columns * column_width, 3), 255, np.uint8)
    for index, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        column, row = divmod(index, rows)
        left, top = column * column_width + 6, row * row_height + 4
        bottom = top + row_height - 5
        cv2.rectangle(picture, (left, top), (left + row_height, bottom), colour, -1)
        cv2.rectangle(picture, (left, top), (left + row_height, bottom), (90, 90, 90), 1)
        origin = (left + int(1.5 * row_height), bottom - 4)
        cv2.putText(picture, name, origin, font, scale, (20, 20, 20), 1, cv2.LINE_AA)
    return picture


def error_map(
    label: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    ignore_index: int = 255,
) -> UInt8[np.ndarray, "H W 3"]:
    """Right in light grey, wrong in red, ignored in white."""
    table = np.array([(225, 225, 225), (200, 30, 30), (255, 255, 255)], np.uint8)
    kind = np.where(label == ignore_index, 2, (label != prediction).astype(np.uint8))
    return table[kind]
