"""The areas of a georeferenced label map as polygons, in a GeoPackage or as GeoJSON.

The map is read in strips. What a strip's edge cuts is joined again, so that each polygon is one
4-connected area of one class; only the polygons that are still open are held in memory.
"""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from ccsnet.datasets._spec import Colour
from ccsnet.errors import InputError
from ccsnet.files import atomic_path

SUFFIXES = (".gpkg", ".geojson", ".json")
STRIP_PIXELS = 2**20
"""Pixels that are traced at once: of noise, a third of them are polygons."""
DECIMALS = 8
"""Of degrees in GeoJSON: a millimetre on the ground."""
LAYER = "labels"
_UNDEFINED_CRS = -1  # Source: GeoPackage 1.3, table 3: undefined Cartesian coordinates.
_OWN_CRS = 100000  # Beyond EPSG's numbers.


@dataclass(frozen=True)
class Area:
    """One connected area of a class, its outline in pixels: x to the right, y downwards."""

    label: int
    shape: Any  # A shapely Polygon.


def check_polygons(path: Path, crs: object, transform: object) -> None:
    """Refuse what cannot become polygons, before a model works for hours.

    Raises:
        InputError: The name has another ending, or the scene does not say where it lies.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"Polygons are written as {', '.join(SUFFIXES)}; {path} ends in {path.suffix!r}."
        )
    if path.suffix.lower() != ".gpkg" and (crs is None or transform is None):
        raise InputError(
            f"GeoJSON ({path}) holds degrees of longitude and latitude, but the scene does not say "
            "where on Earth its pixels lie. Write a .gpkg, which keeps the scene's own "
            "coordinates, or give the scene a coordinate system (gdal_edit.py -a_srs)."
        )


def write_polygons(
    labels: Path,
    path: Path,
    classes: Sequence[str],
    colours: Sequence[Colour],
    advance: Callable[[int], None] | None = None,
) -> int:
    """Write every connected area of a label map; returns how many.

    A .gpkg keeps the map's coordinate system; GeoJSON is in longitude and latitude (RFC 7946).

    Args:
        labels: A GeoTIFF of class indices; its nodata value stands for no class.
        path: The file to write; complete or not there.
        classes: Names, by class index.
        colours: RGB, by class index.
        advance: Told how many rows of the map have been traced.

    Raises:
        InputError: `check_polygons` refuses it.
        OSError: It cannot be written.
    """
    import rasterio
    import shapely

    with rasterio.open(labels) as source:
        transform = None if source.transform.is_identity else source.transform
        check_polygons(path, source.crs, transform)
        geopackage = path.suffix.lower() == ".gpkg"
        with atomic_path(path) as aside:
            writing = _geopackage(aside, source.crs) if geopackage else _geojson(aside, source)
            with writing as write:
                number = 0
                for areas in _finished_areas(source, advance):
                    shapes = [area.shape for area in areas]
                    pixels = shapely.area(shapes)
                    placed = shapely.transform(shapes, _placing(transform))
                    rows = [
                        (int(area.label), classes[area.label], _hex(colours[area.label]), round(n))
                        for area, n in zip(areas, pixels, strict=True)
                    ]
                    write(placed, rows)
                    number += len(rows)
    return number


def find_areas(
    strips: Iterator[Integer[np.ndarray, "rows W"]], ignore_index: int
) -> Iterator[list[Area]]:
    """The connected areas of a label map that comes in strips, as soon as each is complete."""
    import shapely
    from rasterio import Affine
    from rasterio.features import shapes

    top, above = 0, None  # The last row of the strip before, and which group owns its pixels.
    groups: dict[int, tuple[int, list[Any]]] = {}  # Areas that the seam cuts: class and pieces.
    new = 0
    for strip in strips:
        bottom, owner_top = top + len(strip), np.full(strip.shape[1], -1)
        owner_bottom = owner_top.copy()
        parent: dict[int, int] = {number: number for number in groups}
        closed: list[Area] = []
        found = shapes(
            strip, mask=strip != ignore_index, connectivity=4, transform=Affine.translation(0, top)
        )
        for geometry, value in found:
            rings = geometry["coordinates"]
            piece = shapely.Polygon(rings[0], rings[1:])
            _, low, _, high = piece.bounds
            if low > top and high < bottom:
                closed.append(Area(int(value), piece))
                continue
            new += 1
            parent[new], groups[new] = new, (int(value), [piece])
            if low == top:
                _own(owner_top, rings, top, new)
            if high == bottom:
                _own(owner_bottom, rings, bottom, new)
        if above is not None:
            same = (above[0] == strip[0]) & (strip[0] != ignore_index)
            for one, other in np.unique(np.stack([above[1], owner_top])[:, same], axis=1).T:
                _join(parent, int(one), int(other))
        roots = {number: _root(parent, number) for number in groups}
        joined: dict[int, tuple[int, list[Any]]] = {}
        for number, (label, pieces) in groups.items():
            joined.setdefault(roots[number], (label, []))[1].extend(pieces)
        owners = np.array([roots.get(int(number), -1) for number in owner_bottom])
        still_open = set(owners.tolist())
        groups = {number: group for number, group in joined.items() if number in still_open}
        closed += [_whole(*group) for number, group in joined.items() if number not in still_open]
        above, top = (strip[-1].copy(), owners), bottom
        yield closed
    yield [_whole(*group) for group in groups.values()]


def _own(owner: Integer[np.ndarray, " W"], rings: Any, seam: int, number: int) -> None:
    """Note whose the pixels along a seam are: those at a ring's edges on it."""
    for ring in rings:
        points = np.asarray(ring)
        on_it = (points[:-1, 1] == seam) & (points[1:, 1] == seam)
        for one, other in zip(points[:-1, 0][on_it], points[1:, 0][on_it], strict=True):
            owner[int(min(one, other)) : int(max(one, other))] = number


