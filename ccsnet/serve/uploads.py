"""Bytes that a stranger sent become an image, or a refusal; nothing is opened that they name.

They are decoded as `ccsnet.data.images.read_image` decodes a file, so that a served label map is
that of the file. Two things differ: the limits are a server's, and only `KINDS` are decoded, told
by the bytes alone: no other parser ever sees what a stranger sends.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from ccsnet.data.decode import IMAGE_KINDS, check_complete, pillow_header
from ccsnet.data.images import decode_image, with_bands
from ccsnet.errors import InputError

KINDS: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "PPM": (b"P4", b"P5", b"P6"),
}
"""How files of each kind begin."""

TOO_LARGE, NO_IMAGE, UNUSABLE = 413, 415, 422
"""HTTP's numbers for what an upload may be. Source: RFC 9110, sections 15.5.14, .16 and .21."""

_NAME = Path("the image")  # What the decoders call it in their messages; never opened.
_BYTES_PER_PIXEL = 8  # As in `ccsnet.data.decode`: of a TIFF's bands and pages together.


class UploadError(InputError):
    """An upload that cannot be used.

    Attributes:
        status: HTTP's number for why.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large an upload may be."""

    max_bytes: int = 32 * 2**20
    """Of an image's file."""
    max_pixels: int = 40_000_000
    """Of an image, known from its header before anything is decoded."""


def decode_upload(
    data: bytes, channels: int = 3, limits: Limits | None = None
) -> UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]:
    """The image in the bytes of a file, as `Predictor.predict` takes it: upright, RGB.

    Of an animation it is the first picture.

    Args:
        data: The file's content.
        channels: Bands that the model takes; grey becomes RGB and RGB grey.
        limits: Beyond which nothing is decoded.

    Raises:
        UploadError: With the status 413 where it is too large, 415 where it is no image, and 422
            where it is empty, damaged or has other bands.
    """
    limits = limits or Limits()
    check_num_bytes(len(data), limits)
    kind = kind_of(data)
    with _refusing():
        header = None
        if kind == "TIFF":
            _tiff_bytes(data, limits)
        else:
            header = _header(data, kind, limits)
            check_complete(_NAME, data, str(header.format))
        pixels = decode_image(_NAME, data, header, channels)
    return _with_channels(pixels, channels)


def upload_bytes(data: bytes, limits: Limits) -> int:
    """About the bytes that the image in a file takes when decoded, from its header alone.

    Raises:
        UploadError: It is too large, or no image.
    """
    check_num_bytes(len(data), limits)
    kind = kind_of(data)
    with _refusing():
        if kind == "TIFF":
            return _tiff_bytes(data, limits)
        header = _header(data, kind, limits)
        return 3 * header.height * header.width


@contextmanager
def _refusing() -> Iterator[None]:
    """Give what decoders raise a status."""
    try:
        yield
    except UploadError:
        raise
    except (InputError, FileNotFoundError) as error:
        # Of what is no image the decoders ask whether its file is empty; there is none.
        if isinstance(error.__cause__ or error.__context__, UnidentifiedImageError):
            raise _no_image() from error
        raise UploadError(UNUSABLE, str(error)) from error


def check_num_bytes(num_bytes: int, limits: Limits) -> None:
    """Refuse an upload by its size: what it says that it has, or what has come of it so far.

    Raises:
        UploadError: It is too large.
    """
    if num_bytes > limits.max_bytes:
        raise UploadError(
            TOO_LARGE,
            f"The upload has more than the {limits.max_bytes:,} bytes that an image may have here. "
            "Send it smaller, or cut it into tiles.",
        )


def kind_of(data: bytes) -> str:
    """The kind of image that bytes begin like.

    Raises:
        UploadError: There are none, or they are no image.
    """
    if not data:
        raise UploadError(UNUSABLE, f"The upload is empty. Send the bytes of a {IMAGE_KINDS} file.")
    for kind, starts in KINDS.items():
        if data.startswith(starts) and (kind != "WEBP" or data[8:12] == b"WEBP"):
            return kind
    raise _no_image()


def _no_image() -> UploadError:
    return UploadError(
        NO_IMAGE, f"The upload is no known image. Send the bytes of a {IMAGE_KINDS} file."
    )


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        raise _too_many_pixels(f"{height} x {width} pixels, ", limits)


def _too_many_pixels(found: str, limits: Limits) -> UploadError:
    return UploadError(
        TOO_LARGE,
        f"The image has {found}more than the {limits.max_pixels:,} pixels that an image may have "
        "here. Send it smaller, or cut it into tiles.",
    )


def _header(data: bytes, kind: str, limits: Limits) -> Image.Image:
    try:
        header = pillow_header(_NAME, io.BytesIO(data), (kind,))
    except InputError as error:
        if error.__cause__ is None:  # Not the parser's: beyond what the package ever reads.
            raise _too_many_pixels("", limits) from error
        raise
    _check_pixels(header.height, header.width, limits)
    return header


def _tiff_bytes(data: bytes, limits: Limits) -> int:
    """Bytes of a TIFF's pages and bands when decoded, from its header, checked."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            series = tiff.series[0]
            page = series.keyframe
            height, width = int(page.imagelength), int(page.imagewidth)
            size = math.prod(map(int, series.shape)) * ((page.bitspersample + 7) // 8)
    except Exception as error:  # Damaged files fail anywhere inside the parser.
        raise UploadError(UNUSABLE, f"Cannot read the image: {error}.") from error
    _check_pixels(height, width, limits)
    if size > limits.max_pixels * _BYTES_PER_PIXEL:
        raise UploadError(
            TOO_LARGE,
            f"The image has {size:,} bytes when decoded, more than the "
            f"{limits.max_pixels * _BYTES_PER_PIXEL:,} that an image may have here. Leave out "
            "bands or pages.",
        )
    return size


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UploadError(
            UNUSABLE,
            f"The image holds samples of type {pixels.dtype}; uint8 and uint16 can be read. Scale "
            "the values to one of them.",
        )
    fitting = with_bands(pixels, channels)
    if fitting is None:
        found = pixels.shape[2]
        raise UploadError(
            UNUSABLE,
            f"The image has {found} band{'s' * (found != 1)}, but this model takes {channels}. "
            "Send one with those.",
        )
    return fitting
