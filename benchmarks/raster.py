"""Memory and time of labelling a large scene: a sparse GeoTIFF is made, then labelled.

    python -m benchmarks.raster [--fake] [--size 40000 40000] [--backbone mit_b0] [--classes 8]
                                [--polygons] [--flip] [--scales 0.75 1.0] [--max-memory 2]

The file is sparse: blocks of noise lie on its diagonal, the rest takes no room on the disk but is
read, shown to the model and labelled like any other pixels. How far it is and how long it will take
is shown on the way; the peak of memory at the end. `--fake` replaces the model by one
pooling, which measures the pipeline alone. The labelling is a process of its own, so that its
peak is not that of making the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from ccsnet.checkpoint import ClassInfo
from ccsnet.heads._base import HeadConfig, Output
from ccsnet.memory import peak_memory
from ccsnet.predict import Predictor
from ccsnet.rasters import RasterConfig, label_raster
from ccsnet.segmenter import ModelConfig, create_segmenter
from ccsnet.terminal import TerminalReporter

BLOCK = 512


class Pooled(nn.Module):
    """As cheap as a model can be: classes by the brightness of 4 x 4 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(0, 255, num_classes).view(-1, 1, 1))

    def forward(self, image: torch.Tensor) -> Output:
        """Logits at stride 4."""
        grey = nn.functional.avg_pool2d(image.float().mean(1, keepdim=True), 4)
        return Output(-(grey - self.levels).abs())


def make_scene(path: Path, size: tuple[int, int], bands: int) -> None:
    """A GeoTIFF of which only the blocks on the diagonal are stored."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=size[0],
        width=size[1],
        count=bands,
        dtype="uint8",
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        BIGTIFF="YES",
        SPARSE_OK=True,
    ) as target:
        for start in range(0, min(size) - BLOCK + 1, BLOCK):
            coarse = rng.integers(0, 256, (bands, BLOCK // 32, BLOCK // 32), dtype=np.uint8)
            noise = coarse.repeat(32, axis=1).repeat(32, axis=2)
            target.write(noise, window=Window(start, start, BLOCK, BLOCK))  # pyright: ignore[reportCallIssue]


def label(options: argparse.Namespace, scene: Path) -> dict[str, float]:
    """Label the scene in this process; returns what it took."""
    mean = (100.0,) * options.bands
    if options.fake:
        model = Pooled(options.classes)
    else:
        torch.manual_seed(0)
        settings = ModelConfig(
            backbone=options.backbone,
            head_config=HeadConfig(),
            mean=mean,
            std=(50.0,) * options.bands,
        )
        model = create_segmenter(
            settings, num_classes=options.classes, in_channels=options.bands, load_weights=False
        )
    info = ClassInfo(
        dataset="noise",
        classes=tuple(f"class {i}" for i in range(options.classes)),
        colours=tuple((i % 256, 99, 255 - i % 256) for i in range(options.classes)),
        channels=options.bands,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(model.eval().to(device), info)  # pyright: ignore[reportArgumentType]
    config = RasterConfig(
        window=options.window,
        overlap=options.overlap,
        batch_size=options.batch_size,
        flip=options.flip,
        scales=tuple(options.scales),
        max_memory=options.max_memory,
    )
    polygons = scene.with_name("labels.gpkg") if options.polygons else None
    before, start = _peak_mib(), time.perf_counter()
    made = label_raster(
        predictor,
        scene,
        scene.with_name("labels.tif"),
        config,
        polygons=polygons,
        overwrite=True,
        reporter=TerminalReporter(Console(stderr=True)),
    )
    seconds = time.perf_counter() - start
    pixels = made.size[0] * made.size[1]
    return {
        "seconds": seconds,
        "megapixels_s": pixels / seconds / 1e6,
        "peak_mib": _peak_mib(),
        "before_mib": before,
        "labels_mib": made.labels.stat().st_size / 2**20,
        "polygons": made.polygons or 0,
    }


def _peak_mib() -> float:
    """The most memory that this process has had."""
    return peak_memory(torch.device("cpu")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(40000, 40000))
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--window", type=int, help="none: 512, or what --max-memory leads to")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--scales", type=float, nargs="+", default=(1.0,))
    parser.add_argument("--max-memory", type=float, help="GiB")
    parser.add_argument("--backbone", default="mit_b0")
    parser.add_argument("--fake", action="store_true", help="a pooling instead of a model")
    parser.add_argument("--polygons", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process is not None:
        print(json.dumps(label(options, options.in_process)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder and options.folder.parent) as aside:
        folder = options.folder or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        scene = folder / "scene.tif"
        make_scene(scene, tuple(options.size), options.bands)
        again = [sys.executable, "-m", "benchmarks.raster", "--in-process", str(scene)]
        done = subprocess.run(
            [*again, *sys.argv[1:]], check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout)
    if options.json:
        print(json.dumps(found))
        return
    kind = "a pooling" if options.fake else options.backbone
    print(
        f"{options.size[0]} x {options.size[1]} pixels, {options.bands} bands, {options.classes} "
        f"classes, {kind}: {found['seconds']:.0f} s, "
        f"{found['megapixels_s']:.2f} megapixels/s, peak memory {found['peak_mib'] / 1024:.2f} GiB "
        f"({found['before_mib'] / 1024:.2f} GiB before the scene), labels "
        f"{found['labels_mib']:.1f} MiB"
        + (f", {found['polygons']} polygons" if options.polygons else "")
    )


if __name__ == "__main__":
    main()
