"""The command line in this process: what it prints, what it refuses, and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet import cli
from ccsnet.checkpoint import LAST, read_checkpoint
from ccsnet.recipes import RECIPES
from ccsnet.run_folder import BEST_FILE
from ccsnet.runlog import LOG_FILE, read_log
from tests.shapes import OPTIONS, YAML, make_shapes


@pytest.fixture
def data(tmp_path):
    return make_shapes(tmp_path / "shapes", train=4, val=2)


@pytest.fixture
def refused(call):
    """Runs a command that must fail as a user's mistake should; returns the message."""

    def refused(*arguments):
        status, _, err = call(*arguments)
        assert status == 2
        assert "Traceback" not in err
        assert err.strip()
        return " ".join(err.replace("│", " ").split())

    return refused


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ccsnet"


def train(call, data, out, *more):
    return call("train", data, "--out", out, *OPTIONS, "--steps", 4, *more)


# The way through


def test_train_evaluate_predict(call, data, tmp_path):
    out = tmp_path / "run"
    status, printed, err = train(call, data, out)
    assert (status, err) == (0, "")
    assert "Best validation mIoU" in printed
    assert f"settings and report.html are in {out}" in printed
    miou = read_checkpoint(out).miou

    figures = tmp_path / "figures" / "all.json"
    status, printed, _ = call("evaluate", out, "--json", figures)
    assert status == 0
    assert "2 images" in printed
    assert "pixel accuracy" in printed
    for name in ("ground", "disc", "box", "mean"):
        assert name in printed
    assert json.loads(figures.read_text())["miou"] == pytest.approx(miou, abs=1e-3)

    images = data / "images" / "val"
    status, printed, _ = call(
        *("predict", out, images, "--out", tmp_path / "maps", "--save", "index", "color", "overlay")
    )
    assert status == 0
    assert "2 images: index, color, overlay in" in printed
    written = sorted(
        str(p.relative_to(tmp_path / "maps")) for p in (tmp_path / "maps").rglob("*.png")
    )
    assert written == [f"{k}/{n}.png" for k in ("color", "index", "overlay") for n in (0, 1)]
    with Image.open(tmp_path / "maps" / "color" / "0.png") as png:
        assert png.mode == "P"

    status, printed, _ = call(
        *("predict", out, images / "0.png", "--out", tmp_path / "windows", "--window", 64)
    )
    assert status == 0
    assert "1 image: color in" in printed


