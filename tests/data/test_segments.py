"""TIFF files that hold far more than they say: refused, in bounded memory."""

import json
import lzma
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ccsnet.data.images import read_image, read_label_values
from ccsnet.errors import InputError

GIB = 2**30
DEFLATE, LZW, PACKBITS, LZMA, ZSTD, OLD_DEFLATE = 8, 5, 32773, 34925, 50000, 32946


def zeros_deflated(size):
    """So many zeros, packed without having them all."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(2**22, size - at))) for at in range(0, size, 2**22)]
    return b"".join([*parts, packer.flush()])


def zeros_lzma(size):
    packer = lzma.LZMACompressor(preset=0)
    parts = [packer.compress(bytes(min(2**22, size - at))) for at in range(0, size, 2**22)]
    return b"".join([*parts, packer.flush()])


def zeros_packbits(size):
    rest = bytes([257 - size % 128, 0]) if size % 128 > 1 else b""
    return b"\x81\x00" * (size // 128) + rest  # 129 as a count: the next byte 128 times.


def zeros_lzw(size):
    """Source: TIFF 6.0, section 13: codes of 9 to 12 bits, each one byte longer than the last."""
    bits, made, code = [(256, 9), (0, 9)], 1, 258
    length = 2
    while made < size:
        if code >= 4093:
            bits.append((256, 12))
            bits.append((0, 9))
            made, code, length = made + 1, 258, 2
            continue
        width = 9 if code < 511 else 10 if code < 1023 else 11 if code < 2047 else 12
        bits.append((code, width))
        made, code, length = made + length, code + 1, length + 1
    bits.append((257, 12))
    value = "".join(f"{number:0{width}b}" for number, width in bits)
    value += "0" * (-len(value) % 8)
    return int(value, 2).to_bytes(len(value) // 8)


def tiff(path, strip, compression, *, size=(40, 60), bands=3, photometric=2, tile=None):
    """A TIFF of one strip (or tile) of any content."""
    height, width = size
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8] * bands),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (277, 3, [bands]),
        (284, 3, [1]),
    ]
    if tile is None:
        tags += [(273, 4, [8]), (278, 4, [height]), (279, 4, [len(strip)])]
    else:
        tags += [(322, 4, [tile[1]]), (323, 4, [tile[0]]), (324, 4, [8]), (325, 4, [len(strip)])]
    tags.sort()
    start = 8 + len(strip) + len(strip) % 2
    entries, more, after = b"", b"", start + 2 + 12 * len(tags) + 4
    for number, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", after + len(more))
            more += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", number, kind, len(values)) + place
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, start) + strip.ljust(start - 8, b"\0"))
    with path.open("ab") as file:
        file.write(directory + more)
    return path


KINDS = {
    "deflate": (DEFLATE, zeros_deflated, GIB),
    "old deflate": (OLD_DEFLATE, zeros_deflated, GIB),
    "packbits": (PACKBITS, zeros_packbits, 2**28),
    "lzma": (LZMA, zeros_lzma, GIB),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_is_a_tiff(tmp_path, kind):
    compression, pack, _ = KINDS[kind]
    path = tiff(tmp_path / "photo.tif", pack(40 * 60 * 3), compression)
    assert read_image(path).shape == (40, 60, 3)
    assert not read_image(path).any()


CHILD = """
    import json, sys
    from pathlib import Path
    import torch
    from ccsnet.data.images import read_image, read_label_values
    from ccsnet.errors import InputError
    from ccsnet.memory import peak_memory
    def peak():
        return peak_memory(torch.device("cpu")) * 2**30
    path, said = Path(sys.argv[1]), []
    before = peak()
    for read in (read_image, read_label_values):
        try:
            read(path)
            said.append("read")
        except InputError as error:
            said.append(str(error))
    print(json.dumps([said, peak() - before]))
"""


def read_in_a_process(path, code=CHILD):
    """What is said of a file, and by how many bytes reading it let the memory grow."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_are_refused(tmp_path, kind):
    compression, pack, _ = KINDS[kind]
    path = tiff(tmp_path / "bomb.tif", pack(2**25), compression)
    for read in (read_image, read_label_values):
        with pytest.raises(InputError, match="unpacks to more than 16,791,616 bytes"):
            read(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photometric", [1, 0], ids=["light", "fax"])
def test_bombs_are_refused_in_bounded_memory(tmp_path, kind, photometric):
    compression, pack, size = KINDS[kind]
    bomb = pack(size)
    assert len(bomb) < 10 * 2**20
    path = tiff(tmp_path / "bomb.tif", bomb, compression, bands=1, photometric=photometric)
    said, grown = read_in_a_process(path)
    for text in said:
        assert "bomb.tif: one of its strips or tiles unpacks to more than 16,782,016" in text
        assert "where its size asks for 2,400" in text
    assert grown < len(bomb) * 3 + 2**26


@pytest.mark.slow
def test_an_lzw_bomb_is_read_no_further_than_its_size(tmp_path):
    """Without the package imagecodecs, the one reader of LZW stops where the strip is full."""
    path = tiff(tmp_path / "bomb.tif", zeros_lzw(2**30), LZW)
    said, grown = read_in_a_process(path)
    assert said[0] == "read" or "Cannot read" in said[0]
    assert grown < 2**27


def test_tiles_far_larger_than_the_image(tmp_path):
    path = tiff(tmp_path / "bomb.tif", zeros_deflated(2**22), DEFLATE, tile=(2**14, 2**14))
    for read in (read_image, read_label_values):
        with pytest.raises(
            InputError, match=r"tiles takes 805,306,368 bytes and the whole .* 7,200"
        ):
            read(path)
    path = tiff(tmp_path / "photo.tif", zeros_deflated(3 * 2**20), DEFLATE, tile=(1024, 1024))
    assert read_image(path).shape == (40, 60, 3)


@pytest.mark.parametrize("compression", ["deflate", "packbits", "lzma", "zlib", None])
def test_large_ordinary_files_pass(tmp_path, compression):
    """Even one strip of all, which is looked at because of its size."""
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    pixels[::7, ::5] = 200
    path = tmp_path / "photo.tif"
    more = {"rowsperstrip": 2000, "compression": compression}
    if compression == "packbits":
        pixels, path = pixels[:200], tiff(path, packed(pixels[:200]), PACKBITS, size=(200, 3000))
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", **more)
    assert np.array_equal(read_image(path), pixels)


def packed(pixels):
    data = pixels.tobytes()
    runs = [data[i : i + 128] for i in range(0, len(data), 128)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)
