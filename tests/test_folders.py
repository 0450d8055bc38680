import csv
import dataclasses
import gc
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import nn

import ccsnet
from ccsnet.checkpoint import ClassInfo
from ccsnet.claims import STALE_SECONDS, Claims
from ccsnet.data.images import image_size
from ccsnet.errors import InputError
from ccsnet.folders import RECORDS, _left, label_folder
from ccsnet.predict import PredictConfig, Prediction, Predictor
from ccsnet.progress import Silent
from ccsnet.walk import Found, walk_images
from tests import processes
from tests.notes import Notes
from tests.shapes import CLASSES, COLOURS

INFO = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS)


class ByColour(Predictor):
    """Says ground, disc or box where red, green or blue is strongest; no network."""

    models = ()

    def __init__(self, refuse: str = "", seconds: float = 0.0, at_once: int = 1):
        self.model, self.info = nn.Identity(), INFO
        self.classes, self.colours = CLASSES, COLOURS
        self.refuse, self.seconds, self.at_once, self.calls = refuse, seconds, at_once, 0

    def pipeline(self, config=None):
        return types.SimpleNamespace(images_at_once=lambda size, bands: self.at_once)

    def predict_batch(self, images, config=None, progress=None, *, keep_probs=False):
        assert len({image.shape for image in images}) == 1
        assert len(images) <= self.at_once
        self.calls += len(images)
        time.sleep(self.seconds)
        if self.refuse and any(image[0, 0, 0] == 7 for image in images):
            raise InputError(self.refuse)
        return [
            Prediction(
                label=image.argmax(2).astype(np.uint8), classes=CLASSES, colours=COLOURS,
                image=image, probs=np.ones((3, 12, 16), np.float16) if keep_probs else None,
            )
            for image in images
        ]  # fmt: skip


