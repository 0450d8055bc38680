"""One pipeline for evaluate and predict: what is measured is what is predicted, in every mode."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ccsnet
from ccsnet import inference, trial
from ccsnet.checkpoint import load_model, read_checkpoint, save_checkpoint
from ccsnet.cpu_kernels import faster_kernels
from ccsnet.data.opening import open_dataset
from ccsnet.data.transforms import resize_image
from ccsnet.errors import InputError
from ccsnet.evaluate import evaluate, pipeline_samples
from ccsnet.footprint import forward_bytes
from ccsnet.grid import ScoreGrid
from ccsnet.heads._base import Output
from ccsnet.inference import Pipeline, PredictConfig
from ccsnet.metrics import ConfusionMatrix
from ccsnet.predict import Predictor
from ccsnet.segmenter import create_segmenter
from ccsnet.sliding import sliding_logits
from ccsnet.upsample import upsample_argmax
from tests.shapes import tiny_model


@pytest.fixture(scope="module")
def models(run):
    """A trained one and another with the same classes."""
    torch.manual_seed(1)
    other = create_segmenter(tiny_model(), num_classes=3).eval()
    return load_model(read_checkpoint(run.out)), other


def random_image(*size, bands=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, bands), dtype=np.uint8)


def pipeline_of(models, **settings):
    where = {key: settings.pop(key) for key in ("sides", "tested_in") if key in settings}
    return Pipeline(models=models, num_classes=3, config=PredictConfig(**settings), **where)


# Evaluate and predict


def both_ways(run, models, config, sides=(None, None), tested_in=None):
    """The confusion matrix that evaluate finds, and that of predict's label maps."""
    spec, root = open_dataset(run.config.data)
    spec = replace(spec, short_side=sides[0], long_side=sides[1], window=tested_in)
    pipeline = Pipeline(
        models=models, num_classes=3, config=config, sides=sides, tested_in=tested_in
    )
    samples = pipeline_samples(pipeline, spec, root, run.config.data, "val")
    measured = evaluate(pipeline, samples, spec.classes).metrics
    info = replace(
        read_checkpoint(run.out).info, short_side=sides[0], long_side=sides[1], window=tested_in
    )
    predictor = Predictor(models[0], info, models[1:])
    total = ConfusionMatrix(3, 255)
    for sample in samples:
        file = run.data / "images" / "val" / f"{sample.name}.png"
        label = predictor.predict(file, config).label
        total.update(sample.label, torch.from_numpy(label))
    return measured.confusion, total.matrix()


@pytest.mark.parametrize(
    ("window", "scales", "flip", "num"),
    [
        # Every second one is fast: all pairs of values are among them.
        pytest.param(*mode, marks=[pytest.mark.slow] * ((len(mode[1]) + sum(mode[2:])) % 2))
        for mode in itertools.product((None, 0, 64), ((1.0,), (0.75, 1.5)), (False, True), (1, 2))
    ],
)
def test_what_is_measured_is_what_is_predicted(run, models, window, scales, flip, num):
    config = PredictConfig(window=window, scales=scales, flip=flip, batch_size=1)
    measured, predicted = both_ways(run, models[:num], config)
    assert np.array_equal(measured, predicted)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window": 64},
        {"window": 0},
        {"window": 64, "own_size": False},
        {"own_size": True},
        {"scales": (0.5, 1.0), "flip": True},
        {"precision": "bf16"},
        {"channels_last": True},
        {"max_memory": 64.0},
    ],
)
@pytest.mark.parametrize("tested_in", [None, (64, 42)])
def test_the_same_where_the_data_has_sides_and_windows(run, models, settings, tested_in):
    config = PredictConfig(**{"batch_size": 1, **settings})
    measured, predicted = both_ways(run, models[:1], config, (80, 130), tested_in)
    assert np.array_equal(measured, predicted)


def test_batches_only_change_rounding(run, models):
    for settings in ({}, {"window": 64}, {"scales": (0.5, 1.0), "flip": True}):
        one, many = (
            both_ways(run, models[:1], PredictConfig(batch_size=n, **settings))[0] for n in (1, 5)
        )
        assert one.sum() == many.sum()
        assert np.abs(one - many).sum() <= 8


# One pass, and the mean of several


def test_one_pass_is_the_plain_forward_pass(models):
    image = random_image(64, 96)
    with torch.inference_mode(), faster_kernels(torch.device("cpu")):
        logits = models[0](torch.from_numpy(image).permute(2, 0, 1)[None]).logits
    grid = pipeline_of(models[:1]).scores([image])
    assert not grid.averaged
    assert torch.equal(grid.values, logits)
    assert torch.equal(grid.label(0, (50, 90)), upsample_argmax(logits, (50, 90))[0])


