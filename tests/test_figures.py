"""What `ccsnet evaluate --out` leaves in a folder, against counting by hand."""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import ccsnet
from ccsnet import evaluate, figures
from ccsnet.datasets._folder import read_spec
from ccsnet.errors import InputError
from ccsnet.evaluate import Evaluation
from ccsnet.metrics import Metrics, image_scores
from ccsnet.scores import bootstrap
from tests.shapes import CLASSES, IGNORED
from tests.test_metrics_boundary import naive_counts

FILES = {
    *("evaluation.json", "evaluation.html", "classes.csv", "images.csv"),
    *("confusion.csv", "confusion.png"),
}


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def number(cell):
    return float(cell) if cell else math.nan


def iou_by_hand(label, prediction, c):
    valid = label != IGNORED
    either = valid & ((label == c) | (prediction == c))
    return (valid & (label == c) & (prediction == c)).sum() / either.sum() if either.any() else None


# The command


def test_the_files_hold_what_predict_gets_wrong(call, run, tmp_path):
    out = tmp_path / "figures"
    more = ("--boundary", "--calibration", "--cpu", "--json", tmp_path / "same.json")
    status, printed, error = call("evaluate", run.out, "--out", out, *more)
    assert (status, error) == (0, "")
    assert {path.name for path in out.iterdir()} == FILES
    assert "95 % of redrawn sets have a mIoU from" in printed
    assert "boundary IoU %" in printed
    values = json.loads((out / "evaluation.json").read_text())
    assert values == json.loads((tmp_path / "same.json").read_text())

    predictor = ccsnet.load(run.out, device="cpu")
    truth, found, confidences, rights = {}, {}, [], []
    for path in sorted((run.data / "labels" / "val").iterdir()):
        truth[path.stem] = np.asarray(Image.open(path))
        image = run.data / "images" / "val" / path.name
        prediction = predictor.predict(image, keep_probs=True)
        found[path.stem] = prediction.label
        valid = truth[path.stem] != IGNORED
        confidences.append(prediction.probs.astype(float).max(0)[valid])
        rights.append((prediction.label == truth[path.stem])[valid])
    confusion = np.zeros((3, 3), int)
    for name, label in truth.items():
        valid = label != IGNORED
        np.add.at(confusion, (label[valid], found[name][valid]), 1)

    contours = [naive_counts(truth[n], found[n], 3, IGNORED, 0.02) for n in truth]
    assert values["boundary"] == sum(contours).tolist()
    sure, right = np.concatenate(confidences), np.concatenate(rights)
    bins = np.ceil(sure * 15).astype(int)
    gaps = [abs((right[bins == b] - sure[bins == b]).sum()) for b in range(1, 16)]
    # The probabilities that `predict` keeps have 11 bits; a few pixels are in the next bin.
    assert values["ece"] == pytest.approx(sum(gaps) / len(sure), abs=2e-3)
    assert values["ece"] > 0.02

    table = list(csv.reader(io.StringIO((out / "confusion.csv").read_text())))
    assert np.array([row[1:] for row in table[1:]], int).tolist() == confusion.tolist()
    assert values["confusion"] == confusion.tolist()

    images = rows_of((out / "images.csv").read_text())
    assert sorted(row["image"] for row in images) == sorted(truth)
    for row, stored in zip(images, values["per_image"], strict=True):
        label, prediction = truth[row["image"]], found[row["image"]]
        expected = [iou_by_hand(label, prediction, c) for c in range(3)]
        present = [one for one in expected if one is not None]
        assert number(row["miou"]) == pytest.approx(np.mean(present), abs=1e-6)
        assert int(row["pixels"]) == (label != IGNORED).sum()
        right = (label == prediction)[label != IGNORED].mean()
        assert number(row["pixel_accuracy"]) == pytest.approx(right, abs=1e-6)
        for name, one in zip(CLASSES, expected, strict=True):
            assert row[f"iou {name}"] == "" if one is None else row[f"iou {name}"]
            assert stored["iou"].get(name) == (None if one is None else pytest.approx(one, 1e-4))
        assert (stored["image"], stored["pixels"]) == (row["image"], int(row["pixels"]))
        assert stored["miou"] == number(row["miou"])
        valid = label != IGNORED
        counts = {
            name: [
                int(((label == c) & (prediction == c)).sum()),
                int((label == c).sum()),
                int(((prediction == c) & valid).sum()),
            ]
            for c, name in enumerate(CLASSES)
        }
        assert stored["counts"] == {name: n for name, n in counts.items() if any(n)}
    mious = [number(row["miou"]) for row in images]
    assert mious == sorted(mious)

    for row in rows_of((out / "classes.csv").read_text()):
        c = CLASSES.index(row["class"])
        assert int(row["labelled_pixels"]) == confusion[c].sum()
        assert int(row["predicted_pixels"]) == confusion[:, c].sum()
        for name in ("iou", "dice", "accuracy", "precision", "recall", "f_score", "boundary_iou"):
            assert number(row[name]) == values[name][row["class"]]
        low, high = values["intervals"]["iou"][row["class"]]
        assert (number(row["iou_low"]), number(row["iou_high"])) == (low, high)
        assert low <= number(row["iou"]) <= high
    for name in ("miou", "mean_dice", "mean_accuracy", "pixel_accuracy", "fw_iou"):
        low, high = values["intervals"][name]
        assert low <= values[name] <= high