def make_images(folder, num, size=(12, 16), start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + num):
        pixels = np.random.default_rng(i).integers(8, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders, and a text."""
    make_images(tmp_path / "photos", 3)
    make_images(tmp_path / "photos" / "deep", 2, start=3)
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path / "photos"


def files_in(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and RECORDS not in p.parts
    }


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Finding


def test_images_are_walked(photos, monkeypatch):
    def names(*inputs, **more):
        return [found.name for found in walk_images(inputs, **more)]

    everything = ["00000.png", "00001.png", "00002.png", "deep/00003.png", "deep/00004.png"]
    assert names(photos) == everything
    assert names(photos / "deep") == ["00003.png", "00004.png"]
    assert names(photos, without=photos / "deep") == everything[:3]
    assert names(str(photos / "*.png")) == everything[:3]
    assert names(str(photos / "**" / "*.png")) == everything
    assert names(photos / "deep" / "00003.png", photos) == [
        everything[3],
        *everything[:3],
        everything[4],
    ]
    monkeypatch.chdir(photos)
    assert names("00001.png", "./00001.png", str(photos / "00001.png")) == ["00001.png"]


def test_nothing_to_walk(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file, folder or pattern .*nowhere"):
        list(walk_images([tmp_path / "nowhere"]))
    (tmp_path / "empty").mkdir()
    for item in (tmp_path / "empty", str(photos / "*.jpg"), str(photos / "*.txt")):
        with pytest.raises(InputError, match=r"No image in .*: looked for files ending in \.jpg"):
            list(walk_images([item]))


# Results


def test_all_kinds_are_written(photos, tmp_path):
    out = tmp_path / "out"
    save = ("index", "color", "overlay", "contours", "segments", "area")
    result = label_folder(ByColour(), [photos], out, save=save, summary=tmp_path / "all.json")
    assert (result.labelled, result.done_before, result.elsewhere) == (5, 0, 0)
    names = ("00000", "00001", "00002", "deep/00003", "deep/00004")
    pictures = {f"{kind}/{n}.png" for kind in save[:-1] for n in names}
    assert set(files_in(out)) == pictures | {"segments.json", "area.csv"}
    rows = rows_of(out / "area.csv")
    assert [r["image"] for r in rows[::3]] == [f"{n}.png" for n in names]
    shares = {name: 0.0 for name in CLASSES}
    for name in names:
        label = np.asarray(Image.open(photos / f"{name}.png")).argmax(2)
        assert np.array_equal(np.asarray(Image.open(out / "index" / f"{name}.png")), label)
        for index, c in enumerate(CLASSES):
            (row,) = [r for r in rows if r["image"] == f"{name}.png" and r["class"] == c]
            assert int(row["pixels"]) == (label == index).sum()
            shares[c] += (label == index).mean() / 5
    assert result.areas == pytest.approx(shares)
    assert list(result.areas.values()) == sorted(result.areas.values(), reverse=True)
    panoptic = json.loads((out / "segments.json").read_text())
    assert [i["file_name"] for i in panoptic["images"]] == [f"{n}.png" for n in names]
    summary = json.loads((tmp_path / "all.json").read_text())
    assert summary["labelled"] == 5
    assert summary["failures"] == []
    assert summary["areas"] == pytest.approx(shares)
    assert [i["image"] for i in summary["images"]] == [f"{n}.png" for n in names]
    for image in summary["images"]:
        assert all((out / file).is_file() for file in image["files"])
        assert sum(image["areas"].values()) == pytest.approx(1)


def test_existing_results_are_kept(photos, tmp_path):
    out = tmp_path / "out"
    label_folder(ByColour(), [photos / "00000.png"], out)
    file = out / "color" / "00000.png"
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"color/00000\.png is there already.*--resume.*--overwr"):
        label_folder(ByColour(), [photos], out)
    assert file.read_bytes() == b"mine"
    assert not (out / "color" / "00001.png").exists()
    assert label_folder(ByColour(), [photos], out, overwrite=True).labelled == 5
    assert file.read_bytes() != b"mine"
    with pytest.raises(InputError, match="choose one"):
        label_folder(ByColour(), [photos], out, overwrite=True, resume=True)


def test_two_images_of_one_name(photos, tmp_path):
    Image.open(photos / "00001.png").save(photos / "00001.jpg")
    with pytest.raises(InputError, match=r"00001\.jpg and .*00001\.png would both be written to"):
        label_folder(ByColour(), [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_are_not_taken_for_images(photos):
    out = photos / "predictions"
    assert label_folder(ByColour(), [photos], out).labelled == 5
    assert label_folder(ByColour(), [photos], out, resume=True).done_before == 5


def test_results_among_the_images_are_not_taken_for_images(photos):
    assert label_folder(ByColour(), [photos], photos, save=("color", "overlay")).labelled == 5
    result = label_folder(ByColour(), [photos], photos, save=("index",), resume=True)
    assert (result.labelled, result.done_before) == (5, 0)


# Failures


def test_failures_are_noted_and_the_others_done(photos, tmp_path):
    (photos / "00001.png").write_bytes(b"\x89PNG\r\n")
    (photos / "empty.png").write_bytes(b"")
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(photos / "refused.png")
    predictor, out = ByColour(refuse="too odd"), tmp_path / "out"
    result = label_folder(predictor, [photos], out, summary=tmp_path / "all.json")
    assert result.labelled == 4
    failed = {name.rpartition("/")[2]: text for name, text in result.failures}
    assert list(failed) == ["00001.png", "empty.png", "refused.png"]
    assert failed["refused.png"] == "too odd"
    assert "00001.png" in failed["00001.png"]
    assert len(json.loads((tmp_path / "all.json").read_text())["failures"]) == 3
    make_images(photos, 1, start=1)  # Mended: only it is labelled.
    again = label_folder(predictor, [photos], out, resume=True)
    assert (again.labelled, again.done_before, len(again.failures)) == (1, 4, 2)


def test_no_room_for_results_is_no_image_s_fault(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "color").write_text("a file, where a folder must be")
    with pytest.raises(OSError, match="color"):
        label_folder(ByColour(), [photos], out, resume=True)
    assert not list((out / RECORDS).rglob("*.claim"))


def test_one_of_a_batch_fails(tmp_path):
    """Neighbours of one size are labelled together; what one of them does is its own."""
    photos = make_images(tmp_path / "photos", 7)
    make_images(photos, 1, size=(20, 20), start=4)
    Image.fromarray(np.full((12, 16, 3), 7, np.uint8)).save(photos / "00002.png")
    predictor = ByColour(refuse="too odd", at_once=3)
    result = label_folder(predictor, [photos], tmp_path / "out", save=("index",))
    assert result.labelled == 6
    assert [name for name, _ in result.failures] == [str(photos / "00002.png")]
    assert len(list((tmp_path / "out" / "index").iterdir())) == 6
    assert label_folder(ByColour(at_once=4), [photos], tmp_path / "all").labelled == 7


def test_probabilities_are_kept_where_they_are_wanted(photos, tmp_path):
    label_folder(ByColour(), [photos], tmp_path / "out", save=("prob", "prob_png"))
    with np.load(tmp_path / "out" / "prob" / "deep" / "00003.npz") as archive:
        assert archive["probs"].shape == (3, 12, 16)
    assert len(list((tmp_path / "out" / "prob_png" / "deep" / "00003").iterdir())) == 3


# Going on


def test_what_is_finished_is_skipped(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save = ("index", "segments", "area")
    label_folder(ByColour(), [photos], whole, save=save)

    class Stops(ByColour):
        def predict_batch(self, *arguments, **more):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().predict_batch(*arguments, **more)

    with pytest.raises(KeyboardInterrupt):
        label_folder(Stops(), [photos], parts, save=save)
    assert not list((parts / RECORDS).rglob("*.claim"))
    rest = ByColour()
    result = label_folder(rest, [photos], parts, save=save, resume=True)
    assert (result.labelled, result.done_before, rest.calls) == (3, 2, 3)
    assert files_in(parts) == files_in(whole)
    assert sum(result.areas.values()) == pytest.approx(1)


def test_what_was_lost_or_not_asked_for_is_made(photos, tmp_path):
    label_folder(ByColour(), [photos], tmp_path / "out", save=("index",))
    (tmp_path / "out" / "index" / "00001.png").unlink()
    again = ByColour()
    label_folder(again, [photos], tmp_path / "out", save=("index",), resume=True)
    assert again.calls == 1
    more = label_folder(again, [photos], tmp_path / "out", save=("index", "color"), resume=True)
    assert more.labelled == 5
    assert len(list((tmp_path / "out" / "color").rglob("*.png"))) == 5


def test_other_settings_are_refused(photos, tmp_path):
    label_folder(ByColour(), [photos], tmp_path / "out")
    with pytest.raises(InputError, match="by another model or with other settings"):
        label_folder(
            ByColour(), [photos], tmp_path / "out", resume=True, config=PredictConfig(window=64)
        )
    other = ByColour()
    other.info = dataclasses.replace(INFO, short_side=64)
    with pytest.raises(InputError, match="by another model or with other settings"):
        label_folder(other, [photos], tmp_path / "out", resume=True)
    batch = PredictConfig(batch_size=1)  # Changes nothing of the result.
    found = label_folder(ByColour(), [photos], tmp_path / "out", resume=True, config=batch)
    assert found.done_before == 5


def test_another_image_of_a_name_is_refused(photos, tmp_path):
    """It would get the label map of the one before it."""
    out = tmp_path / "out"
    label_folder(ByColour(), [photos], out)
    shutil.copytree(photos, tmp_path / "copies")  # As on another machine: with times of their own.
    found = label_folder(ByColour(), [tmp_path / "copies"], out, resume=True)
    assert (found.labelled, found.done_before) == (0, 5)
    before = files_in(out)
    make_images(tmp_path / "other", 1, start=7)
    (tmp_path / "other" / "00007.png").rename(tmp_path / "other" / "00001.png")
    with pytest.raises(InputError, match=r"another image of the name 00001\.png.*--overwrite"):
        label_folder(ByColour(), [tmp_path / "other"], out, resume=True)
    assert files_in(out) == before
    assert label_folder(ByColour(), [tmp_path / "other"], out, overwrite=True).labelled == 1
    assert files_in(out) != before


@pytest.mark.parametrize(("kind", "joined"), [("area", "area.csv"), ("segments", "segments.json")])
def test_what_is_said_of_all_is_not_replaced(photos, tmp_path, kind, joined):
    """Images of other names would leave those before them without their line."""
    out, more = tmp_path / "out", make_images(tmp_path / "more", 2, start=9)
    label_folder(ByColour(), [photos], out, save=(kind,))
    before = files_in(out)
    with pytest.raises(InputError, match=f"{joined} is there already.*--resume to add"):
        label_folder(ByColour(), [more], out, save=(kind,))
    assert files_in(out) == before
    label_folder(ByColour(), [more], out, save=(kind,), resume=True)
    text = (out / joined).read_text()
    assert all(name in text for name in ("00001.png", "00009.png"))
    label_folder(ByColour(), [more], out, save=(kind,), overwrite=True)


def test_names_that_are_no_text(tmp_path):
    photos, out = make_images(tmp_path / "photos", 1), tmp_path / "out"
    (photos / "00000.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    save = ("index", "segments", "area")
    label_folder(ByColour(), [photos], out, save=save, summary=tmp_path / "all.json")
    assert b"caf\xe9.png,ground," in (out / "area.csv").read_bytes()
    for path in (out / "segments.json", tmp_path / "all.json"):
        (image,) = json.loads(path.read_text())["images"]
        assert os.fsencode(image.get("file_name") or image["image"]) == b"caf\xe9.png"


def test_a_trained_model(run, tmp_path):
    predictor = ccsnet.load(run.out, device="cpu")
    images = run.data / "images" / "val"
    result = label_folder(predictor, [images], tmp_path / "out", save=("index", "relevant"))
    assert result.labelled == 4
    for path in sorted(images.iterdir()):
        label = np.asarray(Image.open(tmp_path / "out" / "index" / path.name))
        assert np.array_equal(label, predictor.predict(path).label)
        assert (tmp_path / "out" / "relevant" / path.name).is_file()


def test_what_a_pixel_read_from(run, tmp_path):
    """Of an image that does not reach so far, the failure is noted."""
    predictor, images = ccsnet.load(run.out, device="cpu"), run.data / "images" / "val"
    result = label_folder(predictor, [images], tmp_path / "out", save=(), at=(70, 90))
    sizes = {p.name: image_size(p) for p in images.iterdir()}
    inside = {name for name, (height, width) in sizes.items() if height > 70 and width > 90}
    assert {p.name for p in (tmp_path / "out" / "at").iterdir()} == inside
    assert result.labelled == len(inside)
    assert 0 < len(inside) < len(sizes)
    assert all("is not in the image" in text for _, text in result.failures)
    other = label_folder(predictor, [images], tmp_path / "out", save=(), at=(0, 0), resume=True)
    assert other.labelled == len(sizes)


def test_unknown_kinds_and_heads(photos, tmp_path):
    with pytest.raises(InputError, match="No output is called 'colour'"):
        label_folder(ByColour(), [photos], tmp_path / "out", save=("colour",))


# Several processes


def test_two_at_once_share_a_folder(tmp_path):
    photos, out = make_images(tmp_path / "photos", 40), tmp_path / "out"
    predictors = [ByColour(seconds=0.005) for _ in range(2)]
    results = {}

    def work(number):
        results[number] = label_folder(
            predictors[number], [photos], out, save=("index", "area"), resume=True, workers=2
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert predictors[0].calls + predictors[1].calls == 40
    assert min(p.calls for p in predictors) > 0
    assert sum(r.labelled for r in results.values()) == 40
    assert len(rows_of(out / "area.csv")) == 40 * 3


SHARING = """
import sys, time
from pathlib import Path
from ccsnet.folders import label_folder
from tests.test_folders import ByColour
predictor = ByColour(seconds=0.02)
result = label_folder(predictor, [Path(sys.argv[1])], Path(sys.argv[2]), resume=True, workers=2)
print(result.labelled, predictor.calls)
"""


def start_sharing(photos, out):
    return subprocess.Popen(
        [sys.executable, "-c", SHARING, str(photos), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_processes_share_a_folder_and_one_is_killed(tmp_path):
    """The other does what the killed one had taken, too."""
    photos, out = make_images(tmp_path / "photos", 150), tmp_path / "out"
    killed, other = start_sharing(photos, out), start_sharing(photos, out)
    until = time.monotonic() + 60
    while len(list(out.rglob("*.json"))) < 30 and time.monotonic() < until:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert other.communicate(timeout=120)[0]
    assert other.returncode == 0
    for path in photos.iterdir():
        label = np.asarray(Image.open(path)).argmax(2)
        assert np.array_equal(np.asarray(Image.open(out / "color" / path.name)), label)
    assert not list(out.rglob("*.claim"))
    last = start_sharing(photos, out)
    assert last.communicate(timeout=120)[0].split() == ["0", "0"]


@pytest.mark.slow
def test_torchrun_shares_a_folder_and_one_is_killed(run, tmp_path):
    """torchrun then ends all; the same command goes on, and ends as one process would."""
    sources, photos = sorted((run.data / "images" / "train").iterdir()), tmp_path / "photos"
    photos.mkdir()
    for i in range(150):
        shutil.copy(sources[i % len(sources)], photos / f"{i:03}.png")
    (photos / "100-empty.png").touch()
    save, alone, shared = ("index", "segments", "area"), tmp_path / "alone", tmp_path / "shared"
    command = ["-m", "ccsnet", "predict", str(run.out), str(photos), "--cpu", "--save", *save]
    command += ["--out", str(shared), "--json", str(tmp_path / "all.json")]
    with processes.start(command, 3) as torchrun:
        until = time.monotonic() + 120
        while len(list(shared.rglob("*.png.json"))) < 20 and time.monotonic() < until:
            time.sleep(0.02)
        worker, *_ = children = processes.descendants(torchrun.pid)
        os.kill(worker, signal.SIGKILL)
        torchrun.communicate(timeout=60)
        assert torchrun.returncode
    assert len(children) >= 3
    assert 20 <= len(list(shared.rglob("*.png.json"))) < 150
    assert not (shared / "area.csv").exists()
    ended = processes.launch(command, 3, timeout=240)
    assert ended.returncode == 1
    assert ended.stderr.count("failed: ") == 1, ended.stderr
    assert f"failed: Cannot read {photos / '100-empty.png'}: the file is empty" in ended.stderr
    assert ended.stdout.count("150 images: index, segments, area in") == 1
    assert "1 failed" in ended.stdout
    result = label_folder(ccsnet.load(run.out, "cpu"), [photos], alone, save=save)
    # What the killed ones were writing has hidden names, and stays.
    whole = {file: data for file, data in files_in(shared).items() if "/." not in file}
    assert whole == files_in(alone)
    assert not list(shared.rglob("*.claim"))
    summary = json.loads((tmp_path / "all.json").read_text())
    assert summary["labelled"] + summary["done_before"] == len(summary["images"]) == 150
    assert summary["elsewhere"] == 0
    assert [Path(one["image"]).name for one in summary["failures"]] == ["100-empty.png"]
    assert summary["areas"] == pytest.approx(result.areas)


def test_torchrun_does_not_replace(run, tmp_path, monkeypatch, capsys):
    from ccsnet.cli import run as call

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    command = ["predict", str(run.out), str(run.data), "--out", str(tmp_path), "--overwrite"]
    assert call(command) == 2
    assert "error in process 1: Under torchrun nothing is replaced" in capsys.readouterr().err


def test_a_claim_on_what_is_finished_goes_with_its_process(tmp_path):
    """One that is killed after its last file, and before it takes its claim away."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for process, stays in ((killed.pid, False), (os.getppid(), True)):
        claims, name = Claims(tmp_path / str(stays), "s"), f"{process}.png"
        assert claims.ask(name, ["index"], tmp_path).whose == "ours"
        claims.finish(name, {"files": [], "kinds": ["index"]})
        claim = claims._path(name, ".claim")
        claim.write_text(json.dumps({**claims._owner, "process": process}))
        assert Claims(claims.folder, "s").ask(name, ["index"], tmp_path).whose == "done"
        assert claim.exists() == stays


def test_others_are_waited_for(photos, tmp_path):
    """What they finish is counted, what they leave is labelled."""
    out, told = tmp_path / "out", Notes()
    label_folder(ByColour(), [photos], tmp_path / "whole", save=("index", "area"))
    first = label_folder(ByColour(), [photos / "00000.png"], out, save=("index", "area"))
    settings = json.loads((out / RECORDS / "00000.png.json").read_text())["settings"]
    other = Claims(out / RECORDS, settings)
    assert other.ask("00001.png", ["index", "area"], out).whose == "ours"
    result, predictor = {}, ByColour()

    def work(finish):
        result[finish] = label_folder(
            predictor, [photos], out, save=("index", "area"), resume=True, finish=finish,
            reporter=told, summary=tmp_path / f"{finish}.json",
        )  # fmt: skip

    work(False)
    assert (result[False].labelled, result[False].done_before, result[False].elsewhere) == (3, 1, 1)
    assert told.notes == []
    assert not (tmp_path / "False.json").exists()
    assert len(rows_of(out / "area.csv")) == 3 * first.labelled
    thread = threading.Thread(target=work, args=(True,))
    thread.start()
    until = time.monotonic() + 20
    while not told.notes and time.monotonic() < until:
        time.sleep(0.01)
    assert thread.is_alive()
    other.drop_all()
    thread.join(timeout=20)
    assert told.notes == ["Waiting for images that other processes are at work on."]
    assert (result[True].labelled, result[True].done_before, result[True].elsewhere) == (1, 4, 0)
    assert predictor.calls == 4
    assert files_in(out) == files_in(tmp_path / "whole")
    assert len(json.loads((tmp_path / "True.json").read_text())["images"]) == 5


def test_nobody_waits_who_holds_an_image(tmp_path, monkeypatch):
    """Two that do may wait for each other."""

    def slept(_):
        raise AssertionError("it waits")

    monkeypatch.setattr(time, "sleep", slept)
    ours, other = Claims(tmp_path, "s"), Claims(tmp_path, "s")
    assert other.ask("b.png", ["index"], tmp_path).whose == "ours"
    work = types.SimpleNamespace(claims=ours, failures=[("c.png", "too odd")])
    images = [Found(Path(name), name) for name in ("a.png", "b.png", "c.png")]
    left = inspect.unwrap(_left)(work, images, Silent())
    assert next(left).name == "a.png"
    assert ours.ask("a.png", ["index"], tmp_path).whose == "ours"
    assert next(left).name == "b.png"
    assert list(left) == []  # What failed here is not tried again.
    ours.drop_all()
    with pytest.raises(AssertionError, match="it waits"):
        list(inspect.unwrap(_left)(work, images, Silent()))


def test_two_that_take_the_images_in_another_order(tmp_path):
    folders = [make_images(tmp_path / name, 12) for name in "abc"]
    predictors, results = [ByColour(seconds=0.01, at_once=5) for _ in range(2)], {}

    def work(number):
        order = folders[:: 1 - 2 * number]
        results[number] = label_folder(
            predictors[number], order, tmp_path / "out", save=("index",), resume=True, workers=3
        )

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(results) == [0, 1]
    assert sum(r.labelled for r in results.values()) == 36
    for found in results.values():
        assert (found.labelled + found.done_before, found.elsewhere) == (36, 0)


def test_claims_left_behind_are_taken_over(tmp_path):
    claims = Claims(tmp_path / "records", "s")
    assert claims.ask("a.png", ["index"], tmp_path).whose == "ours"
    other = Claims(tmp_path / "records", "s")
    assert other.ask("a.png", ["index"], tmp_path).whose == "taken"  # This process lives.
    claim = tmp_path / "records" / "a.png.claim"
    left = json.loads(claim.read_text())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim.write_text(json.dumps(left | {"process": dead.pid}))
    assert other.ask("a.png", ["index"], tmp_path).whose == "ours"
    other.drop_all()
    claim.write_text(json.dumps(left | {"host": "far away"}))
    assert other.ask("a.png", ["index"], tmp_path).whose == "taken"
    claim.write_text("")  # Being written.
    assert other.ask("a.png", ["index"], tmp_path).whose == "taken"
    old = time.time() - STALE_SECONDS - 1
    os.utime(claim, (old, old))
    assert other.ask("a.png", ["index"], tmp_path).whose == "ours"
    other.finish("a.png", {"image": "a.png", "kinds": ["index"], "files": []})
    assert claims.ask("a.png", ["index"], tmp_path).whose == "done"


# Memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """In Python's own memory, and without its collector: nothing waits to be freed.

    What is held of an image is its name and a number; a label map alone would be 3 kB.
    """
    nums = {"warm": 50, "few": 100, "many": 1000}
    blocks = np.random.default_rng(0).integers(8, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(tmp_path / "one.png")
    for name, num in nums.items():
        (tmp_path / name).mkdir()
        for i in range(num):
            shutil.copy(tmp_path / "one.png", tmp_path / name / f"{i:05}.png")
    peaks = {}
    gc.collect()
    gc.disable()
    try:
        for name, num in nums.items():
            tracemalloc.start()
            found = label_folder(
                ByColour(), [tmp_path / name], tmp_path / f"{name}-out", workers=2,
                save=("index", "segments", "area"), summary=tmp_path / f"{name}.json",
            )  # fmt: skip
            peaks[name] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert found.labelled == num
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peaks["many"] - peaks["few"] < 900 * 300


def test_images_are_found_while_they_are_asked_for(tmp_path):
    """The names of a folder are read when it is that folder's turn."""
    make_images(tmp_path / "a", 2)
    make_images(tmp_path / "b", 1)
    walk = walk_images([tmp_path])
    assert next(walk).name == "a/00000.png"
    make_images(tmp_path / "b", 1, start=7)
    assert [found.name for found in walk] == ["a/00001.png", "b/00000.png", "b/00007.png"]


# The command line


def test_predict_of_a_folder(run, tmp_path, capsys):
    from ccsnet.cli import run as call

    images = tmp_path / "images"
    shutil.copytree(run.data / "images" / "val", images)
    (images / "1.png").write_bytes(b"")
    out = tmp_path / "out"
    options = ["--out", str(out), "--cpu", "--save", "index", "contours", "segments", "area"]
    options += ["relevant", "prob", "--prob", "png", "--json", str(tmp_path / "all.json")]
    assert call(["predict", str(run.out), str(images), *options]) == 1
    told = capsys.readouterr()
    assert "1.png" in told.err
    assert "3 images: index, contours, segments, area, relevant, prob in" in told.out
    assert "1 failed" in told.out
    assert {p.name for p in out.iterdir()} == {
        *("index", "contours", "segments", "relevant", "prob_png"),
        *("segments.json", "area.csv", RECORDS),
    }
    assert len(json.loads((tmp_path / "all.json").read_text())["images"]) == 3
    shutil.copy(run.data / "images" / "val" / "1.png", images / "1.png")
    assert call(["predict", str(run.out), str(images), *options, "--resume"]) == 0
    assert "4 images" in (text := capsys.readouterr().out)
    assert "3 done before" in text
    place = ["--at", "10", "20", "--out", str(tmp_path / "at"), "--cpu"]
    assert call(["predict", str(run.out), str(images / "0.png"), *place]) == 0
    assert (tmp_path / "at" / "at" / "0.png").is_file()


def test_what_strangers_have_in_a_folder(run, tmp_path, capsys):
    """Each failure is one line that names its file once; the others are labelled."""
    from ccsnet.cli import run as call

    photos, out = tmp_path / "photos", tmp_path / "out"
    make_images(photos, 2, size=(40, 60))
    whole = (photos / "00001.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    (photos / "folder.png").mkdir()
    (photos / "text.png").write_text("none")
    tifffile.imwrite(photos / "five.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    Image.open(photos / "00000.png").convert("CMYK").save(photos / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "00000.png").save(photos / "turned.jpg", exif=exif)
    command = ["predict", str(run.out), str(photos), "--out", str(out), "--cpu"]
    assert call([*command, "--json", str(tmp_path / "all.json")]) == 1
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 4
    for name, line in zip(("cut.png", "empty.jpg", "five.tif", "text.png"), lines, strict=True):
        assert line.count(str(photos / name)) == 1
    assert "five.tif has 5 bands, but 3 are needed. Write the file again with" in lines[2]
    assert "4 images: color in" in told.out
    assert "4 failed" in told.out
    summary = json.loads((tmp_path / "all.json").read_text())
    sizes = {one["image"]: one["size"] for one in summary["images"]}
    assert sizes["turned.jpg"] == [60, 40]
    assert len(sizes) == len(summary["failures"]) == 4
    only = [str(photos / "cut.png"), str(photos / "text.png"), "--out", str(tmp_path / "none")]
    assert call(["predict", str(run.out), *only, "--cpu"]) == 1
    told = capsys.readouterr().out
    assert "0 images: color in" in told
    assert "Share" not in told


def test_places_that_cannot_be_written_to(photos, tmp_path, monkeypatch):
    """They are refused before any image is labelled."""
    (tmp_path / "file").write_text("none")
    predictor = ByColour()
    for out, summary in (
        (tmp_path / "file", None),
        (tmp_path / "file" / "out", None),
        (tmp_path / "out", tmp_path / "file" / "all.json"),
    ):
        with pytest.raises(InputError, match=r"No results can be written to .*file.*Give another"):
            label_folder(predictor, [photos], out, summary=summary)
    with pytest.raises(InputError, match=r"--json is .*photos, a folder; name a file"):
        label_folder(predictor, [photos], tmp_path / "out", summary=photos)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # The user may be one who may all.
    with pytest.raises(InputError, match=r"to .*new: Permission denied\. Give another folder"):
        label_folder(predictor, [photos], tmp_path / "new")
    assert predictor.calls == 0


def test_a_stopped_command_says_how_to_go_on(run, tmp_path, monkeypatch, capsys):
    from ccsnet.cli import run as call

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_batch", pressed)
    command = ["predict", str(run.out), str(run.data / "images" / "val"), "--cpu"]
    assert call([*command, "--out", str(tmp_path)]) == 130
    said = capsys.readouterr().err
    assert said == "What is finished is kept; with --resume the command goes on.\nStopped.\n"
