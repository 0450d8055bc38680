"""Scenes that hold more than they say, or say more than they hold; and what counts as no data."""

import numpy as np
import pytest

from ccsnet.errors import InputError
from ccsnet.predict import Predictor
from ccsnet.rasters import RasterConfig, label_raster
from tests.data.test_segments import (
    DEFLATE,
    LZW,
    PACKBITS,
    ZSTD,
    read_in_a_process,
    tiff,
    zeros_deflated,
    zeros_lzw,
    zeros_packbits,
)

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("shapely")

from tests.test_rasters import (  # noqa: E402
    NORTH_UP,
    ROTATED,
    SMALL,
    UTM,
    Brightness,
    info,
    picture,
    read,
    whole,
    write,
)

CHILD = """
    import json, sys
    import torch
    from ccsnet.memory import peak_memory
    from tests.test_rasters import *
    def peak():
        return peak_memory(torch.device("cpu")) * 2**30
    predictor, small = Predictor(Brightness(), info()), Path(sys.argv[1]).with_name("small.tif")
    label_raster(predictor, write(small, picture((40, 60))), small.with_name("a.tif"), SMALL)
    before = peak()
    try:
        made = label_raster(predictor, sys.argv[1], small.with_name("b.tif"), SMALL)
        said = f"{made.size}"
    except InputError as error:
        said = str(error)
    print(json.dumps([said, peak() - before]))
"""


@pytest.fixture
def predictor():
    return Predictor(Brightness(), info())


def zeros_zstd(size, folder):
    """A strip that GDAL has packed."""
    tifffile = pytest.importorskip("tifffile")
    side = round(size**0.5)
    path = folder / "zeros.tif"
    try:
        write(path, np.zeros((side, side, 1), np.uint8), compress="zstd", blockysize=side)
    except rasterio.errors.RasterioError:
        pytest.skip("this GDAL has no ZSTD")
    with tifffile.TiffFile(path) as file:
        (start,), (length,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
    return path.read_bytes()[start : start + length]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deflate", "lzw", "packbits", "zstd"])
def test_bombs_take_no_more_than_their_size(tmp_path, kind):
    """GDAL unpacks as much as the strip's size asks for: the rest is never there."""
    code, strip = {
        "deflate": lambda: (DEFLATE, zeros_deflated(2**30)),
        "lzw": lambda: (LZW, zeros_lzw(2**30)),
        "packbits": lambda: (PACKBITS, zeros_packbits(2**28)),
        "zstd": lambda: (ZSTD, zeros_zstd(2**28, tmp_path)),
    }[kind]()
    path = tiff(tmp_path / "bomb.tif", strip, code)
    said, grown = read_in_a_process(path, CHILD)
    assert said == "(40, 60)" or "bomb.tif is damaged" in said
    assert grown < 2**26 + len(strip)


def test_blocks_that_are_too_large_are_refused_unread(predictor, tmp_path):
    """A tile must be unpacked as a whole for any of it; strips GDAL reads row by row."""
    side = 20_480
    path = tiff(tmp_path / "tile.tif", b"\0" * 99, DEFLATE, size=(side, side), tile=(side, side))
    with pytest.raises(InputError, match=r"blocks of 20480 x 20480 pixels, 1\.2 GiB each.*TILED"):
        label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["tile.tif"]


def test_scenes_that_are_too_wide_are_refused(predictor, tmp_path):
    path = tmp_path / "wide.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=64,
        width=2_000_000_000,
        count=3,
        dtype="uint8",
        transform=NORTH_UP,
        tiled=True,
        blockxsize=8192,
        blockysize=8192,
        SPARSE_OK=True,
        BIGTIFF="YES",
    ):
        pass
    with pytest.raises(InputError, match=r"64 x 2000000000 pixels: the logits .* GiB of memory"):
        label_raster(predictor, path, tmp_path / "labels.tif", RasterConfig())
    assert not (tmp_path / "labels.tif").exists()


# Where there are no data


