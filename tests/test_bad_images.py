"""What people really give to `ccsnet predict`: a message on one line and status 2, or a result."""

import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from ccsnet.checkpoint import ClassInfo, save_checkpoint
from ccsnet.cli import run as run_command
from ccsnet.data import decode
from ccsnet.data.images import image_bands, image_size, read_image
from ccsnet.errors import InputError
from ccsnet.segmenter import create_segmenter
from tests.shapes import CLASSES, COLOURS, tiny_config

RGB = np.dstack([np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1)) // d for d in (1, 2, 3)])
RGB[:15, :20] = (250, 20, 90)  # A corner that shows which way is up.
EXIF_ORIENTATION = 0x0112
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")


def make_model(folder, channels=3):
    """A checkpoint of an untrained model."""
    import dataclasses

    config = tiny_config(folder)
    model = config.model
    if channels != 3:
        model = dataclasses.replace(model, mean=(100.0,) * channels, std=(50.0,) * channels)
    config = dataclasses.replace(config, model=model)
    network = create_segmenter(model, num_classes=3, in_channels=channels)
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS, channels=channels)
    path = folder / f"model{channels}.safetensors"
    save_checkpoint(path, network.state_dict(), config, info, step=1)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def predict(model, tmp_path, capsys, monkeypatch):
    """Label one image; returns the label map, or the error's text."""
    monkeypatch.delenv("CCSNET_DEBUG", raising=False)

    def call(image, *options, model=model):
        out = tmp_path / "out"
        arguments = ["predict", str(model), str(image), "--save", "index", "--out", str(out)]
        status = run_command([*arguments, *options])
        errors = capsys.readouterr().err
        call.said = errors
        if status == 0:
            (written,) = (out / "index").rglob("*.png")
            label = np.asarray(Image.open(written))
            written.unlink()
            return label
        assert status == 2
        assert errors.startswith("error: ")
        assert "Traceback" not in errors
        return errors

    return call


def refusal(predict, path, *options):
    said = predict(path, *options)
    assert isinstance(said, str)
    assert path.name[:10] in said
    assert said.count("\n") == 1
    return said


def pillow(path, upright=False):
    """What Pillow makes of it."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture) if upright else picture
        picture = picture.convert("RGBA") if picture.mode == "P" else picture
        return np.asarray(picture.convert("RGB"))


# Refused


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif", "ppm"])
def test_empty_and_cut_files(predict, tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    path.touch()
    assert "0 bytes" in refusal(predict, path)
    Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "Cannot read" in refusal(predict, path)


def png_bomb(path, side=60_000):
    """A file of a hundred bytes that says that it is huge."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def other_bomb(path, side=60_000):
    Image.fromarray(RGB).save(path)
    data = bytearray(path.read_bytes())
    at, code = {
        ".bmp": (18, "<ii"),
        ".gif": (6, "<HH"),
        ".ppm": (0, ""),
    }[path.suffix]
    if code:
        data[at : at + struct.calcsize(code)] = struct.pack(code, side, side)
    else:
        data = bytearray(b"P6\n%d %d\n255\n" % (side, side) + b"x" * 99)
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "ppm"])
def test_bombs_are_refused_by_their_header(predict, tmp_path, suffix):
    path = tmp_path / f"bomb.{suffix}"
    (png_bomb if suffix == "png" else other_bomb)(path)
    said = refusal(predict, path)
    assert "60000 x 60000 pixels, more than the 500,000,000" in said
    assert "CCSNET_MAX_PIXELS=3600000000" in said


def test_tiff_bombs(predict, tmp_path, monkeypatch):
    path = tmp_path / "bomb.tif"
    with path.open("wb") as file:  # Sparse: nothing of it is on the disk.
        tifffile.imwrite(file, shape=(24_000, 24_000), dtype="uint8", photometric="minisblack")
    assert "24000 x 24000 pixels, more than the 500,000,000" in refusal(predict, path)
    with path.open("r+b") as file:
        file.truncate(5_000_000_000)
    assert "5,000,000,000 bytes, more than the 4,000,000,000" in refusal(predict, path)
    monkeypatch.setenv("CCSNET_MAX_PIXELS", "1000")
    tifffile.imwrite(path, np.zeros((9, 30, 30), np.uint8), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:700])  # So that the file is within the limit itself.
    assert "8,100 bytes in 30 x 30 pixels, more than the 8,000" in refusal(predict, path)


def test_the_limit_is_settable(predict, tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path)
    monkeypatch.setenv("CCSNET_MAX_PIXELS", "2399")
    assert "40 x 60 pixels, more than the 2,399" in refusal(predict, path)
    monkeypatch.setenv("CCSNET_MAX_PIXELS", "2400")
    assert predict(path).shape == (40, 60)
    for wrong in ("0", "-5", "many", "1e9", "²"):
        monkeypatch.setenv("CCSNET_MAX_PIXELS", wrong)
        assert "it must be a whole number above 0" in predict(path)