def _root(parent: dict[int, int], number: int) -> int:
    while parent[number] != number:
        parent[number] = number = parent[parent[number]]
    return number


def _join(parent: dict[int, int], one: int, other: int) -> None:
    one, other = _root(parent, one), _root(parent, other)
    parent[max(one, other)] = min(one, other)


def _whole(label: int, pieces: list[Any]) -> Area:
    """An area of its pieces, without the corners that the seams had made."""
    import shapely

    if len(pieces) == 1:
        return Area(label, pieces[0])
    shape: Any = shapely.union_all(pieces)
    rings = [_corners(shapely.get_coordinates(ring)) for ring in (shape.exterior, *shape.interiors)]
    return Area(label, shapely.Polygon(rings[0], rings[1:]))


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring of upright and level edges without the points where it does not turn."""
    points = ring[:-1]
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    return points[~((before == points) & (points == after)).any(axis=1)]


def _finished_areas(source: Any, advance: Callable[[int], None] | None) -> Iterator[list[Area]]:
    from rasterio.windows import Window

    def strips() -> Iterator[np.ndarray]:
        most = max(1, STRIP_PIXELS // source.width)
        for top in range(0, source.height, most):
            rows = min(most, source.height - top)
            yield source.read(1, window=Window(0, top, source.width, rows))  # pyright: ignore[reportCallIssue]
            if advance is not None:
                advance(rows)

    return (areas for areas in find_areas(strips(), int(source.nodata)) if areas)


def _placing(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Pixel positions to the scene's coordinates; without any, y is upwards from the top."""
    a, b, c, d, e, f = tuple(transform)[:6] if transform is not None else (1, 0, 0, 0, -1, 0)

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    return place


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


Row = tuple[int, str, str, int]
Write = Callable[[Any, list[Row]], None]


@contextlib.contextmanager
def _geojson(path: Path, source: Any) -> Iterator[Write]:
    """A FeatureCollection, a feature on each line. Source: RFC 7946."""
    import shapely
    from rasterio.warp import transform
    from shapely.geometry import mapping

    def degrees(points: np.ndarray) -> np.ndarray:
        placed = transform(source.crs, "EPSG:4326", points[:, 0], points[:, 1])
        return np.stack(placed[:2], axis=1)

    def unwrapped(points: np.ndarray) -> np.ndarray:
        points = degrees(points)
        points[points[:, 0] < 0, 0] += 360
        return points

    def write(shapes: Any, rows: list[Row]) -> None:
        nonlocal separator
        for shape, row in zip(shapely.transform(shapes, place), rows, strict=True):
            feature = {
                "type": "Feature",
                "properties": dict(zip(("class", "name", "colour", "pixels"), row, strict=True)),
                "geometry": mapping(_on_the_globe(shape)),
            }
            file.write(separator + json.dumps(feature))
            separator = ",\n"

    place = unwrapped if _crosses_180(source, degrees) else degrees
    with path.open("w", encoding="utf-8") as file:
        separator = ""
        file.write('{"type": "FeatureCollection", "features": [\n')
        yield write
        file.write("\n]}\n")


