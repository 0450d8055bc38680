"""Files to arrays: what is in an image file, whoever wrote it, or an error that names the file."""

import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from ccsnet.data.segments import check_segments
from ccsnet.errors import InputError

MAX_PIXELS = 500_000_000
"""Larger images are refused before they are decoded: 1.5 GB as RGB. The environment variable
`CCSNET_MAX_PIXELS` sets another limit."""

_LARGE_FILE = 50_000_000  # Bytes, above which a look at the header first costs nothing.
_BYTES_PER_PIXEL = 8
"""Of a TIFF, whose bands and pages may be any number, so many times the limit are read: four bands
of 16 bits where the pixels are at the limit, and more bands where they are fewer."""

IMAGE_KINDS = "JPEG, PNG, TIFF, WebP, BMP, GIF or PPM"

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 0x0112
_pillow_lock = threading.Lock()


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is a folder, or a device or a pipe, whose reading might never end.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an image. Name a file: {IMAGE_KINDS}.")
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Check the path, and that the data is complete.")
    raise InputError(
        f"{path} is a device, a pipe or a socket, not a file. Write the image to a file "
        f"({IMAGE_KINDS}) and name that."
    )


def read_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is a folder, empty, or so large that it, or what it says of itself, is
            beyond the limit.
    """
    check_file(path)
    size = path.stat().st_size
    if size > _LARGE_FILE:
        _check_header(path, size)
    data = path.read_bytes()
    if not data:
        raise InputError(_unreadable(path, "the file is empty (0 bytes)"))
    return data


def _check_header(path: Path, size: int) -> None:
    """Refuse what is too large before it is read; small files are checked when they are."""
    if size > max_pixels() * _BYTES_PER_PIXEL:
        raise InputError(
            f"{path} has {size:,} bytes, more than the {max_pixels() * _BYTES_PER_PIXEL:,} that "
            "are read at once. Cut it into tiles."
        )
    with path.open("rb") as file:
        if file.read(4).startswith(TIFF):
            tiff_size(path)
            return
        file.seek(0)
        pillow_header(path, file)


def _unreadable(path: Path, found: str) -> str:
    return (
        f"Cannot read {path}: {found}. It should be a whole {IMAGE_KINDS} file; copy or "
        "download it again, or take it out of the data."
    )


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong: damaged files fail anywhere inside a parser."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        found = "the file is empty (0 bytes)" if empty else "its content is no known image"
        raise InputError(_unreadable(path, found)) from error
    except Exception as error:
        raise InputError(_unreadable(path, str(error) or type(error).__name__)) from error


def max_pixels() -> int:
    """The most pixels of an image: `MAX_PIXELS`, or what the environment says.

    Raises:
        InputError: The environment says no positive number.
    """
    asked = os.environ.get("CCSNET_MAX_PIXELS", "")
    if not asked:
        return MAX_PIXELS
    if not asked.isascii() or not asked.isdigit() or not int(asked[:18]):
        raise InputError(
            f"The environment variable CCSNET_MAX_PIXELS is {asked!r}; it must be a whole number "
            f"above 0, such as {MAX_PIXELS}."
        )
    return int(asked[:18])


def _check_pixels(path: Path, height: int, width: int) -> None:
    if height * width > max_pixels():
        raise InputError(
            f"{path} has {height} x {width} pixels, more than the {max_pixels():,} that are read "
            "at once. Cut it into tiles, or, if you know the file and have the memory, set the "
            f"environment variable CCSNET_MAX_PIXELS={height * width}."
        )
    if height < 1 or width < 1:
        raise InputError(_unreadable(path, f"it says that it has {height} x {width} pixels"))


def pillow_header(
    path: Path, file: io.BufferedReader | io.BytesIO, kinds: tuple[str, ...] | None = None
) -> Image.Image:
    """The image with nothing decoded yet, its size checked; by the parsers of these kinds alone."""
    # Pillow's own limit is a third of ours and can only be moved for the whole process.
    with _pillow_lock, _parsing(path):
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            header = Image.open(file, formats=kinds)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    _check_pixels(path, header.height, header.width)
    return header


def orientation_of(header: Image.Image) -> int:
    """How the rows lie, as Exif numbers it; 1 where nothing is said."""
    # Asked for an Exif block that is not in the header, Pillow decodes the whole of a PNG.
    if "exif" not in header.info:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _valid_orientation(header.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # The image may be whole where what is said of it is damaged.
        return 1


def _valid_orientation(found: object) -> int:
    """1 to 8; what else a file says means nothing."""
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def note_animation(path: Path, header: Image.Image) -> None:
    """Warn that of several pictures the first is read."""
    if header.format not in ("GIF", "WEBP", "PNG"):
        return  # A JPEG's further pictures are previews and depth maps.
    with _parsing(path):
        animated = getattr(header, "is_animated", False)
    if animated:
        warnings.warn(f"{path} is animated; its first picture is read.", stacklevel=3)


def upright_size(header: Image.Image) -> tuple[int, int]:
    """Height and width after turning as Exif says."""
    height, width = header.height, header.width
    # Orientations 5-8 lie on their side. Source: Exif 2.32, tag 0x0112.
    return (width, height) if orientation_of(header) >= 5 else (height, width)


def check_complete(path: Path, data: bytes, kind: str) -> None:
    """Refuse a file that ends early: OpenCV would silently fill what is missing with grey.

    Of a PNG's chunk longer than the file it would first make room for what the chunk claims.
    """
    if kind == "PNG":
        complete = _png_ends(data)
    elif kind in ("JPEG", "MPO"):
        # 0xFFD9 ends the image. Before the first scan it may also end an embedded thumbnail.
        complete = data.rfind(b"\xff\xd9") > _jpeg_scan_start(data)
    else:
        return  # Pillow decodes the others and refuses them itself.
    if not complete:
        raise InputError(_unreadable(path, f"the {kind} ends early, after {len(data):,} bytes"))


def _png_ends(data: bytes) -> bool:
    """Whether the chunks, from one to the next, lead to the last.

    Source: PNG specification, chunk layout: 4 bytes of length, 4 of type, the data, 4 of checksum.
    """
    start = len(PNG)
    while start + 8 <= len(data):
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4])
    return False


def _jpeg_scan_start(data: bytes) -> int:
    """Where the first scan starts. Segments hold their length: walk from one to the next."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return position
        if marker == 0xFF:  # A fill byte.
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return len(data)