def test_the_page_and_the_picture(call, run, tmp_path):
    out = tmp_path / "figures"
    assert call("evaluate", run.out, "--out", out, "--calibration", "--window", 64)[0] == 0
    assert cv2.imread(str(out / "confusion.png")).std() > 0
    page = (out / "evaluation.html").read_text("utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for heading in ("What it reached", "How sure it is", "What is taken for what"):
        assert f"<h2>{heading}</h2>" in page
    assert "95 % interval" in page
    assert "boundary IoU" not in page  # It was not measured.
    assert page.count("Picture, truth, prediction") == 2 * 4
    assert re.search(r"how\.window</td>\s*<td[^>]*>64<", page)
    # The pictures are of what was measured: in windows.
    shown = set(re.findall(r"(?:best|worst): (\w+), mIoU ([\d.]+) %", page))
    rows = rows_of((out / "images.csv").read_text())
    assert shown == {(row["image"], f"{100 * number(row['miou']):.1f}") for row in rows}


def test_nothing_is_replaced_unless_asked(call, run, tmp_path, monkeypatch):
    out = tmp_path / "figures"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "images.csv").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluate", None)  # Refused before anything is measured.
        status, _, error = call("evaluate", run.out, "--out", out)
    assert status == 2
    assert "holds images.csv already" in error
    assert "--overwrite" in error
    assert {path.name for path in out.iterdir()} == {"notes.txt", "images.csv"}
    assert call("evaluate", run.out, "--out", out, "--overwrite")[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "images.csv").read_text() != "mine"
    assert {path.name for path in out.iterdir()} == FILES | {"notes.txt"}
    status, _, error = call("evaluate", run.out, "--out", out / "notes.txt")
    assert status == 2
    assert "notes.txt" in error


def test_names_that_are_no_text(run, tmp_path):
    """As unpacked from an archive of another system: the pages are written, and the table shown."""
    data, out = tmp_path / "data", tmp_path / "figures"
    shutil.copytree(run.data, data)
    for folder in ("images", "labels"):
        path = data / folder / "val" / "0.png"
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    command = [sys.executable, "-m", "ccsnet", "evaluate", run.out, "--root", data, "--per-image"]
    command += ["--out", out, "--json", tmp_path / "all.json", "--cpu"]
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9" in done.stdout
    assert b"caf\xe9," in (out / "images.csv").read_bytes()
    assert r"caf\udce9" in (out / "evaluation.html").read_text("utf-8")


