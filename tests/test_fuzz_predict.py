"""Damaged images of every kind through `predict`: a result or a message, and nothing else."""

import io
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import ccsnet
from ccsnet.errors import InputError
from ccsnet.memory import peak_memory
from tests.test_bad_images import make_model

NUM_IMAGES = 2000
SECONDS = 10.0  # For one image; a whole one takes a hundredth of that.
BYTES = 600_000_000  # More memory than before all of them.
PIXELS = 300_000  # The limit that is set, so that a size which is not refused costs little.


class Hang(BaseException):
    """No error that anything handles."""


def _saved(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if mode := options.pop("mode", None):
        picture = picture.convert(str(mode))
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def whole_images() -> list[bytes]:
    """A few of each kind: depths, palettes, alpha, animation, Exif, tiles, interlacing."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    noise = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    deep = noise.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    film = [Image.fromarray(np.roll(rgb, 8 * i, 1)) for i in range(3)]
    return [
        _saved("PNG", rgb),
        _saved("PNG", noise, mode="P"),
        _saved("PNG", noise, mode="LA", exif=exif),
        _saved("PNG", deep[..., 0]),
        _saved("PNG", rgb, mode="1"),
        _saved("PNG", rgb, save_all=True, append_images=film[1:]),
        _saved("JPEG", rgb, exif=exif),
        _saved("JPEG", noise, progressive=True),
        _saved("JPEG", noise, mode="CMYK"),
        _saved("JPEG", noise[..., 0]),
        _tiff(rgb, photometric="rgb"),
        _tiff(deep, photometric="rgb", compression="deflate", tile=(16, 16)),
        _tiff(noise[..., 0] > 99, photometric="miniswhite"),
        _saved("TIFF", noise, compression="tiff_lzw"),
        _saved("TIFF", noise, mode="CMYK", compression="packbits"),
        _saved("TIFF", noise, mode="P"),
        _saved("WEBP", rgb),
        _saved("WEBP", noise, mode="RGBA", lossless=True, exif=exif),
        _saved("WEBP", rgb, save_all=True, append_images=film[1:]),
        _saved("BMP", noise),
        _saved("BMP", noise, mode="P"),
        _saved("BMP", noise, mode="1"),
        _saved("GIF", rgb),
        _saved("GIF", rgb, save_all=True, append_images=film[1:], transparency=1),
        _saved("PPM", noise),
        _saved("PPM", noise, mode="L"),
        _saved("PPM", noise, mode="1"),
    ]


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Change a few bytes, mostly of the header."""
    for _ in range(rng.integers(1, 9)):
        end = len(data) if rng.random() < 0.5 else min(len(data), 80)
        data[rng.integers(0, end)] = rng.integers(0, 256)
    return data


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """End early."""
    return data[: rng.integers(0, len(data))]


def _splice(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Leave out, repeat or move a piece."""
    start, length = rng.integers(0, len(data)), rng.integers(1, 64)
    piece, target = data[start : start + length], rng.integers(0, len(data))
    if rng.random() < 0.5:
        del data[start : start + length]
    if rng.random() < 0.7:
        data[target:target] = piece * int(rng.integers(1, 4))
    return data


def _numbers(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Put a number that is rarely thought of where sizes, counts and offsets stand."""
    for _ in range(rng.integers(1, 4)):
        width, codes = [(2, "Hh"), (4, "Ii")][rng.integers(0, 2)]
        odd = [0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 70_000]
        value = odd[rng.integers(0, len(odd))] % 2 ** (8 * width)
        end = max(1, min(len(data), 300 if rng.random() < 0.7 else len(data)) - width)
        at = int(rng.integers(0, end))
        data[at : at + width] = struct.pack("<>"[rng.integers(0, 2)] + codes[0], value)
    return data


def _chunks(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Change the chunks of a PNG and make their checksums right again; of others some bytes."""
    if not data.startswith(b"\x89PNG"):
        return _flip(_splice(data, rng), rng)
    parts, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        parts.append((bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + length])))
        at += 12 + length
    if not parts:
        return data
    chosen = int(rng.integers(0, len(parts)))
    name, content = parts[chosen]
    what = rng.integers(0, 4)
    if what == 0:
        del parts[chosen]
    elif what == 1:
        parts.insert(int(rng.integers(0, len(parts))), (name, content))
    elif what == 2 and content:
        parts[chosen] = (name, _flip(content, rng))
    else:
        names = (b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"gAMA", b"IEND")
        parts[chosen] = (names[rng.integers(0, len(names))], content)
    made = bytearray(data[:8])
    for name, content in parts:
        check = zlib.crc32(name + content)
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    return made


MUTATIONS = (_flip, _cut, _splice, _numbers, _chunks)


def mutated_images(num: int, seed: int = 0) -> Iterator[bytes]:
    """The same images for the same seed, kinds and mutations in turn."""
    sources = whole_images()
    for i in range(num):
        rng = np.random.default_rng((seed, i))
        data = bytearray(sources[i % len(sources)])
        for _ in range(rng.integers(1, 3)):
            if data:
                data = MUTATIONS[rng.integers(0, len(MUTATIONS))](data, rng)
        yield bytes(data)


def _on_alarm(*_: object) -> None:
    raise Hang


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs an alarm and Linux's peak of memory")
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_end_in_a_result_or_a_message(tmp_path, monkeypatch):
    predictor = ccsnet.load(make_model(tmp_path), device="cpu")
    monkeypatch.setenv("CCSNET_MAX_PIXELS", str(PIXELS))
    for i, data in enumerate(whole_images()):
        (tmp_path / f"whole{i}").write_bytes(data)
        predictor.predict(tmp_path / f"whole{i}")
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew.
    before = peak_memory(torch.device("cpu"))
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: None)
    handler = signal.signal(signal.SIGALRM, _on_alarm)
    read, refused, wrong = 0, 0, []
    path = tmp_path / "photo"
    try:
        for i, data in enumerate(mutated_images(NUM_IMAGES)):
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                prediction = predictor.predict(path)
                assert prediction.label.shape == prediction.image.shape[:2]
                read += 1
            except (InputError, OSError):
                refused += 1
            except (Hang, Exception) as error:
                wrong.append((i, data[:4], type(error).__name__, str(error)[:200]))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert wrong == []
    # Else the mutations would be too weak or too strong to say anything.
    assert min(read, refused) > NUM_IMAGES / 10
    grown = peak_memory(torch.device("cpu")) - before
    assert grown * 2**30 < BYTES
