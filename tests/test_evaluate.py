import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet.checkpoint import load_model, read_checkpoint
from ccsnet.data.loading import evaluation_samples
from ccsnet.data.opening import open_dataset
from ccsnet.errors import InputError
from ccsnet.evaluate import (
    evaluate,
    evaluation_from_json,
    evaluation_to_json,
    labelled_split,
)
from ccsnet.metrics import ConfusionMatrix
from ccsnet.parallel import Processes
from ccsnet.upsample import upsample_argmax


@pytest.fixture(scope="module")
def trained(run):
    spec, root = open_dataset(run.config.data)

    def samples():
        return evaluation_samples(spec, root, run.config.data, "val")

    return load_model(read_checkpoint(run.out)), spec, samples


def one_by_one(model, samples, spec):
    total = ConfusionMatrix(spec.num_classes, spec.ignore_index)
    with torch.no_grad():
        for sample in samples:
            logits = model.eval()(sample.image[None]).logits
            size = (sample.label.shape[0], sample.label.shape[1])
            total.update(sample.label, upsample_argmax(logits, size)[0])
    return total.matrix()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(trained, batch_size):
    model, spec, samples = trained
    told = []
    found = evaluate(
        model, samples(), spec.classes, batch_size=batch_size, progress=told.append
    ).metrics
    expected = one_by_one(model, samples(), spec)
    assert found.images == sum(told) == 4
    assert found.confusion.sum() == expected.sum()  # Every valid pixel, no ignored one.
    assert np.abs(found.confusion - expected).sum() <= 4  # Rounding may turn a near tie.


def test_the_stored_miou_is_what_is_measured(run, trained):
    model, spec, samples = trained
    found = evaluate(model, samples(), spec.classes)
    assert found.metrics.miou == pytest.approx(read_checkpoint(run.out).miou, abs=1e-3)
    assert found.per_image == []


def test_images_are_ranked_worst_first(trained):
    model, spec, samples = trained
    ranking = evaluate(model, samples(), spec.classes, per_image=True).per_image
    assert sorted(name for name, _ in ranking) == ["0", "1", "2", "3"]
    assert [miou for _, miou in ranking] == sorted(miou for _, miou in ranking)


def test_contours_and_confidence_are_measured_when_asked(trained):
    model, spec, samples = trained
    plain = evaluate(model, samples(), spec.classes).metrics
    assert plain.boundary is plain.calibration is plain.per_image is None
    found = evaluate(
        model, samples(), spec.classes, per_image=True, boundary=True, calibration=True
    ).metrics
    assert np.array_equal(found.confusion, plain.confusion)
    assert found.boundary is not None
    assert found.calibration is not None
    assert found.per_image is not None
    assert np.array_equal(found.per_image.sum(0)[0], np.diag(plain.confusion))
    assert found.calibration[0].sum() == plain.confusion.sum()
    # Confidence is that of the upsampled logits.
    confidences = []
    with torch.no_grad():
        for sample in samples():
            height, width = sample.label.shape
            logits = model.eval()(sample.image[None]).logits
            wide = torch.nn.functional.interpolate(
                logits, size=(height, width), mode="bilinear", align_corners=False
            )
            confidences.append(wide.softmax(1).amax(1)[0][sample.label != spec.ignore_index])
    mean = float(torch.cat(confidences).mean())
    accuracy = plain.pixel_accuracy
    assert found.ece >= abs(mean - accuracy) - 1e-3  # The mean gap bounds it from below.


def test_an_image_without_labels_is_not_ranked(trained):
    model, spec, samples = trained
    blank = [s._replace(label=torch.full_like(s.label, 255)) for s in samples()]
    found = evaluate(model, blank, spec.classes, per_image=True)
    assert found.per_image == []
    assert np.isnan(found.metrics.miou)


