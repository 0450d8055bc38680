"""docs/predict.md and docs/hub.md: their commands and their Python run as they stand there."""

import re
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
from tests import pages, test_push
from tests.test_video import make_video

PAGE = pages.text_of("docs/predict.md")
hub = test_push.hub


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
    for program, verb, *arguments in pages.commands("docs/predict.md"):
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
    for block in pages.blocks("docs/predict.md", "python"):
        pages.execute(block, names)
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
    ran = [command for command in pages.commands("docs/hub.md") if command[0] == "ccsnet"]
    for _, *arguments in ran:
        assert cli.run(arguments) == 0, capsys.readouterr().err
    assert [command[1] for command in ran] == ["push", "predict"]
    assert hub.private == {"me/photos": True}
    (block,) = pages.blocks("docs/hub.md", "python")
    pages.execute(block)
    assert [*hub.repositories] == ["me/photos"]
