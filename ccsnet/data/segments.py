"""Whether the strips or tiles of a TIFF hold as much as the file says, before they are unpacked.

What unpacks them takes all that comes out: a strip of a few megabytes may hold gigabytes of zeros
behind the few rows that it should.
"""

import lzma
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tifffile

from ccsnet.errors import InputError

SLACK = 2**24
"""Bytes by which a strip or tile may exceed twice its size: some writers fill up the last ones."""

LARGE_TILE = 2**26
"""Bytes of a tile that may be more than the image; it takes memory even where nothing is in it."""

_STEP = 2**20

# The most that a byte unpacks to. Sources: zlib's manual; TIFF 6.0, section 9 (128 from 2).
_RATIOS = {"deflate": 1032, "packbits": 64, "lzma": 2**40, "zstd": 2**40}

_KINDS = {
    tifffile.COMPRESSION.ADOBE_DEFLATE: "deflate",
    tifffile.COMPRESSION.DEFLATE: "deflate",
    tifffile.COMPRESSION.PACKBITS: "packbits",
    tifffile.COMPRESSION.LZMA: "lzma",
    tifffile.COMPRESSION.ZSTD: "zstd",
}
"""Of the others, LZW and JPEG among them, their readers unpack no more than a strip's size."""


def check_segments(path: Path, data: bytes, series: tifffile.TiffPageSeries) -> None:
    """Refuse a TIFF whose strips or tiles are far larger than its size asks for.

    Args:
        path: The file.
        data: What it holds.
        series: The pages that are read.

    Raises:
        InputError: It is damaged, or made to fill the memory.
    """
    page = series.keyframe
    size = math.ceil(math.prod(page.chunks) * page.bitspersample / 8)
    image = math.ceil(math.prod(map(int, series.shape)) * page.bitspersample / 8)
    if page.is_tiled and size > 4 * image + LARGE_TILE:
        raise InputError(
            f"Cannot read {path}: each of its tiles takes {size:,} bytes and the whole image "
            f"{image:,}. Write the image again with tiles of 256 x 256 pixels."
        )
    kind = _KINDS.get(tifffile.COMPRESSION(page.compression))
    if kind is None:
        return
    room = 2 * size + SLACK
    for one in series.pages:
        if one is None:
            continue
        for start, length in zip(one.dataoffsets, one.databytecounts, strict=True):
            if length * _RATIOS[kind] > room:
                _check_segment(path, memoryview(data)[start : start + length], kind, size, room)


def _check_segment(path: Path, packed: memoryview, kind: str, size: int, room: int) -> None:
    """Unpack one a little at a time, and forget it."""
    found = 0
    for more in _unpacked(packed, kind):
        found += more
        if found > room:
            raise InputError(
                f"Cannot read {path}: one of its strips or tiles unpacks to more than {room:,} "
                f"bytes where its size asks for {size:,}. It is damaged, or made to fill the "
                "memory; write the image again, or take it out of the data."
            )


def _unpacked(packed: memoryview, kind: str) -> Iterator[int]:
    """How many bytes come out, step by step; damaged ones end early, and are told of later."""
    if kind == "packbits":
        yield from _unpacked_runs(packed)
        return
    unpack = _unpacker(kind)
    waiting: Any = packed
    try:
        while unpack is not None and not unpack.eof:
            made = unpack.decompress(waiting, _STEP)
            waiting = getattr(unpack, "unconsumed_tail", b"")
            yield len(made)
            if not made and not waiting:
                return
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError):
        return


def _unpacker(kind: str) -> Any:
    if kind == "deflate":
        return zlib.decompressobj()
    if kind == "lzma":
        return lzma.LZMADecompressor()
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]  # Python 3.14.
    except ImportError:
        return None  # Then there is no reader either but one that unpacks a strip's size alone.
    return zstd.ZstdDecompressor()


def _unpacked_runs(packed: memoryview) -> Iterator[int]:
    """Source: TIFF 6.0, section 9: a count, then so many bytes, or one byte so many times."""
    place, found = 0, 0
    while place < len(packed):
        count = packed[place]
        if count < 128:
            place, found = place + count + 2, found + count + 1
        else:
            place, found = place + 1 + (count > 128), found + (257 - count) * (count > 128)
        if found >= _STEP:
            yield found
            found = 0
    yield found
