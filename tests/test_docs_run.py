"""Pages of docs that have no test file of their own: what stands there runs, as it stands there.

Only models, training samples and large numbers of steps are made small. Paths below /net are below
the test's folder.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image

import ccsnet.recipes
from tests import pages, shapes, test_rasters
from tests.data import test_foreign
from tests.pages import ROOT


def small(make: Callable) -> Callable:
    """The recipe with the tests' smallest model and few small samples."""

    def made():
        full = make()
        return replace(
            full,
            data=replace(full.data, crop=(64, 64), workers=0),
            model=replace(
                shapes.tiny_model(), head=full.model.head, backbone_weights="none", drop_path=0.0
            ),
            train=replace(full.train, batch_size=2, precision="float32", steps=2, cpu=True),
        )

    return made


def photos(_):
    shapes.make_shapes(Path("photos"), train=4, val=2)


def streets(_):
    shapes.make_shapes(Path("streets"), train=4, val=2)


def my_streets(_):
    (shapes.make_shapes(Path("my-streets")) / "dataset.yaml").unlink()


def street(_):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    Image.fromarray(pixels).save("street.jpg")


def pictures(run):
    shutil.copytree(run.data / "images" / "val", "photos")


def harbour(_):
    yaml = "classes: [a, b, c]\nimages: images/{split}/*.png\nlabels: labels/{split}/*.png\n"
    made = shapes.make_shapes(Path("made"), yaml=yaml)
    for kind, folder in (("images", "photos"), ("labels", "truth")):
        for path in sorted((made / kind).rglob("*.png")):
            out = Path("data/harbour", folder, path.parent.name, path.name)
            out.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(path)
            if kind == "images":
                image.convert("RGB").save(out.with_suffix(".jpg"))
            else:
                values = np.array([10, 20, 10, *[0] * 253], np.uint8)
                Image.fromarray(values[np.asarray(image)]).save(out)


def sources(_):
    """What three annotation programs would have written."""
    size = test_foreign.SIZE
    car, person = test_foreign.corners(4, 4, 16, 30), test_foreign.corners(22, 10, 34, 40)
    for name in "abcd":
        drawn = [("car", "polygon", car), ("person", "polygon", person)]
        test_foreign.labelme(Path("labelled"), name, drawn)
        test_foreign.picture(Path("labelled", f"{name}.png"))
        test_foreign.picture(Path("train2017", f"{name}.png"))
    test_foreign.coco(
        Path("instances_train2017.json"),
        {f"{name}.png": size for name in "abcd"},
        [(i, 1 + i % 2, [test_foreign.flat(4, 4, 16, 30)], 0) for i in range(4)],
        categories=((1, "person"), (2, "car")),
    )
    test_foreign.cvat(Path("cvat-export/annotations.xml"), test_foreign.SHAPES)
    test_foreign.picture(Path("cvat-export/images/a.png"))


def scenes(_):
    rng = np.random.default_rng(0)
    for name, bands in (("scene", 3), ("sentinel", 5)):
        pixels = rng.integers(0, 256, (300, 260, bands), np.uint8)
        test_rasters.write(Path(f"{name}.tif"), pixels)


def studies(_):
    Path("docs").symlink_to(ROOT / "docs")


def runs(*names: str) -> Callable:
    """Copies of a finished run under the names that a page has for it."""

    def copy(run):
        for name in names:
            shutil.copytree(run.out, name)

    return copy


MANY = 200  # Steps; what is above is not worth the time.

NEEDED: dict[str, tuple[Callable, ...]] = {
    "data-check": (streets,),
    "export": (runs("runs/mine"), pictures),
    "extend": (harbour,),
    "from-hugging-face": (runs("runs/photos-ccs"), street),
    "from-mmsegmentation": (photos, runs("runs/photos-ccs"), street),
    "from-smp": (photos,),
    "import": (sources,),
    "own-data": (my_streets,),
    "rasters": (runs("runs/landcover", "runs/other"), scenes),
    "resume": (photos,),
    "shards": (streets,),
    "start": (),
    "study": (studies,),
    "tracking": (runs("runs/photos-ccs", "archive/photos-ccs"),),
    "variants": (photos,),
}
LEFT = {  # Files that a page says it writes.
    "data-check": ("found.json", "streets.html"),
    "export": ("runs/mine/model.onnx", "m.xml", "m.bin", "runs/mine/model-int8.json"),
    "from-mmsegmentation": ("street.png",),
    "import": ("streets/dataset.yaml", "coco/dataset.yaml", "fields/dataset.yaml"),
    "own-data": ("my-streets/dataset.yaml",),
    "rasters": ("labels.tif", "labels.gpkg", "scene-labels.tif", "sentinel-labels.tif"),
    "resume": ("runs/auto/best.safetensors",),
    "start": ("runs/photos-ccs/report.html", "predictions/overlay/00.png"),
    "tracking": ("runs/photos-ccs/report.html", "runs.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDED)
def test_page(name, run, tmp_path, monkeypatch, call):
    page = f"docs/{name}.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        ccsnet.recipes, "RECIPES", {k: small(make) for k, make in ccsnet.recipes.RECIPES.items()}
    )
    # torch.export cannot look through the checks of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", name == "export")
    (tmp_path / "net").mkdir()
    for prepare in NEEDED[name]:
        prepare(run)
    for block in pages.blocks(page):
        if block.kind == "bash":
            run_commands(block, tmp_path, call)
        elif block.text.startswith("# my_parts.py\n"):
            with Path("my_parts.py").open("a") as file:
                file.write(block.text)
        else:
            pages.execute(block)
    for path in LEFT.get(name, ()):
        assert Path(path).is_file(), path


def run_commands(block, folder, call):
    if not all(words[0] == "ccsnet" for words in pages.lines(block)):
        assert "sha256sum -c" in block.text
        subprocess.run(["bash", "-ec", block.text], cwd=folder / "net/streets-shards", check=True)
        return
    for words in pages.lines(block):
        words = [word.replace("/net/", f"{folder}/net/") for word in words]
        if "--steps" in words and int(words[at := words.index("--steps") + 1]) > MANY:
            words[at] = "2"
        if "--max-memory" in words:  # All that this process ever took would count.
            program = [sys.executable, "-m", *words]
            done = subprocess.run(program, capture_output=True, text=True)
            status, error = done.returncode, done.stderr
        else:
            status, _, error = call(*words[1:])
        assert status == 0, f"{' '.join(words)}: {error}"


def test_every_page_here_has_code():
    for name in NEEDED:
        assert pages.blocks(f"docs/{name}.md"), name
    assert {*LEFT} <= {*NEEDED}