def test_the_model_is_put_back(trained):
    model, spec, samples = trained
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        evaluate(model, samples(), spec.classes)
        assert model.training is training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Twins(Processes):
    """Two processes that have the same samples."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.num = 2

    def sum(self, tensor):
        return 2 * tensor

    def gather(self, items):
        return [*items, *items]


def test_processes_add_up(trained):
    """What each process counts is summed; here both count the same."""
    model, spec, samples = trained
    alone = evaluate(model, samples(), spec.classes, per_image=True)
    both = evaluate(model, samples(), spec.classes, per_image=True, processes=Twins())
    assert both.metrics.images == 2 * alone.metrics.images
    assert (both.metrics.confusion == 2 * alone.metrics.confusion).all()
    assert both.per_image == [row for row in alone.per_image for _ in range(2)]
    nothing = evaluate(model, [], spec.classes, processes=Twins()).metrics
    assert nothing.confusion.sum() == nothing.images == 0


def test_it_can_be_stopped(trained):
    model, spec, samples = trained
    seen = []
    found = evaluate(
        model,
        samples(),
        spec.classes,
        batch_size=1,
        watch=lambda sample, label: seen.append((sample.name, tuple(label.shape), sample.size)),
        stop=lambda: len(seen) == 2,
    )
    assert found.metrics.images == len(seen) == 2
    assert all(shape == size for _, shape, size in seen)


def test_what_was_measured_is_stored(trained):
    model, spec, samples = trained
    found = evaluate(model, samples(), spec.classes, per_image=True)
    again = evaluation_from_json(evaluation_to_json(found, 7), "best.json")
    assert again.metrics.to_dict() == found.metrics.to_dict()
    assert again.per_image == found.per_image
    for text in ("", "[]", "{}", '{"iou": {}, "confusion": 3}'):
        with pytest.raises(InputError, match=r"best\.json does not hold the figures"):
            evaluation_from_json(text, "best.json")


def test_all_figures_survive_being_stored(trained):
    model, spec, samples = trained
    found = evaluate(model, samples(), spec.classes, boundary=True, calibration=True)
    found = found._replace(metrics=replace(found.metrics, beta=2.0))
    again = evaluation_from_json(evaluation_to_json(found, 7), "best.json").metrics
    assert again.to_dict() == found.metrics.to_dict()
    for name in ("confusion", "boundary", "calibration"):
        assert np.array_equal(getattr(again, name), getattr(found.metrics, name)), name
    assert (again.beta, again.images) == (2.0, 4)
    for name in ("mean_boundary_iou", "ece", "mean_f_score"):
        assert getattr(again, name) == getattr(found.metrics, name) > 0


def test_deeper_images_are_told_of_once(trained):
    """Tensors of 16-bit images are int32."""
    model, spec, samples = trained
    deep = [sample._replace(image=sample.image.int() * 257) for sample in samples()]
    with pytest.warns(UserWarning, match=r"The image 0 has values up to 6\d{4}, .*8 bits") as told:
        evaluate(model, deep, spec.classes)
    assert len(told) == 1
    fitting = [sample._replace(image=sample.image.int()) for sample in samples()]
    evaluate(model, fitting, spec.classes)


# Windows


def test_one_window_over_an_image_equals_the_whole(trained):
    """Samples whose sides are those of one window need no blending."""
    model, spec, samples = trained
    square = [s._replace(image=s.image[:, :64, :64], label=s.label[:64, :61]) for s in samples()]
    square = [s for s in square if s.image.shape[1:] == (64, 64)]
    assert square
    square = [s._replace(label=torch.nn.functional.pad(s.label, (0, 3))) for s in square]
    whole = evaluate(model, square, spec.classes).metrics
    found = evaluate(model, square, spec.classes, window=(64, 42)).metrics
    assert found.images == whole.images
    # Logits are blended at single pixels here, and rounding may turn a near tie.
    assert np.abs(found.confusion - whole.confusion).sum() <= 4


@pytest.mark.parametrize("window", [(64, 42), (128, 85), (256, 170), (64, 48)])
def test_windows_count_every_pixel(run, trained, window):
    """Also where images are smaller than a window, at their own sizes."""
    model, spec, _ = trained
    config = run.config.data
    _, root = open_dataset(config)
    samples = list(evaluation_samples(spec, root, config, "val", multiple=1))
    assert [tuple(s.image.shape[1:]) for s in samples] == [tuple(s.label.shape) for s in samples]
    told = []
    found = evaluate(
        model, samples, spec.classes, window=window, batch_size=3, progress=told.append
    )
    valid = sum(int((s.label != spec.ignore_index).sum()) for s in samples)
    assert found.metrics.confusion.sum() == valid
    assert found.metrics.images == sum(told) == 4
    assert found.metrics.miou > 0.2
    # The shapes are in their places: windows that were shifted would cost more than this.
    whole = evaluate(model, samples_whole(run, spec), spec.classes).metrics
    assert found.metrics.pixel_accuracy == pytest.approx(whole.pixel_accuracy, abs=0.1)


def samples_whole(run, spec):
    _, root = open_dataset(run.config.data)
    return evaluation_samples(spec, root, run.config.data, "val")


def test_training_validates_and_predicts_in_the_windows_of_the_data(tmp_path, monkeypatch):
    """The windows of a SPEC are used for the run's own figures, by `evaluate` and by `predict`."""
    import ccsnet
    from ccsnet import cli
    from ccsnet.predict import PredictConfig
    from ccsnet.sliding import sliding_label
    from ccsnet.train import train
    from tests.shapes import YAML, make_shapes, tiny_config

    data = make_shapes(tmp_path / "shapes", train=4, val=2, yaml=YAML + "window: [64, 42]\n")
    config = tiny_config(data, steps=30, batch_size=4, validate_every=30)
    result = train(config, tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.info.window == (64, 42)
    spec, root = open_dataset(config.data)
    samples = evaluation_samples(spec, root, config.data, "val", multiple=1)
    model = load_model(checkpoint)
    again = evaluate(model, samples, spec.classes, window=(64, 42)).metrics
    assert np.array_equal(again.confusion, result.metrics.confusion)

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    figures = tmp_path / "figures.json"
    assert cli.run(["evaluate", str(tmp_path / "run"), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text()) == json.loads(json.dumps(again.to_dict()))
    other = ["--window", "64", "--overlap", "0.0", "--json", str(figures)]
    assert cli.run(["evaluate", str(tmp_path / "run"), *other]) == 0
    # So the figures do depend on the windows.
    assert json.loads(figures.read_text()) != json.loads(json.dumps(again.to_dict()))

    predictor = ccsnet.load(tmp_path / "run", device="cpu")
    assert predictor.uses_windows(PredictConfig())
    sample = next(iter(samples))
    found = predictor.predict(data / "images" / "val" / f"{sample.name}.png")
    height, width = found.label.shape
    expected = sliding_label(model, sample.image, 3, (height, width), window=64, stride=42)
    assert np.array_equal(found.label, expected.numpy())


# Splits, and other data sets with the same classes


def test_the_split_to_measure_on():
    from ccsnet.datasets._spec import DatasetSpec, Split

    def spec(**labelled):
        splits = {
            name: Split(images=f"{name}/*.png", labels=f"{name}-labels/*.png" if has else None)
            for name, has in labelled.items()
        }
        return DatasetSpec(
            name="streets",
            classes=("road", "car"),
            colours=((0, 0, 0), (255, 0, 0)),
            raw_to_class={0: 0, 1: 1},
            splits=splits,
            licence="none",
            source="none",
            default_root="data/streets",
        )

    assert labelled_split(spec(train=True, val=True), "val") == "val"
    assert labelled_split(spec(test=True), "val") == "test"
    assert labelled_split(spec(val=False, test=True), "val") == "test"
    with pytest.raises(
        InputError, match=r"'val' of 'streets' does not exist.*--split: train, test"
    ):
        labelled_split(spec(train=True, test=True), "val")
    with pytest.raises(InputError, match=r"'val' of 'streets' is published .*there is none"):
        labelled_split(spec(val=False), "val")


def street(root, file, label_file, raw, rng):
    """One image and its label, of a data set's own raw values."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / label_file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(root / file)
    label = rng.choice(np.array(raw, np.uint8), (64, 96))
    Image.fromarray(label).save(root / label_file)


def test_a_model_of_cityscapes_on_its_nights(tmp_path, monkeypatch, capsys):
    """One command, no word on the split: one set has only val, the other only test."""
    from ccsnet import cli
    from ccsnet.checkpoint import ClassInfo, save_checkpoint
    from ccsnet.datasets.cityscapes import SPEC
    from ccsnet.segmenter import create_segmenter
    from tests.shapes import tiny_config

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    night = "GOPR0356/GOPR0356_frame_000321"
    street(
        tmp_path / "dark",
        f"rgb_anon/val/night/{night}_rgb_anon.png",
        f"gt/val/night/{night}_gt_labelTrainIds.png",
        [0, 5, 18, 255],
        rng,
    )
    street(
        tmp_path / "driving",
        "leftImg8bit/test/night/0_leftImg8bit.png",
        "gtCoarse_daytime_trainvaltest/test/night/0_gtCoarse_labelTrainIds.png",
        [0, 5, 18, 255],
        rng,
    )
    config = tiny_config(tmp_path / "cityscapes")
    config = replace(config, data=replace(config.data, dataset="cityscapes", short_side=64))
    model = create_segmenter(config.model, num_classes=19)
    save_checkpoint(
        tmp_path / "best.safetensors", model.state_dict(), config, ClassInfo.of(SPEC), step=1
    )

    call = ["evaluate", str(tmp_path / "best.safetensors"), "--batch-size", "1"]
    assert cli.run([*call, "--dataset", "dark_zurich", "--root", str(tmp_path / "dark")]) == 0
    printed = capsys.readouterr().out
    assert "1 images" in printed
    assert "Measured on" not in printed
    night = [*call, "--dataset", "nighttime_driving", "--root", str(tmp_path / "driving")]
    assert cli.run(night) == 0
    assert (
        "Measured on the split 'test', the only one of nighttime_driving with labels."
        in capsys.readouterr().out
    )
    assert cli.run([*night, "--window", "64", "--overlap", "0.5"]) == 0
    capsys.readouterr()
    assert cli.run([*night, "--split", "val"]) == 2  # Asked for by name, it must be there.
    assert "'val'" in capsys.readouterr().err
    assert cli.run([*night, "--window", "65"]) == 2
    assert "window is 65; it must be a multiple of 32" in capsys.readouterr().err
    assert cli.run([*call, "--dataset", "ade20k", "--root", str(tmp_path / "dark")]) == 2
    assert "The classes do not match" in capsys.readouterr().err
