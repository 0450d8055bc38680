"""Large rasters: the streamed labels equal those of the whole image, and lie where it does."""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ccsnet
from ccsnet import rasters, rasters_parts, rasters_passes, rasters_polygons
from ccsnet.checkpoint import ClassInfo
from ccsnet.cli import run as run_command
from ccsnet.data.loading import image_tensor
from ccsnet.errors import InputError
from ccsnet.heads._base import Output
from ccsnet.predict import Predictor
from ccsnet.rasters import RasterConfig, label_raster
from ccsnet.rasters_passes import Plan, labelled_rows
from ccsnet.segmenter import Segmenter, create_segmenter
from ccsnet.sliding import sliding_label, stride_of
from tests.notes import Notes
from tests.shapes import CLASSES, COLOURS, scene, tiny_model

rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")

from rasterio import Affine  # noqa: E402
from rasterio.features import rasterize  # noqa: E402
from rasterio.shutil import copy as copy_raster  # noqa: E402

NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
ROTATED = NORTH_UP @ Affine.rotation(30)
UTM = "EPSG:32633"


class Brightness(Segmenter):
    """Labels each 4 x 4 pixels by itself: which of its bands is the brightest."""

    def __init__(self, bands=3):
        nn.Module.__init__(self)
        self.mean = nn.Buffer(torch.full((bands, 1, 1), 100.0))
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = 0

    def forward(self, image):
        self.seen += len(image)
        return Output(self.weight * nn.functional.avg_pool2d(image.float(), 4))


def info(classes=CLASSES, colours=COLOURS, channels=3, **more) -> ClassInfo:
    return ClassInfo(dataset="made", classes=classes, colours=colours, channels=channels, **more)


@pytest.fixture
def predictor():
    return Predictor(Brightness(), info())


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_segmenter(tiny_model(), num_classes=3).eval()


