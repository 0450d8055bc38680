import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from ccsnet.data import images, label_values
from ccsnet.data.images import (
    image_bands,
    image_size,
    label_palette,
    read_image,
    read_label,
    write_index_png,
    write_palette_png,
    write_png,
)
from ccsnet.errors import InputError
from tests.datasets.test_spec import make_spec

SPEC = make_spec(raw_to_class={0: 0, 1: 1}, ignore_raw=frozenset({255}))
RGB = np.dstack([np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1)) // d for d in (1, 2, 3)])
TRUTH = np.kron(np.array([[0, 1, 255], [1, 0, 0]]), np.ones((20, 20), int)).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def png(path, depth: int, colour: int, rows: list[bytes], *chunks: tuple[bytes, bytes]):
    """A PNG of a kind that no library writes on demand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    width = len(rows[0]) * 8 // depth
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "webp"])
def test_lossless_rgb(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", RGB, **options)
    assert np.array_equal(read_image(path), RGB)
    assert image_size(path) == (40, 60)


@pytest.mark.parametrize("kind", ["jpeg", "grey jpeg", "progressive", "cmyk"])
def test_jpegs_are_read_as_pillow_reads_them(tmp_path, kind):
    picture = Image.fromarray(RGB)
    if kind == "grey jpeg":
        picture = picture.convert("L")
    if kind == "cmyk":
        picture = picture.convert("CMYK")
    path = tmp_path / "a.jpg"
    picture.save(path, quality=95, progressive=kind == "progressive")
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path).astype(int) - expected).max() <= 3


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    grey = save(tmp_path / "l.png", RGB[..., 0])
    assert np.array_equal(read_image(grey), np.repeat(RGB[..., :1], 3, 2))
    assert np.array_equal(read_image(grey, channels=1), RGB[..., :1])
    rgba = save(tmp_path / "rgba.png", np.dstack([RGB, RGB[..., 0]]))
    assert np.array_equal(read_image(rgba), RGB)
    la = save(tmp_path / "la.png", RGB[..., :2])
    assert np.array_equal(read_image(la), np.repeat(RGB[..., :1], 3, 2))
    palette = tmp_path / "p.png"
    Image.fromarray(RGB).quantize(255).save(palette, transparency=0)
    assert np.array_equal(
        read_image(palette), np.asarray(Image.open(palette).convert("RGBA"))[..., :3]
    )
    one_bit = tmp_path / "1.png"
    Image.fromarray(TRUTH == 1).save(one_bit)
    assert np.array_equal(read_image(one_bit)[..., 2], (TRUTH == 1) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_exif_orientation_is_honoured(tmp_path, orientation, suffix):
    quarters = np.kron(np.array([[0, 80], [160, 240]]), np.ones((24, 40), int)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters).convert("RGB").save(path, exif=exif, quality=100)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_many_bands(tmp_path, channels, planar, dtype):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, (20, 30, channels), dtype=dtype)
    path = tmp_path / "a.tif"
    stored = pixels.transpose(2, 0, 1) if planar else pixels
    tifffile.imwrite(
        path,
        stored if channels > 1 else pixels[..., 0],
        photometric="minisblack",
        planarconfig=("separate" if planar else "contig") if channels > 1 else None,
        compression="deflate",
    )
    assert np.array_equal(read_image(path, channels), pixels)
    assert image_size(path) == (20, 30)


def test_sixteen_bits(tmp_path):
    deep = RGB.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "a.tif"), deep)
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "a.png"), deep)
    save(tmp_path / "grey.png", deep[..., 0])
    assert np.array_equal(read_image(tmp_path / "grey.png", 1), deep[..., :1])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_tiff_compressions_of_other_packages(tmp_path, compression):
    path = save(tmp_path / "a.tif", RGB, compression=compression)
    assert np.abs(read_image(path).astype(int) - RGB).max() <= 30


TIFFS = {
    "colours and transparency": (np.dstack([RGB, RGB[..., 0] // 128 * 255]), "RGBA"),
    "grey and transparency": (np.dstack([RGB[..., 0], RGB[..., 1] // 128 * 255]), "LA"),
    "grey": (RGB[..., 0], "L"),
    "16 bits": (RGB[..., 0].astype(np.uint16) * 257, "I;16"),
    "palette": (RGB[..., 0] % 4, "P"),
    "bits": (RGB[..., 0] > 128, "1"),
}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", TIFFS)
def test_compression_changes_nothing(tmp_path, kind, orientation):
    """Of images, labels by their numbers, and labels by their colours."""
    pixels, mode = TIFFS[kind]
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50, 90, 90, 90])
    assert picture.mode == mode
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = tmp_path / "plain.tif"
    picture.save(plain, compression="tiff_adobe_deflate", exif=exif)
    for compression in ("tiff_lzw", *(("group4",) if mode == "1" else ())):
        path = tmp_path / f"{compression}.tif"
        picture.save(path, compression=compression, exif=exif)
        assert image_bands(path) == image_bands(plain)
        for channels in (1, 3):
            assert np.array_equal(read_image(path, channels), read_image(plain, channels))
        for painted in (False, True):
            found, expected = (images._decode_label(p, painted=painted) for p in (path, plain))
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("ink", [False, True])
def test_few_bits_and_ink(tmp_path, bits, ink):
    """The numbers of a compressed label are those that are stored, also where 0 is white."""
    stored = (np.arange(64) % 2**bits).astype(np.uint8).reshape(8, 8)
    (tmp_path / "a.tif").write_bytes(lzw_tiff(stored, bits, ink=ink))
    with Image.open(tmp_path / "a.tif") as picture:
        assert picture.info["compression"] == "tiff_lzw"
    found = images._decode_label(tmp_path / "a.tif", painted=False)
    assert np.array_equal(found[..., 0], stored)


def lzw_tiff(stored: np.ndarray, bits: int, *, ink: bool) -> bytes:
    """A grey TIFF of a kind that no library writes on demand."""
    rows = np.packbits(
        np.unpackbits(stored, axis=1).reshape(8, -1, 8)[..., 8 - bits :].reshape(8, -1), 1
    )
    # LZW with a table that is cleared (256) before every byte: literal codes of 9 bits, then 257.
    codes = [code for byte in rows.tobytes() for code in (256, byte)] + [257]
    data = np.packbits([int(bit) for code in codes for bit in f"{code:09b}"]).tobytes()
    height, width = stored.shape
    entries = {256: width, 257: height, 258: bits, 259: 5, 262: 0 if ink else 1}
    entries |= {273: 0, 277: 1, 278: height, 279: len(data)}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + bytes(4) + data


def test_wrong_number_of_bands(tmp_path):
    bands = np.zeros((5, 8, 8), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate")
    with pytest.raises(InputError, match=r"a\.tif has 5 bands.*`channels: 5`"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"3 bands, but 4 are needed"):
        read_image(save(tmp_path / "a.png", RGB), 4)


def test_float_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    with pytest.raises(InputError, match="float32"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
@pytest.mark.parametrize("part", [0.0, 0.0005, 0.3, 0.7, 0.95])
def test_truncated_files(tmp_path, suffix, part):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    path = save(tmp_path / f"whole.{suffix}", noise)
    data = path.read_bytes()
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"broken\.") as caught:
        read_image(broken)
    assert ("(0 bytes)" in str(caught.value)) == (part == 0)


def test_a_chunk_that_claims_gigabytes_costs_nothing(tmp_path):
    """OpenCV would set aside what a chunk says of itself, however small the file is."""
    path = save(tmp_path / "a.png", RGB)
    data = path.read_bytes()
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + b"\x7f\xff\xff\xf0" + data[place + 4 :])
    started = time.process_time()
    with pytest.raises(InputError, match="ends early"):
        read_image(path)
    assert time.process_time() - started < 0.5


def test_truncated_jpeg_whose_thumbnail_is_whole(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(RGB).save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + thumbnail.getvalue()
    path = save(tmp_path / "a.jpg", RGB, exif=exif)
    read_image(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="ends early"):
        read_image(path)


def test_trailing_bytes_do_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", RGB)
    path.write_bytes(path.read_bytes() + b"\0" * 50)
    read_image(path)


def test_damaged_png(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 9, (99, 99), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png"):
        read_image(path)
    with pytest.raises(InputError, match=r"a\.png"):
        read_label(path, SPEC)


def test_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(InputError, match="no known image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "empty.png").touch()
    for read in (read_image, image_size, lambda p: read_label(p, SPEC)):
        with pytest.raises(InputError, match="0 bytes"):
            read(tmp_path / "empty.png")


def test_size_is_checked_before_decoding(tmp_path):
    bomb = png(tmp_path / "bomb.png", 8, 0, [b"\0"])
    data = bytearray(bomb.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    bomb.write_bytes(data)
    for read in (read_image, image_size, lambda p: read_label(p, SPEC)):
        with pytest.raises(InputError, match="60000 x 60000"):
            read(bomb)


def test_large_images_raise_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(save(tmp_path / "a.bmp", RGB)).shape == (40, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


# Labels


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_grey_labels(tmp_path, suffix):
    options = {"optimize": False} if suffix == "gif" else {}  # Pillow would renumber the values.
    path = save(tmp_path / f"a.{suffix}", TRUTH, **options)
    assert np.array_equal(read_label(path, SPEC), TRUTH)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palette_labels_hold_the_index(tmp_path, suffix):
    picture = Image.fromarray(TRUTH)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / f"a.{suffix}", **({"optimize": False} if suffix == "gif" else {}))
    assert np.array_equal(read_label(tmp_path / f"a.{suffix}", SPEC), TRUTH)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("colour", [0, 3])
def test_few_bits(tmp_path, depth, colour):
    chunks = [(b"PLTE", bytes(range(3 * 2**depth)))] if colour == 3 else []
    path = png(tmp_path / "a.png", depth, colour, [bytes([0b01000101])], *chunks)
    values = [(0b01000101 >> shift) & (2**depth - 1) for shift in range(8 - depth, -1, -depth)]
    spec = make_spec(raw_to_class={0: 0, **{v: 1 for v in range(1, 16)}}, ignore_raw=None)
    assert read_label(path, spec).tolist() == [[int(v > 0) for v in values]]
    assert images.read_label_values(path).tolist() == [values]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_labels(tmp_path, suffix):
    spec = make_spec(raw_to_class={300: 0, 65535: 1}, ignore_raw=frozenset({0}))
    raw = np.array([[300, 65535, 0]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", raw)
    assert read_label(path, spec).tolist() == [[0, 1, 255]]


def test_more_than_255_classes(tmp_path):
    num = 400
    spec = make_spec(
        classes=tuple(map(str, range(num))),
        colours=tuple((i // 256, i % 256, 7) for i in range(num)),
        raw_to_class={i: i for i in range(num)},
        ignore_raw=frozenset({65535}),
    )
    truth = np.array([[0, 399, 65535, 255]], np.uint16)
    write_index_png(tmp_path / "a.png", truth)
    assert np.array_equal(read_label(tmp_path / "a.png", spec), truth)
    small = save(tmp_path / "b.png", np.array([[0, 255]], np.uint8))
    assert read_label(small, spec).tolist() == [[0, 255]]
    write_palette_png(tmp_path / "c.png", truth, spec.colours)
    assert read_image(tmp_path / "c.png").tolist() == [
        [[0, 0, 7], [1, 143, 7], [0, 0, 0], [0, 255, 7]]
    ]


def test_rgb_labels_of_equal_bands(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([TRUTH] * 3))
    assert np.array_equal(read_label(path, SPEC), TRUTH)
    path = save(tmp_path / "b.png", np.dstack([TRUTH] * 3 + [np.full_like(TRUTH, 255)]))
    assert np.array_equal(read_label(path, SPEC), TRUTH)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_labels_are_refused_with_advice(tmp_path, suffix):
    colours = np.zeros((40, 60, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    path = save(tmp_path / f"a.{suffix}", colours)
    with pytest.raises(InputError, match=r"\(10, 20, 30\).*raw_colours"):
        read_label(path, SPEC)


PAINT = {(0, 0, 0): 0, (200, 10, 20): 1, (255, 255, 255): 1}
PAINTED = np.zeros((40, 60, 3), np.uint8)
PAINTED[10:20], PAINTED[:, :5], PAINTED[30:] = (200, 10, 20), (255, 255, 255), (9, 9, 9)
PAINTED_TRUTH = np.zeros((40, 60), np.uint8)
PAINTED_TRUTH[10:20], PAINTED_TRUTH[:, :5], PAINTED_TRUTH[30:] = 1, 1, 255


def colour_spec(**changes):
    values = {"raw_to_class": {}, "ignore_raw": frozenset(), "colour_to_class": PAINT}
    return make_spec(**(values | {"ignore_colours": frozenset({(9, 9, 9)})} | changes))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_painted_labels(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", PAINTED)
    assert np.array_equal(read_label(path, colour_spec()), PAINTED_TRUTH)
    assert np.array_equal(read_label(path, colour_spec(ignore_colours=None)), PAINTED_TRUTH)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palette_labels_by_their_colours(tmp_path, suffix):
    picture = Image.fromarray(PAINTED).quantize(16)
    assert picture.mode == "P"
    picture.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_label(tmp_path / f"a.{suffix}", colour_spec()), PAINTED_TRUTH)


def test_painted_labels_of_other_kinds(tmp_path):
    spec = colour_spec()
    transparent = np.dstack([PAINTED, np.zeros((40, 60), np.uint8)])
    assert np.array_equal(read_label(save(tmp_path / "rgba.png", transparent), spec), PAINTED_TRUTH)
    palette = Image.fromarray(PAINTED).quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    assert np.array_equal(read_label(tmp_path / "p.png", spec), PAINTED_TRUTH)
    grey = save(tmp_path / "l.png", np.array([[0, 255, 9]], np.uint8))
    assert read_label(grey, spec).tolist() == [[0, 1, 255]]
    one_bit = save(tmp_path / "1.png", np.array([[False, True]]))
    assert read_label(one_bit, spec).tolist() == [[0, 1]]


def test_unlisted_colours_name_file_counts_and_the_nearest(tmp_path):
    wrong = PAINTED.copy()
    wrong[0, 10:17] = (201, 10, 21)
    wrong[1, 10] = (0, 255, 0)
    path = save(tmp_path / "a.png", wrong)
    with pytest.raises(InputError, match=r"a\.png holds colours") as caught:
        read_label(path, colour_spec())
    text = str(caught.value)
    assert "(201, 10, 21) (7 pixels; nearest is (200, 10, 20), 'car')" in text
    assert "(0, 255, 0) (1 pixels" in text
    assert text.index("(201, 10, 21)") < text.index("(0, 255, 0)")
    assert "ignore_raw" in text
    assert "JPEG" not in text
    assert read_label(path, colour_spec(ignore_colours=None))[0, 10] == 255


def test_smoothed_masks_are_told_as_such(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PAINTED).save(buffer, "JPEG", quality=60)
    path = save(tmp_path / "a.png", np.asarray(Image.open(buffer)))
    with pytest.raises(InputError, match=r"more colours\n.*JPEG.*smooth edges"):
        read_label(path, colour_spec())


def test_labels_that_cannot_be_painted(tmp_path):
    spec = colour_spec()
    with pytest.raises(InputError, match="JPEG"):
        read_label(save(tmp_path / "a.jpg", PAINTED), spec)
    tifffile.imwrite(tmp_path / "a.tif", PAINTED.astype(np.uint16), photometric="rgb")
    with pytest.raises(InputError, match=r"a\.tif has 3 band.*uint16.*8 bits"):
        read_label(tmp_path / "a.tif", spec)
    bands = np.zeros((5, 8, 8), np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="minisblack", planarconfig="separate")
    with pytest.raises(InputError, match=r"b\.tif has 5 band"):
        read_label(tmp_path / "b.tif", spec)


@pytest.mark.parametrize("num", [254, 255, 256, 400])
def test_many_painted_classes(tmp_path, num):
    colours = tuple((i // 256, i % 256, 7) for i in range(num))
    spec = make_spec(
        classes=tuple(map(str, range(num))),
        colours=colours,
        raw_to_class={},
        ignore_raw=frozenset(),
        colour_to_class={colour: i for i, colour in enumerate(colours)},
        ignore_colours=frozenset({(0, 0, 0)}),
    )
    path = save(tmp_path / "a.png", np.array([[*colours, (0, 0, 0)]], np.uint8))
    label = read_label(path, spec)
    assert label.dtype == spec.label_dtype
    assert label.tolist() == [[*range(num), spec.ignore_index]]
    unlisted = save(tmp_path / "b.png", np.array([[(1, 2, 3)]], np.uint8))
    with pytest.raises(InputError, match=r"b\.png"):
        read_label(unlisted, spec)


def test_painted_labels_are_read_in_strips_by_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(label_values, "STRIP", 130)  # Two rows, and a last one alone.
    label_values._colour_table.cache_clear()
    path = save(tmp_path / "a.png", PAINTED[:39])
    for _ in range(3):
        spec = pickle.loads(pickle.dumps(colour_spec()))
        assert np.array_equal(read_label(path, spec), PAINTED_TRUTH[:39])
    assert label_values._colour_table.cache_info().misses == 1
    assert len(pickle.dumps(spec)) < 5000


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("alpha", [False, True])
def test_bands_from_the_header_are_those_that_are_read(tmp_path, channels, alpha):
    pixels = np.zeros((20, 30, channels + alpha), np.uint8)
    kind = "rgb" if channels == 3 else "minisblack"
    extra = {"extrasamples": ["unassalpha"]} if alpha and channels in (1, 3) else {}
    tifffile.imwrite(
        tmp_path / "a.tif", pixels.squeeze(), photometric=kind, planarconfig="contig", **extra
    )
    bands = image_bands(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", bands).shape == (20, 30, bands)
    assert bands == channels + (alpha and not extra)


def test_bands_and_palette_of_other_files(tmp_path):
    assert image_bands(save(tmp_path / "a.jpg", RGB)) == 3
    assert image_bands(save(tmp_path / "a.png", RGB[..., 0])) == 1
    assert image_bands(save(tmp_path / "b.png", RGB[..., 0].astype(np.uint16))) == 1
    assert label_palette(tmp_path / "a.png") is None
    write_palette_png(tmp_path / "p.png", TRUTH, SPEC.colours)
    assert label_palette(tmp_path / "p.png")[:2] == SPEC.colours


def test_unknown_values_name_file_value_and_allowed(tmp_path):
    wrong = TRUTH.copy()
    wrong[:2, :3] = 7
    path = save(tmp_path / "a.png", wrong)
    with pytest.raises(InputError, match=r"a\.png holds 7 \(6 pixels\).*0-1 for.*255.*ignore_raw"):
        read_label(path, SPEC)
    tifffile.imwrite(tmp_path / "b.tif", wrong.astype(np.int32))
    with pytest.raises(InputError, match=r"b\.tif holds 7"):
        read_label(tmp_path / "b.tif", SPEC)
    tifffile.imwrite(tmp_path / "c.tif", wrong.astype(np.int16) - 1)
    with pytest.raises(InputError, match="from -1 to"):
        read_label(tmp_path / "c.tif", SPEC)


def test_jpeg_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="JPEG"):
        read_label(save(tmp_path / "a.jpg", TRUTH), SPEC)


def test_written_labels_come_back(tmp_path):
    index, palette = tmp_path / "new/index.png", tmp_path / "new/palette.png"
    write_index_png(index, TRUTH)
    write_palette_png(palette, TRUTH, SPEC.colours)
    assert np.array_equal(read_label(index, SPEC), TRUTH)
    assert np.array_equal(read_label(palette, SPEC), TRUTH)
    shown = np.asarray(Image.open(palette).convert("RGBA"))
    assert shown[0, 0].tolist() == [*SPEC.colours[0], 255]
    assert shown[0, 59].tolist() == [0, 0, 0, 0]
    assert sorted(p.name for p in index.parent.iterdir()) == ["index.png", "palette.png"]
    write_png(tmp_path / "rgb.png", RGB)
    assert np.array_equal(read_image(tmp_path / "rgb.png"), RGB)


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        images.write_bytes(tmp_path / "taken", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
