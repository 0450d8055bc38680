"""Resize, crop, flip and recolour an image together with its label map.

Everything random comes from a generator that the caller gives. Letters: H W a size as read, h w a
size as made, C bands.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

Image = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]
Label = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
ImageMade = UInt8[np.ndarray, "h w C"] | UInt16[np.ndarray, "h w C"]
LabelMade = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]

CROP_TRIES = 10
"""Crops that are tried before one with too much of one class is taken. Source: docs/method.md."""

BRIGHTNESS, CONTRAST, SATURATION, HUE_DEGREES = 32.0, 0.5, 0.5, 18.0
"""Largest changes of the photometric distortion. Source: docs/method.md, augmentation."""

LUMA = np.array([0.299, 0.587, 0.114])
"""How bright red, green and blue look. Source: ITU-R BT.601."""

# What `colour_matrix` mixes: the colour itself, its part along the grey axis, its product with that
# axis, and how bright it looks.
_SAME, _GREY = np.eye(3), np.full((3, 3), 1 / 3)
_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
_PALE = np.outer(np.ones(3), LUMA)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training sample is made from an image and its label map."""

    crop: tuple[int, int]
    short_side: int | None
    long_side: int | None
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: bool = True
    photometric: bool = True
    rare_crop: float = 0.0
    class_odds: tuple[float, ...] = ()
    """How likely a crop of `rare_crop` looks for each class; see `sampling.rare_class_odds`."""


def augment(
    image: Image, label: Label, rng: np.random.Generator, how: Augmentation
) -> tuple[ImageMade, LabelMade]:
    """A training sample of the size `how.crop`: scaled, cropped, flipped, recoloured, padded."""
    factor = rng.uniform(*how.scale)
    size = scaled_size(
        image.shape[:2],
        None if how.short_side is None else how.short_side * factor,
        None if how.long_side is None else how.long_side * factor,
        factor=factor,
    )
    rows, columns = choose_crop(label, size, rng, how)
    made = (min(how.crop[0], size[0]), min(how.crop[1], size[1]))
    # Only what the crop shows is resized: the same picture, for a part of the work.
    image = resize_image(image[rows, columns], made)
    label = resize_label(label[rows, columns], made)
    if how.flip and rng.random() < 0.5:
        image, label = mirror(image), mirror(label)
    if how.photometric:
        image = recolour(np.ascontiguousarray(image), rng)
    return pad(image, how.crop, 0), pad(label, how.crop, how.ignore_index)