def test_train_goes_to_runs_by_default(call, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", "shapes", *OPTIONS, "--steps", 1)[0] == 0
    assert (tmp_path / "runs" / "shapes-ccs" / LAST).is_file()
    status, _, _ = call(
        "train", "--dataset", "shapes/dataset.yaml", *OPTIONS, "--head", "fcn", "--steps", 1
    )
    assert status == 0
    assert (tmp_path / "runs" / "dataset-fcn" / LAST).is_file()


def test_resume_with_more_steps(call, data, tmp_path):
    train(call, data, tmp_path / "run")
    status, printed, _ = call("train", "--resume", tmp_path / "run", "--steps", 6)
    assert status == 0
    assert "Best validation mIoU" in printed
    assert [row["step"] for row in read_log(tmp_path / "run" / LOG_FILE)] == [1, 2, 3, 4, 5, 6]


def test_the_table_is_of_the_best_validation_not_the_last(call, data, tmp_path):
    train(call, data, tmp_path / "run")
    path = tmp_path / "run" / BEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": 77}))
    assert "77 images" in call("train", "--resume", tmp_path / "run")[1]
    path.unlink()
    assert "2 images" in call("train", "--resume", tmp_path / "run")[1]


def test_evaluate_another_split_and_folder(call, data, run, tmp_path):
    assert "4 images" in call("evaluate", run.out, "--dataset", data, "--split", "train")[1]
    assert "2 images" in call("evaluate", run.out, "--root", data)[1]
    assert "2 images" in call("evaluate", run.out / LAST, "--dataset", data, "--batch-size", 1)[1]


# Help and lists


def test_help(call):
    for arguments in ([], ["-h"], ["--help"]):
        status, printed, _ = call(*arguments)
        assert status == 0
        for verb in cli.VERBS:
            assert f"  {verb} " in printed


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_command(call, verb):
    status, printed, err = call(verb, "--help")
    assert (status, err) == (0, "")
    assert f"ccsnet {verb}" in printed
    assert len(printed.splitlines()) < 200


def test_help_tells_every_setting(call):
    printed = call("train", "--help")[1]
    for option in (
        "--dataset",
        "--crop",
        "--backbone",
        "--top-k",
        "--lr",
        "--steps",
        "--precision",
    ):
        assert option in printed
    assert "Optimizer steps." in printed


def test_version(call):
    assert call("--version")[1] == "ccsnet 0.1.0\n"


@pytest.mark.parametrize(("kind", "name"), [("heads", "segformer"), ("datasets", "cityscapes")])
def test_list(call, kind, name):
    status, printed, _ = call("list", kind)
    assert status == 0
    assert any(line.split()[0] == name for line in printed.splitlines())
    assert call("list", kind, name)[1].split()[0] == name


def test_list_backbones(call, cache):
    """The figures of the proven ones, and what else there is of that name."""
    status, printed, err = call("list", "backbones", "mobilenetv3_small")
    assert (status, err) == (0, "")
    machine, headings, row, others = printed.splitlines()
    assert f"torch {torch.__version__}" in machine
    assert headings.split()[:2] == ["backbone", "M"]
    assert row.split()[:3] == ["mobilenetv3_small_100", "0.9", "0.3"]
    assert row.endswith("lamb_in1k  apache-2.0")
    assert others.startswith("Other names of timm, not measured: mobilenetv3_small_050, ")
    again = call("list", "backbones", "mobilenetv3_small")[1]
    assert again.splitlines()[:3] == printed.splitlines()[:3]
    assert "From the cache; --again measures anew." in again
    anew = call("list", "backbones", "mobilenetv3_small", "--again")[1]
    assert "From the cache" not in anew


def test_list_backbones_that_are_not_proven(call):
    printed = call("list", "backbones", "maxvit")[1]
    assert printed.startswith("Other names of timm, not measured: maxvit_base_tf_224, ")
    assert printed.rstrip().endswith(" more.")


def test_list_recipes(call, cache, monkeypatch):
    some = {n: RECIPES[n] for n in ("camvid_lite0", "ccsnet_mobilenetv2_ade20k")}
    monkeypatch.setattr("ccsnet.catalogue.RECIPES", some)
    status, printed, err = call("list", "recipes")
    assert (status, err) == (0, "")
    headings, camvid, mobile, note = printed.splitlines()
    assert headings.split()[:4] == ["recipe", "backbone", "data", "crop"]
    assert camvid.split()[:4] == ["camvid_lite0", "tf_efficientnet_lite0", "camvid", "320x320"]
    cells = mobile.split()
    assert cells[:8] == [
        *("ccsnet_mobilenetv2_ade20k", "mobilenetv2_100.ra_in1k", "ade20k", "512x512"),
        *("16", "x", "160000", "sgd"),
    ]
    assert cells[-2:] == ["ra_in1k", "apache-2.0"]
    assert "about" in note
    alone = call("list", "recipes", "mobilenet")[1]
    assert "From the cache" in alone
    assert alone.endswith("\nMobileNetV2 1.0, dilated.\n")


def test_list_refuses(refused):
    assert "No list is called 'head'. Perhaps you meant heads" in refused("list", "head")
    assert "No backbone is called 'resnett18'" in refused("list", "backbones", "resnett18")
    assert "No recipe is called 'earht'. Perhaps you meant earth" in refused(
        "list", "recipes", "earht"
    )
    assert "not '--al'" in refused("list", "backbones", "--al")
    assert "not 'two'" in refused("list", "backbones", "resnet", "two")


# What bad input gets


def test_unknown_command(refused):
    assert "No command is called 'trian'. Perhaps you meant train" in refused("trian")


def test_missing_folder(refused, data, tmp_path):
    message = refused("train", tmp_path / "nowhere", *OPTIONS)
    assert f"No {tmp_path / 'nowhere'}" in message
    assert "dataset.yaml" in message
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"The folder {empty} has no dataset.yaml" in refused("train", empty, *OPTIONS)
    message = refused("train", data, "--root", tmp_path / "gone", *OPTIONS)
    assert f"No folder {tmp_path / 'gone'}" in message


def test_no_data_set_named(refused):
    assert "Which data?" in refused("train")
    assert "Which data?" in refused("train", "--steps", 3)


def test_image_without_label(refused, data, tmp_path):
    (data / "labels" / "train" / "2.png").unlink()
    message = refused("train", data, "--out", tmp_path / "run", *OPTIONS)
    assert "images/train/2.png has no label; looked for" in message
    assert not (tmp_path / "run").exists()


def test_label_of_another_size(refused, data):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "labels" / "train" / "1.png")
    message = refused("train", data, *OPTIONS)
    assert "images/train/1.png has 64 x 80 pixels, but its label" in message
    assert "9 x 9" in message