def test_several_passes_are_the_mean_of_probabilities(models):
    image = random_image(64, 96)
    total = torch.zeros(1, 3, 16, 24)
    for model, scale, flip in itertools.product(models, (1.0, 1.5), (False, True)):
        seen = resize_image(image, (round(64 * scale), round(96 * scale / 32 + 0.25) * 32))
        shown = torch.from_numpy(np.ascontiguousarray(seen[:, ::-1] if flip else seen))
        with torch.inference_mode():
            probs = model(shown.permute(2, 0, 1)[None]).logits.softmax(1)
        probs = probs.flip(-1) if flip else probs
        total += F.interpolate(probs, size=(16, 24), mode="bilinear", align_corners=False) / 8
    grid = pipeline_of(models, scales=(1.5, 1.0), flip=True).scores([image])
    assert grid.averaged
    torch.testing.assert_close(grid.values, total, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("size", [(64, 96), (75, 101), (30, 200)])
def test_with_flips_left_and_right_are_equal(models, window, size):
    image = random_image(*size)
    pipeline = pipeline_of(models[:1], window=window, overlap=0.5, flip=True)
    found = pipeline.scores([image, np.ascontiguousarray(image[:, ::-1])]).values
    if window and size[1] % 32:  # Windows start on the left: they stand elsewhere in the mirror.
        assert found.shape[3] == -(-size[1] // 4)
        return
    torch.testing.assert_close(found[1].flip(-1), found[0], atol=2e-5, rtol=1e-3)


class Bright(nn.Module):
    """A model that sees single places: the first class where it is bright, else the second."""

    def __init__(self, stride=4):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        pooled = F.avg_pool2d(image.float().mean(1, keepdim=True), self.stride) / 100 - 1
        return Output(self.weight * torch.cat([pooled, -pooled, 0 * pooled - 9], 1))


@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("strides", [(4,), (1,), (16, 4), (4, 1)])
def test_passes_of_all_scales_and_models_lie_on_each_other(window, strides):
    """An edge stays at its place, whatever grids are averaged and however odd the sides are."""
    image = np.zeros((90, 203, 3), np.uint8)
    image[:, :120] = 200
    pipeline = pipeline_of(
        tuple(Bright(stride) for stride in strides),
        window=window,
        own_size=True,
        scales=(0.7, 1.0, 1.3),
        flip=True,
    )
    label = pipeline.scores([image]).label(0, (90, 203))
    near = max(strides) // 2 + 2
    assert (label[:, : 120 - near] == 0).all()
    assert (label[:, 120 + near :] == 1).all()


def test_the_grid_is_never_coarser_than_stride_4():
    pipeline = pipeline_of((Bright(16), Bright(4)))
    assert pipeline.scores([random_image(64, 96)]).values.shape == (1, 3, 16, 24)


# Seams


def largest_jump(model, value, stride):
    """How much neighbouring columns of a constant image differ where windows begin and end."""
    image = torch.full((3, 64, 400), value, dtype=torch.uint8)
    logits, _ = sliding_logits(model, image, 3, window=64, stride=stride)
    change = (logits[..., 1:] - logits[..., :-1]).abs().mean((0, 1))
    starts = torch.arange(stride, 337, stride) // 4
    return change[torch.cat([starts - 1, starts[:-1] + 15])].max()


@pytest.mark.parametrize("value", [60, 120, 200])
@pytest.mark.parametrize("which", [0, 1])
def test_windows_leave_no_seams_on_a_constant_image(models, which, value):
    """A network sees its windows' borders; side by side they show, and blended they do not."""
    side_by_side = largest_jump(models[which], value, 64)
    assert largest_jump(models[which], value, 48) < 0.5 * side_by_side
    assert largest_jump(models[which], value, 32) < 0.25 * side_by_side


def test_a_shifted_image_gets_shifted_labels(run, models):
    """Where the windows happen to stand must not show in the result."""
    from ccsnet.data.images import read_image

    images = [read_image(path, 3) for path in sorted((run.data / "images/val").glob("*.png"))]
    tiles = [resize_image(image, (128, 128)) for image in images]
    scene = np.concatenate([np.concatenate(tiles[:2], 1), np.concatenate(tiles[2:], 1)])
    pipeline = pipeline_of(models[:1], window=64, overlap=0.5)
    whole = pipeline.scores([scene]).label(0, (256, 256))
    moved = pipeline.scores([np.ascontiguousarray(scene[32:, 32:])]).label(0, (224, 224))
    inside = (whole[64:224, 64:224], moved[32:192, 32:192])
    assert (inside[0] == inside[1]).float().mean() > 0.99
    odd = pipeline.scores([np.ascontiguousarray(scene[20:, 12:])]).label(0, (236, 244))
    inside = (whole[64:224, 64:224], odd[44:204, 52:212])
    assert (inside[0] == inside[1]).float().mean() > 0.9


# Probabilities


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (61, 90), (7, 200)])
@pytest.mark.parametrize("band", [1, 2**26])
def test_probabilities_equal_the_plain_form(monkeypatch, averaged, size, band):
    monkeypatch.setattr("ccsnet.grid.BAND_BYTES", band)
    values = torch.randn(2, 5, 16, 24, generator=torch.Generator().manual_seed(0))
    values = values.softmax(1) if averaged else 5 * values
    grid = ScoreGrid(values, averaged, 1, (16, 24))
    expected = F.interpolate(values[1:], size=size, mode="bilinear", align_corners=False)[0]
    expected = expected if averaged else expected.softmax(0)
    found = grid.probs(1, size)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected.numpy(), atol=6e-4)
    torch.testing.assert_close(grid.confidence(1, size), expected.amax(0))


