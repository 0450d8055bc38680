"""Label a georeferenced raster of any size: a scene in, a palette GeoTIFF and polygons out.

The scene is read in windows, and finished rows are kept on the disk beside the result, so that
memory depends on the scene's width alone and a run that was killed goes on where it was.
"""

import contextlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import nn

from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.predict import Predictor
from ccsnet.progress import Reporter, Silent
from ccsnet.rasters_bands import Windows, first_window_row, labelled_rows
from ccsnet.rasters_polygons import check_polygons, write_polygons
from ccsnet.rasters_scene import chosen_bands, environment, open_scene, reader
from ccsnet.sliding import stride_of

PART_ROWS = 512
"""Rows that are kept together when they are done; also the side of the result's tiles."""
DEFAULT_WINDOW = 512
MUCH = 2**30
"""Bytes of a row of windows that are worth a word."""


@dataclass(frozen=True, kw_only=True)
class RasterConfig:
    """How a scene becomes a label map."""

    window: int | None = None
    """Side of square windows, a multiple of 32; none: as the model is evaluated, else 512."""
    overlap: float = 0.25
    """Share of a window's side that it has in common with its neighbour."""
    batch_size: int = 4
    """Windows in each forward pass."""
    bands: tuple[int, ...] = ()
    """The scene's bands in the model's order, the first is 1; none: all, without alpha."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.75:
            raise InputError(f"overlap is {self.overlap}; it must be from 0 to 0.75.")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class RasterResult:
    """What has been written."""

    labels: Path
    size: tuple[int, int]
    counts: dict[str, int]
    """Pixels of each class, largest first; absent ones left out."""
    unlabelled: int
    """Pixels without data."""
    polygons: int | None = None
    """How many; None where none were asked for."""


def label_raster(
    predictor: Predictor,
    scene: Path | str,
    out: Path | str,
    config: RasterConfig | None = None,
    *,
    polygons: Path | str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> RasterResult:
    """Label a scene at its own resolution and write what it shows where.

    The result has the scene's size and georeference; pixels without data get the ignored label,
    which is the result's nodata value. Finished rows are kept in a folder beside it until all is
    done: the same call goes on from them.

    Args:
        predictor: The model.
        scene: A raster that GDAL reads, such as a GeoTIFF or a VRT of several.
        out: The GeoTIFF to write: tiled, compressed, with a palette and overviews.
        config: How.
        polygons: Also write the labels' areas, to a .gpkg or .geojson.
        overwrite: Replace results that are there.
        reporter: Told how it goes.

    Raises:
        FileNotFoundError: There is no such scene.
        InputError: It is no raster or damaged, has other bands than the model, or a result is
            there already.
        OSError: The disk is full, or not writable.
    """
    config, reporter = config or RasterConfig(), reporter or Silent()
    out, shapes = Path(out), None if polygons is None else Path(polygons)
    parts = out.with_name(f".{out.name}.parts")
    if predictor.others:
        raise InputError(
            f"A scene is labelled by one model, not by the mean of {1 + len(predictor.others)}."
        )
    with open_scene(scene) as source:
        bands = chosen_bands(source, config.bands, predictor.info.channels, scene)
        windows = _windows(predictor, config, (source.height, source.width))
        _check_results(source, scene, out, shapes)
        state = _state(scene, source, bands, windows, predictor)
        going_on = _same_state(parts, state)
        if not (overwrite or going_on):
            _refuse_replacing(out, shapes)
        _say_what_is_special(source, scene, predictor, config, windows, reporter)
        _begin_parts(parts, state, going_on, reporter)
        with environment(source, bands, windows.window):
            _label_parts(predictor, source, scene, bands, windows, config, parts, reporter)
            with _writing(out), atomic_path(out) as aside:
                reporter.start("writing", source.height)
                counts = _write_labels(aside, source, parts, predictor, reporter.advance)
                number = None
                if shapes is not None:
                    reporter.start("polygons", source.height)
                    number = write_polygons(
                        aside, shapes, predictor.classes, predictor.colours, reporter.advance
                    )
        reporter.end()
    shutil.rmtree(parts, ignore_errors=True)
    order = np.argsort(-counts[: len(predictor.classes)], kind="stable")
    return RasterResult(
        labels=out,
        size=windows.size,
        counts={predictor.classes[i]: int(counts[i]) for i in order if counts[i]},
        unlabelled=int(counts[predictor.info.ignore_index]),
        polygons=number,
    )


# What is asked, and whether it can be done


def _windows(predictor: Predictor, config: RasterConfig, size: tuple[int, int]) -> Windows:
    if config.window is None and predictor.info.window is not None:
        window, stride = predictor.info.window
    else:
        window = config.window or DEFAULT_WINDOW
        stride = stride_of(window, config.overlap)
    return Windows(size=size, window=window, stride=stride)


def _check_results(source: Any, scene: Path | str, out: Path, polygons: Path | None) -> None:
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"The result is a GeoTIFF, so --out must end in .tif; it is {out}.")
    if out.exists() and (out.is_dir() or (Path(scene).exists() and out.samefile(scene))):
        what = "a folder" if out.is_dir() else "the scene itself"
        raise InputError(f"{out} is {what}. Give the result another name with --out.")
    if polygons is not None:
        lies = None if source.transform.is_identity else source.transform
        check_polygons(polygons, source.crs, lies)
        if source.gcps[0]:
            raise InputError(
                f"{scene} is placed by ground control points, so the edges of its pixels are not "
                "straight lines on a map. Warp it first (gdalwarp), or leave --polygons out."
            )


def _refuse_replacing(out: Path, polygons: Path | None) -> None:
    for path in filter(None, (out, polygons)):
        if path.exists():
            raise InputError(f"{path} is there already. Give another name, or --overwrite.")


def _say_what_is_special(
    source: Any,
    scene: Path | str,
    predictor: Predictor,
    config: RasterConfig,
    windows: Windows,
    reporter: Reporter,
) -> None:
    if source.crs is None and not source.gcps[0]:
        reporter.note(f"{scene} has no coordinate system; neither has the result.")
    resized = predictor.info.short_side or predictor.info.long_side
    if resized is not None and predictor.info.window is None and config.window is None:
        reporter.note(
            f"The model learnt from images resized to {resized} pixels; a scene is seen at its own "
            "resolution."
        )
    row = 4 * len(predictor.classes) * windows.window * windows.size[1] / windows.step**2
    if row > MUCH:
        reporter.note(
            f"The logits of a row of windows take {row / 2**30:.1f} GiB of memory; smaller windows "
            "take less, and so do those that lie a multiple of 4 pixels apart."
        )


# Finished rows, kept until all are


def _state(
    scene: Path | str, source: Any, bands: tuple[int, ...], windows: Windows, predictor: Predictor
) -> dict[str, Any]:
    """All that the labels depend on: where it is the same, finished rows are still right."""
    file = Path(scene)
    facts = file.stat() if file.exists() else None
    return {
        "scene": str(file.resolve()) if facts else str(scene),
        "bytes": facts and facts.st_size,
        "changed": facts and facts.st_mtime_ns,
        "types": list(source.dtypes),
        "bands": list(bands),
        "windows": json.loads(json.dumps(asdict(windows))),
        "rows": PART_ROWS,
        "classes": list(predictor.classes),
        "model": _fingerprint(predictor.model),
    }


def _fingerprint(model: nn.Module) -> int:
    """A number that changes with the weights."""
    number = 0
    for value in model.state_dict().values():
        flat = value.detach().cpu().contiguous().reshape(-1)
        number = zlib.crc32(flat.view(torch.uint8).numpy(), number)
    return number


def _same_state(parts: Path, state: dict[str, Any]) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((parts / "state.json").read_text()) == state
    return False


def _begin_parts(parts: Path, state: dict[str, Any], going_on: bool, reporter: Reporter) -> None:
    if parts.exists() and not going_on:
        reporter.note("Rows of an earlier run are dropped: it had other settings or another scene.")
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    if not going_on:
        with atomic_path(parts / "state.json") as aside:
            aside.write_text(json.dumps(state))


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06}.labels"


def _read_part(parts: Path, index: int, shape: tuple[int, int], kind: type) -> np.ndarray:
    path = _part(parts, index)
    try:
        return np.frombuffer(zlib.decompress(path.read_bytes()), kind).reshape(shape)
    except (zlib.error, ValueError) as error:
        raise InputError(
            f"The finished rows in {path} are damaged ({error}). Delete the folder {parts} and "
            "start again."
        ) from error


def _label_parts(
    predictor: Predictor,
    source: Any,
    scene: Path | str,
    bands: tuple[int, ...],
    windows: Windows,
    config: RasterConfig,
    parts: Path,
    reporter: Reporter,
) -> None:
    """Label the rows that are not there yet."""
    height, width = windows.size
    num_parts = -(-height // PART_ROWS)
    index = next((i for i in range(num_parts) if not _part(parts, i).exists()), num_parts)
    if index:
        reporter.note(f"Going on from row {min(index * PART_ROWS, height)} of {height}.")
    if index == num_parts:
        return
    begun = first_window_row(windows, index * PART_ROWS)
    columns = len(windows.lefts)
    reporter.start("windows", len(windows.tops) * columns, begun * columns)
    rows = labelled_rows(
        predictor.model,
        reader(source, scene, bands, predictor.model),
        windows,
        channels=predictor.info.channels,
        num_classes=len(predictor.classes),
        ignore_index=predictor.info.ignore_index,
        batch_size=config.batch_size,
        first_row=index * PART_ROWS,
        advance=reporter.advance,
    )
    waiting = np.empty((0, width), _label_type(predictor))
    for some in rows:
        waiting = np.concatenate([waiting, some])
        while len(waiting) >= min(PART_ROWS, height - index * PART_ROWS) > 0:
            with atomic_path(_part(parts, index)) as aside:
                aside.write_bytes(zlib.compress(waiting[:PART_ROWS].tobytes(), 1))
            index, waiting = index + 1, waiting[PART_ROWS:]


def _label_type(predictor: Predictor) -> type:
    return np.uint8 if predictor.info.ignore_index == 255 else np.uint16


# The result


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """GDAL's errors, as those of a disk."""
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        raise OSError(
            f"{out} could not be written: {error}. The labels are kept; the same command goes on."
        ) from error