def test_label_value_outside_the_map(refused, data):
    Image.fromarray(np.full((64, 80), 17, np.uint8)).save(data / "labels" / "val" / "1.png")
    message = refused("train", data, *OPTIONS)
    assert "labels/val/1.png holds 17" in message
    assert "Allowed in 'shapes': 0-2 for the 3 classes" in message


def test_truncated_image(refused, data, run, tmp_path):
    path = data / "images" / "train" / "0.png"
    path.write_bytes(path.read_bytes()[:900])
    for message in (
        refused("train", data, "--out", tmp_path / "run", *OPTIONS),
        refused("predict", run.out, path, "--out", tmp_path / "maps"),
    ):
        assert "train/0.png" in message
        assert "copy" in message
    path.write_bytes(b"")
    assert "the file is empty (0 bytes)" in refused("predict", run.out, path)


def test_truncated_image_found_by_a_worker(refused, data, tmp_path):
    """Headers are whole, so the check before training passes; the reading process finds it."""
    (data / "dataset.yaml").write_text(YAML.replace("images/{split}/*.png", "images/{split}/*.jpg"))
    for path in (data / "images").rglob("*.png"):
        photo = path.with_suffix(".jpg")
        with Image.open(path) as image:
            image.save(photo)
        if path.parent.name == "train":
            photo.write_bytes(photo.read_bytes()[:-40])
    options = [*OPTIONS, "--workers", "1"]
    message = refused("train", data, "--out", tmp_path / "run", *options, "--steps", 2)
    assert "images/train/" in message


def test_unknown_names(refused, data):
    message = refused("train", data, *OPTIONS, "--head", "segfomer")
    assert "No head is called 'segfomer'. Perhaps you meant segformer" in message
    message = refused("train", data, *OPTIONS, "--backbone", "resnet19")
    assert "No backbone is called 'resnet19'. Perhaps you meant resnet" in message
    message = refused("train", data, "--recipe", "erth")
    assert "No recipe is called 'erth'. Perhaps you meant earth" in message
    message = refused("train", "citiscapes", *OPTIONS)
    assert "No data set is called 'citiscapes'. Perhaps you meant cityscapes" in message


def test_unknown_split(refused, data, run):
    assert "'tset'" in refused("evaluate", run.out, "--dataset", data, "--split", "tset")


def test_other_classes(refused, run, tmp_path):
    other = make_shapes(tmp_path / "other", 2, 1, yaml=YAML.replace("disc", "ring"))
    message = refused("evaluate", run.out, "--dataset", other)
    assert "'disc' as class 1, the data set 'other' has 'ring'" in message
    assert "Use the data that the model learnt ('shapes')" in message


def test_batch_that_does_not_divide(refused, data):
    message = refused("train", data, *OPTIONS, "--batch-size", 8, "--accumulate", 3)
    assert "batch_size is 8" in message
    assert "multiple of 3" in message


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--dim", "0"), "dim is 0; it must be at least 1"),
        (("--steps", "0"), "steps is 0; it must be at least 1"),
        (("--scale", "2", "1"), "0 < smallest <= largest"),
        (("--lr", "fast"), "fast"),
        (("--precision", "fp8"), "fp8"),
        (("--crop", "64"), "--crop"),
    ],
)
def test_impossible_values(refused, data, option, text):
    assert text in refused("train", data, *OPTIONS, *option)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("train", "x", "--stepz", "3"), "--steps"),
        (("train", "x", "--backbne", "resnet18"), "--backbone"),
        (("evaluate", "x", "--splitt", "test"), "--split"),
        (("predict", "x", "y", "--overwrit"), "--overwrite"),
    ],
)
def test_misspelt_options(refused, arguments, suggestion):
    message = refused(*arguments)
    assert arguments[-1] in message or arguments[-2] in message
    assert suggestion in message