def _crosses_180(source: Any, degrees: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether the longitudes along the map's edge leap from 180 to -180."""
    side = np.linspace(0, 1, 101)
    zero, one = np.zeros_like(side), np.ones_like(side)
    x = np.concatenate([side, one, 1 - side, zero]) * source.width
    y = np.concatenate([zero, side, one, 1 - side]) * source.height
    longitude = degrees(_placing(source.transform)(np.stack([x, y], axis=1)))[:, 0]
    return bool((np.abs(np.diff(longitude)) > 180).any())


def _on_the_globe(shape: Any) -> Any:
    """A polygon with its outline against the clock, cut where it crosses 180 degrees."""
    import shapely

    west, _, east, _ = shape.bounds
    if west < -180 or east > 180:
        parts = []
        for turn in (-360, 0, 360):
            inside = shapely.intersection(shape, shapely.box(turn - 180, -90, turn + 180, 90))
            moved = shapely.transform(inside, lambda points, turn=turn: points - [turn, 0])
            parts += [part for part in shapely.get_parts(moved) if part.geom_type == "Polygon"]
        shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    rounded = shapely.transform(shape, lambda points: np.round(points, DECIMALS))
    return shapely.orient_polygons(rounded)


@contextlib.contextmanager
def _geopackage(path: Path, crs: Any) -> Iterator[Write]:
    """A GeoPackage of one layer. Source: OGC 12-128r17, GeoPackage 1.3."""
    import shapely

    number, organisation, definition = _crs_row(crs)
    bounds = [np.inf, np.inf, -np.inf, -np.inf]

    def write(shapes: Any, rows: list[Row]) -> None:
        # Source: clause 2.1.3: GP, version 0, flags (little-endian, no envelope), the CRS's number.
        start = b"GP\x00\x01" + number.to_bytes(4, "little", signed=True)
        shapes = shapely.orient_polygons(shapes)
        west, south, east, north = shapely.total_bounds(shapes)
        bounds[:] = (
            *(min(bounds[0], west), min(bounds[1], south)),
            *(max(bounds[2], east), max(bounds[3], north)),
        )
        forms = shapely.to_wkb(shapes, byte_order=1)
        values = [(start + form, *row) for form, row in zip(forms, rows, strict=True)]
        insert = f"INSERT INTO {LAYER} (geom, class, name, colour, pixels) VALUES (?, ?, ?, ?, ?)"
        database.executemany(insert, values)

    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            # The file is aside until it is whole, so a journal would only cost time.
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            database.executescript(_SCHEMA)
            systems = "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)"
            for row in {(number, organisation, definition), *_REQUIRED_CRS}:
                if row[0] != number or row[2] == definition:
                    name = f"{row[1]} {row[0]}"
                    database.execute(systems, (name, row[0], row[1], row[0], row[2]))
            yield write
            extent = [None] * 4 if bounds[0] > bounds[2] else [float(edge) for edge in bounds]
            database.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, "
                "max_x, max_y, srs_id) VALUES (?, 'features', ?, ?, ?, ?, ?, ?)",
                (LAYER, LAYER, *extent, number),
            )
            database.execute(
                "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)",
                (LAYER, number),
            )
            database.commit()
    except sqlite3.Error as error:
        raise OSError(f"The polygons could not be written: {error}.") from error


def _crs_row(crs: Any) -> tuple[int, str, str]:
    """Number, organisation and definition of a coordinate system."""
    if crs is None:
        return _UNDEFINED_CRS, "NONE", "undefined"
    code = crs.to_epsg()
    return (_OWN_CRS, "NONE", crs.to_wkt()) if code is None else (code, "EPSG", crs.to_wkt())


_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,'
    'AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,'
    'AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],'
    'AUTHORITY["EPSG","4326"]]'
)
_REQUIRED_CRS = ((-1, "NONE", "undefined"), (0, "NONE", "undefined"), (4326, "EPSG", _WGS84))
_SCHEMA = f"""
PRAGMA application_id = {0x47504B47};
PRAGMA user_version = 10300;
CREATE TABLE gpkg_spatial_ref_sys (
    srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
    organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
    table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
    description TEXT DEFAULT '',
    last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
    min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
    srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (
    table_name TEXT NOT NULL REFERENCES gpkg_contents(table_name), column_name TEXT NOT NULL,
    geometry_type_name TEXT NOT NULL,
    srs_id INTEGER NOT NULL REFERENCES gpkg_spatial_ref_sys(srs_id),
    z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name));
CREATE TABLE {LAYER} (
    fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, class INTEGER, name TEXT,
    colour TEXT, pixels INTEGER);
"""