def test_nan_as_the_nodata_value(predictor, tmp_path):
    values = picture((90, 70)).astype(np.float32)
    values[:30] = np.nan
    path = write(tmp_path / "scene.tif", values, nodata=np.nan)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    assert (read(made.labels)[:30] == 255).all()
    assert (read(made.labels)[32:] != 255).all()
    assert made.unlabelled == 30 * 70
    values[50, 20, 1] = np.nan  # In one band alone: what is no number cannot be shown.
    path = write(tmp_path / "scene.tif", values, nodata=np.nan)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL, overwrite=True)
    assert read(made.labels)[50, 20] == 255
    assert made.unlabelled == 30 * 70 + 1


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_a_number_as_the_nodata_value(predictor, tmp_path, kind):
    values = picture((90, 70)).astype(kind)
    values[:30] = -9999
    path = write(tmp_path / "scene.tif", values, nodata=-9999)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    label = read(made.labels)
    assert (label[:30] == 255).all()
    # Beside it the model sees its mean, not -9999.
    assert np.array_equal(label[32:], whole(predictor.model, picture((90, 70)))[32:])


def test_an_alpha_band_that_is_none_of_the_models(predictor, tmp_path):
    pixels = picture((90, 70))
    alpha = np.full((90, 70, 1), 255, np.uint8)
    alpha[:30] = 0
    alpha[30:40] = 1  # Hardly there is there.
    five = np.concatenate([pixels, pixels[..., :1], alpha], axis=2)
    path = write(tmp_path / "scene.tif", five, photometric="rgb", ALPHA="YES")
    with rasterio.open(path, "r+") as source:
        kinds = rasterio.enums.ColorInterp
        source.colorinterp = [kinds.red, kinds.green, kinds.blue, kinds.undefined, kinds.alpha]
    config = RasterConfig(window=64, bands=(1, 2, 3))
    label = read(label_raster(predictor, path, tmp_path / "labels.tif", config).labels)
    assert (label[:30] == 255).all()
    assert np.array_equal(label[30:], whole(predictor.model, pixels)[30:])


@pytest.mark.parametrize("inside", ["YES", "NO"])
def test_a_mask_inside_the_file_or_beside_it(predictor, tmp_path, inside):
    pixels = picture((90, 70))
    mask = np.full((90, 70), 255, np.uint8)
    mask[:30, :35] = 0
    path = tmp_path / "scene.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        write(path, pixels)
        with rasterio.open(path, "r+") as source:
            source.write_mask(mask)
    assert path.with_name("scene.tif.msk").exists() == (inside == "NO")
    label = read(label_raster(predictor, path, tmp_path / "labels.tif", SMALL).labels)
    assert np.array_equal(label == 255, mask == 0)
    assert np.array_equal(label[mask > 0], whole(predictor.model, pixels)[mask > 0])


# Where it lies


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("crs", [UTM, None, "EPSG:4326"])
@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, rasterio.Affine.identity()])
def test_the_place_is_kept_as_it_is(predictor, tmp_path, crs, transform):
    path = write(tmp_path / "scene.tif", picture((40, 30)), crs=crs, transform=transform)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    with rasterio.open(path) as before, rasterio.open(made.labels) as after:
        assert after.crs == before.crs
        assert after.transform == before.transform
        assert after.crs == (None if crs is None else rasterio.crs.CRS.from_string(crs))
        assert after.transform == transform


def test_control_points_are_kept(predictor, tmp_path):
    points = [
        rasterio.control.GroundControlPoint(row, column, 500_000 + column, 5_400_000 - row)
        for row, column in ((0, 0), (0, 30), (40, 0), (40, 30))
    ]
    path = write(tmp_path / "scene.tif", picture((40, 30)), gcps=points, crs=UTM, transform=None)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    with rasterio.open(made.labels) as source:
        assert source.gcps[1] == UTM
        found = [(p.row, p.col, p.x, p.y) for p in source.gcps[0]]
    assert found == [(p.row, p.col, p.x, p.y) for p in points]