def test_damaged_checkpoint(refused, data, tmp_path, call):
    train(call, data, tmp_path / "run")
    for path in (tmp_path / "run").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:3000])
    for arguments in (
        ("evaluate", tmp_path / "run"),
        ("predict", tmp_path / "run", data / "images"),
        ("train", "--resume", tmp_path / "run"),
    ):
        message = refused(*arguments)
        assert ".safetensors is not a whole safetensors file" in message
        assert "3000 bytes" in message


def test_no_run(refused, data, tmp_path):
    for verb in ("evaluate", "predict"):
        more = [data / "images"] if verb == "predict" else []
        assert "No run or checkpoint" in refused(verb, tmp_path / "nowhere", *more)
        assert "holds no checkpoint" in refused(verb, tmp_path, *more)
        assert f"ccsnet {verb} RUN" in refused(verb, "--out", "x")
    assert "to resume from" in refused("train", "--resume", tmp_path / "nowhere")
    assert "--resume needs a value" in refused("train", "--resume")
    message = refused("train", "--resume", tmp_path, "--out", "x")
    assert "leave out --recipe and --out" in message


def test_existing_run(refused, call, data, tmp_path):
    train(call, data, tmp_path / "run")
    message = refused("train", data, "--out", tmp_path / "run", *OPTIONS)
    assert f"already holds a run. Go on with it by --resume {tmp_path / 'run'}" in message


def test_no_images(refused, run, tmp_path):
    assert "Which images?" in refused("predict", run.out)
    assert "No file, folder or pattern" in refused("predict", run.out, tmp_path / "no.jpg")
    assert "No image in" in refused("predict", run.out, str(tmp_path / "*.jpg"))
    assert "No image in" in refused("predict", run.out, tmp_path)


def test_results_that_are_there(refused, call, data, run, tmp_path):
    image, out = data / "images" / "val" / "0.png", tmp_path / "maps"
    assert call("predict", run.out, image, "--out", out)[0] == 0
    assert "is there already" in refused("predict", run.out, image, "--out", out)
    assert call("predict", run.out, image, "--out", out, "--overwrite")[0] == 0


def test_a_loss_that_is_no_number(refused, data, tmp_path):
    message = refused("train", data, "--out", tmp_path / "run", *OPTIONS, "--lr", "1e30")
    assert "is not a number" in message
    assert "the images were" in message


def test_the_folder_cannot_be_written(refused, data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    message = refused("train", data, "--out", tmp_path / "file" / "run", *OPTIONS)
    assert str(tmp_path / "file") in message


def test_warnings_are_one_line(call, data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        options = [*OPTIONS, "--steps", 1, "--drop-path", "0.1", "--backbone", "resnet10t"]
        status, _, err = call("train", data, "--out", tmp_path / "run", *options)
    assert status == 0
    assert all(line.startswith("warning: ") for line in err.splitlines())


def test_traceback_on_request(call, monkeypatch, tmp_path):
    monkeypatch.setenv("CCSNET_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        call("evaluate", tmp_path / "nowhere")


# A process of its own


def test_interrupt_saves_and_resume_goes_on(call, data, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ccsnet", "train", data, "--out", out, *OPTIONS]
    process = subprocess.Popen(
        [*command, "--steps", "100000", "--validate-every", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for_steps(out, process)
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"all is saved. Go on with: ccsnet train --resume {out}" in " ".join(printed.split())
    done = read_checkpoint(out / LAST).step
    assert done >= 3
    status, _, _ = call("train", "--resume", out, "--steps", done + 2)
    assert status == 0
    steps = [row["step"] for row in read_log(out / LOG_FILE)]
    assert steps == list(range(1, done + 3))


def wait_for_steps(out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (out / LOG_FILE).is_file() and len((out / LOG_FILE).read_text().splitlines()) > 3:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step was made: {process.communicate()}")