@pytest.mark.parametrize("settings", [{}, {"window": 64}, {"scales": (0.5, 1.0), "flip": True}])
def test_predictions_keep_probabilities_when_asked(run, models, settings):
    predictor = Predictor(models[0], read_checkpoint(run.out).info)
    image = random_image(75, 101)
    found = predictor.predict(image, PredictConfig(**settings), keep_probs=True)
    assert found.probs is not None
    assert found.probs.shape == (3, 75, 101)
    np.testing.assert_allclose(found.probs.astype(np.float32).sum(0), 1, atol=2e-3)
    best = np.sort(found.probs.astype(np.float32), axis=0)
    clear = best[-1] - best[-2] > 2e-3
    assert (found.probs.argmax(0) == found.label)[clear].all()
    plain = predictor.predict(image, PredictConfig(**settings))
    assert plain.probs is None
    assert np.array_equal(plain.label, found.label)


# Memory


def test_the_footprint_of_a_known_network():
    """A convolution whose input is dropped: its input as float, or input and output."""

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, image):
            x = self.first(image.float())
            x = self.second(x)
            return Output(x)

    # At most the float image (whose caller holds it through the call) and 8 maps, or 8 and 2 maps.
    assert forward_bytes(Known(), (1, 3, 32, 64)) == 4 * 32 * 64 * (3 + 8)
    assert forward_bytes(Known(), (3, 3, 32, 64)) == 3 * 4 * 32 * 64 * (3 + 8)


def test_memory_picks_the_window(models, monkeypatch):
    monkeypatch.setattr(inference, "peak_memory", lambda _: 1.0)
    monkeypatch.setattr(inference, "forward_bytes", lambda _, shape, __: 28 * math.prod(shape))
    notes = []

    def pipeline(**settings):
        return Pipeline(
            models=models[:1], num_classes=3, config=PredictConfig(**settings), note=notes.append
        )

    size = (3000, 4000)
    assert pipeline(max_memory=64.0).plan(size, 3) == (None, 4)
    assert "3000 x 4000 pixels: whole, 4 at once, about" in notes.pop()
    windows = []
    for limit in (2.0, 1.5, 1.35, 1.3):
        plan = pipeline(max_memory=limit).plan(size, 3)
        windows.append(plan.window)
        assert "of windows" not in notes[-1]
        assert plan.window is not None
        assert f"in windows of {plan.window[0]} x {plan.window[0]}" in notes[-1]
        assert "the whole image would take" in notes[-1]
    assert windows == sorted(windows, reverse=True)
    assert len(set(windows)) > 1
    with pytest.raises(InputError, match=r"max_memory is 1.2 GiB.*even in windows of 128 x 128"):
        pipeline(max_memory=1.2).plan(size, 3)
    # A window that is asked for stays; only their number changes.
    small, large = (pipeline(max_memory=m, window=1024).plan(size, 3) for m in (1.45, 9.0))
    assert small.window == large.window == (1024, 768)
    assert small.batch_size < large.batch_size == 4
    # Asked once for a size, and told once.
    notes.clear()
    one = pipeline(max_memory=64.0)
    assert one.plan(size, 3) == one.plan(size, 3)
    assert len(notes) == 1


