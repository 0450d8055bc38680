"""Study files: what they amount to, and every mistake in one message."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ccsnet.arguments import parse
from ccsnet.cli import run
from ccsnet.config import RunConfig
from ccsnet.errors import InputError
from ccsnet.recipes import recipe
from ccsnet.study import DIMS, Match, folder_name, train_options, where_words
from ccsnet.study_cells import cells_of
from ccsnet.study_file import OPTIONAL, REQUIRED, read_study

DOCS = Path(__file__).parents[1] / "docs"
SHIPPED = sorted((DOCS / "studies").glob("*.yaml"))
GOOD = """
title: Heads
data: photos
recipe: own
seeds: [0, 3]
settings: {steps: 20, lr: 1e-4, photometric: false, channels-last: true, crop: [64, 96]}
baseline: base
report: test
rows:
  base: {head: segformer}
  1: {head: ccs, top-k: 1, mean: null, trackers: []}
  long: {recipe: camvid_lite0, steps: 40}
"""


@pytest.fixture
def read(tmp_path):
    def read_text(text, **places):
        path = tmp_path / "heads.yaml"
        path.write_text(text)
        return read_study(path, places)

    return read_text


def test_rows_are_what_train_would_make_of_them(read):
    study = read(GOOD)
    assert (study.name, study.title, study.data) == ("heads", "Heads", "photos")
    assert (study.select, study.report, study.seeds) == ("val", "test", (0, 3))
    assert list(study.rows) == ["base", "1", "long"]
    own = recipe("own")
    base = study.rows["base"].config
    assert base.train == replace(own.train, steps=20, channels_last=True)
    assert base.optim == replace(own.optim, lr=1e-4)
    assert base.data == replace(own.data, dataset="photos", photometric=False, crop=(64, 96))
    assert base.model == replace(own.model, head="segformer")
    one = study.rows["1"].config
    assert one.model.head_config.top_k == 1
    assert one.train.trackers == ()
    long = study.rows["long"].config
    assert long.train.steps == 40
    assert long.model == recipe("camvid_lite0").model


def test_the_commands_make_the_same(read, tmp_path):
    study = read(GOOD)
    cells = cells_of(study, tmp_path / "out")
    assert [cell.name for cell in cells] == [
        *("base-0", "1-0", "long-0", "base-3", "1-3", "long-3"),
    ]
    for cell in cells:
        verb, dataset, option, name, *words = cell.train
        assert (verb, dataset, option) == ("train", "photos", "--recipe")
        assert words[-4:] == ["--out", str(cell.out), "--resume", "auto"]
        made = parse(RunConfig, "train", ["--dataset", dataset, *words[:-4]], default=recipe(name))
        assert made == replace(cell.config, train=replace(cell.config.train, seed=cell.seed))
        assert cell.evaluate[:4] == ("evaluate", str(cell.out), "--split", "test")
        assert not any(str(tmp_path) in line for line in cell.shown)


def test_data_lie_elsewhere(read, tmp_path):
    study = read(GOOD, photos="/mnt/photos")
    cell = cells_of(study, tmp_path)[0]
    assert cell.train[1] == "/mnt/photos"
    assert cell.evaluate[4:6] == ("--dataset", "/mnt/photos")
    assert "/mnt" not in "".join(cell.shown)
    assert where_words("drive", "/mnt/drive") == ["drive", "--root", "/mnt/drive"]
    drive = read(GOOD.replace("photos", "drive").replace("test", "val"), drive="/mnt/drive")
    cell = cells_of(drive, tmp_path)[0]
    assert cell.train[1:4] == ("drive", "--root", "/mnt/drive")
    assert cell.evaluate[4:6] == ("--root", "/mnt/drive")
    assert drive.spec is not None


def test_the_split_to_choose_on(read, tmp_path):
    study = read(GOOD + "select: dev\n")
    assert study.rows["base"].config.data.val_split == "dev"
    train = cells_of(study, tmp_path)[0].train
    assert train[train.index("--val-split") + 1] == "dev"


def test_matching(read):
    assert read(GOOD + "match: {by: gmacs}").match == Match(by="gmacs", to="base", dims=DIMS)
    found = read(GOOD + "match: {by: parameters, to: 1, dims: [96, 32, 64, 32]}").match
    assert found == Match(by="parameters", to="1", dims=(32, 64, 96))


def test_rows_may_build_on_each_other(read):
    """With YAML's own merge keys; what a row says itself holds."""
    text = GOOD.replace("base: {", "base: &base {dim: 64, ")
    rows = read(text + "  wide: {<<: *base, dim: 96}\n").rows
    heads = [rows[name].config.model for name in ("base", "wide")]
    assert [(model.head, model.head_config.dim) for model in heads] == [
        *(("segformer", 64), ("segformer", 96))
    ]


