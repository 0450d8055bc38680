import contextlib
import dataclasses
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ccsnet.train as training
from ccsnet.checkpoint import read_checkpoint
from ccsnet.config import RunConfig, TrainConfig, from_json, to_json
from ccsnet.data import sampling
from ccsnet.data.loading import Batch, training_batches
from ccsnet.data.opening import DataConfig, augmentation, open_dataset
from ccsnet.data.sampling import (
    epoch_length,
    rare_class_odds,
    repeat_factors,
    repeated_order,
    scan_labels,
    settle_class_weights,
    suggested_weights,
)
from ccsnet.data.transforms import Augmentation, choose_crop
from ccsnet.data.workers import in_processes
from ccsnet.errors import InputError
from ccsnet.heads._base import Output
from ccsnet.loss import cross_entropy, segmentation_loss
from ccsnet.preflight import settled_as
from ccsnet.progress import Silent
from ccsnet.stopping import StopSignals
from ccsnet.train import Interrupted, train
from tests.shapes import make_shapes, tiny_config

YAML = """
classes: [ground, disc, box]
images: images/{split}/*.png
labels: labels/{split}/*.png
crop: [16, 16]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone, and nothing in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sampling, "_last", None)
    return tmp_path / "cache" / "ccsnet" / "labels"


@pytest.fixture
def rare(tmp_path):
    """Ten images of ground; the third has four pixels of disc, the fifth and sixth half box."""
    root = tmp_path / "rare"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(10):
            label = np.zeros((40, 60), np.uint8)
            label[0] = 255
            if i == 2:
                label[20:22, 30:32] = 1
            if i in (4, 5):
                label[:, :30] = 2
            image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            for kind, pixels in (("images", image), ("labels", label)):
                path = root / kind / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "dataset.yaml").write_text(YAML)
    return DataConfig(dataset=str(root), workers=0)


# The scan


def test_scan_counts_what_there_is(rare):
    spec, root = open_dataset(rare)
    scan = scan_labels(spec, root, "train", workers=0)
    assert scan.pixels.tolist() == [10 * 39 * 60 - 4 - 2 * 39 * 30 + 0, 4, 2 * 40 * 30]
    assert scan.pixels_where[1] == 39 * 60
    assert scan.pixels_where[2] == 2 * (39 * 60 + 30)  # Box also covers half the unlabelled row.
    assert np.flatnonzero(scan.present[:, 1]).tolist() == [2]
    assert np.flatnonzero(scan.present[:, 2]).tolist() == [4, 5]


def test_scan_in_processes_is_the_same_and_leaves_the_random_state(rare, monkeypatch):
    spec, root = open_dataset(rare)
    here = scan_labels(spec, root, "train", workers=0)
    monkeypatch.setattr(sampling, "_last", None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # Where nothing can be kept.
    before = torch.get_rng_state()
    there = scan_labels(spec, root, "train", workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_scan_is_kept_until_something_changes(rare, cache, monkeypatch):
    spec, root = open_dataset(rare)
    first = scan_labels(spec, root, "train", workers=0)
    scans = []
    original = sampling._scan
    monkeypatch.setattr(sampling, "_scan", lambda *a: scans.append(a) or original(*a))

    def again(of=spec):
        monkeypatch.setattr(sampling, "_last", None)
        return scan_labels(of, root, "train", workers=0)

    kept = again()
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
    assert scans == []
    path = root / "labels" / "train" / "0.png"
    os.utime(path, ns=(1, 1))
    again()
    assert len(scans) == 1
    changed = dataclasses.replace(spec, raw_to_class={0: 0, 1: 1, 2: 1, 3: 2})
    assert again(changed).pixels[2] == 0
    assert len(scans) == 2
    assert len(list(cache.iterdir())) == 1  # Old ones do not pile up.
    next(cache.iterdir()).write_bytes(b"PK damaged")
    again(changed)
    assert len(scans) == 3


def test_a_label_that_cannot_be_used_is_named(rare):
    spec, root = open_dataset(rare)
    Image.fromarray(np.full((40, 60), 9, np.uint8)).save(root / "labels" / "train" / "7.png")
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"labels/train/7\.png holds 9"):
            scan_labels(spec, root, "train", workers=workers)


def test_results_keep_their_order():
    assert list(in_processes(_square, range(50), 2)) == [n * n for n in range(50)]
    assert list(in_processes(_square, [], 2)) == []


def _square(number):
    return number * number


# Class weights


def test_median_frequency_balancing_by_hand():
    # Frequencies 0.8, 0.2 and 0.1: the median is 0.2.
    weights = suggested_weights(np.array([800, 100, 100, 0]), np.array([1000, 500, 1000, 0]))
    assert weights == (0.25, 1.0, 2.0, 1.0)


def test_weights_are_bounded():
    weights = suggested_weights(np.array([10**9, 10**6, 1]), np.array([10**9, 10**9, 10**9]))
    assert weights == (0.1, 1.0, 10.0)
    assert suggested_weights(np.zeros(2, np.int64), np.zeros(2, np.int64)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((1.0, 2.0), "has 2 numbers, the data set 'rare' has 3 classes"),
        ((1.0, -1.0, 0.0), "must be 0 or more"),
        ((0.0, 0.0, 0.0), "not all of them 0"),
        ((1.0, float("nan"), 0.0), "must be 0 or more"),
    ],
)
def test_impossible_weights(rare, weights, text):
    spec, root = open_dataset(rare)
    with pytest.raises(InputError, match=text):
        settle_class_weights(weights, spec, root, "train", 0)


def test_weights_are_settled(rare):
    spec, root = open_dataset(rare)
    assert settle_class_weights("none", spec, root, "train", 0) == "none"
    assert settle_class_weights((1.0, 2.0, 0.0), spec, root, "train", 0) == (1.0, 2.0, 0.0)
    auto = settle_class_weights("auto", spec, root, "train", 0)
    assert auto[1] == 10.0
    assert auto[0] < auto[2] < auto[1]


@pytest.mark.parametrize("weights", ["none", "auto", (0.5, 1.0, 2.0)])
def test_weights_survive_json(weights):
    config = RunConfig(
        data=DataConfig(dataset="x", repeat_threshold=0.1, rare_crop=0.5),
        train=TrainConfig(class_weights=weights),
    )
    assert from_json(RunConfig, to_json(config)) == config


@pytest.mark.slow
def test_a_run_stores_its_weights_and_resumes(tmp_path):
    data = make_shapes(tmp_path / "shapes")
    config = tiny_config(data, steps=4, class_weights="auto", validate_every=2)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, repeat_threshold=0.9, rare_crop=0.5)
    )
    train(config, tmp_path / "whole")
    stored = from_json(RunConfig, (tmp_path / "whole" / "config.json").read_text())
    assert len(stored.train.class_weights) == 3
    assert stored.train.class_weights[0] < 1 <= stored.train.class_weights[2]
    plain = dataclasses.replace(config.train, class_weights="none")
    train(dataclasses.replace(config, train=plain), tmp_path / "plain")
    losses = [_losses(tmp_path / name) for name in ("whole", "plain")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("saved", "asked", "settled"),
    [
        ("none", "auto", "auto"),  # To be found now.
        ((1.0, 2.0, 3.0), "auto", (1.0, 2.0, 3.0)),  # Found when the run began.
        ((1.0, 2.0, 3.0), "none", "none"),
        ("none", (3.0, 2.0, 1.0), (3.0, 2.0, 1.0)),
    ],
)
def test_the_weights_of_a_resumed_run(saved, asked, settled):
    def config_of(weights):
        train = TrainConfig(class_weights=weights)
        return RunConfig(data=DataConfig(dataset="streets"), train=train)

    before, now = (config_of(one) for one in (saved, asked))
    assert settled_as(before, now).train.class_weights == settled


def _losses(out):
    lines = (out / "log.csv").read_text().splitlines()
    place = lines[0].split(",").index("loss")
    return [float(line.split(",")[place]) for line in lines[1:]]


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_it_would_have(tmp_path):
    data = make_shapes(tmp_path / "shapes")
    config = tiny_config(data, steps=4, class_weights="auto", validate_every=2)
    settings = dataclasses.replace(config.data, repeat_threshold=0.9, rare_crop=0.5)
    config = dataclasses.replace(config, data=settings)
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", reporter=StopAfter(3))
    stored = read_checkpoint(tmp_path / "parts").config
    assert isinstance(stored.train.class_weights, tuple)
    train(stored, tmp_path / "parts", resume=True)
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "whole")


class StopAfter(Silent):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps):
        self.left = steps
        self.training = False

    def start(self, stage, total, done=0):
        self.training = stage == "training"

    def advance(self, units=1, **values):
        self.left -= self.training
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt


# The loss


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 9, generator=generator)
    label = torch.randint(3, (4, 8, 9), generator=generator)
    label[0, :6] = 255  # Passes differ in how many pixels count.
    return logits, label, torch.tensor([0.2, 3.0, 1.0])


def test_weighted_loss_is_torchs_mean():
    logits, label, weights = example()
    expected = F.cross_entropy(logits, label, weight=weights, ignore_index=255)
    assert cross_entropy(logits, label, 255, weights).item() == pytest.approx(expected.item())
    equal = cross_entropy(logits, label, 255, torch.full((3,), 7.0))
    assert equal.item() == pytest.approx(cross_entropy(logits, label).item())
    nothing = cross_entropy(logits, torch.full_like(label, 255), 255, weights)
    assert nothing.item() == 0
    only_weightless = cross_entropy(logits, torch.zeros_like(label), 255, torch.tensor([0.0, 1, 1]))
    assert only_weightless.item() == 0


def test_weighted_terms():
    logits, label, weights = example()
    terms = segmentation_loss(
        Output(logits, logits), label, coarse_weight=0.5, class_weights=weights
    )
    assert terms["final"].item() == cross_entropy(logits, label, 255, weights).item()
    assert terms["coarse"].item() == pytest.approx(0.5 * terms["final"].item())


def step(shapes, out, accumulate, class_weights):
    """A step of plain gradient descent in evaluation mode: no batch statistics, no dropout."""
    config = tiny_config(shapes, batch_size=4, accumulate=accumulate, class_weights=class_weights)
    stack = contextlib.ExitStack()
    run = training._Run(config, out, False, Silent(), StopSignals(), stack)
    run.model.eval()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    run.optimizer.param_groups[0]["peak_lr"] = 1.0
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 3, (4, 32, 32), generator=generator)
    label[0, :20] = 255
    label[1] = 1
    run.optimize(Batch(image, label, list("abcd")))
    stack.close()
    return _losses(out)[0], {name: p.detach() for name, p in run.model.named_parameters()}


def test_weighted_passes_add_up_to_one_step(shapes, tmp_path):
    weights = (0.2, 3.0, 1.0)
    loss, whole = step(shapes, tmp_path / "1", 1, weights)
    loss_in_parts, parts = step(shapes, tmp_path / "4", 4, weights)
    _, unweighted = step(shapes, tmp_path / "none", 1, "none")
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    assert any((unweighted[name] - value).abs().max() > 1e-2 for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-6)


# Repeat-factor sampling


def test_repeat_factors_by_hand():
    present = np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    # The second class is in a quarter of the images: sqrt(1 / 0.25) = 2.
    assert repeat_factors(present, 1.0).tolist() == [2, 1, 1, 1]
    assert repeat_factors(present, 0.25).tolist() == [1, 1, 1, 1]
    assert repeat_factors(np.zeros((3, 2), bool), 1.0).tolist() == [1, 1, 1]


def test_order_shows_every_image_and_is_right_on_average():
    rng = np.random.default_rng(0)
    factors = rng.uniform(1, 4, 30)
    length = epoch_length(factors)
    epochs = [repeated_order(1, epoch, factors) for epoch in range(400)]
    counts = np.array([np.bincount(order, minlength=30) for order in epochs])
    assert {len(order) for order in epochs} == {length}
    expected = factors * length / factors.sum()
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    # A count's deviation is at most 1/2; of the mean of 400, 1/40.
    assert np.abs(counts.mean(axis=0) - expected).max() < 4 / 40
    assert epochs[0].tolist() == repeated_order(1, 0, factors).tolist()
    assert epochs[0].tolist() != epochs[1].tolist() != repeated_order(2, 1, factors).tolist()


def test_whole_factors_are_kept_exactly():
    factors = np.array([2.0, 1.0, 3.0])
    assert epoch_length(factors) == 6
    for epoch in range(20):
        assert np.bincount(repeated_order(0, epoch, factors)).tolist() == [2, 1, 3]


def names(config, **settings):
    spec, root = open_dataset(config)
    settings = {"seed": 1, "batch_size": 2, "steps": 12} | settings
    return [(b.names, b.image) for b in training_batches(spec, root, config, **settings)]


def assert_same(one, two):
    assert [n for n, _ in one] == [n for n, _ in two]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))


@pytest.mark.parametrize("settings", [{"repeat_threshold": 0.8}, {"rare_crop": 0.7}])
def test_resumed_run_sees_what_it_would_have_seen(rare, settings):
    config = dataclasses.replace(rare, **settings)
    whole = names(config)
    assert_same(names(config, start_step=7), whole[7:])
    assert_same(names(dataclasses.replace(config, workers=2)), whole)
    parts = [names(config, rank=r, world_size=2) for r in (0, 1)]
    shared = [a[0] + b[0] for a, b in zip(*parts, strict=True)]
    assert shared == [n for n, _ in whole]


def test_rare_images_come_more_often_and_never_alike(rare):
    config = dataclasses.replace(rare, repeat_threshold=1.0)
    spec, root = open_dataset(config)
    # Disc is in one image of ten: sqrt(10) = 3.2; box in two: sqrt(5) = 2.2.
    length = epoch_length(repeat_factors(scan_labels(spec, root, "train").present, 1.0))
    assert length == 15
    run = names(config, batch_size=1, steps=length)
    shown = [n[0] for n, _ in run]
    assert set(shown) == {str(i) for i in range(10)}
    assert shown.count("2") in (3, 4)
    discs = [image for n, image in run if n == ["2"]]
    assert not any(torch.equal(discs[0], other) for other in discs[1:])


def test_without_the_settings_nothing_changes(rare):
    spec, _ = open_dataset(rare)
    how = augmentation(spec, rare)
    label = np.zeros((40, 60), np.uint8)
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    choose_crop(label, (40, 60), one, how)
    choose_crop(label, (40, 60), two, dataclasses.replace(how, class_odds=(0.1, 0.9, 0.0)))
    assert one.random() == two.random()
    assert sampling._last is None  # Nothing was scanned.
    names(rare, steps=1)
    assert sampling._last is None


# Crops


def test_odds_prefer_rare_classes():
    odds = rare_class_odds(np.array([900_000, 90_000, 10_000, 0]))
    # exp((0.09 - 0.01) / 0.01) = e^8.
    assert odds[2] / odds[1] == pytest.approx(np.exp(8), rel=1e-6)
    assert odds[3] == 0
    assert 0 < odds[0] < odds[1] < odds[2]
    assert sum(odds) == pytest.approx(1)
    assert rare_class_odds(np.zeros(2, np.int64)) == (0.0, 0.0)


HOW = Augmentation(
    crop=(16, 16),
    short_side=None,
    long_side=None,
    ignore_index=255,
    max_class_share=1.0,
    class_odds=(0.0, 1.0, 0.0),
)


@pytest.mark.parametrize("size", [(100, 140), (60, 90), (200, 280)])
def test_rare_crops_show_the_rare_class_anywhere_in_them(size):
    label = np.zeros((100, 140), np.uint8)
    label[70:74, 20:24] = 1
    rng = np.random.default_rng(0)
    always = dataclasses.replace(HOW, rare_crop=1.0)
    crops = [choose_crop(label, size, rng, always) for _ in range(100)]
    assert all((label[crop] == 1).any() for crop in crops)
    assert len({rows.start for rows, _ in crops}) > 5  # It is not always in the middle.
    assert all(0 <= r.start < r.stop <= 100 and 0 <= c.start < c.stop <= 140 for r, c in crops)
    half = dataclasses.replace(HOW, rare_crop=0.5)
    shown = [(label[choose_crop(label, size, rng, half)] == 1).any() for _ in range(300)]
    assert 0.4 < np.mean(shown) < 0.75


def test_images_without_the_classes_are_cropped_as_ever():
    rng = np.random.default_rng(0)
    always = dataclasses.replace(HOW, rare_crop=1.0)
    for label in (np.full((40, 60), 255, np.uint8), np.zeros((40, 60), np.uint8)):
        rows, columns = choose_crop(label, (40, 60), rng, always)
        assert (rows.stop - rows.start, columns.stop - columns.start) == (16, 16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"repeat_threshold": 0.0}, "repeat_threshold is 0.0"),
        ({"repeat_threshold": 2.0}, "repeat_threshold is 2.0"),
        ({"rare_crop": 1.5}, "rare_crop is 1.5"),
    ],
)
def test_impossible_settings(changes, text):
    with pytest.raises(InputError, match=text):
        DataConfig(dataset="earth", **changes)
