"""Label a georeferenced raster of any size: a scene in, a palette GeoTIFF and polygons out.

The scene is read in windows, and finished rows are kept on the disk beside the result, so that
memory depends on the scene's width alone and a run that was killed goes on where it was.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from ccsnet.errors import InputError
from ccsnet.files import NAME_BYTES, atomic_path, fits, fitting_name
from ccsnet.inference import Pipeline
from ccsnet.predict import Predictor
from ccsnet.progress import Reporter, Silent
from ccsnet.rasters_config import RasterConfig
from ccsnet.rasters_memory import blended_bytes, fitting, rows_under
from ccsnet.rasters_parts import (
    PART_ROWS,
    asked_before,
    begin_parts,
    finished_rows,
    has_state,
    note_results,
    read_parts,
    state_of,
    write_parts,
)
from ccsnet.rasters_passes import Plan, Read, labelled_rows
from ccsnet.rasters_polygons import check_polygons, write_polygons
from ccsnet.rasters_scene import (
    cache_mb,
    check_blocks,
    chosen_bands,
    environment,
    open_scene,
    reader,
)
from ccsnet.sliding import stride_of

DEFAULT_WINDOW = 512
MUCH = 2**30
"""Bytes of rows of windows that are worth a word."""


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
        predictor: The model, or several, whose mean is taken.
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
    parts = out.with_name(fitting_name(f".{out.name}", ".parts"))
    with open_scene(scene) as source:
        bands = chosen_bands(source, config.bands, predictor.info.channels, scene)
        check_blocks(source, scene)
        _check_results(source, scene, out, shapes)
        pipeline = predictor.pipeline(dataclasses.replace(config, own_size=True))
        plan, batch_size = _plan(pipeline, source, bands, reporter)
        state = state_of(scene, source, bands, plan, predictor)
        going_on = has_state(parts, state)
        results = [path for path in (out, shapes) if path is not None]
        if not overwrite:
            _refuse_replacing(results, asked_before(parts) if going_on else ())
        _say_what_is_special(source, scene, predictor, config, plan, reporter)
        begin_parts(parts, state, going_on, reporter)
        note_results(parts, results)
        with environment(source, bands, rows_under(pipeline, plan.size, plan.window)):
            read = reader(source, scene, bands, predictor.model)
            _label_parts(plan, read, batch_size, predictor.info.ignore_index, parts, reporter)
            with _writing(out), atomic_path(out, folder=parts) as aside:
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
        size=plan.size,
        counts={predictor.classes[i]: int(counts[i]) for i in order if counts[i]},
        unlabelled=int(counts[predictor.info.ignore_index]),
        polygons=number,
    )


# What is asked, and whether it can be done


def _plan(
    pipeline: Pipeline, source: Any, bands: tuple[int, ...], reporter: Reporter
) -> tuple[Plan, int]:
    """How the scene is seen, and in how many windows at once."""
    size = (source.height, source.width)
    told = dataclasses.replace(pipeline, note=reporter.note)
    window, batch_size = fitting(
        told,
        size,
        len(bands),
        (DEFAULT_WINDOW, stride_of(DEFAULT_WINDOW, pipeline.config.overlap)),
        lambda rows: cache_mb(source, bands, rows) * 2**20,
    )
    return Plan(pipeline=pipeline, size=size, window=window, channels=len(bands)), batch_size


def _check_results(source: Any, scene: Path | str, out: Path, polygons: Path | None) -> None:
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"The result is a GeoTIFF, so --out must end in .tif; it is {out}.")
    for path in filter(None, (out, polygons)):
        if not fits(path.name):
            raise InputError(
                f"The result would be called {path.name}, and a file's name has {NAME_BYTES} bytes "
                "at most. Give a shorter one with --out or --polygons."
            )
        if path.exists() and (path.is_dir() or (Path(scene).exists() and path.samefile(scene))):
            what = "a folder" if path.is_dir() else "the scene itself"
            option = "--out" if path == out else "--polygons"
            raise InputError(f"{path} is {what}. Give the result another name with {option}.")
    if polygons is not None:
        lies = None if source.transform.is_identity else source.transform
        check_polygons(polygons, source.crs, lies)
        if source.gcps[0]:
            raise InputError(
                f"{scene} is placed by ground control points, so the edges of its pixels are not "
                "straight lines on a map. Warp it first (gdalwarp), or leave --polygons out."
            )


def _refuse_replacing(results: Sequence[Path], but: Collection[Path]) -> None:
    for path in results:
        if path.exists() and path.resolve() not in but:
            raise InputError(f"{path} is there already. Give another name, or --overwrite.")


def _say_what_is_special(
    source: Any,
    scene: Path | str,
    predictor: Predictor,
    config: RasterConfig,
    plan: Plan,
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
    held = blended_bytes(plan.pipeline, plan.size, plan.window)
    if held > MUCH and config.max_memory is None:
        reporter.note(
            f"The logits of a row of windows take {held / 2**30:.1f} GiB of memory; smaller "
            "windows take less, and so do those that lie a multiple of 4 pixels apart."
        )


def _label_parts(
    plan: Plan, read: Read, batch_size: int, ignore_index: int, parts: Path, reporter: Reporter
) -> None:
    """Label the rows that are not there yet."""
    height = plan.size[0]
    first_row = finished_rows(parts, height)
    if first_row:
        reporter.note(f"Going on from row {first_row} of {height}.")
    if first_row == height:
        return
    total = plan.num_windows()
    reporter.start("windows", total, total - plan.num_windows(first_row))
    rows = labelled_rows(
        plan,
        read,
        ignore_index=ignore_index,
        batch_size=batch_size,
        first_row=first_row,
        advance=reporter.advance,
    )
    write_parts(parts, first_row, rows, height)


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
        for label, window in read_parts(parts, height, width, kind):
            target.write(label, 1, window=window)
            advance(label.shape[0])
    with rasterio.open(path, "r+") as target:
        factors = [2**i for i in range(1, 16) if max(height, width) >> i >= PART_ROWS // 2]
        if factors:
            target.build_overviews(factors, Resampling.nearest)
    counts = np.zeros(ignored + 1, np.int64)
    with rasterio.open(path) as target:  # On a full disk GDAL may find out too late to say so.
        for label, window in read_parts(parts, height, width, kind):
            if not np.array_equal(target.read(1, window=window), label):
                raise OSError(f"{path} does not hold what was written to it: is the disk full?")
            counts += np.bincount(label.ravel(), minlength=len(counts))
    return counts
