"""Every command and every Python block of the README runs, in the order in which it stands there.

Only the size of the training is made small; the commands themselves are as written.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ccsnet.recipes
from ccsnet import cli, cli_bench
from ccsnet.heads._base import HeadConfig
from tests import pages

COMMANDS = pages.commands("README.md")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A user's folder of labelled photos, and a street to predict."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "photos" / kind / split).mkdir(parents=True)
        for i in range(3):
            image = rng.integers(0, 255, (64, 96, 3), np.uint8)
            label = (image[..., 0] > 127).astype(np.uint8)
            name = f"{split}/{i}.png"
            Image.fromarray(image).save(tmp_path / "photos/images" / name)
            Image.fromarray(label).save(tmp_path / "photos/labels" / name)
    Image.fromarray(rng.integers(0, 255, (80, 120, 3), np.uint8)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)


def small_recipe():
    full = ccsnet.recipes.own()
    return replace(
        full,
        data=replace(full.data, crop=(64, 64), workers=0),
        model=replace(
            full.model, backbone_weights="none", head_config=HeadConfig(dim=8, coarse_dim=8)
        ),
        train=replace(full.train, steps=2, batch_size=2, precision="float32", channels_last=True),
    )


def test_commands_and_code_run(photos, monkeypatch, capsys):
    monkeypatch.setitem(ccsnet.recipes.RECIPES, "own", small_recipe)
    monkeypatch.setattr(cli_bench, "BACKBONES", ("test_efficientnet",))
    ran = 0
    for command in COMMANDS:
        if command[0] == "ccsnet":
            assert cli.run(command[1:]) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 4
    assert Path("predictions/overlay/street.png").is_file()
    for block in pages.blocks("README.md", "python"):
        pages.execute(block)
    assert Path("street.png").is_file()


def test_the_two_commands_of_the_first_screen_are_in_the_makefile():
    makefile = (pages.ROOT / "Makefile").read_text()
    made = [command[1] for command in COMMANDS if command[0] == "make"]
    assert made[:2] == ["demo", "test"]
    for target in made:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