def cv2_decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    """What OpenCV makes of the bytes.

    Raises:
        InputError: They are damaged.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(_unreadable(path, f"OpenCV says {error.err or error}")) from error
    if pixels is None:
        raise InputError(_unreadable(path, "its content is damaged"))
    return np.asarray(pixels)


def pillow_load(path: Path, header: Image.Image) -> None:
    """Decode what so far only the header is known of.

    Raises:
        InputError: The file is damaged.
    """
    with _parsing(path):
        header.load()


def pillow_pixels(path: Path, header: Image.Image) -> np.ndarray:
    """Decode with Pillow: height x width x bands, one band for grey images."""
    orientation = orientation_of(header)
    pillow_load(path, header)
    with _parsing(path):
        if header.mode in ("1", "L", "LA", "La"):
            pixels = np.asarray(header.convert("L"))
        elif header.mode.startswith("I;16"):
            pixels = np.asarray(header).astype(np.uint16)
        elif header.mode in ("I", "F"):
            found = f"its samples have the mode {header.mode} (32 bits)"
            raise InputError(_unreadable(path, found))
        else:
            # By way of RGBA, so that Pillow need not warn of a transparent palette.
            step = header.convert("RGBA") if header.mode in ("P", "PA") else header
            pixels = np.asarray(step.convert("RGB"))
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    # Of a TIFF, Pillow has followed its orientation in decoding.
    return pixels if header.format == "TIFF" else upright(pixels, orientation)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror as an Exif orientation says. Source: Exif 2.32, tag 0x0112."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def tiff_size(path: Path) -> tuple[int, int]:
    """Height and width of a TIFF as it will be read, from its header alone.

    Raises:
        InputError: It is damaged, or too large.
    """
    with path.open("rb") as file:
        return _tiff_size(path, file)


def _tiff_size(path: Path, file: io.BufferedReader | io.BytesIO) -> tuple[int, int]:
    with _parsing(path), tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        height, width = int(page.imagelength), int(page.imagewidth)
        size = math.prod(map(int, series.shape)) * ((page.bitspersample + 7) // 8)
        orientation = _tiff_orientation(page)
    _check_pixels(path, height, width)
    if size > max_pixels() * _BYTES_PER_PIXEL:
        raise InputError(
            f"{path} has {size:,} bytes in {height} x {width} pixels, more than the "
            f"{max_pixels() * _BYTES_PER_PIXEL:,} that are read at once. Cut it into tiles, or "
            "leave out bands or pages."
        )
    return (width, height) if orientation >= 5 else (height, width)


def _tiff_orientation(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    """How the rows lie. Source: TIFF 6.0, tag 274, the numbers of Exif."""
    tag = page.tags.get(_EXIF_ORIENTATION) if isinstance(page, tifffile.TiffPage) else None
    return 1 if tag is None else _valid_orientation(tag.value)


def check_tiff(path: Path, data: bytes) -> None:
    """Refuse a TIFF that is too large, or whose parts are larger than it says.

    Raises:
        InputError: It is, or it is damaged.
    """
    _tiff_size(path, io.BytesIO(data))
    with _parsing(path), tifffile.TiffFile(io.BytesIO(data)) as tiff:
        check_segments(path, data, tiff.series[0])


def read_tiff(path: Path, data: bytes) -> np.ndarray:
    """Height x width x bands, of the file's type, upright."""
    check_tiff(path, data)
    with _parsing(path), tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        orientation = _tiff_orientation(page)
        try:
            pixels = series.asarray()
        except (ValueError, ModuleNotFoundError) as error:
            if isinstance(error, ValueError) and "imagecodecs" not in str(error):
                raise
            # Compressions that tifffile leaves to another package, such as LZW, JPEG and ZSTD.
            return _compressed_tiff(path, data, series)
        height, width = series.axes.index("Y"), series.axes.index("X")
        bands = [axis for axis in range(pixels.ndim) if axis not in (height, width)]
        pixels = pixels.transpose(height, width, *bands)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if _has_alpha(series) and pixels.shape[2] in (2, 4) and not palette:
            pixels = pixels[..., :-1]
        pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
        return upright(pixels, orientation)