def scaled_size(
    size: tuple[int, ...],
    short_side: int | float | None,
    long_side: int | float | None,
    factor: int | float = 1.0,
) -> tuple[int, int]:
    """Height and width at which the sides keep their ratio and both limits hold.

    Args:
        size: Height and width of the image.
        short_side: What the shorter side becomes, unless the longer would pass its limit.
        long_side: What the longer side is at most.
        factor: Used where `short_side` is None.
    """
    height, width = size
    if short_side is not None:
        factor = short_side / min(height, width)
    if long_side is not None:
        factor = min(factor, long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def aligned_size(
    size: tuple[int, ...], short_side: int | None, long_side: int | None, multiple: int = 32
) -> tuple[int, int]:
    """Like `scaled_size`, then both sides rounded up to a multiple."""
    height, width = scaled_size(size, short_side, long_side)
    return math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple


def resize_aligned(
    image: Image, short_side: int | None, long_side: int | None, multiple: int = 32
) -> ImageMade:
    """The image as it is tested: its ratio kept, both sides rounded up to a multiple."""
    return resize_image(image, aligned_size(image.shape[:2], short_side, long_side, multiple))


def choose_crop(
    label: Label, size: tuple[int, int], rng: np.random.Generator, how: Augmentation
) -> tuple[slice, slice]:
    """The rows and columns of the *unscaled* label that a crop of the scaled one shows.

    Args:
        label: The label map as read.
        size: Height and width that the whole map would be scaled to.
        rng: Where the choice comes from.
        how: Gives the crop's size, the largest share of one class, and what rare classes get.
    """
    rows = columns = slice(0, 0)
    pixel = (None, None)
    # Nothing is drawn where the setting is off, so that it changes no other run.
    if how.rare_crop > 0 and rng.random() < how.rare_crop:
        pixel = _pixel_of_rare_class(label, rng, how) or pixel
    for _ in range(CROP_TRIES):
        rows, columns = (
            _window(label.shape[axis], size[axis], how.crop[axis], rng, pixel[axis])
            for axis in (0, 1)
        )
        share = _largest_share(label[rows, columns], how.ignore_index)
        if share <= how.max_class_share or how.max_class_share >= 1:
            break
    return rows, columns


def _pixel_of_rare_class(
    label: Label, rng: np.random.Generator, how: Augmentation
) -> tuple[int, int] | None:
    """A pixel of one of the image's classes, drawn by their odds; None: nothing is labelled."""
    odds = np.array(how.class_odds)
    odds *= np.bincount(label.ravel(), minlength=len(odds))[: len(odds)] > 0
    if not odds.any():
        return None
    wanted = rng.choice(len(odds), p=odds / odds.sum())
    row, column = divmod(int(rng.choice(np.flatnonzero(label == wanted))), label.shape[1])
    return row, column


def _window(
    length: int, scaled: int, crop: int, rng: np.random.Generator, pixel: int | None = None
) -> slice:
    """One random window along one side, mapped back to the unscaled side.

    Args:
        length: Of the unscaled side.
        scaled: Of the scaled one.
        crop: Of the window on the scaled side.
        rng: Where the choice comes from.
        pixel: A place on the unscaled side that the window shows, anywhere in it.
    """
    shown = min(crop, scaled)
    low, high = 0, scaled - shown
    if pixel is not None:
        high = min(high, math.floor(pixel * scaled / length))
        low = min(high, max(low, math.ceil((pixel + 1) * scaled / length) - shown))
    start = int(rng.integers(low, high + 1))
    first = round(start * length / scaled)
    last = round((start + shown) * length / scaled)
    first = min(first, length - 1)
    return slice(first, max(last, first + 1))


def _largest_share(label: np.ndarray, ignore_index: int) -> float:
    """Part of the labelled pixels that the commonest class has; 1 where nothing is labelled."""
    # About 64 x 64 pixels tell the share well enough, and counting them costs next to nothing.
    strides = [max(1, side // 64) for side in label.shape]
    some = label[:: strides[0], :: strides[1]].ravel()
    some = some[some != ignore_index]
    return float(np.bincount(some).max() / some.size) if some.size else 1.0


def resize_image(image: Image, size: tuple[int, int]) -> ImageMade:
    """Bilinear, without smoothing before."""
    if image.shape[:2] == tuple(size):
        return image
    made = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return made if made.ndim == 3 else made[..., None]  # OpenCV drops a single band.


def resize_label(label: Label, size: tuple[int, int]) -> LabelMade:
    """Nearest neighbour between pixel centres, so that labels stay on the image's pixels."""
    if label.shape == tuple(size):
        return label
    # INTER_NEAREST starts from pixel corners and would shift the label by up to half a pixel.
    made = cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(made)


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    made = np.asarray(cv2.flip(pixels, 1))  # 30 times as fast as copying a reversed view.
    return made.reshape(pixels.shape)  # OpenCV drops a single band.


def recolour(image: Image, rng: np.random.Generator) -> Image:
    """Photometric distortion: brightness, contrast, saturation and hue, each half the time.

    For 8-bit RGB all four are one 3x4 colour matrix. Other images have no hue: they get
    brightness and contrast only, brightness in proportion to their largest value.
    """
    use = rng.random(4) < 0.5
    amounts = rng.uniform(-1, 1, 4) * use
    brightness, contrast = BRIGHTNESS * amounts[0], 1 + CONTRAST * amounts[1]
    if image.dtype != np.uint8 or image.shape[2] != 3:
        if not use[:2].any():
            return image
        limit = np.iinfo(image.dtype).max
        offset = brightness / 255 * float(image.max())
        changed = (image.astype(np.float32) + offset) * contrast
        return np.clip(changed + 0.5, 0, limit).astype(image.dtype)
    if not use.any():
        return image
    colours = colour_matrix(1 + SATURATION * amounts[2], math.radians(HUE_DEGREES * amounts[3]))
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = contrast * colours
    matrix[:, 3] = contrast * brightness  # Grey stays grey under saturation and hue.
    return np.asarray(cv2.transform(image, matrix))


def colour_matrix(saturation: float, hue: float) -> Float32[np.ndarray, "3 3"]:
    """Scale the distance to grey, and turn around the grey axis by an angle in radians."""
    # Source: Rodrigues' formula about the axis (1, 1, 1) / sqrt(3).
    turn = math.cos(hue) * _SAME + math.sin(hue) * _CROSS + (1 - math.cos(hue)) * _GREY
    return (turn @ (saturation * _SAME + (1 - saturation) * _PALE)).astype(np.float32)


def pad(pixels: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Extend to the size at the bottom and the right; the result is contiguous."""
    height, width = pixels.shape[:2]
    if (height, width) == tuple(size):
        return np.ascontiguousarray(pixels)
    padded = np.full((*size, *pixels.shape[2:]), value, pixels.dtype)
    padded[:height, :width] = pixels
    return padded