def write(path, pixels, *, transform=NORTH_UP, crs=UTM, **more):
    """Write H x W x C as a GeoTIFF."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=pixels.shape[2],
        dtype=pixels.dtype,
        **{"crs": crs, "transform": transform} | more,
    ) as target:
        target.write(pixels.transpose(2, 0, 1))
    return path


def picture(size, seed=0):
    return scene(np.random.default_rng(seed), size)[0]


def read(path):
    with rasterio.open(path) as source:
        return source.read(1)


def whole(model, pixels, window=64, overlap=0.25):
    """The label map as `sliding_label` makes it."""
    size = pixels.shape[:2]
    stride = stride_of(window, overlap)
    image = image_tensor(pixels)
    return sliding_label(model, image, 3, size, window=window, stride=stride).numpy()


SMALL = RasterConfig(window=64)


# The labels


@pytest.mark.parametrize("size", [(140, 230), (64, 64), (20, 150), (7, 9), (201, 65)])
@pytest.mark.parametrize("stride", [64, 48, 32, 42])
def test_streamed_rows_equal_the_whole(network, monkeypatch, size, stride):
    monkeypatch.setattr(rasters_passes, "COLUMNS", 60)
    pixels = picture(size)
    expected = sliding_label(
        network, image_tensor(pixels), 3, size, window=64, stride=stride
    ).numpy()
    pipeline = Predictor(network, info()).pipeline(RasterConfig(own_size=True))
    plan = Plan(pipeline=pipeline, size=size, window=(64, stride), channels=3)

    def crop(rows, columns):
        found = pixels[rows, columns]
        return found, np.ones(found.shape[:2], bool)

    for first in (0, 4, 100):
        if first < size[0]:
            rows = labelled_rows(plan, crop, ignore_index=255, first_row=first)
            assert np.array_equal(np.concatenate(list(rows)), expected[first:])


def test_a_scene_becomes_a_palette_geotiff(network, tmp_path):
    pixels = picture((700, 530))
    path = write(tmp_path / "scene.tif", pixels)
    made = label_raster(Predictor(network, info()), path, tmp_path / "labels.tif", SMALL)
    expected = whole(network, pixels)
    assert len(np.unique(expected)) > 1
    with rasterio.open(made.labels) as source:
        assert np.array_equal(source.read(1), expected)
        assert source.crs == UTM
        assert source.transform == NORTH_UP
        assert source.nodata == 255
        assert source.dtypes == ("uint8",)
        assert source.block_shapes == [(512, 512)]
        assert source.compression.value == "DEFLATE"
        assert [source.colormap(1)[i][:3] for i in range(3)] == list(COLOURS)
        assert source.colormap(1)[255] == (0, 0, 0, 0)
        assert source.overviews(1) == [2]
        assert json.loads(source.tags()["classes"]) == list(CLASSES)
    assert made.counts == {CLASSES[i]: n for i, n in enumerate(np.bincount(expected.ravel())) if n}
    assert list(made.counts.values()) == sorted(made.counts.values(), reverse=True)
    assert made.unlabelled == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.tif", "scene.tif"]


@pytest.mark.parametrize(
    "profile",
    [
        {"tiled": True, "blockxsize": 64, "blockysize": 32, "compress": "lzw"},
        {"interleave": "band"},
        {"BIGTIFF": "YES"},
    ],
)
def test_however_the_scene_is_stored(predictor, tmp_path, profile):
    pixels = picture((200, 150))
    path = write(tmp_path / "scene.tif", pixels, **profile)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    assert np.array_equal(read(made.labels), whole(predictor.model, pixels))


def test_more_than_255_classes(tmp_path):
    names = tuple(f"kind {i}" for i in range(300))
    colours = tuple((i % 256, i // 256, 7) for i in range(300))
    bands = np.zeros((40, 40, 300), np.uint8)
    bands[:20, :, 299] = bands[20:, :, 5] = 200
    path = write(tmp_path / "scene.tif", bands)
    predictor = Predictor(Brightness(300), info(names, colours, 300))
    with rasterio.open(label_raster(predictor, path, tmp_path / "out.tif", SMALL).labels) as made:
        assert made.dtypes == ("uint16",)
        assert made.nodata == 65535
        assert made.colormap(1)[299] == (43, 1, 7, 255)
        assert np.array_equal(made.read(1), np.repeat([[299], [5]], 20, axis=0).repeat(40, 1))


# What a scene may be


def test_nodata_is_ignored_and_empty_windows_are_skipped(predictor, tmp_path):
    pixels = picture((260, 260)).clip(1)
    pixels[:150] = 0
    pixels[200, 100] = 0
    pixels[220, 50] = (0, 90, 80)  # A value of one band alone is one.
    path = write(tmp_path / "scene.tif", pixels, nodata=0)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    expected = whole(predictor.model, pixels).astype(np.uint8)
    expected[(pixels == 0).all(axis=2)] = 255
    assert np.array_equal(read(made.labels)[154:], expected[154:])
    assert (read(made.labels)[:150] == 255).all()
    assert (read(made.labels)[150:154] != 255).all()
    assert made.unlabelled == 150 * 260 + 1
    predictor.model.seen = 0
    label_raster(predictor, path, tmp_path / "again.tif", RasterConfig(window=64, overlap=0.0))
    assert predictor.model.seen == 1 + 3 * 5  # One probe; rows from 128 on of five columns.


def test_a_scene_without_any_data(predictor, tmp_path):
    path = write(tmp_path / "scene.tif", np.zeros((100, 70, 3), np.uint8), nodata=0)
    made = label_raster(
        predictor, path, tmp_path / "labels.tif", SMALL, polygons=tmp_path / "labels.gpkg"
    )
    assert (read(made.labels) == 255).all()
    assert (made.counts, made.unlabelled, made.polygons) == ({}, 7000, 0)


def test_floats_that_are_no_numbers_spoil_nothing_beside_them(network, tmp_path):
    values = picture((128, 128)).astype(np.float32)
    holes = np.zeros((128, 128), bool)
    holes[40:60, 30:90] = True
    filled = np.where(holes[..., None], network.mean.numpy().ravel(), values)
    path = write(tmp_path / "scene.tif", np.where(holes[..., None], np.nan, values))
    made = read(
        label_raster(Predictor(network, info()), path, tmp_path / "labels.tif", SMALL).labels
    )
    image = torch.from_numpy(filled.transpose(2, 0, 1).astype(np.float32))
    expected = sliding_label(network, image, 3, (128, 128), window=64, stride=48).numpy()
    assert np.array_equal(made == 255, holes)
    assert np.array_equal(made[~holes], expected[~holes])


def test_16_bits_are_shown_as_stored(predictor, tmp_path):
    pixels = picture((90, 70)).astype(np.uint16) * 250
    path = write(tmp_path / "scene.tif", pixels)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    assert np.array_equal(read(made.labels), whole(predictor.model, pixels))


def test_alpha_is_where_there_are_data(predictor, tmp_path):
    pixels = picture((90, 70))
    alpha = np.full((90, 70, 1), 255, np.uint8)
    alpha[:30] = 0
    path = write(
        tmp_path / "scene.tif",
        np.concatenate([pixels, alpha], axis=2),
        photometric="rgb",
        ALPHA="YES",
    )
    made = read(label_raster(predictor, path, tmp_path / "labels.tif", SMALL).labels)
    assert (made[:30] == 255).all()
    assert np.array_equal(made[30:], whole(predictor.model, pixels)[30:])


def test_bands_in_the_models_order(predictor, tmp_path):
    pixels = np.zeros((64, 64, 5), np.uint8)
    pixels[..., 3] = 200
    path = write(tmp_path / "scene.tif", pixels)
    for bands, expected in [((4, 3, 2), 0), ((1, 2, 4), 2)]:
        config = RasterConfig(window=64, bands=bands)
        made = label_raster(predictor, path, tmp_path / "labels.tif", config, overwrite=True)
        assert (read(made.labels) == expected).all()
    with pytest.raises(InputError, match=r"takes 3 bands; .* has 5 .*--bands 1 2 3"):
        label_raster(predictor, path, tmp_path / "other.tif", SMALL)
    with pytest.raises(InputError, match="--bands names 2"):
        label_raster(predictor, path, tmp_path / "other.tif", RasterConfig(bands=(1, 2)))
    with pytest.raises(InputError, match="has no band 6; its bands are 1 to 5"):
        label_raster(predictor, path, tmp_path / "other.tif", RasterConfig(bands=(4, 5, 6)))


def test_no_crs_and_no_place_at_all(predictor, tmp_path):
    notes = Notes()
    path = write(tmp_path / "scene.tif", picture((80, 60)), crs=None)
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL, reporter=notes)
    assert "has no coordinate system" in notes.notes[0]
    with rasterio.open(made.labels) as source:
        assert (source.crs, source.transform) == (None, NORTH_UP)
    with pytest.raises(InputError, match="does not say where on Earth"):
        label_raster(predictor, path, tmp_path / "b.tif", SMALL, polygons=tmp_path / "b.geojson")
    from PIL import Image

    Image.fromarray(picture((80, 60))).save(tmp_path / "photo.png")
    made = label_raster(
        predictor, tmp_path / "photo.png", tmp_path / "c.tif", SMALL, polygons=tmp_path / "c.gpkg"
    )
    assert np.array_equal(read_quietly(made.labels), whole(predictor.model, picture((80, 60))))
    assert made.polygons > 0


def read_quietly(path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as source:
        return source.read(1)


def test_a_data_sets_own_windows(tmp_path):
    predictor = Predictor(Brightness(), info(window=(96, 40)))
    pixels = picture((130, 150))
    path = write(tmp_path / "scene.tif", pixels)
    made = label_raster(predictor, path, tmp_path / "labels.tif")
    expected = sliding_label(
        predictor.model, image_tensor(pixels), 3, (130, 150), window=96, stride=40
    )
    assert np.array_equal(read(made.labels), expected.numpy())
    assert predictor.model.seen == 2 * (2 * 3) + 1


# Polygons


@pytest.mark.parametrize("strip", [1, 3, 16, 100])
@pytest.mark.parametrize("size", [(57, 43), (64, 1), (1, 64)])
def test_areas_of_strips_equal_those_of_the_whole(size, strip):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, size, dtype=np.uint8)
    label[rng.random(size) < 0.05] = 255
    strips = (label[top : top + strip] for top in range(0, size[0], strip))
    areas = [area for some in rasterizable(strips) for area in some]
    found = rasterio.features.shapes(label, mask=label != 255, connectivity=4)
    expected = [(shapely.geometry.shape(shape), int(value)) for shape, value in found]

    def form(shape, value):
        return value, shapely.normalize(shape).wkt

    assert all(area.shape.is_valid for area in areas)
    assert sorted(form(a.shape, a.label) for a in areas) == sorted(form(*e) for e in expected)


def rasterizable(strips):
    return rasters_polygons.find_areas(strips, 255)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED], ids=["north up", "rotated"])
@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_polygons_lie_where_the_labels_do(network, tmp_path, monkeypatch, transform, ending):
    monkeypatch.setattr(rasters_polygons, "STRIP_PIXELS", 64 * 150)
    path = write(tmp_path / "scene.tif", picture((200, 150)), transform=transform)
    polygons = tmp_path / f"labels{ending}"
    made = label_raster(
        Predictor(network, info()), path, tmp_path / "labels.tif", SMALL, polygons=polygons
    )
    label = read(made.labels)
    rows = geopackage(polygons) if ending == ".gpkg" else geojson(polygons)
    assert made.polygons == len(rows) > 2
    for shape, index, name, colour, _ in rows:
        assert shape.is_valid
        assert shape.exterior.is_ccw
        assert (name, colour) == (CLASSES[index], "#{:02x}{:02x}{:02x}".format(*COLOURS[index]))
    assert sum(row[4] for row in rows) == 200 * 150
    placed = [(shape, index) for shape, index, *_ in rows]
    if ending == ".geojson":

        def back(points):
            east, north = rasterio.warp.transform("EPSG:4326", UTM, *points.T)
            return np.stack([east, north], axis=1)

        assert all(14.9 < s.bounds[0] < 15.1 and 48.7 < s.bounds[1] < 48.8 for s, _ in placed)
        placed = [(shapely.transform(shape, back), index) for shape, index in placed]
    drawn = rasterize(placed, out_shape=(200, 150), transform=transform, fill=255, dtype="uint8")
    assert np.array_equal(drawn, label)


def geojson(path):
    made = json.loads(path.read_text())
    assert made["type"] == "FeatureCollection"
    assert "crs" not in made
    return [
        (shapely.geometry.shape(feature["geometry"]), *feature["properties"].values())
        for feature in made["features"]
    ]


def geopackage(path):
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT srs_id FROM gpkg_contents").fetchone() == (32633,)
    systems = database.execute("SELECT srs_id, organization FROM gpkg_spatial_ref_sys").fetchall()
    assert sorted(systems) == [(-1, "NONE"), (0, "NONE"), (4326, "EPSG"), (32633, "EPSG")]
    edges = database.execute("SELECT min_x, min_y, max_x, max_y FROM gpkg_contents").fetchone()
    rows = database.execute("SELECT geom, class, name, colour, pixels FROM labels").fetchall()
    database.close()
    shapes = shapely.from_wkb([blob[8:] for blob, *_ in rows])
    assert {blob[:8] for blob, *_ in rows} == {b"GP\x00\x01" + (32633).to_bytes(4, "little")}
    assert edges == tuple(shapely.total_bounds(shapes))
    return [(shape, *row[1:]) for shape, row in zip(shapes, rows, strict=True)]


def test_a_geopackage_that_other_programs_read(predictor, tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    path = write(tmp_path / "scene.tif", picture((90, 70)))
    polygons = tmp_path / "labels.gpkg"
    made = label_raster(predictor, path, tmp_path / "labels.tif", SMALL, polygons=polygons)
    facts = pyogrio.read_info(polygons)
    assert facts["crs"] == UTM
    assert facts["features"] == made.polygons
    assert facts["geometry_type"] == "Polygon"
    assert list(facts["fields"]) == ["class", "name", "colour", "pixels"]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(0.01, 0, 179.8, 0, -0.01, -17)),
        ("EPSG:32660", Affine(1000, 0, 755_000, 0, -1000, 4_000_000)),
    ],
)
def test_polygons_across_180_degrees_are_cut(predictor, tmp_path, crs, transform):
    pixels = np.full((40, 40, 3), (200, 10, 10), np.uint8)
    path = write(tmp_path / "scene.tif", pixels, transform=transform, crs=crs)
    polygons = tmp_path / "labels.geojson"
    label_raster(predictor, path, tmp_path / "labels.tif", SMALL, polygons=polygons)
    ((shape, *_),) = geojson(polygons)
    assert shape.geom_type == "MultiPolygon"
    west, east = sorted(shape.geoms, key=lambda part: part.bounds[0])
    assert (west.bounds[0], east.bounds[2]) == (-180, 180)
    assert west.bounds[2] - west.bounds[0] + east.bounds[2] - east.bounds[0] < 0.6
    assert all(part.exterior.is_ccw for part in shape.geoms)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(3.6, 0, -180, 0, -1.7, 85)),
        ("EPSG:3857", Affine(400_000, 0, -20_000_000, 0, -400_000, 20_000_000)),
    ],
)
def test_polygons_of_the_whole_earth_are_not_cut(predictor, tmp_path, crs, transform):
    pixels = np.full((100, 100, 3), (200, 10, 10), np.uint8)
    path = write(tmp_path / "scene.tif", pixels, transform=transform, crs=crs)
    polygons = tmp_path / "labels.geojson"
    label_raster(predictor, path, tmp_path / "labels.tif", SMALL, polygons=polygons)
    ((shape, *_),) = geojson(polygons)
    assert shape.geom_type == "Polygon"
    assert shape.bounds[2] - shape.bounds[0] > 359


# What goes wrong


def test_refused(predictor, tmp_path):
    good = write(tmp_path / "scene.tif", picture((40, 40)))
    (tmp_path / "text.tif").write_text("no raster")
    out = tmp_path / "labels.tif"
    for arguments, message in [
        ({"scene": tmp_path / "text.tif"}, "cannot be read as a raster"),
        ({"scene": tmp_path}, r"is a folder; give one scene.*gdalbuildvrt"),
        ({"out": tmp_path / "labels.png"}, "must end in .tif"),
        ({"out": good}, "is the scene itself"),
        ({"polygons": tmp_path / "labels.shp"}, r"\.gpkg, \.geojson, \.json.*ends in '\.shp'"),
    ]:
        with pytest.raises(InputError, match=message):
            label_raster(predictor, **{"scene": good, "out": out} | arguments)
    with pytest.raises(FileNotFoundError, match=r"no scene .*gone\.tif"):
        label_raster(predictor, tmp_path / "gone.tif", out)
    for wrong, message in [
        ({"overlap": 0.8}, "must be"),
        ({"batch_size": 0}, "must be"),
        ({"window": 65}, "multiple of 32"),
        ({"window": 0}, "seen in windows.*ccsnet predict"),
        ({"own_size": False}, "always seen at its own resolution"),
    ]:
        with pytest.raises(InputError, match=message):
            RasterConfig(**wrong)
    out.write_bytes(b"old")
    with pytest.raises(InputError, match="is there already"):
        label_raster(predictor, good, out)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.tif", "scene.tif", "text.tif"]
    label_raster(predictor, good, out, overwrite=True)
    assert read(out).shape == (40, 40)


def test_palettes_and_complex_numbers_are_refused(tmp_path):
    predictor = Predictor(Brightness(1), info(channels=1))
    path = tmp_path / "palette.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=4, count=1, dtype="uint8", transform=NORTH_UP
    ) as target:
        target.write_colormap(1, {0: (1, 2, 3, 255)})
    with pytest.raises(InputError, match="-expand rgb"):
        label_raster(predictor, path, tmp_path / "out.tif")
    path = write(tmp_path / "radar.tif", np.zeros((8, 8, 1), np.complex64))
    with pytest.raises(InputError, match="complex numbers"):
        label_raster(predictor, path, tmp_path / "out.tif")


def test_a_damaged_scene_is_named_with_the_place(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    path = write(
        tmp_path / "scene.tif",
        pixels,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged: rows \d+ to \d+, columns \d+ to \d+"):
        label_raster(predictor, path, tmp_path / "labels.tif", SMALL)
    assert not (tmp_path / "labels.tif").exists()


def test_without_rasterio(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"pip install 'ccsnet\[raster\]'"):
        label_raster(predictor, tmp_path / "scene.tif", tmp_path / "labels.tif")


class Stopping(rasters.Silent):
    """Presses Ctrl-C after so many windows."""

    def __init__(self, windows):
        self.left = windows
        self.notes, self.begun = [], None

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total, done=0):
        self.begun = done if stage == "windows" else self.begun

    def advance(self, units=1, **values):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on(network, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    pixels = picture((400, 130))
    path = write(tmp_path / "scene.tif", pixels)
    out, predictor = tmp_path / "labels.tif", Predictor(network, info())
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, SMALL, reporter=Stopping(14))
    assert not out.exists()
    parts = sorted((tmp_path / ".labels.tif.parts").glob("*.labels"))
    assert 1 <= len(parts) < 7
    last = Stopping(0)
    label_raster(predictor, path, out, SMALL, reporter=last)
    assert last.notes == [f"Going on from row {len(parts) * 64} of 400."]
    assert last.begun > 0
    assert np.array_equal(read(out), whole(network, pixels))
    assert not parts[0].parent.exists()


def test_rows_of_another_run_are_not_taken(network, predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    pixels = picture((400, 130))
    path, out = write(tmp_path / "scene.tif", pixels), tmp_path / "labels.tif"
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, SMALL, reporter=Stopping(14))
    last = Stopping(0)
    label_raster(Predictor(network, info()), path, out, SMALL, reporter=last)
    assert last.begun == 0
    assert "dropped" in last.notes[0]
    assert np.array_equal(read(out), whole(network, pixels))


SLOW_RUN = """
    import sys, time
    from tests.test_rasters import *
    class Slow(rasters.Silent):
        def advance(self, units=1, **values):
            time.sleep(0.02)
    torch.manual_seed(0)
    network = create_segmenter(tiny_model(), num_classes=3).eval()
    rasters_parts.PART_ROWS = 64
    label_raster(Predictor(network, info()), sys.argv[1], sys.argv[2], SMALL, reporter=Slow())
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(network, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    pixels = picture((400, 330))
    path, out = write(tmp_path / "scene.tif", pixels), tmp_path / "labels.tif"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_RUN), str(path), str(out)]
    running = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    first = tmp_path / ".labels.tif.parts" / "000002.labels"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    last = Stopping(0)
    label_raster(Predictor(network, info()), path, out, SMALL, reporter=last)
    assert last.begun > 0
    assert np.array_equal(read(out), whole(network, pixels))