def test_pipes_and_devices_do_not_hang(predict, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png"):
        refusal(predict, tmp_path / name)
        for read in (read_image, image_size, image_bands):
            with pytest.raises(InputError, match=r"a device, a pipe or a socket, not a file"):
                read(tmp_path / name)
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    assert predict(tmp_path).shape == (40, 60)  # In a folder they are left out.


def test_a_folder_that_is_called_like_an_image(predict, tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert "No image in" in refusal(predict, folder)
    with pytest.raises(InputError, match="is a folder, not an image"):
        read_image(folder)


def test_links_that_lead_nowhere_or_round(predict, tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for name in ("gone.png", "round.png"):
        refusal(predict, tmp_path / name)


def test_a_place_that_cannot_be_written(predict, model, tmp_path, capsys):
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for out in (blocked, blocked / "deeper", "/proc/nowhere"):
        status = run_command(
            ["predict", str(model), str(tmp_path / "photo.png"), "--out", str(out)]
        )
        said = capsys.readouterr().err
        assert status == 2
        assert "error: " in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("bands", "channels", "said"),
    [(3, 4, "3 bands"), (4, 3, "4 bands"), (2, 1, "2 bands"), (5, 3, "5 bands")],
)
def test_a_model_for_other_channels(predict, tmp_path, bands, channels, said):
    path = tmp_path / "photo.tif"
    pixels = np.zeros((bands, 40, 60), np.uint8)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate")
    found = predict(path, model=make_model(tmp_path, channels))
    assert f"{path} has {said}" in found


@pytest.mark.parametrize(("dtype", "said"), [("f4", "float32"), ("u4", "uint32"), ("i2", "int16")])
def test_samples_of_other_types(predict, tmp_path, dtype, said):
    path = tmp_path / "photo.tif"
    tifffile.imwrite(path, np.zeros((40, 60, 3), dtype), photometric="rgb")
    assert f"holds samples of type {said}; uint8 and uint16 can be read" in refusal(predict, path)


# Read


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(predict, tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(RGB).convert("CMYK").save(path)
    expected = pillow(path)
    assert np.array_equal(read_image(path), expected)
    assert predict(path).shape == (40, 60)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_palettes(predict, tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    options = {"transparency": 3} if suffix in ("png", "gif") else {}
    Image.fromarray(RGB).quantize(17).save(path, **options)
    expected = pillow(path)
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) > 10
    assert np.array_equal(read_image(path), expected)
    assert predict(path).shape == (40, 60)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pbm", "gif"])
def test_one_bit(predict, tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(RGB[..., 0] > 100).save(path)
    expected = pillow(path)
    assert set(np.unique(expected)) == {0, 255}
    assert np.array_equal(read_image(path), expected)
    if suffix != "pbm":
        assert predict(path).shape == (40, 60)


def test_a_fax(tmp_path):
    """White is 0 in such files."""
    path = tmp_path / "fax.tif"
    bits = RGB[..., 0] > 100
    tifffile.imwrite(path, bits, photometric="miniswhite")
    assert np.array_equal(read_image(path)[..., 0], np.where(bits, 0, 255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "RGBA"])
def test_grey_and_transparent(predict, tmp_path, suffix, mode):
    path = tmp_path / f"photo.{suffix}"
    if mode == "I;16":
        grey = RGB[..., 0].astype(np.uint16) * 257
        Image.fromarray(grey).save(path)
        expected = np.repeat(grey[..., None], 3, 2)
    else:
        Image.fromarray(RGB).convert(mode).save(path)
        expected = pillow(path)
    found = read_image(path)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert predict(path).shape == (40, 60)
    deep = f"warning: The image {path} has values up to 64250, but the model was made for images of"
    assert predict.said.startswith(deep) if mode == "I;16" else predict.said == ""


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations(predict, tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    frames = [Image.fromarray(np.roll(RGB, 9 * i, 1)).quantize(64) for i in range(3)]
    frames = [f if suffix == "gif" else f.convert("RGB") for f in frames]
    more = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, **more)
    with pytest.warns(UserWarning, match=r"film\.\w+ is animated; its first picture is read"):
        found = read_image(path)
    assert np.array_equal(found, np.asarray(frames[0].convert("RGB")))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert predict(path).shape == (40, 60)
    assert predict.said == f"warning: {path} is animated; its first picture is read.\n"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_rotated(predict, tmp_path, suffix, orientation):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    more = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(RGB).save(path, exif=exif, **more)
    expected = pillow(path, upright=True).astype(int)
    shape = (60, 40) if orientation >= 5 else (40, 60)
    found = read_image(path)
    assert found.shape[:2] == image_size(path) == shape == expected.shape[:2]
    assert np.abs(found.astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)
    assert predict(path).shape == shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_there_are_not(tmp_path, orientation):
    for suffix in ("png", "tif"):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=exif)
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), RGB)


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("new\nline.png", "tab\t.png", "-dash.png", "sp ace [x]*?.png", "ünïcode \U0001f600.png"),
        *("[bold red]markup.png", os.fsdecode(b"not-utf8-\xff.png"), "x" * 200 + ".png"),
    ],
)
def test_odd_names(predict, tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / "plain.png")
    path = tmp_path / name
    (tmp_path / "plain.png").rename(path)
    assert predict(path).shape == (40, 60)
    path.write_bytes(b"damaged")
    if name.isprintable() or name.isascii():  # pytest's own stderr takes no other text.
        assert "no known image" in predict(path)


def test_names_that_cannot_be(predict, tmp_path):
    for name in ("x" * 300 + ".png", "nul\0.png"):
        assert "error: " in predict(tmp_path / name)


def test_a_file_that_is_taken_away_while_it_is_read(tmp_path):
    """Reading many at once changes nothing of Pillow's own limit."""
    paths = [tmp_path / f"{i}.bmp" for i in range(20)]
    for path in paths:
        Image.fromarray(RGB).save(path)
    limit, failed = Image.MAX_IMAGE_PIXELS, []

    def read():
        for path in paths:
            try:
                read_image(path)
                path.unlink()
            except FileNotFoundError:
                failed.append(path)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not any(path.exists() for path in paths)
    assert decode.max_pixels() == decode.MAX_PIXELS
