"""A georeferenced scene: opened, its bands chosen, read in windows."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from torch import Tensor, nn

from ccsnet.depth import depth_warning
from ccsnet.errors import InputError
from ccsnet.rasters_passes import Read

CACHE_MB = (64, 512)
"""Least and most memory for blocks of files that are open; a row of windows where that fits."""
AS_STORED = ("uint8", "uint16")
"""Types in which pixels without data are shown to the model as they are: those it learns from."""
MAX_BLOCK = 2**30
"""Bytes of a block of the file, which is read as a whole, however little of it is wanted."""
INSTALL = "pip install 'ccsnet[raster]'"


@contextlib.contextmanager
def open_scene(scene: Path | str) -> Iterator[Any]:
    """The scene, opened for reading."""
    try:
        import rasterio
        import shapely  # noqa: F401
        from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
    except ImportError as error:
        raise InputError(f"Large rasters need rasterio and shapely ({error}): {INSTALL}") from None
    name = str(scene)
    if not name.startswith("/vsi") and ":" not in name:  # Not GDAL's names for parts of files.
        if not Path(name).exists():
            raise FileNotFoundError(f"There is no scene {name}.")
        if Path(name).is_dir():
            raise InputError(
                f"{name} is a folder; give one scene. Label several one after the other, or as one "
                f"through a VRT: gdalbuildvrt all.vrt {name}/*.tif"
            )
    with warnings.catch_warnings():
        # That a scene lies nowhere is noted in our own words.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            source = rasterio.open(name)
        except RasterioIOError as error:
            raise InputError(f"{name} cannot be read as a raster: {error}") from error
        with source:
            if source.count == 0:
                inside = ", ".join(source.subdatasets[:4]) or "nothing"
                raise InputError(
                    f"{name} has no bands of its own. Give one that it holds: {inside}"
                )
            yield source


def chosen_bands(
    source: Any, asked: tuple[int, ...], channels: int, scene: Path | str
) -> tuple[int, ...]:
    """Numbers of the bands that the model is shown."""
    names = [colour.name for colour in source.colorinterp]
    colours = tuple(i for i, name in enumerate(names, start=1) if name != "alpha")
    bands = asked or colours
    wrong = [band for band in bands if not 1 <= band <= source.count]
    if wrong:
        raise InputError(
            f"{scene} has no band {wrong[0]}; its bands are 1 to {source.count} "
            f"({', '.join(names)})."
        )
    if len(bands) != channels:
        got = f"--bands names {len(bands)}" if asked else f"{scene} has {len(bands)}"
        example = " ".join(str(min(i, source.count)) for i in range(1, channels + 1))
        raise InputError(
            f"The model takes {channels} bands; {got} ({', '.join(names)}). Name those that it was "
            f"trained on, in their order: --bands {example}"
        )
    if any(names[band - 1] == "palette" for band in bands):
        raise InputError(
            f"{scene} holds numbers of a palette, not values of a picture. Paint them first: "
            f"gdal_translate -expand rgb {scene} painted.tif"
        )
    kinds = {source.dtypes[band - 1] for band in bands}
    if any("complex" in kind for kind in kinds):
        raise InputError(f"{scene} holds complex numbers; write their magnitudes to another file.")
    return bands


def check_blocks(source: Any, scene: Path | str) -> None:
    """Refuse a scene whose strips or tiles are too large to be read one at a time.

    Raises:
        InputError: They are, whatever they hold.
    """
    together = source.count if source.profile.get("interleave") == "pixel" else 1
    for (rows, columns), kind in zip(source.block_shapes, source.dtypes, strict=True):
        size = rows * columns * np.dtype(kind).itemsize * together
        if size > MAX_BLOCK:
            raise InputError(
                f"{scene} is stored in blocks of {rows} x {columns} pixels, {size / 2**30:.1f} GiB "
                f"each, which are read as a whole; {MAX_BLOCK / 2**30:.0f} GiB is allowed. Write "
                f"it again in tiles: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE {scene} "
                "tiled.tif"
            )


def reader(source: Any, scene: Path | str, bands: tuple[int, ...], model: nn.Module) -> Read:
    """What gives the pixels of a part, values as stored, and where there are any."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    mean: Tensor | None = getattr(model, "mean", None)
    # GDAL's masks know of an alpha band only beside one or three others.
    alpha = [i for i, colour in enumerate(source.colorinterp, start=1) if colour.name == "alpha"]
    alpha = [] if source.count in (2, 4) else alpha
    told = False

    def read(
        rows: slice, columns: slice
    ) -> tuple[Num[np.ndarray, "rows columns C"], Bool[np.ndarray, "rows columns"]]:
        nonlocal told
        window = Window.from_slices(rows, columns)
        try:
            if len({source.dtypes[band - 1] for band in bands}) == 1:
                pixels = source.read(bands, window=window)
            else:  # In a type that holds all of their values.
                pixels = np.stack([source.read(band, window=window) for band in bands])
            # A place is empty where all of its bands are: 0 in one of them may be a value.
            valid = source.read_masks(bands, window=window).any(axis=0)
            if alpha:
                valid &= source.read(alpha, window=window).any(axis=0)
        except RasterioError as error:
            raise InputError(
                f"{scene} is damaged: rows {rows.start} to {rows.stop - 1}, columns "
                f"{columns.start} to {columns.stop - 1} cannot be read ({error})."
            ) from error
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        if not told and pixels.dtype != np.uint8:  # No copy of bytes, which always fit.
            warning = depth_warning([model], pixels[:, valid], str(scene))
            if warning:
                warnings.warn(warning, stacklevel=2)
                told = True
        if pixels.dtype not in AS_STORED:
            pixels = pixels.astype(np.float32)
            fill = np.zeros(len(bands)) if mean is None else mean.cpu().numpy().ravel()
            np.copyto(pixels, fill[:, None, None].astype(np.float32), where=~valid)
        return pixels.transpose(1, 2, 0), valid

    return read


@contextlib.contextmanager
def environment(source: Any, bands: tuple[int, ...], rows: int) -> Iterator[None]:
    """GDAL with as much cache as a row of windows needs; its own choice grows with the machine."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=cache_mb(source, bands, rows)):
        yield


def cache_mb(source: Any, bands: tuple[int, ...], rows: int) -> int:
    """The cache in which so many rows of the scene fit, within bounds."""
    block_rows = max(rows for rows, _ in source.block_shapes)
    wide = source.width * len(bands) * np.dtype(source.dtypes[bands[0] - 1]).itemsize
    needed = (rows + 2 * block_rows) * wide // 2**20
    return int(min(max(needed, CACHE_MB[0]), CACHE_MB[1]))
