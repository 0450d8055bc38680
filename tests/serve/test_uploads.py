"""Uploads: the same pixels as the file's, or a refusal with its status; never another outcome."""

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ccsnet.data.images import read_image
from ccsnet.serve.uploads import KINDS, Limits, UploadError, decode_upload

RGB = np.dstack([np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1)) // d for d in (1, 2, 3)])
RGB[:15, :20] = (250, 20, 90)  # A corner that shows which way is up.
EXIF_ORIENTATION = 0x0112


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def lying(orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded("JPEG", exif=exif)


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def deep_png():
    buffer = io.BytesIO()
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 200).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = {
    "jpeg": encoded("JPEG"),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    **{f"jpeg lying {i}": lying(i) for i in range(2, 9)},
    "png": encoded("PNG"),
    "png with alpha": encoded("PNG", "RGBA"),
    "palette png": encoded("PNG", "P"),
    "bits png": encoded("PNG", "1"),
    "16-bit png": deep_png(),
    "webp": encoded("WEBP", lossless=True),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "ppm": encoded("PPM"),
    "pgm": encoded("PPM", "L"),
    "tiff": tiff(RGB, photometric="rgb"),
    "16-bit tiff": tiff(RGB.astype(np.uint16) * 200, photometric="rgb"),
    "palette tiff": encoded("TIFF", "P"),
    "deflate tiff": encoded("TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GOOD)
def test_an_upload_is_the_image_of_its_file(name, channels, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(GOOD[name])
    expected = read_image(path, channels)
    found = decode_upload(GOOD[name], channels)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_bands_beyond_colours(tmp_path):
    bands = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(5, 6, 4)
    data = tiff(bands, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(decode_upload(data, 4), bands)
    with pytest.raises(UploadError, match="has 4 bands, but this model takes 3") as error:
        decode_upload(data, 3)
    assert error.value.status == 422


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(height, width):
    """A PNG that says that it has so many pixels, and holds none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


MANY = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
REFUSED = {
    "empty": (b"", 422, "empty"),
    "text": (b"hello", 415, "no known image"),
    "a path": (b"/etc/passwd", 415, "no known image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no known image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no known image"),
    "photoshop": (b"8BPS\0\1", 415, "no known image"),
    "riff of sound": (b"RIFF\x24\0\0\0WAVEfmt ", 415, "no known image"),
    "a png's start": (b"\x89PNG\r\n\x1a\n", 415, "no known image"),
    "a jpeg's start": (b"\xff\xd8\xff", 415, "no known image"),
    "a tiff's start": (b"II*\0", 422, "Cannot read"),
    "half a png": (encoded("PNG")[:-30], 422, "ends early"),
    "half a jpeg": (encoded("JPEG")[:-30], 422, "ends early"),
    "too many pixels": (png_of(100_000, 100_000), 413, "more than the 10,000 pixels"),
    "one row too many": (png_of(101, 100), 413, "101 x 100 pixels"),
    "no pixels": (png_of(5, 0), 415, "no known image"),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(100_000), 413, "100,000 bytes"),
    "floats": (tiff(RGB.astype(np.float32), photometric="rgb"), 422, "float32"),
    "many bands": (tiff(np.zeros((90, 100, 20), np.uint8), **MANY), 413, "180,000 bytes"),
}


def refusal(data, **limits):
    """Status and text; none where the upload is taken."""
    try:
        assert decode_upload(data, limits=Limits(**limits)).shape[2] == 3
    except UploadError as error:
        return error.status, str(error)
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_and_why(name):
    data, status, text = REFUSED[name]
    limits = Limits(max_bytes=100_000, max_pixels=10_000)
    with pytest.raises(UploadError, match=text) as error:
        decode_upload(data, limits=limits)
    assert error.value.status == status


def test_limits_are_the_last_that_is_allowed():
    data = GOOD["png"]
    limits = Limits(max_bytes=len(data), max_pixels=RGB.shape[0] * RGB.shape[1])
    assert decode_upload(data, limits=limits).shape == RGB.shape
    with pytest.raises(UploadError, match="bytes"):
        decode_upload(data + b"\0", limits=limits)


def test_nothing_that_is_named_is_opened(tmp_path, monkeypatch):
    """Whatever lies in the folder where the server runs, a refusal is the same."""
    monkeypatch.chdir(tmp_path)
    _, before = refusal(b"hello")
    assert refusal(b"\x89PNG\r\n\x1a\n") == (415, before)
    (tmp_path / "the image").write_bytes(GOOD["png"])
    assert refusal(b"\x89PNG\r\n\x1a\n") == (415, before)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_refused_and_nothing_else_is_raised(data):
    content = bytearray(GOOD[data.draw(st.sampled_from(sorted(GOOD)))])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the parsers, which often say what they mended.
        found = refusal(bytes(content), max_pixels=10_000)
    assert found is None or found[0] in (413, 415, 422)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([start for starts in KINDS.values() for start in starts]), st.binary())
def test_any_bytes_behind_a_known_start(start, rest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = refusal(start + rest, max_pixels=10_000)
    assert found is None or found[0] in (413, 415, 422)


def test_a_chunk_that_claims_gigabytes_costs_nothing():
    """OpenCV sets 2 GB aside for what such a chunk of a file of 200 bytes says of itself."""
    data = GOOD["16-bit png"]
    place = data.index(b"IDAT") - 4
    claimed = data[:place] + b"\x7f\xff\xff\xf0" + data[place + 4 :]
    started = time.process_time()
    status, text = refusal(claimed)
    assert (status, "the PNG ends early" in text) == (422, True)
    assert time.process_time() - started < 0.5
