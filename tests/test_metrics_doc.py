"""docs/metrics.md: its commands run, and it names every figure that is written."""

import json
import re
import shutil
import warnings

import numpy as np
import pytest

from ccsnet import cli, figures
from ccsnet.boundary import band_width
from ccsnet.calibration import NUM_BINS
from ccsnet.report import NAMED_CLASSES
from ccsnet.scores import CLASS_SCORES, LEVEL, MEANS, OVERALL, RESAMPLES
from tests import pages

PAGE = pages.text_of("docs/metrics.md")


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """Where the page's commands find their run."""
    shutil.copytree(run.out, tmp_path / "runs" / "photos-ccs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    return tmp_path


def test_commands_and_code_run(folder, capsys):
    ran = 0
    for block in pages.blocks("docs/metrics.md"):
        if block.kind == "python":
            named = pages.execute(block)
            if "counts" in named:
                assert named["metrics"].miou == 0.5
                np.testing.assert_array_equal(named["metrics"].iou, [0.5, 0.5, np.nan])
            else:
                assert named["low"] <= named["metrics"].miou <= named["high"]
            continue
        for command in pages.lines(block):
            assert command[:2] == ["ccsnet", "evaluate"]
            assert cli.run(command[1:]) == 0, capsys.readouterr().err
            ran += 1
    assert ran == 4
    assert json.loads((folder / "train.json").read_text())["images"] == 8
    written = {path.name for path in (folder / "figures").iterdir()}
    assert set(re.findall(r"^\| `([\w.]+\.\w+)` \|", PAGE, re.MULTILINE)) == written
    values = json.loads((folder / "figures" / "evaluation.json").read_text())
    for name in {*values} - {"images", "pixels", "confusion", "boundary", "calibration"}:
        assert f"`{name}`" in PAGE or name == "per_image"


def test_every_figure_is_explained():
    table = PAGE.partition("## The figures")[2].partition("\n\n**")[0]
    for name in (*CLASS_SCORES, *MEANS, *OVERALL, "boundary_iou", "mean_boundary_iou", "ece"):
        assert f"`{name}`" in table


def test_the_pages_numbers_are_the_codes():
    assert f"({band_width((512, 683))} pixels at 512x683)" in PAGE
    assert f"{NUM_BINS} bins" in PAGE
    assert f"| `--calibration` | {3 * 8 * NUM_BINS} |" in PAGE
    assert f"{RESAMPLES} times" in PAGE
    assert f"{100 * LEVEL:.0f} % of these values" in PAGE
    assert f"of more than {NAMED_CLASSES} classes" in PAGE
    assert len(figures.FILES) == 6
    assert "Where one of these six" in PAGE