def test_memory_only_picks(run, models, monkeypatch):
    """The result is that of the windows that were picked."""
    monkeypatch.setattr(inference, "peak_memory", lambda _: 1.0)
    monkeypatch.setattr(inference, "WINDOWS", (128, 64))
    predictor = Predictor(models[0], read_checkpoint(run.out).info)
    notes = []
    predictor.note = notes.append
    image = random_image(300, 300)
    floor = 1 + 2**-3 + 0.004  # What is always counted, and little more.
    found = predictor.predict(image, PredictConfig(max_memory=floor))
    side = int(notes[0].partition("windows of ")[2].partition(" ")[0])
    expected = predictor.predict(image, PredictConfig(window=side, own_size=True))
    assert np.array_equal(found.label, expected.label)


# Ensembles


@pytest.fixture(scope="module")
def runs(run, models, tmp_path_factory):
    """Checkpoints of the two models, of one with other classes, and of one tested otherwise."""
    folder = tmp_path_factory.mktemp("ensemble")
    info = read_checkpoint(run.out).info
    config = run.config
    three = (
        ("other", models[1], info),
        ("renamed", models[1], replace(info, classes=("ground", "box", "disc"))),
        ("larger", models[1], replace(info, short_side=512)),
    )
    for name, model, meaning in three:
        save_checkpoint(folder / f"{name}.safetensors", model.state_dict(), config, meaning, step=1)
    return folder


def test_runs_are_averaged(run, runs, models):
    image = random_image(64, 96)
    both = ccsnet.load(run.out, "cpu", also=[runs / "other.safetensors"])
    found = both.predict(image, keep_probs=True).probs
    alone = [
        ccsnet.load(path, "cpu").predict(image, keep_probs=True).probs
        for path in (run.out, runs / "other.safetensors")
    ]
    mean = (alone[0].astype(np.float32) + alone[1]) / 2
    # Softmax before upsampling here and after it there: near, and equal where logits are flat.
    assert np.abs(found - mean).mean() < 0.01
    same = ccsnet.load(run.out, "cpu", also=[run.out])
    label = ccsnet.load(run.out, "cpu").predict(image).label
    assert (same.predict(image).label == label).mean() > 0.98


def test_runs_that_do_not_go_together(run, runs):
    with pytest.raises(InputError, match=r"renamed\.safetensors has other classes than .*best"):
        ccsnet.load(run.out, "cpu", also=[runs / "renamed.safetensors"])
    with pytest.warns(UserWarning, match=r"larger\.safetensors was tested at other sizes"):
        ccsnet.load(run.out, "cpu", also=[runs / "larger.safetensors"])


# Precision and batches


def test_bf16_labels_are_nearly_the_same(run, models):
    image = random_image(128, 160)
    exact = pipeline_of(models[:1]).scores([image])
    coarse = pipeline_of(models[:1], precision="bf16").scores([image])
    assert exact.values.dtype == torch.float32
    assert coarse.values.dtype == torch.bfloat16
    labels = [grid.label(0, (128, 160)) for grid in (exact, coarse)]
    assert (labels[0] == labels[1]).float().mean() > 0.95


@pytest.mark.parametrize("has", [False, True])
def test_auto_takes_bf16_where_the_device_has_it_and_it_is_faster(
    models, monkeypatch, tmp_path, has
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "has_bf16", lambda _: has)
    monkeypatch.setattr(trial, "_measure", lambda modes, *_: (modes[-1], "tried: 1 ms"))
    pipeline = pipeline_of(models[:1], precision="auto")
    grid = pipeline.scores([random_image(64, 64)])
    assert grid.values.dtype == (torch.bfloat16 if has else torch.float32)
    assert (tmp_path / "ccsnet" / "trials.json").exists() == has


def test_neighbours_of_one_size_are_labelled_together(run, models):
    predictor = Predictor(models[0], read_checkpoint(run.out).info)
    sizes = [(64, 64), (64, 64), (64, 64), (32, 64), (64, 64), (64, 64)]
    images = [random_image(*size, seed=i) for i, size in enumerate(sizes)]
    seen = []
    forward = models[0].forward
    predictor.model.forward = lambda image: (seen.append(len(image)), forward(image))[1]
    try:
        found = list(predictor.predict_many(images, PredictConfig(batch_size=2)))
    finally:
        del predictor.model.forward
    assert seen == [2, 1, 1, 2]
    for image, prediction in zip(images, found, strict=True):
        assert np.array_equal(prediction.image, image)
        assert (predictor.predict(image).label != prediction.label).sum() <= 2
    with pytest.raises(InputError, match="64 x 64 and 32 x 64 pixels cannot be labelled in one"):
        predictor.predict_batch(images[2:4])
    assert predictor.predict_batch([]) == []


