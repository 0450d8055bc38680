"""Decode images and label maps, and write label maps.

Whatever a file holds, an image comes out as height x width x bands and a label map as class
indices; a file that cannot be meant is refused with its name.
"""

import io
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import tifffile
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from ccsnet.datasets._spec import Colour, DatasetSpec
from ccsnet.errors import InputError
from ccsnet.files import atomic_path

MAX_PIXELS = 500_000_000
"""Larger images are refused before they are decoded: 1.5 GB as RGB."""

IMAGE_KINDS = "JPEG, PNG, TIFF, WebP, BMP, GIF or PPM"

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 0x0112
_pillow_lock = threading.Lock()


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the image as it will be read, from the file's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, or too large.
    """
    _check_file(path)
    with path.open("rb") as file:
        start = file.read(16)
        if start.startswith(_TIFF):
            return _tiff_size(path)
        file.seek(0)
        header = _pillow_header(path, file)
        return _upright_size(header)


def read_image(
    path: Path, channels: int = 3
) -> UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]:
    """The image with so many bands, upright, 8 or 16 bits as in the file.

    Grey images, palettes, CMYK and transparency become RGB where three bands are wanted.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, is damaged or too large, or has other bands.
    """
    data = _read_file(path)
    if data.startswith(_TIFF):
        return _with_channels(_read_tiff(path, data), channels, path)
    header = _pillow_header(path, io.BytesIO(data))
    _check_complete(path, data, str(header.format))
    depth = data[24] if data.startswith(_PNG) else 8
    # OpenCV is the fastest, but it turns CMYK and palettes into colours of its own making.
    if header.format in ("JPEG", "MPO", "PNG") and header.mode in ("L", "RGB", "RGBA", "I;16"):
        pixels = _cv2_decode(path, data, cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH * (depth == 16)))
        if header.mode in ("L", "I;16"):
            pixels = pixels[..., :1]
        else:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    else:
        pixels = _pillow_pixels(path, header)
    return _with_channels(pixels, channels, path)


def read_label(
    path: Path, spec: DatasetSpec
) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The class of every pixel; unlabelled pixels hold `spec.ignore_index`.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be read, holds colours, or a value that the data set does not name.
    """
    raw = _read_raw_label(path)
    lookup = spec.lookup()
    if raw.dtype == np.uint8:
        # cv2.LUT is several times faster than indexing with numpy.
        unknown = cv2.LUT(raw, (~lookup.known[:256]).view(np.uint8)).any()
        if spec.label_dtype == np.uint8 and not unknown:
            return np.asarray(cv2.LUT(raw, lookup.table[:256]))
    else:
        unknown = not lookup.known[raw].all()
    if unknown:
        raise InputError(_unknown_values(path, raw, spec))
    return lookup.table[raw]


def write_index_png(
    path: Path, label: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
) -> None:
    """Write class indices as a grey PNG, of 16 bits where the map has them."""
    write_bytes(path, _encode_png(label))


def write_palette_png(
    path: Path,
    label: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"],
    colours: Iterable[Colour],
) -> None:
    """Write class indices as a palette PNG: any viewer shows it in the classes' colours.

    Unlabelled pixels are black and transparent. A palette has 256 entries, so for more than 255
    classes the colours themselves are written, and unlabelled pixels are black.
    """
    table = np.zeros((256 if label.dtype == np.uint8 else 65536, 3), np.uint8)
    entries = np.array(list(colours), np.uint8).reshape(-1, 3)
    table[: len(entries)] = entries
    if label.dtype != np.uint8:
        write_png(path, table[label])
        return
    picture = Image.fromarray(label)
    picture.putpalette(table.tobytes())
    buffer = io.BytesIO()
    unlabelled = {"transparency": 255} if len(entries) < 256 else {}
    picture.save(buffer, "PNG", **unlabelled)
    write_bytes(path, buffer.getvalue())


