"""`ccsnet raster`: arguments, one call, a table."""

from dataclasses import dataclass, field
from pathlib import Path

from ccsnet.arguments import before_options, parse, positional
from ccsnet.errors import InputError
from ccsnet.rasters_config import RasterConfig


@dataclass(frozen=True, kw_only=True)
class RasterArguments:
    """How to label a scene, and what to write."""

    out: Path | None = None
    """The GeoTIFF to write; none: SCENE-labels.tif in this folder."""
    polygons: Path | None = None
    """Also write the labels' areas: a .gpkg (the scene's coordinates) or .geojson (degrees)."""
    also: tuple[str, ...] = ()
    """More runs or files of the same classes: the mean of all is predicted."""
    how: RasterConfig = field(default_factory=RasterConfig)
    overwrite: bool = False
    """Replace results that are there already."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def raster(arguments: list[str]) -> int:
    """Label a large georeferenced scene: ccsnet raster RUN SCENE.tif [--out LABELS.tif] [...].

    The result is a palette GeoTIFF of the same place, and polygons on request. Memory does not
    grow with the scene's height. A command that was stopped goes on when it is given again.
    """
    from ccsnet.metrics import percent
    from ccsnet.predict import load
    from ccsnet.rasters import label_raster
    from ccsnet.terminal import TerminalReporter, make_console, table

    run, arguments = positional("run", arguments, "raster", RasterArguments, raster.__doc__)
    scenes, arguments = before_options(arguments)
    options: RasterArguments = parse(
        RasterArguments, "raster", arguments, description=raster.__doc__
    )
    if len(scenes) != 1:
        raise InputError(
            f"One scene at a time, got {len(scenes)}: ccsnet raster {run} SCENE.tif. Label several "
            "as one through a VRT: gdalbuildvrt all.vrt a.tif b.tif"
        )
    out = options.out or Path(f"{Path(scenes[0]).stem}-labels.tif")
    console = make_console()
    try:
        made = label_raster(
            load(run, "cpu" if options.cpu else None, also=options.also),
            scenes[0],
            out,
            options.how,
            polygons=options.polygons,
            overwrite=options.overwrite,
            reporter=TerminalReporter(console),
        )
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from the finished rows.", highlight=False)
        return 130
    labelled = max(1, sum(made.counts.values()))
    rows = [[name, str(n), percent(n / labelled)] for name, n in made.counts.items()]
    columns = {"class": "left", "pixels": "right", "%": "right"}
    console.print(table(f"{made.size[0]} x {made.size[1]} pixels", columns, rows))
    nothing = f", {made.unlabelled} pixels without data" if made.unlabelled else ""
    shapes = f", {made.polygons} polygons in {options.polygons}" if options.polygons else ""
    console.print(f"Labels in {made.labels}{nothing}{shapes}", highlight=False, markup=False)
    return 0