MISTAKES = {
    "[1, 2]": "expected lines of `key: value`, found list",
    "{a: [": "no YAML text",
    GOOD.replace("title", "titel"): "No key is called 'titel'. Perhaps you meant title?",
    GOOD.replace("seeds: [0, 3]", ""): "needed and missing: seeds.",
    GOOD.replace("[0, 3]", "[0, 0]"): "`seeds` is [0, 0]; it must be a list of different",
    GOOD.replace("[0, 3]", "3"): "`seeds` is 3; it must be a list",
    GOOD.replace("[0, 3]", "[-1]"): "whole numbers from 0",
    GOOD.replace("recipe: own", "recipe: owm"): "recipe: No recipe is called 'owm'.",
    GOOD.replace("recipe: camvid_lite0", "recipe: camvid"): "row 'long': No recipe is called",
    GOOD.replace("baseline: base", "baseline: bass"): "No row is called 'bass'. Perhaps you meant",
    GOOD.replace("top-k", "top_k"): "No option is called 'top_k'. Perhaps you meant top-k",
    GOOD.replace("head: ccs", "head: csc"): "row '1': No head is called 'csc'. Perhaps you meant",
    GOOD.replace("top-k: 1", "top-k: one"): "row '1': ",
    GOOD.replace("top-k: 1", "top-k: 0"): "top_k is 0; it must be at least 1",
    GOOD.replace("steps: 20", "steps: 0"): "steps is 0; it must be at least 1.",
    GOOD.replace("steps: 20", "seed: 2"): "settings: leave out `seed`: `seeds` lists them.",
    GOOD.replace("steps: 20", "out: x"): "leave out `out`",
    GOOD.replace("steps: 20", "val-split: x"): "leave out `val-split`: `select` names it.",
    GOOD.replace("steps: 20", "recipe: own"): "No option is called 'recipe'",
    GOOD.replace("photometric: false", "photometric: 3"): "it must be true or false",
    GOOD.replace("top-k: 1", "top-k: {a: 1}"): "it must be a value or a list",
    GOOD.replace("top-k: 1", "loss: ce:1+dise:2"): "No loss is called 'dise'.",
    GOOD.replace("top-k: 1", "optimizer: adamx"): "No optimizer is called 'adamx'.",
    GOOD.replace("top-k: 1", "precision: fp17"): "invalid choice 'fp17'",
    GOOD + "  other: {head: segformer}\n": "The rows 'base' and 'other' train the same.",
    GOOD + "  base: {head: fcn}\n": "`base` stands here twice",
    GOOD + "  {a: b}: {head: fcn}\n": "found unhashable key",
    GOOD.replace("data: photos", "data: {{ path }}"): "found unhashable key",
    GOOD + "  'a b': {head: fcn}\n  a-b: {dim: 8}\n": "would share the folder a-b-SEED",
    GOOD + "  BASE: {head: fcn}\n": "would share the folder",
    GOOD + "  none: fcn\n": "row 'none': 'fcn' is not `option: value` lines",
    GOOD[: GOOD.index("rows")] + "rows: [a]\n": "`rows` is ['a']; it must be",
    GOOD + "match: gmacs\n": "`match` is 'gmacs'",
    GOOD + "match: {by: macs}\n": "`by` is 'macs'; it must be gmacs or parameters.",
    GOOD + "match: {by: gmacs, too: 1}\n": "No key of `match` is called 'too'.",
    GOOD + "match: {by: gmacs, to: x}\n": "No row is called 'x'.",
    GOOD + "match: {by: gmacs, dims: [1.5]}\n": "`dims` is [1.5]",
    GOOD.replace("photos", "drive"): "`report` is 'test'; the splits of drive with labels are:",
    GOOD.replace("photos", "drive").replace("test", "train"): "which is what the models learn from",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_mistakes(read, text, message):
    with pytest.raises(InputError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "heads.yaml" in str(caught.value)


def test_all_mistakes_at_once(read):
    text = GOOD.replace("head: ccs", "head: csc").replace("[0, 3]", "3").replace("title", "t")
    with pytest.raises(InputError, match=r"3 mistakes:\n  - .*\n  - .*\n  - "):
        read(text)


def test_a_third_split_must_be_used(read, tmp_path):
    data = tmp_path / "photos"
    data.mkdir()
    yaml = "classes: [a, b]\nimages: '{split}/*.jpg'\nlabels: '{split}/*.png'\n"
    (data / "dataset.yaml").write_text(yaml + "splits: [train, val, test]\n")
    on_val = GOOD.replace("report: test", "report: val")
    with pytest.raises(InputError, match="Report on test, which no choice has seen"):
        read(on_val, photos=str(data))
    (data / "dataset.yaml").write_text(yaml + "splits: [train, val]\n")
    assert read(on_val, photos=str(data)).report == "val"
    (data / "dataset.yaml").write_text("classes: [a, b]\n")
    with pytest.raises(InputError, match="the key `images` is missing"):
        read(on_val, photos=str(data))


def test_data_of_other_studies(read):
    with pytest.raises(InputError, match="--data names 'fotos'; the data of this study are"):
        read(GOOD, fotos="x")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"docs/study\.md"):
        read_study(tmp_path / "none.yaml")


def test_options_have_one_meaning():
    """The command line leaves out which part an option belongs to."""
    names = list(train_options())
    assert len(names) == len(set(names))
    assert {"head", "dim", "lr", "steps", "crop", "coarse-weight"} <= set(names)


@pytest.mark.parametrize(
    ("row", "folder"), [("k=1", "k=1"), ("a/b c", "a-b-c"), ("../x", "x"), ("%", "row")]
)
def test_folders(row, folder):
    assert folder_name(row) == folder


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_studies(path, tmp_path):
    study = read_study(path)
    assert len(study.seeds) >= 3
    assert len(cells_of(study, tmp_path)) == len(study.seeds) * len(study.rows) >= 6
    assert study.title.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_the_shipped_studies_would_run(path, tmp_path, capsys):
    study = read_study(path)
    assert run(["study", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(study.rows) * len(study.seeds)} runs" in printed
    assert printed.count("ccsnet train") == len(study.rows)
    assert not (tmp_path / "out").exists()


def test_the_page_shows_what_is_shipped():
    page = (DOCS / "study.md").read_text("utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shipped = (DOCS / "studies/camvid_heads.yaml").read_text("utf-8")
    assert shown == "".join(line for line in shipped.splitlines(True) if line[0] != "#")
    for path in SHIPPED:
        assert f"`{path.stem}`" in page
    for key in REQUIRED + OPTIONAL:
        assert f"| `{key}` |" in page


def test_some_are_shipped():
    assert {path.stem for path in SHIPPED} >= {"camvid_heads", "camvid_ablations", "drive_heads"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--data", "camvid"), "it must be NAME=PATH"),
        (("--jobs", "0"), "jobs is 0"),
        (("--dry-run", "--timing"), "--dry-run writes nothing"),
        (("--markdown", "none.md"), "No none.md to put the tables"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, words, text, capsys):
    path = tmp_path / "heads.yaml"
    path.write_text(GOOD)
    assert run(["study", str(path), *words]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_data_that_are_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.yaml").write_text(GOOD + "match: {by: gmacs}\n")
    assert run(["study", "heads.yaml"]) == 2
    assert "photos" in capsys.readouterr().err
    assert run(["study", "heads.yaml", "--table-only"]) == 2
    assert "--data photos=PATH" in capsys.readouterr().err
    assert run(["study", "heads.yaml", "--dry-run"]) == 0
    assert "The data are not at photos" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["heads.yaml"]
