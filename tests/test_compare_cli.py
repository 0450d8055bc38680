"""`ccsnet compare`: what it prints and writes of two checkpoints, and what it refuses."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import ccsnet
from ccsnet import cli
from ccsnet.checkpoint import ClassInfo, load_model, read_checkpoint, save_checkpoint
from ccsnet.compare_causes import CAUSES
from ccsnet.segmenter import create_segmenter
from tests import pages
from tests.shapes import CLASSES, IGNORED, YAML, make_shapes, tiny_model


@pytest.fixture
def call(monkeypatch, capsys):
    def run_command(*arguments):
        status = cli.run([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    return run_command


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    """The run's model with noise in it: right here, wrong there."""
    checkpoint = read_checkpoint(run.out)
    model = load_model(checkpoint)
    torch.manual_seed(0)
    weight = model.head.classifier.weight.data
    weight += 0.6 * weight.std() * torch.randn_like(weight)
    path = tmp_path_factory.mktemp("runs") / "noisy" / "best.safetensors"
    save_checkpoint(path, model.state_dict(), checkpoint.config, checkpoint.info, step=7)
    return path.parent


def stored(run, folder, *, head="ccs", classes=CLASSES, **data):
    """An untrained checkpoint like the run's, but for what is told."""
    checkpoint = read_checkpoint(run.out)
    config = replace(
        checkpoint.config, model=tiny_model(head), data=replace(checkpoint.config.data, **data)
    )
    info = replace(checkpoint.info, classes=classes)
    assert isinstance(info, ClassInfo)
    model = create_segmenter(config.model, num_classes=len(classes))
    save_checkpoint(folder / "best.safetensors", model.state_dict(), config, info, step=1)
    return folder


class Elements(HTMLParser):
    """A page's elements, and its words outside of the style sheet."""

    def __init__(self, page):
        super().__init__()
        self.found, self.words, self._inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._inside:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    def text(self):
        return " ".join(" ".join(self.words).split())


def predictions(run, folder):
    predictor = ccsnet.load(folder, device="cpu")
    images = sorted((run.data / "images" / "val").iterdir())
    return {path.stem: predictor.predict(path).label for path in images}


def test_the_figures_are_those_of_the_predictions(call, run, other, tmp_path):
    file = tmp_path / "all.json"
    status, printed, error = call("compare", run.out, other, "--cpu", "--json", file)
    assert (status, error) == (0, "")
    values = json.loads(file.read_text())
    found = [predictions(run, folder) for folder in (run.out, other)]
    truth = {
        path.stem: np.asarray(Image.open(path)) for path in (run.data / "labels" / "val").iterdir()
    }
    confusions = np.zeros((2, 3, 3), int)
    lost = np.zeros((3, 3), int)
    for name, label in truth.items():
        valid = label != IGNORED
        for confusion, one in zip(confusions, found, strict=True):
            np.add.at(confusion, (label[valid], one[name][valid]), 1)
        only = valid & (found[1][name] == label) & (found[0][name] != label)
        np.add.at(lost, (label[only], found[0][name][only]), 1)
    assert lost.sum() > 50
    assert values["confusion"] == {
        "run": confusions[0].tolist(),
        "baseline": confusions[1].tolist(),
    }
    hit = confusions.diagonal(axis1=1, axis2=2)
    iou = hit / (confusions.sum(1) + confusions.sum(2) - hit)
    by_name = {row["name"]: row for row in values["classes"]}
    for c, name in enumerate(CLASSES):
        row = by_name[name]
        assert (row["run"], row["baseline"]) == pytest.approx(tuple(iou[:, c]), abs=1e-6)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["given_to"] == {CLASSES[i]: int(lost[c, i]) for i in range(3) if lost[c, i]}
    overall = values["overall"]["miou"]
    assert overall["run"] == pytest.approx(iou[0].mean(), abs=1e-6)
    assert overall["difference"] == pytest.approx(iou[0].mean() - iou[1].mean(), abs=2e-6)
    assert [row["name"] for row in values["causes"]] == list(CAUSES)
    assert sorted(row["name"] for row in values["images"]) == sorted(truth)
    assert (values["run"], values["baseline"]) == ("shapes-ccs", "noisy")
    assert values["facts"]["baseline.step"] == "7"

    for said in ("IoU %, worst differences first", "Why", "lift", *CLASSES):
        assert said in printed
    assert f"{100 * overall['run']:.1f} %" in printed
    assert f"Written: {file}" in " ".join(printed.split())


def test_the_page_opens_anywhere_and_can_be_read_out(call, run, other, tmp_path):
    out = tmp_path / "pages" / "fails.html"
    assert call("compare", run.out, other, "--cpu", "--out", out, "--images", 2)[0] == 0
    page = out.read_text("utf-8")
    elements = Elements(page)
    links = [attributes["href"] for attributes in elements.all("a")]
    targets = {attributes.get("id") for _, attributes in elements.found}
    assert links
    assert all(link.startswith("#") and link[1:] in targets for link in links)
    pictures = elements.all("img")
    assert all(one["src"].startswith("data:image/png;base64,") for one in pictures)
    assert all(one["alt"] for one in pictures)
    assert len({one["alt"] for one in pictures}) == len(pictures)
    assert 0 < len(pictures) <= 5 * 3
    assert len(pictures) % 5 == 0
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)
    assert "<script" not in page
    for part in elements.all("div"):  # What scrolls is reached by keyboard, and has a name.
        if part.get("class") == "scroll":
            assert part["tabindex"] == "0"
            assert part["aria-label"]
    assert all(heading["scope"] in ("row", "col") for heading in elements.all("th"))
    text = elements.text()
    for said in ("Where shapes-ccs fails and noisy does not", "only noisy errs", "not counted"):
        assert said in text
    assert text.count("only shapes-ccs errs") == 1  # One legend.
    assert "color-scheme: light dark" in page