KILLED_WRITING = """
    import os, signal, sys
    from tests.test_rasters import *
    class Killing(rasters.Silent):
        stage = ""
        def start(self, stage, total, done=0):
            self.stage = stage
        def advance(self, units=1, **values):
            if self.stage == sys.argv[3]:
                os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    network = create_segmenter(tiny_model(), num_classes=3).eval()
    label_raster(
        Predictor(network, info()), sys.argv[1], sys.argv[2], SMALL,
        polygons=Path(sys.argv[2]).with_suffix(".gpkg"), reporter=Killing(),
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["writing", "polygons"])
def test_a_run_killed_while_it_writes_leaves_nothing_that_passes_for_a_result(
    network, tmp_path, stage
):
    pixels = picture((300, 130))
    path, out = write(tmp_path / "scene.tif", pixels), tmp_path / "labels.tif"
    polygons = out.with_suffix(".gpkg")
    code = textwrap.dedent(KILLED_WRITING)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(out), stage],
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert not polygons.exists()
    parts = tmp_path / ".labels.tif.parts"
    assert list(parts.glob(".labels-*.tif")), "the half of the result, aside"
    last = Stopping(0)
    label_raster(Predictor(network, info()), path, out, SMALL, polygons=polygons, reporter=last)
    assert last.notes == ["Going on from row 300 of 300."]
    assert np.array_equal(read(out), whole(network, pixels))
    assert len(geopackage(polygons)) > 1
    assert not parts.exists()


def test_a_run_stopped_after_its_result_is_there(network, tmp_path, monkeypatch):
    """All that is left is to clear up: the same call does it, without --overwrite."""
    pixels = picture((300, 130))
    path, out = write(tmp_path / "scene.tif", pixels), tmp_path / "labels.tif"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rasters.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            label_raster(Predictor(network, info()), path, out, SMALL)
    assert np.array_equal(read(out), whole(network, pixels))
    label_raster(Predictor(network, info()), path, out, SMALL)
    assert np.array_equal(read(out), whole(network, pixels))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.tif", "scene.tif"]


def test_going_on_does_not_replace_what_is_not_its_own(network, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    path, out = write(tmp_path / "scene.tif", picture((300, 130))), tmp_path / "labels.tif"
    polygons, predictor = tmp_path / "project.gpkg", Predictor(network, info())
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, SMALL, reporter=Stopping(8))
    polygons.write_bytes(b"layers of somebody else")
    with pytest.raises(InputError, match=r"project\.gpkg is there already"):
        label_raster(predictor, path, out, SMALL, polygons=polygons)
    assert polygons.read_bytes() == b"layers of somebody else"
    polygons.unlink()
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, SMALL, polygons=polygons, reporter=Stopping(8))
    polygons.touch()  # From now on it is this call's own.
    label_raster(predictor, path, out, SMALL, polygons=polygons)
    assert len(geopackage(polygons)) > 1


def test_the_scene_is_not_replaced_by_its_polygons(predictor, tmp_path):
    plain, path = write(tmp_path / "plain.tif", picture((64, 64))), tmp_path / "scene.gpkg"
    copy_raster(plain, path, driver="GPKG")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is the scene itself.*--polygons"):
        label_raster(predictor, path, tmp_path / "l.tif", SMALL, polygons=path, overwrite=True)
    assert path.read_bytes() == before


def test_bands_of_several_types(network, tmp_path):
    """As gdalbuildvrt -separate puts them together."""
    pixels = picture((80, 90))
    for i in range(3):
        band = pixels[..., i : i + 1].astype((np.uint8, np.float32, np.int16)[i])
        write(tmp_path / f"{i}.tif", band)
    types = ("Byte", "Float32", "Int16")
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i + 1}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{i}.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for i, kind in enumerate(types)
    )
    scene, place = tmp_path / "all.vrt", "<GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>"
    scene.write_text(f'<VRTDataset rasterXSize="90" rasterYSize="80">{place}{bands}</VRTDataset>')
    label_raster(Predictor(network, info()), scene, tmp_path / "labels.tif", SMALL)
    assert np.array_equal(read(tmp_path / "labels.tif"), whole(network, pixels))


def test_finished_rows_that_are_damaged_are_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    path, out = write(tmp_path / "scene.tif", picture((400, 130))), tmp_path / "labels.tif"
    with pytest.raises(KeyboardInterrupt):
        label_raster(Predictor(network, info()), path, out, SMALL, reporter=Stopping(14))
    part = tmp_path / ".labels.tif.parts" / "000000.labels"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"finished rows in .*000000.* are damaged .*Delete"):
        label_raster(Predictor(network, info()), path, out, SMALL)
    assert not out.exists()


@pytest.mark.parametrize("letter", ["x", "漢"])
def test_a_result_with_the_longest_name(predictor, tmp_path, letter):
    size = len(letter.encode())
    name = "x" * (251 % size) + letter * (251 // size) + ".tif"
    path = write(tmp_path / "scene.tif", picture((40, 30)))
    made = label_raster(predictor, path, tmp_path / name, SMALL)
    assert read(made.labels).shape == (40, 30)
    with pytest.raises(InputError, match="a file's name has 255 bytes at most"):
        label_raster(predictor, path, tmp_path / f"x{name}", SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["scene.tif", name])


@pytest.mark.parametrize("limit", [600, 9000, 12000, 40000])
def test_a_full_disk(network, tmp_path, limit):
    """Files may not grow beyond the limit, which fails as a full disk does."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 300, 3), dtype=np.uint8)
    path, out = write(tmp_path / "scene.tif", noise), tmp_path / "labels.tif"
    predictor = Predictor(Brightness(), info())
    polygons = tmp_path / "labels.gpkg"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"\w"):
            label_raster(predictor, path, out, SMALL, polygons=polygons)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not out.exists()
    assert not polygons.exists()
    label_raster(predictor, path, out, SMALL, polygons=polygons)
    assert np.array_equal(read(out), whole(predictor.model, noise))


