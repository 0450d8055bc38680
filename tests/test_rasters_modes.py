"""A scene gets the labels that `predict` gives the same image, whatever the settings."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet import rasters_memory, rasters_parts, rasters_passes
from ccsnet.cli import run as run_command
from ccsnet.data.transforms import resize_image
from ccsnet.errors import InputError, NotFiniteError
from ccsnet.predict import PredictConfig, Predictor
from ccsnet.progress import Silent
from ccsnet.rasters import RasterConfig, label_raster
from ccsnet.rasters_resize import resized_part, under
from ccsnet.segmenter import create_segmenter
from tests.shapes import scene, tiny_model

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("shapely")

from tests import test_rasters  # noqa: E402
from tests.test_rasters import info  # noqa: E402
from tests.test_rasters import read as labels_of  # noqa: E402

write = partial(test_rasters.write, photometric="rgb")
SLOW = pytest.mark.slow
SIZES = (
    pytest.param((160, 128), marks=SLOW, id="multiples of 32"),
    pytest.param((203, 170), marks=SLOW, id="odd sides"),
    pytest.param((50, 141), id="low"),
)
MODES = {
    "plain": {},
    "overlap": {"overlap": 0.5},
    "flip": {"flip": True},
    "smaller": {"scales": (0.5,)},
    "odd scale": {"scales": (0.7,)},
    "larger": {"scales": (2.0,)},
    "scales": {"scales": (0.75, 1.0, 1.5)},
    "bf16": {"precision": "bf16"},
    "auto": {"precision": "auto"},
    "channels last": {"channels_last": True},
    "one at a time": {"batch_size": 1},
    "all": {
        "scales": (0.5, 1.25),
        "flip": True,
        "precision": "bf16",
        "overlap": 0.5,
        "batch_size": 3,
    },
}


@pytest.fixture(scope="module")
def networks():
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(create_segmenter(tiny_model(), num_classes=3).eval())
    return made


def picture(size, kind=np.uint8):
    pixels = scene(np.random.default_rng(sum(size)), size)[0]
    return pixels if kind == np.uint8 else pixels.astype(kind) * 200


def both(predictor, folder, pixels, **mode):
    """The label map of `predict`, and that of `raster`."""
    path = write(folder / "scene.tif", pixels)
    expected = predictor.predict(path, PredictConfig(**{"own_size": True} | mode)).label
    made = label_raster(
        predictor, path, folder / "labels.tif", RasterConfig(**mode), overwrite=True
    )
    return expected, labels_of(made.labels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_labels_are_those_of_predict(networks, tmp_path, size, mode, monkeypatch):
    monkeypatch.setattr(rasters_passes, "COLUMNS", 100)
    predictor = Predictor(networks[0], info())
    expected, found = both(predictor, tmp_path, picture(size), window=64, **MODES[mode])
    assert len(np.unique(expected)) > 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["flip", pytest.param("all", marks=SLOW)])
def test_of_several_models_and_in_the_data_sets_windows(networks, tmp_path, mode):
    several = Predictor(networks[0], info(), networks[1:])
    expected, found = both(several, tmp_path, picture((203, 170)), window=64, **MODES[mode])
    assert np.array_equal(found, expected)
    tested = Predictor(networks[0], info(window=(96, 42), short_side=100))
    expected, found = both(tested, tmp_path, picture((150, 141)), **MODES[mode])
    assert np.array_equal(found, expected)


def test_16_bits(networks, tmp_path):
    predictor = Predictor(networks[0], info())
    pixels = picture((203, 170), np.uint16)
    with pytest.warns(UserWarning, match="made for images of 8 bits") as told:
        expected, found = both(predictor, tmp_path, pixels, window=64, **MODES["all"])
    assert len(told) == 2  # Once of the image, once of the scene, however many windows it has.
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_places_without_data_stay_so(networks, tmp_path):
    predictor = Predictor(networks[0], info())
    pixels = picture((203, 170)).clip(1)
    pixels[30:70, :90] = 0
    pixels[120:] = 0
    path = write(tmp_path / "scene.tif", pixels)
    with rasterio.open(path, "r+") as source:
        source.nodata = 0
    for mode in ("flip", "smaller", "scales"):
        config = RasterConfig(window=64, **MODES[mode])
        found = labels_of(
            label_raster(predictor, path, tmp_path / "out.tif", config, overwrite=True).labels
        )
        assert np.array_equal(found == 255, (pixels == 0).all(axis=2))
        grid = predictor.pipeline(PredictConfig(window=64, **MODES[mode])).scores([pixels])
        expected = grid.label(0, (203, 170)).numpy()
        # Sums in another order: two classes may be level to within their rounding.
        probs = torch.cat([some for _, some in grid._bands(0, (203, 170))], dim=1)
        best = probs.topk(2, dim=0).values
        clear = (best[0] - best[1] > 1e-6).numpy()
        assert clear[70:116].mean() > 0.99
        assert np.array_equal(found[70:116][clear[70:116]], expected[70:116][clear[70:116]])


class Watching(Silent):
    """Keeps what is told, and presses Ctrl-C after so many windows."""

    def __init__(self, windows=0):
        self.left, self.notes, self.total, self.seen = windows, [], 0, 0

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total, done=0):
        if stage == "windows":
            self.total, self.seen = total, done
        self.counting = stage == "windows"

    def advance(self, units=1, **values):
        self.seen += units * self.counting
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_memory_chooses_windows_and_how_many(networks, tmp_path, monkeypatch):
    predictor = Predictor(networks[0], info())
    path, out = write(tmp_path / "scene.tif", picture((203, 170))), tmp_path / "labels.tif"
    watching = Watching()
    config = RasterConfig(max_memory=4096.0)
    found = labels_of(label_raster(predictor, path, out, config, reporter=watching).labels)
    assert watching.notes == [watching.notes[0]]
    assert "203 x 170 pixels: in windows of 128 x 128, 4 at once, about" in watching.notes[0]
    expected = predictor.predict(path, PredictConfig(window=128)).label
    assert np.array_equal(found, expected)
    # A little more than for one window of the side that is asked for.
    monkeypatch.setattr(rasters_memory, "peak_memory", lambda _: 1.0)
    monkeypatch.setattr(rasters_memory, "forward_bytes", lambda *_: 2**30)
    limit = 1.0 + 1.5 * rasters_memory.MARGIN + 0.2
    config = RasterConfig(window=64, max_memory=limit)
    label_raster(predictor, path, out, config, overwrite=True, reporter=watching)
    assert "in windows of 64 x 64, 1 at once" in watching.notes[1]
    with pytest.raises(InputError, match=r"max_memory is 2 GiB.*windows of 128 x 128.*narrower"):
        label_raster(predictor, path, out, RasterConfig(max_memory=2.0), overwrite=True)


@pytest.mark.slow
def test_a_stopped_run_of_several_passes_goes_on(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters_parts, "PART_ROWS", 64)
    predictor = Predictor(networks[0], info())
    pixels = picture((403, 130))
    path, out = write(tmp_path / "scene.tif", pixels), tmp_path / "labels.tif"
    mode = {"window": 64, "scales": (0.5, 1.0), "flip": True}
    config = RasterConfig(**mode)
    whole = Watching()
    label_raster(predictor, path, tmp_path / "whole.tif", config, reporter=whole)
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, config, reporter=Watching(50))
    last = Watching()
    label_raster(predictor, path, out, config, reporter=last)
    assert "Going on from row" in last.notes[0]
    assert last.seen == last.total == whole.total
    expected = predictor.predict(path, PredictConfig(**mode)).label
    assert np.array_equal(labels_of(out), expected)
    # Another setting does not take rows of this one.
    with pytest.raises(KeyboardInterrupt):
        label_raster(predictor, path, out, config, overwrite=True, reporter=Watching(50))
    last = Watching()
    label_raster(predictor, path, out, RasterConfig(window=64), overwrite=True, reporter=last)
    assert "dropped" in last.notes[0]
    expected = predictor.predict(path, PredictConfig(window=64)).label
    assert np.array_equal(labels_of(out), expected)


def test_models_that_say_nothing_are_named(tmp_path):
    model = create_segmenter(tiny_model(), num_classes=3).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    path = write(tmp_path / "scene.tif", picture((50, 45)))
    config = RasterConfig(window=64, flip=True)
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        label_raster(Predictor(model, info()), path, tmp_path / "labels.tif", config)


def test_the_command_takes_the_options_of_predict(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "scene.tif", picture((90, 75)))
    options = ["--window", "64", "--flip", "--scales", "0.75", "1.25", "--precision", "bf16"]
    options += ["--also", str(run.out), "--cpu", "--max-memory", "4096", "--batch-size", "2"]
    labels = ["--save", "index", "--out", "predicted"]
    assert run_command(["predict", str(run.out), str(path), *options, *labels]) == 0
    assert run_command(["raster", str(run.out), str(path), *options]) == 0
    assert "in windows of 64 x 64, 2 at once" in capsys.readouterr().out.replace("\n", " ")
    expected = np.asarray(Image.open(tmp_path / "predicted" / "index" / "scene.png"))
    assert len(np.unique(expected)) == 3
    assert np.array_equal(labels_of(tmp_path / "scene-labels.tif"), expected)


def test_parts_are_those_of_the_resized_whole():
    rng = np.random.default_rng(0)
    for trial in range(300):
        size = tuple(map(int, rng.integers(1, 120, 2)))
        size, made = {
            0: (size, (size[0] * 2, size[1] * 2)),
            1: ((size[0] * 2, size[1] * 2), size),
            2: (size, tuple(-(-side // 4) * 4 for side in size)),
        }.get(trial % 5, (size, tuple(map(int, rng.integers(1, 200, 2)))))
        kind = np.uint8 if trial % 2 else np.uint16
        shape = (*size, int(rng.choice([1, 2, 3, 4, 6])))
        pixels = rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
        starts = [int(rng.integers(0, side)) for side in made]
        part = tuple(
            slice(start, int(rng.integers(start, side)) + 1)
            for start, side in zip(starts, made, strict=True)
        )
        below = under(size, made, part)
        found = resized_part(pixels[below], (below[0].start, below[1].start), size, made, part)
        wrong = np.abs(found.astype(int) - resize_image(pixels, made)[part])
        # OpenCV's weights for 16 bits are those of the library that it was built with.
        assert wrong.max() <= (0 if kind == np.uint8 else 1)