def test_runs_are_named_as_they_differ(call, run, tmp_path):
    """Folders of one name, heads without a choice; names that mean something in HTML."""
    first = stored(run, tmp_path / "<a>" / "run", head="fcn")
    second = stored(run, tmp_path / "<b>" / "run", head="segformer")
    out = tmp_path / "page.html"
    status, printed, _ = call("compare", first, second / "best.safetensors", "--out", out, "--cpu")
    assert status == 0
    assert "coarse" not in printed
    assert "best" in printed
    status, printed, _ = call("compare", first, second, "--out", out, "--cpu", "--overwrite")
    assert status == 0
    page = out.read_text("utf-8")
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "coarse prediction" not in page


def test_models_that_agree(call, run, tmp_path):
    shutil.copytree(run.out, tmp_path / "copy")
    out, file = tmp_path / "page.html", tmp_path / "all.json"
    options = ("--cpu", "--out", out, "--json", file)
    status, printed, _ = call("compare", run.out, tmp_path / "copy", *options)
    assert status == 0
    assert "No pixel is lost" in printed
    assert "cost most" not in printed
    text = Elements(out.read_text("utf-8")).text()
    assert "No class loses." in text
    assert "No image costs anything." in text
    values = json.loads(file.read_text())  # NaN is no JSON, and is null.
    assert values["overall"]["miou"]["difference"] == 0
    assert {row["lift"] for row in values["causes"]} == {None}


def test_in_windows_there_is_no_one_coarse_prediction(call, run, tmp_path):
    data = make_shapes(tmp_path / "data", yaml=YAML + "window: [64, 32]\n")
    runs = [stored(run, tmp_path / head, head=head, dataset=str(data)) for head in ("ccs", "fcn")]
    out = tmp_path / "page.html"
    status, printed, _ = call("compare", *runs, "--cpu", "--out", out)
    assert status == 0
    assert "Left out: what the coarse prediction" in " ".join(printed.split())
    assert "wins no cell" not in printed
    assert "seen in windows" in Elements(out.read_text("utf-8")).text()


def test_labels_without_a_class(call, run, other, tmp_path):
    data = make_shapes(tmp_path / "data")
    for path in (data / "labels" / "val").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), IGNORED)).save(path)
    out = tmp_path / "page.html"
    status, _, error = call("compare", run.out, other, "--dataset", data, "--cpu", "--out", out)
    assert status == 2
    assert "nothing to compare" in error
    assert not out.exists()


def test_another_data_set_and_split(call, run, other, tmp_path):
    moved = make_shapes(tmp_path / "moved")
    status, printed, _ = call(
        "compare", run.out, other, "--dataset", moved, "--split", "train", "--cpu"
    )
    assert status == 0
    assert "On 8 images of the split 'train' of moved" in " ".join(printed.split())
    assert call("compare", run.out, other, "--root", moved, "--cpu")[0] == 0


def test_what_cannot_be_compared(call, run, other, tmp_path):
    def refused(*arguments):
        status, printed, error = call("compare", *arguments)
        assert status == 2
        assert "Traceback" not in error
        assert "IoU" not in printed
        return " ".join(error.split())

    assert "Compared with which run?" in refused(run.out)
    assert "Compared with which run?" in refused(run.out, "--cpu")
    assert "First comes the run" in refused("--cpu")
    assert "No run or checkpoint" in refused(run.out, tmp_path / "nothing")
    assert "a run does not differ from itself" in refused(run.out, run.out / "best.safetensors")
    assert "images is -1" in refused(run.out, other, "--images", "-1")
    assert "'tests'" in refused(run.out, other, "--split", "tests")

    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "replace it with --overwrite" in refused(run.out, other, "--out", page)
    assert page.read_text() == "mine"
    assert "page.html" in refused(run.out, other, "--out", tmp_path / "page")
    for option in ("--out", "--json"):
        assert "a folder; name a file" in refused(run.out, other, option, tmp_path)
        nowhere = page / "figures.html"
        assert "No results can be written to" in refused(run.out, other, option, nowhere)

    elsewhere = make_shapes(tmp_path / "elsewhere")
    one = stored(run, tmp_path / "one", dataset=str(elsewhere))
    assert "of different data" in refused(run.out, one)
    assert "--dataset" in refused(run.out, one)
    two = stored(run, tmp_path / "two", val_split="train")
    error = refused(run.out, two)
    assert "different splits" in error
    assert "--split val" in error
    three = stored(run, tmp_path / "three", short_side=64)
    assert "different sizes" in refused(run.out, three)
    four = stored(run, tmp_path / "four", classes=("ground", "disc", "crate"))
    assert "The classes do not match" in refused(run.out, four)


def test_the_docs_commands_run_and_name_every_cause(call, run, other, tmp_path, monkeypatch):
    text = pages.text_of("docs/compare.md")
    for name in CAUSES:
        assert f"`{name}`" in text
    shutil.copytree(run.out, tmp_path / "runs" / "photos-ccs")
    shutil.copytree(other, tmp_path / "runs" / "photos-segformer")
    monkeypatch.chdir(tmp_path)
    for words in pages.commands("docs/compare.md"):
        assert call(*words[1:])[0] == 0
    assert (tmp_path / "fails.html").is_file()
    assert (tmp_path / "all.json").is_file()


def test_help_says_what_each_option_does(call):
    status, printed, _ = call("compare", "--help")
    assert status == 0
    for option in ("--split", "--out", "--images", "--json", "--overwrite"):
        assert option in printed
