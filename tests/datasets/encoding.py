"""What official archives are made of: drawings, and the encodings that data sets come in."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import scipy.io
import tifffile
from PIL import Image

from ccsnet.datasets._spec import DatasetSpec

SIZE = (24, 40)


def drawn(spec: DatasetSpec, number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, ...]:
    """What a label file holds, and what it means; other numbers are other labels."""
    if spec.colour_to_class is None:
        unlisted = set(range(34)) | {255}  # Every label id of Cityscapes is below 34.
        ignored = unlisted - set(spec.raw_to_class) if spec.ignore_raw is None else spec.ignore_raw
        values = [*spec.raw_to_class.items(), *((raw, spec.ignore_index) for raw in ignored)]
    else:
        ignored = spec.ignore_colours or {(0, 0, 0), (252, 255, 0)}
        values = [*spec.colour_to_class.items(), *((c, spec.ignore_index) for c in ignored)]
    raws, classes = (np.array(column) for column in zip(*values, strict=True))
    order = np.roll(np.resize(np.arange(len(values)), size[0] * size[1]), 7 * number)
    raw = raws[order].astype(np.uint8)
    return raw.reshape(*size, *raws.shape[1:]), classes[order].reshape(size)


def photo(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.indices(size)
    return np.stack([rows * 3 + number, columns * 5, rows * columns], axis=-1).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, palette: Iterable[int] | None = None) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(bytes(palette))
    picture.save(file, kind)
    return file.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    return file.getvalue()


def jpeg(number: int) -> bytes:
    return encoded(photo(number), "JPEG")


def png(pixels: np.ndarray) -> bytes:
    return encoded(pixels, "PNG")


def mat(**values: object) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, values, do_compression=True)
    return file.getvalue()


def lines(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def run_lengths(mask: np.ndarray) -> str:
    """COCO's compressed run lengths: column by column, differences, 5 bits in each character."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    runs = np.diff([0, *np.flatnonzero(np.diff(flat)), mask.size]).tolist()
    text = ""
    for i, run in enumerate(runs):
        left = run - runs[i - 2] if i > 2 else run
        while True:
            bits, left = left & 31, left >> 5
            last = left == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin: in steps, and the last one such that it ends with the image."""
    return sorted({min(start, max(length - tile, 0)) for start in range(0, length, stride)})


def tile_truth(
    classes: np.ndarray, size: int, overlap: int, name: Callable[[int, int, int, int], str]
) -> dict[str, np.ndarray | None]:
    """The tiles of a label, by their names; what lies outside the image is unlabelled."""
    height, width = (max(side, size) for side in classes.shape)
    full = np.full((height, width), 255)
    full[: classes.shape[0], : classes.shape[1]] = classes
    return {
        name(x, y, x + size, y + size): full[y : y + size, x : x + size]
        for y in starts(classes.shape[0], size, size - overlap)
        for x in starts(classes.shape[1], size, size - overlap)
    }