def write_png(path: Path, rgb: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a colour image."""
    write_bytes(path, _encode_png(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and make its folder."""
    with atomic_path(path, durable=False) as aside:
        aside.write_bytes(data)


def _encode_png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {pixels.shape} {pixels.dtype} as PNG.")
    return data.tobytes()


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an image. Name a file: {IMAGE_KINDS}.")
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Check the path, and that the data is complete.")


def _read_file(path: Path) -> bytes:
    _check_file(path)
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


def _pillow_header(path: Path, file: io.BufferedReader | io.BytesIO) -> Image.Image:
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


def _upright_size(header: Image.Image) -> tuple[int, int]:
    height, width = header.height, header.width
    # Orientations 5-8 lie on their side. Source: Exif 2.32, tag 0x0112.
    return (width, height) if _orientation(header) >= 5 else (height, width)


def _check_complete(path: Path, data: bytes, kind: str) -> None:
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


def _cv2_decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(_unreadable(path, f"OpenCV says {error.err}")) from error
    if pixels is None:
        raise InputError(_unreadable(path, "its content is damaged"))
    return np.asarray(pixels)


def _pillow_load(path: Path, header: Image.Image) -> None:
    try:
        header.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        raise InputError(_unreadable(path, str(error))) from error


def _pillow_pixels(path: Path, header: Image.Image) -> np.ndarray:
    """Decode with Pillow: height x width x bands, one band for grey images."""
    _pillow_load(path, header)
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


def _tiff_size(path: Path) -> tuple[int, int]:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.series[0].keyframe
            height, width = int(page.imagelength), int(page.imagewidth)
    except (tifffile.TiffFileError, IndexError, ValueError, struct.error, OSError) as error:
        raise InputError(_unreadable(path, str(error))) from error
    _check_pixels(path, height, width)
    return height, width


def _read_tiff(path: Path, data: bytes) -> np.ndarray:
    """Height x width x bands, of the file's type."""
    _tiff_size(path)
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
            # Alpha is not a band of the image. Source: TIFF 6.0, ExtraSamples 1 and 2.
            alpha = len(page.extrasamples) == 1 and page.extrasamples[0] in (1, 2)
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


def _with_channels(pixels: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """The bands that the data set has; grey becomes RGB and RGB grey where that is wanted."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} holds samples of type {pixels.dtype}; uint8 and uint16 can be read. Scale the "
            "values to one of them and write the file again."
        )
    found = pixels.shape[2]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if found == 3 and channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[..., None]
    raise InputError(
        f"{path} has {found} bands, but the data set has {channels}. Set `channels: {found}` in "
        "dataset.yaml if all images are like this one, or write the file again with those bands."
    )


def _read_raw_label(path: Path) -> np.ndarray:
    """The values of a label file, uint8 or uint16, one per pixel; of a palette file the indices."""
    data = _read_file(path)
    if data.startswith(_TIFF):
        return _one_band(path, _read_tiff(path, data))
    header = _pillow_header(path, io.BytesIO(data))
    _check_complete(path, data, str(header.format))
    if header.format in ("JPEG", "MPO"):
        raise InputError(
            f"The label {path} is a JPEG, which does not keep values as they were. Labels must be "
            "PNG, TIFF, GIF or BMP; export them again."
        )
    depth, colour = (data[24], data[25]) if data.startswith(_PNG) else (None, None)
    # Source: PNG specification, IHDR: colour type 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha.
    # OpenCV reads whole bytes exactly, but paints palettes and stretches 1 to 4 bits.
    if depth in (8, 16) and colour in (0, 2, 6):
        raw = _cv2_decode(path, data, cv2.IMREAD_UNCHANGED)
        return _one_band(path, raw if raw.ndim == 2 else raw[..., 2::-1])  # OpenCV's are BGR(A).
    _pillow_load(path, header)
    if header.mode == "LA":
        header = header.getchannel("L")
    raw = np.asarray(header)
    if colour == 0 and depth in (2, 4):
        raw = raw // (255 // (2**depth - 1))  # Pillow stretches these to 0-255.
    return _one_band(path, raw)


def _one_band(path: Path, raw: np.ndarray) -> np.ndarray:
    if raw.ndim == 3:
        first = raw[..., 0]
        if not all(np.array_equal(first, raw[..., band]) for band in range(1, raw.shape[2])):
            raise InputError(_colour_label(path, raw))
        raw = first
    if raw.dtype == bool:
        raw = raw.astype(np.uint8)  # Not a view: True may be any byte but 0.
    if raw.dtype not in (np.uint8, np.uint16):
        if not np.issubdtype(raw.dtype, np.integer) or raw.min() < 0 or raw.max() > 65535:
            raise InputError(
                f"The label {path} holds values of type {raw.dtype} from {raw.min()} to "
                f"{raw.max()}; whole numbers from 0 to 65535 can be read. Write it again as "
                "a PNG of 8 or 16 bits."
            )
        raw = raw.astype(np.uint16)
    return np.ascontiguousarray(raw)


def _colour_label(path: Path, raw: np.ndarray) -> str:
    colours = np.unique(raw[::8, ::8, :3].reshape(-1, 3), axis=0)
    shown = ", ".join(str(tuple(int(part) for part in colour)) for colour in colours[:4])
    return (
        f"The label {path} holds colours such as {shown}, not class numbers. Labels must have one "
        "band (grey or palette) with a number per class; convert them once, for each file: "
        "index = np.full(rgb.shape[:2], 255, np.uint8), then for every class i with its colour: "
        "index[(rgb == colour).all(-1)] = i, and save `index` as PNG."
    )


def _unknown_values(path: Path, raw: np.ndarray, spec: DatasetSpec) -> str:
    lookup = spec.lookup()
    values, counts = np.unique(raw, return_counts=True)
    wrong = [(int(v), int(c)) for v, c in zip(values, counts, strict=True) if not lookup.known[v]]
    shown = ", ".join(f"{value} ({count:,} pixels)" for value, count in wrong[:8])
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    ignored = f" and {_ranges(spec.ignore_raw)} for unlabelled" if spec.ignore_raw else ""
    return (
        f"The label {path} holds {shown}{more}. Allowed in {spec.name!r}: "
        f"{_ranges(spec.raw_to_class)} for the {spec.num_classes} classes{ignored}. If such pixels "
        "are unlabelled, add the value to `ignore_raw` in dataset.yaml; if they are a class, say "
        "which in `raw_values`; else mend the file."
    )


def _ranges(values: Iterable[int]) -> str:
    """Whole numbers in short: 0-3, 7."""
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