def test_a_place_for_json_is_looked_at_first(call, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", None)
    status, _, error = call("evaluate", run.out, "--json", tmp_path)
    assert status == 2
    assert f"--json is {tmp_path}, a folder" in " ".join(error.split())


def test_without_it_no_image_is_kept(call, run, tmp_path):
    status, printed, _ = call("evaluate", run.out, "--json", tmp_path / "all.json")
    assert status == 0
    assert "redrawn" not in printed
    assert "worst" not in printed
    assert not {"per_image", "intervals"} & set(json.loads((tmp_path / "all.json").read_text()))
    printed = call("evaluate", run.out, "--per-image")[1]
    assert printed.index("redrawn") < printed.index("The worst images")


@pytest.mark.slow
def test_several_processes_write_the_same_files_once(call, run, tmp_path):
    from tests.processes import launch

    more = ("--cpu", "--boundary", "--batch-size", "1", "--out")
    assert call("evaluate", run.out, *more, tmp_path / "one")[0] == 0
    arguments = ["evaluate", str(run.out), *more, str(tmp_path / "three")]
    done = launch(["-m", "ccsnet", *arguments], 3, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("All figures are in") == 1
    for name in FILES - {"confusion.png", "evaluation.html"}:
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "three" / name).read_text()
    done = launch(["-m", "ccsnet", *arguments], 2, timeout=180)
    assert done.returncode != 0
    assert "--overwrite" in done.stderr


# The tables


CONFUSIONS = np.array([[[4, 1], [0, 5]], [[0, 0], [0, 0]], [[0, 6], [0, 0]], [[1, 0], [0, 0]]])
NAMES = ["a", "empty", "one", "one"]  # Two images of one name.


@pytest.fixture
def measured():
    hit = CONFUSIONS.diagonal(axis1=1, axis2=2)
    table = np.stack([hit, CONFUSIONS.sum(2), CONFUSIONS.sum(1)], 1)
    metrics = Metrics(
        classes=("sky", "=road, wet"), confusion=CONFUSIONS.sum(0), images=4, per_image=table
    )
    return Evaluation(metrics, [("one", 0.0), ("a", (4 / 5 + 5 / 6) / 2), ("one", 1.0)])


def test_images_of_one_name_and_without_a_pixel(measured):
    rows = image_scores(measured.metrics, measured.per_image)
    assert [(row.image, row.pixels) for row in rows] == [("one", 6), ("a", 10), ("one", 1)]
    assert [row.miou for row in rows] == [miou for _, miou in measured.per_image]
    assert rows[2].to_dict(measured.metrics.classes) == {
        **{"image": "one", "pixels": 1, "miou": 1.0, "mean_dice": 1.0, "mean_accuracy": 1.0},
        **{"pixel_accuracy": 1.0, "iou": {"sky": 1.0}, "counts": {"sky": [1, 1, 1]}},
    }
    lines = figures.images_csv(measured).splitlines()
    assert lines[0].endswith('iou sky,"iou =road, wet"')
    assert lines[3] == "one,1,1.0,1.0,1.0,1.0,1.0,"
    plain = Metrics(classes=measured.metrics.classes, confusion=CONFUSIONS.sum(0))
    with pytest.raises(InputError, match="not kept"):
        image_scores(plain, measured.per_image)


def test_classes_that_are_absent_are_empty():
    metrics = Metrics(classes=("a", "b", "c"), confusion=np.diag([3, 0, 1]))
    rows = rows_of(figures.classes_csv(metrics))
    assert list(rows[1].values()) == ["b", "0", "0", *[""] * 6]
    assert "iou_low" not in rows[0]
    assert rows[0]["iou"] == "1.0"


def test_intervals_come_back(measured):
    metrics = measured.metrics
    values = json.loads(figures.figures_json(measured))
    again = Metrics.from_dict(values)
    assert again.intervals.keys() == metrics.intervals.keys()
    for name, interval in metrics.intervals.items():
        np.testing.assert_array_equal(interval, bootstrap(name, metrics.per_image))
        np.testing.assert_allclose(again.intervals[name], interval, atol=1e-6)
    assert again.to_dict() == metrics.to_dict()
    nothing = Metrics(
        classes=("a",), confusion=np.zeros((1, 1), int), per_image=np.zeros((2, 3, 1), int)
    )
    stored = json.loads(json.dumps(nothing.to_dict()))["intervals"]
    assert stored["miou"] == [None, None]
    assert stored["iou"] == {"a": [None, None]}
    assert np.isnan(Metrics.from_dict({**nothing.to_dict()}).intervals["iou"]).all()


def test_pages_of_data_in_which_nothing_counts(tmp_path, run):
    spec, root = read_spec(run.data)
    metrics = Metrics(
        classes=spec.classes,
        confusion=np.zeros((3, 3), int),
        images=4,
        per_image=np.zeros((4, 3, 3), int),
        boundary=np.zeros((3, 3), int),
        calibration=np.zeros((3, 15), int),
    )
    figures.write_evaluation(
        tmp_path,
        Evaluation(metrics, []),
        spec,
        pairs=spec.pairs(root, "val"),
        predict=lambda image: np.zeros(image.shape[:2], np.uint8),
        facts={},
    )
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "nan" not in (tmp_path / "evaluation.json").read_text().lower()
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 1
