"""Paint label maps: colours, overlays, legends. And images of any kind, as a screen shows them."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8

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
        bands = bands.astype(np.float32)  # OpenCV resizes few other types.
    if size is not None and tuple(size) != bands.shape[:2]:
        bands = cv2.resize(
            np.ascontiguousarray(bands), (size[1], size[0]), interpolation=cv2.INTER_AREA
        )
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.ascontiguousarray(bands)
    low, high = np.percentile(bands, (1, 99))
    stretched = (bands - low) / max(float(high - low), 1e-9) * 255
    return stretched.clip(0, 255).astype(np.uint8)


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