def tiff_bands(path: Path) -> int:
    """Bands of a TIFF as it will be read, from its header alone."""
    height, width = tiff_size(path)
    with path.open("rb") as file, _parsing(path), tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        bands = math.prod(series.shape) // (height * width)
        return bands - (bands in (2, 4) and _has_alpha(series))


def _has_alpha(series: tifffile.TiffPageSeries) -> bool:
    """Whether a band is no band of the image. Source: TIFF 6.0, ExtraSamples 1 and 2."""
    extra = series.keyframe.extrasamples
    return len(extra) == 1 and extra[0] in (1, 2)


def _compressed_tiff(path: Path, data: bytes, series: tifffile.TiffPageSeries) -> np.ndarray:
    """The samples as they are stored, upright, without alpha, of what tifffile does not decode."""
    page, bits = series.keyframe, series.keyframe.bitspersample
    alpha, kinds = _has_alpha(series), tifffile.PHOTOMETRIC
    odd = bits < 8 or page.photometric in (kinds.PALETTE, kinds.MINISWHITE)
    if bits > 8 or not (odd or alpha):
        pixels = _cv2_tiff(path, data, str(page.compression))
        return pixels[..., :-1] if alpha and pixels.shape[2] in (2, 4) else pixels
    # OpenCV paints palettes, stretches bits and multiplies colours by alpha; Pillow stretches bits.
    header = pillow_header(path, io.BytesIO(data))
    pillow_load(path, header)
    pixels = np.asarray(header)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if header.mode == "L":
        most = 2**bits - 1
        pixels = pixels // (255 // most)
        pixels = most - pixels if page.photometric == kinds.MINISWHITE else pixels
    elif header.mode == "1" and page.photometric == kinds.MINISWHITE:
        pixels = 1 - pixels
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return pixels[..., :-1] if header.mode in ("LA", "RGBA") else pixels


def _cv2_tiff(path: Path, data: bytes, compression: str) -> np.ndarray:
    flags = cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InputError(
            f"Cannot read {path}: its TIFF compression {compression} needs another package. "
            "`pip install imagecodecs`, or write the file again with DEFLATE compression."
        )
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        return pixels[..., None]
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(pixels.shape[2])
    return pixels[..., order] if order else pixels


def is_palette_tiff(data: bytes) -> bool:
    """Whether the numbers of a TIFF stand for colours of a palette."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return tiff.series[0].keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE


def is_painted_tiff(path: Path, data: bytes) -> bool:
    """Whether the samples of a TIFF are no amounts of light: bits, ink, a palette's indices."""
    kinds = tifffile.PHOTOMETRIC
    with _parsing(path), tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.series[0].keyframe
        painted = page.photometric in (kinds.PALETTE, kinds.SEPARATED, kinds.MINISWHITE)
        return page.bitspersample < 8 or (painted and page.bitspersample == 8)