# The command


def test_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = picture((150, 130))
    path = write(tmp_path / "scene.tif", pixels)
    command = ["raster", str(run.out), str(path), "--window", "64"]
    assert run_command([*command, "--polygons", "labels.geojson"]) == 0
    model = ccsnet.load(run.out).model
    assert np.array_equal(read(tmp_path / "scene-labels.tif"), whole(model, pixels))
    shown = capsys.readouterr().out
    assert "150 x 130 pixels" in shown
    assert "Labels in scene-labels.tif" in shown
    assert f"{len(geojson(tmp_path / 'labels.geojson'))} polygons in labels.geojson" in shown
    assert run_command(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert run_command([*command[:3], str(path), "--overwrite"]) == 2
    assert "One scene at a time, got 2" in capsys.readouterr().err
    assert run_command(["raster", str(run.out)]) == 2
    assert "One scene at a time, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path):
    """A made scene of 8 000 x 5 000 pixels takes hardly more than one of a quarter the height."""
    peaks = []
    for rows in (2000, 8000):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.raster", "--fake"),
                *("--size", str(rows), "5000", "--folder", str(tmp_path / str(rows)), "--json"),
            ],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(json.loads(done.stdout)["peak_mib"])
    assert peaks[1] < peaks[0] + 100
    assert peaks[1] < 1000
