"""Decode images and label maps, and write label maps.

Whatever a file holds, an image comes out as height x width x bands and a label map as class
indices; a file that cannot be meant is refused with its name.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Num, UInt8, UInt16
from PIL import Image

from ccsnet.data.decode import MAX_PIXELS as MAX_PIXELS  # Part of what this module offers.
from ccsnet.data.decode import (
    PNG,
    TIFF,
    check_complete,
    check_file,
    check_tiff,
    cv2_decode,
    is_painted_tiff,
    is_palette_tiff,
    note_animation,
    orientation_of,
    pillow_header,
    pillow_load,
    pillow_pixels,
    read_file,
    read_tiff,
    tiff_bands,
    tiff_size,
    upright,
    upright_size,
)
from ccsnet.data.label_values import classes_of_colours, classes_of_values
from ccsnet.datasets._spec import Colour, DatasetSpec
from ccsnet.errors import InputError
from ccsnet.files import atomic_path


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the image as it will be read, from the file's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, or too large.
    """
    check_file(path)
    with path.open("rb") as file:
        start = file.read(16)
        if start.startswith(TIFF):
            return tiff_size(path)
        file.seek(0)
        header = pillow_header(path, file)
        return upright_size(header)


def image_bands(path: Path) -> int:
    """Bands of the image as it will be read, from the file's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, or too large.
    """
    image_size(path)
    with path.open("rb") as file:
        if file.read(4).startswith(TIFF):
            return tiff_bands(path)
        file.seek(0)
        mode = pillow_header(path, file).mode
    return 1 if mode in ("1", "L", "LA", "La") or mode.startswith("I;16") else 3


def label_palette(path: Path) -> tuple[Colour, ...] | None:
    """The colours that a label file's numbers are shown in; None where it is no palette file.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, or too large.
    """
    check_file(path)
    with path.open("rb") as file:
        header = pillow_header(path, file)
        parts = (header.getpalette("RGB") or []) if header.mode == "P" else []
    found = [(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
    grey = all(colour == (index, index, index) for index, colour in enumerate(found))
    return None if grey else tuple(found)


def read_image(
    path: Path, channels: int = 3
) -> UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]:
    """The image with so many bands, upright, 8 or 16 bits as in the file.

    Grey images, palettes, CMYK and transparency become RGB where three bands are wanted. Of an
    animation the first picture is read, with a warning.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no image, is damaged or too large, or has other bands.
    """
    data = read_file(path)
    header = None
    if not data.startswith(TIFF):
        header = pillow_header(path, io.BytesIO(data))
        check_complete(path, data, str(header.format))
        note_animation(path, header)
    pixels = decode_image(path, data, header, channels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} holds samples of type {pixels.dtype}; uint8 and uint16 can be read. Scale the "
            "values to one of them and write the file again."
        )
    fitting = with_bands(pixels, channels)
    if fitting is None:
        found = pixels.shape[2]
        raise InputError(
            f"{path} has {found} band{'s' * (found != 1)}, but {channels} are needed. Write the "
            "file again with those, or, to train on images like this one, set "
            f"`channels: {found}` in dataset.yaml."
        )
    return fitting


def decode_image(
    path: Path, data: bytes, header: Image.Image | None, channels: int
) -> Num[np.ndarray, "H W _"]:
    """The image in a file's bytes, upright, with the bands and the type that it has.

    Args:
        path: What messages call it; not opened.
        data: The file's content.
        header: Of `pillow_header`, and checked by `check_complete`; None of a TIFF.
        channels: Bands that are wanted: how a TIFF of inks or indices is read depends on it.

    Raises:
        InputError: It is damaged or too large.
    """
    if header is None:
        if channels in (1, 3) and is_painted_tiff(path, data):
            check_tiff(path, data)
            return pillow_pixels(path, pillow_header(path, io.BytesIO(data), ("TIFF",)))
        return read_tiff(path, data)
    # OpenCV is the fastest, but it turns CMYK and palettes into colours of its own making.
    if header.format in ("JPEG", "MPO", "PNG") and header.mode in ("L", "RGB", "RGBA", "I;16"):
        deep = cv2.IMREAD_ANYDEPTH * (data.startswith(PNG) and data[24] == 16)
        # Of a damaged Exif block OpenCV may read another orientation than `image_size` does.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | deep
        pixels = upright(cv2_decode(path, data, flags), orientation_of(header))
        return pixels[..., :1] if header.mode in ("L", "I;16") else pixels
    return pillow_pixels(path, header)


def read_label(
    path: Path, spec: DatasetSpec
) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The class of every pixel; unlabelled pixels hold `spec.ignore_index`.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be read, or holds a value or a colour that the data set does not
            name, or colours where that has values.
    """
    if spec.colour_to_class is not None:
        return classes_of_colours(path, read_label_colours(path), spec)
    return classes_of_values(path, read_label_values(path), spec)


def read_label_values(
    path: Path,
) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The number that a label file holds for every pixel; of a palette file the index.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be read, or holds colours.
    """
    return _one_band(path, _decode_label(path, painted=False))


def read_label_colours(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The colour that a label file holds for every pixel; of a palette file the palette's.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be read, or holds no colours of 8 bits.
    """
    pixels = _decode_label(path, painted=True)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        raise InputError(
            f"The label {path} has {pixels.shape[2]} band(s) of type {pixels.dtype}; one that "
            "holds colours has red, green and blue of 8 bits each. Write it again so, or say "
            "`raw_values` in dataset.yaml if it holds class numbers."
        )
    return np.ascontiguousarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)


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


def with_bands(
    pixels: Num[np.ndarray, "H W _"], channels: int
) -> Num[np.ndarray, "H W {channels}"] | None:
    """The image with so many bands: grey becomes RGB and RGB grey; None: it has others."""
    found = pixels.shape[2]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if found == 3 and channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[..., None]
    return None


def _decode_label(path: Path, *, painted: bool) -> np.ndarray:
    """A label file's samples, RGB where it has colours; of palettes the colours or the indices."""
    data = read_file(path)
    if data.startswith(TIFF):
        pixels = read_tiff(path, data)
        if painted and is_palette_tiff(data):
            return pillow_pixels(path, pillow_header(path, io.BytesIO(data)))
        return pixels
    header = pillow_header(path, io.BytesIO(data))
    check_complete(path, data, str(header.format))
    if header.format in ("JPEG", "MPO"):
        raise InputError(
            f"The label {path} is a JPEG, which does not keep values as they were. Labels must be "
            "PNG, TIFF, GIF or BMP; export them again."
        )
    depth, colour = (data[24], data[25]) if data.startswith(PNG) else (None, None)
    # Source: PNG specification, IHDR: colour type 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha.
    # OpenCV reads whole bytes exactly, but paints palettes and stretches 1 to 4 bits.
    if depth in (8, 16) and colour in (0, 2, 6):
        raw = cv2_decode(path, data, cv2.IMREAD_UNCHANGED)
        return raw if raw.ndim == 2 else raw[..., 2::-1]  # OpenCV's are BGR(A).
    if painted:
        return pillow_pixels(path, header)
    pillow_load(path, header)
    if header.mode == "LA":
        header = header.getchannel("L")
    raw = np.asarray(header)
    if colour == 0 and depth in (2, 4):
        raw = raw // (255 // (2**depth - 1))  # Pillow stretches these to 0-255.
    return raw


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
        f"The label {path} holds colours such as {shown}, not class numbers. If colours stand for "
        "the classes, list them in dataset.yaml, one per class in their order, as `raw_colours`; "
        "`ccsnet data init` finds them. Else export the labels again with one band (grey or "
        "palette) and a number per class."
    )