def test_what_came_before_a_bad_file_is_labelled(run, models, tmp_path):
    predictor = Predictor(models[0], read_checkpoint(run.out).info)
    good = run.data / "images" / "val" / "0.png"
    (tmp_path / "bad.png").write_bytes(b"")
    predictions = predictor.predict_many([good, tmp_path / "bad.png", good])
    assert next(predictions).label.shape == (72, 96)
    with pytest.raises(InputError, match=r"bad\.png"):
        next(predictions)


def test_windows_of_all_passes_are_told(run, models):
    predictor = Predictor(models[0], read_checkpoint(run.out).info)
    told = []
    config = PredictConfig(window=64, overlap=0.0, scales=(1.0, 2.0), flip=True, batch_size=3)
    predictor.predict(random_image(64, 128), config, lambda *now: told.append(now))
    total = 2 * (2 + 2 * 4)
    assert told[-1] == (total, total)
    assert all(all_of == total for _, all_of in told)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


# The command line


MODES = ("--scales", "0.75", "1.25", "--flip", "--window", "64", "--overlap", "0.5")


def test_both_verbs_take_every_mode(call, run, runs, models, tmp_path):
    also = ("--also", runs / "other.safetensors", "--cpu", "--batch-size", "1")
    figures = tmp_path / "figures.json"
    extra = ("--boundary", "--calibration", "--per-image", "--json", figures)
    status, printed, error = call("evaluate", run.out, *MODES, *also, *extra)
    assert status == 0, error
    for words in ("boundary IoU", "expected calibration error", "95 % of redrawn sets"):
        assert words in printed
    written = json.loads(figures.read_text())
    low, high = written["intervals"]["miou"]
    assert low <= written["miou"] <= high
    assert sorted(row["image"] for row in written["per_image"]) == ["0", "1", "2", "3"]
    images, out = run.data / "images" / "val", tmp_path / "out"
    status, printed, error = call(
        "predict", run.out, images, *MODES, *also, "--out", out, "--save", "index"
    )
    assert status == 0, error
    total = ConfusionMatrix(3, 255)
    for file in sorted((out / "index").iterdir()):
        from PIL import Image

        label, truth = (
            torch.from_numpy(np.array(Image.open(path)))
            for path in (file, run.data / "labels" / "val" / file.name)
        )
        total.update(truth, label)
    assert written["confusion"] == total.matrix().tolist()


def test_memory_is_told_and_mistakes_are_named(call, run, tmp_path):
    image = run.data / "images" / "val" / "0.png"
    status, printed, _ = call(
        "predict", run.out, image, "--max-memory", 4096, "--out", tmp_path / "out"
    )
    assert status == 0
    assert "72 x 96 pixels: whole, 4 at once, about" in printed
    for options, text in (
        (("--max-memory", "0.01"), "max_memory is 0.01 GiB"),
        (("--scales", "0"), "each must be from 0.1 to 10"),
        (("--scales", "1", "1"), "name each once"),
        (("--window", "65"), "window is 65; it must be a multiple of 32"),
        (("--also", str(tmp_path)), "holds no checkpoint"),
        (("--precision", "fp16"), "fp16"),
    ):
        for verb, more in (("predict", (image, "--out", tmp_path / "no")), ("evaluate", ())):
            status, _, error = call(verb, run.out, *more, *options)
            assert status == 2, options
            assert text in error


@pytest.mark.slow
def test_processes_share_an_evaluation(call, run, tmp_path):
    """Three processes for four images: figures of one process, said once."""
    from tests.processes import launch

    extra = ("--batch-size", "1", "--cpu", "--per-image", "--boundary", "--calibration", "--json")
    assert call("evaluate", run.out, *extra, tmp_path / "one.json")[0] == 0
    arguments = ["evaluate", str(run.out), *extra, str(tmp_path / "three.json")]
    done = launch(["-m", "ccsnet", *arguments], 3, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pixel accuracy") == 1
    one, three = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "three"))
    assert one == three
    assert one["images"] == 4
    # More processes than images: one has none.
    done = launch(["-m", "ccsnet", *arguments], 5, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "three.json").read_text()) == one


@pytest.mark.slow
def test_a_mistake_in_several_processes(run):
    from tests.processes import launch

    done = launch(["-m", "ccsnet", "evaluate", str(run.out), "--cpu", "--split", "no"], 2)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    assert "'no'" in done.stderr
