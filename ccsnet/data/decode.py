"""Files to arrays: what is in an image file, whoever wrote it, or an error that names the file."""

import io
import math
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from ccsnet.errors import InputError

MAX_PIXELS = 500_000_000
"""Larger images are refused before they are decoded: 1.5 GB as RGB."""

IMAGE_KINDS = "JPEG, PNG, TIFF, WebP, BMP, GIF or PPM"

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 0x0112
_pillow_lock = threading.Lock()


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an image. Name a file: {IMAGE_KINDS}.")
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Check the path, and that the data is complete.")


def read_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is a folder, or empty.
    """
    check_file(path)
    data = path.read_bytes()
    if not data:
        raise InputError(_unreadable(path, "the file is empty (0 bytes)"))
    return data


def _unreadable(path: Path, found: str) -> str:
    return (
        f"Cannot read {path}: {found}. It should be a whole {IMAGE_KINDS} file; copy or "
        "download it again, or take it out of the data."
    )


def _check_pixels(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path} has {height} x {width} pixels, more than the {MAX_PIXELS:,} that are read at "
            "once. Cut it into tiles."
        )


def pillow_header(path: Path, file: io.BufferedReader | io.BytesIO) -> Image.Image:
    """The image with nothing decoded yet, its size checked."""
    # Pillow's own limit is a third of ours and can only be moved for the whole process.
    with _pillow_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            header = Image.open(file)
        except UnidentifiedImageError as error:
            empty = path.stat().st_size == 0
            found = "the file is empty (0 bytes)" if empty else "its content is no known image"
            raise InputError(_unreadable(path, found)) from error
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise InputError(_unreadable(path, str(error))) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    _check_pixels(path, header.height, header.width)
    return header


def _orientation(header: Image.Image) -> int:
    # Asked for an Exif block that is not in the header, Pillow decodes the whole of a PNG.
    return header.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in header.info else 1


def upright_size(header: Image.Image) -> tuple[int, int]:
    """Height and width after turning as Exif says."""
    height, width = header.height, header.width
    # Orientations 5-8 lie on their side. Source: Exif 2.32, tag 0x0112.
    return (width, height) if _orientation(header) >= 5 else (height, width)


def check_complete(path: Path, data: bytes, kind: str) -> None:
    """Refuse a file that ends early: OpenCV would silently fill what is missing with grey."""
    if kind == "PNG":
        complete = data.rfind(b"IEND") >= 0
    elif kind in ("JPEG", "MPO"):
        # 0xFFD9 ends the image. Before the first scan it may also end an embedded thumbnail.
        complete = data.rfind(b"\xff\xd9") > _jpeg_scan_start(data)
    else:
        return  # Pillow decodes the others and refuses them itself.
    if not complete:
        raise InputError(_unreadable(path, f"the {kind} ends early, after {len(data):,} bytes"))


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
        raise InputError(_unreadable(path, f"OpenCV says {error.err}")) from error
    if pixels is None:
        raise InputError(_unreadable(path, "its content is damaged"))
    return np.asarray(pixels)


def pillow_load(path: Path, header: Image.Image) -> None:
    """Decode what so far only the header is known of.

    Raises:
        InputError: The file is damaged.
    """
    try:
        header.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        raise InputError(_unreadable(path, str(error))) from error


def pillow_pixels(path: Path, header: Image.Image) -> np.ndarray:
    """Decode with Pillow: height x width x bands, one band for grey images."""
    pillow_load(path, header)
    orientation = _orientation(header)
    if header.mode in ("1", "L", "LA", "La"):
        pixels = np.asarray(header.convert("L"))
    elif header.mode.startswith("I;16"):
        pixels = np.asarray(header).astype(np.uint16)
    elif header.mode in ("I", "F"):
        raise InputError(_unreadable(path, f"its samples have the mode {header.mode} (32 bits)"))
    else:
        # By way of RGBA, so that Pillow need not warn of a transparent palette.
        step = header.convert("RGBA") if header.mode in ("P", "PA") else header
        pixels = np.asarray(step.convert("RGB"))
    return _upright(pixels if pixels.ndim == 3 else pixels[..., None], orientation)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror as an Exif orientation says. Source: Exif 2.32, tag 0x0112."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def tiff_size(path: Path) -> tuple[int, int]:
    """Height and width of a TIFF, from its header alone.

    Raises:
        InputError: It is damaged, or too large.
    """
    with path.open("rb") as file:
        return _tiff_size(path, file)


def _tiff_size(path: Path, file: io.BufferedReader | io.BytesIO) -> tuple[int, int]:
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.series[0].keyframe
            height, width = int(page.imagelength), int(page.imagewidth)
    except (tifffile.TiffFileError, IndexError, ValueError, struct.error, OSError) as error:
        raise InputError(_unreadable(path, str(error))) from error
    _check_pixels(path, height, width)
    return height, width


def read_tiff(path: Path, data: bytes) -> np.ndarray:
    """Height x width x bands, of the file's type."""
    _tiff_size(path, io.BytesIO(data))
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            series = tiff.series[0]
            page = series.keyframe
            palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
            try:
                pixels = series.asarray()
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                # Compressions that tifffile leaves to another package, such as LZW and JPEG.
                return _cv2_tiff(path, data, str(page.compression))
            axes = series.axes
            alpha = _has_alpha(series)
    except InputError:
        raise
    except Exception as error:  # Damaged files fail anywhere inside the parser.
        raise InputError(_unreadable(path, str(error))) from error
    height, width = axes.index("Y"), axes.index("X")
    bands = [axis for axis in range(pixels.ndim) if axis not in (height, width)]
    pixels = pixels.transpose(height, width, *bands)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if alpha and pixels.shape[2] in (2, 4) and not palette:
        pixels = pixels[..., :-1]
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def tiff_bands(path: Path) -> int:
    """Bands of a TIFF as it will be read, from its header alone."""
    height, width = tiff_size(path)
    with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        bands = math.prod(series.shape) // (height * width)
        return bands - (bands in (2, 4) and _has_alpha(series))


def _has_alpha(series: tifffile.TiffPageSeries) -> bool:
    """Whether a band is no band of the image. Source: TIFF 6.0, ExtraSamples 1 and 2."""
    extra = series.keyframe.extrasamples
    return len(extra) == 1 and extra[0] in (1, 2)


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