def _write_labels(
    path: Path, source: Any, parts: Path, predictor: Predictor, advance: Callable[[int], None]
) -> Integer[np.ndarray, " numbers"]:
    """Write the finished rows as a GeoTIFF, check that they are in it, and count each label."""
    import rasterio
    from rasterio.enums import Resampling

    height, width = source.height, source.width
    kind, ignored = _label_type(predictor), predictor.info.ignore_index
    points, points_crs = source.gcps
    placed = {"gcps": points, "crs": points_crs} if points else {"crs": source.crs}
    if not source.transform.is_identity:
        placed["transform"] = source.transform
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=1,
        dtype=np.dtype(kind).name,
        nodata=ignored,
        tiled=True,
        blockxsize=PART_ROWS,
        blockysize=PART_ROWS,
        compress="deflate",
        BIGTIFF="IF_SAFER",  # The compressed size is not known before.
        **placed,
    ) as target:
        entries = dict(enumerate((*colour, 255) for colour in predictor.colours))
        target.write_colormap(1, entries | {ignored: (0, 0, 0, 0)})
        point = source.tags().get("AREA_OR_POINT")
        target.update_tags(
            classes=json.dumps(predictor.classes), **({"AREA_OR_POINT": point} if point else {})
        )
        for label, window in _finished(parts, height, width, kind):
            target.write(label, 1, window=window)
            advance(label.shape[0])
    with rasterio.open(path, "r+") as target:
        factors = [2**i for i in range(1, 16) if max(height, width) >> i >= PART_ROWS // 2]
        if factors:
            target.build_overviews(factors, Resampling.nearest)
    counts = np.zeros(ignored + 1, np.int64)
    with rasterio.open(path) as target:  # On a full disk GDAL may find out too late to say so.
        for label, window in _finished(parts, height, width, kind):
            if not np.array_equal(target.read(1, window=window), label):
                raise OSError(f"{path} does not hold what was written to it: is the disk full?")
            counts += np.bincount(label.ravel(), minlength=len(counts))
    return counts


def _finished(
    parts: Path, height: int, width: int, kind: type
) -> Iterator[tuple[Integer[np.ndarray, "H W"], Any]]:
    """The finished rows from the top, and where they belong."""
    from rasterio.windows import Window

    for index, top in enumerate(range(0, height, PART_ROWS)):
        rows = min(PART_ROWS, height - top)
        window = Window(0, top, width, rows)  # pyright: ignore[reportCallIssue]
        yield _read_part(parts, index, (rows, width), kind), window
