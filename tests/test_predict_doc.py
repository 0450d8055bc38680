"""docs/predict.md and docs/hub.md: their commands and their Python run as they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

import ccsnet
from ccsnet import cli
from ccsnet.cli_predict import PredictArguments
from ccsnet.outputs import KINDS
from tests import test_push
from tests.test_video import make_video

DOCS = Path(__file__).parents[1] / "docs"
PAGE, HUB_PAGE = ((DOCS / f"{name}.md").read_text("utf-8") for name in ("predict", "hub"))
hub = test_push.hub


def blocks(page, kind):
    """The code blocks of a kind, also those that are set in."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{space}", "", text, flags=re.MULTILINE) for space, text in found]


def commands(page):
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def place(run, tmp_path, monkeypatch):
    """A folder with all that the pages name."""
    shutil.copytree(run.out, tmp_path / "runs" / "streets")
    shutil.copytree(run.out, tmp_path / "runs" / "photos-ccs")
    for name in ("photos", "archive"):
        shutil.copytree(run.data / "images" / "val", tmp_path / name)
    (tmp_path / "more").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (160, 330, 3), np.uint8)
    for path in ("photo.jpg", "street.jpg", "more/one.jpg"):
        Image.fromarray(pixels).save(tmp_path / path)
    make_video(tmp_path / "drive.mp4", num=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_about_predicting(place, capsys):
    ran = []
    for program, verb, *arguments in commands(PAGE):
        if program == "torchrun":  # tests/test_folders.py runs it.
            options = get_args_parser().parse_args([verb, *arguments])
            assert options.module
            assert (options.nproc_per_node, options.training_script) == ("3", "ccsnet")
            verb, *arguments = options.training_script_args
        assert cli.run([verb, *arguments]) in (0, None), capsys.readouterr().err
        ran.append(verb)
        if verb == "predict" and "archive" in arguments:
            shutil.rmtree("archive-maps")
    assert ran == ["predict"] * 4 + ["video", "predict"]
    for path in ("predictions/overlay/photo.png", "maps/area.csv", "archive.json", "labelled.mp4"):
        assert Path(path).is_file()
    names: dict = {}
    for text in blocks(PAGE, "python"):
        exec(compile(text, "docs/predict.md", "exec"), names)
    assert names["result"].labelled == 4


def test_options_and_kinds_of_the_page_exist(capsys):
    with pytest.raises(SystemExit):
        ccsnet.arguments.parse(PredictArguments, "predict", ["--help"])
    told = capsys.readouterr().out
    page = PAGE[PAGE.index("## How images") : PAGE.index("## Video")]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) - {"--nproc-per-node"}
    assert {"--resume", "--window", "--json"} < named
    for option in named:
        assert option in told, option
    rows = set(re.findall(r"^\| `(\w+)[` ]", page, re.MULTILINE))
    assert rows == set(KINDS) - {"prob_png"}


def test_the_page_about_the_hub(place, hub, capsys):
    ran = [command for command in commands(HUB_PAGE) if command[0] == "ccsnet"]
    for _, *arguments in ran:
        assert cli.run(arguments) == 0, capsys.readouterr().err
    assert [command[1] for command in ran] == ["push", "predict"]
    assert hub.private == {"me/photos": True}
    (text,) = blocks(HUB_PAGE, "python")
    exec(compile(text, "docs/hub.md", "exec"), {})
    assert [*hub.repositories] == ["me/photos"]


def test_links_lead_somewhere():
    for page in (PAGE, HUB_PAGE):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page):
            assert (DOCS / target).exists(), target
