"""What the servers of test sets get: their numbers, under the images' names and at their size."""

import dataclasses
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet import cli, cli_predict
from ccsnet.datasets.ade20k import SPEC as ADE20K
from ccsnet.datasets.cityscapes import SPEC as CITYSCAPES
from ccsnet.datasets.loveda import SPEC as LOVEDA
from ccsnet.errors import InputError
from ccsnet.folders import label_folder
from ccsnet.formats import FORMATS, server_values
from ccsnet.heads._base import Output
from ccsnet.predict import Predictor

SPECS = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "loveda": LOVEDA}


class Classed(torch.nn.Module):
    """A model that takes an image's values for class numbers."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image):
        one_hot = torch.nn.functional.one_hot(image[:, 0].long(), self.num_classes)
        return Output(one_hot.permute(0, 3, 1, 2).float())


def predictor_of(run, spec):
    import ccsnet

    trained = ccsnet.load(run.out, device="cpu")
    info = dataclasses.replace(
        trained.info, dataset=spec.name, classes=spec.classes, colours=spec.colours
    )
    made = Predictor(trained.model, info)
    made.model = Classed(spec.num_classes)
    return made


def test_values():
    # Source: the label ids of the Cityscapes benchmark's evaluated classes.
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert server_values("cityscapes", CITYSCAPES.classes).tolist() == ids
    assert server_values("ade20k", ADE20K.classes).tolist() == list(range(1, 151))
    assert server_values("loveda", LOVEDA.classes).tolist() == list(range(7))


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_raw_values_are_read_back(name):
    """As labels, the server's numbers are the classes that they were made of."""
    spec = SPECS[name]
    assert spec.lookup().table[server_values(name, spec.classes)].tolist() == [
        *range(spec.num_classes)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_files_for_a_server(name, run, tmp_path):
    spec = SPECS[name]
    predictor = predictor_of(run, spec)
    classes = np.random.default_rng(0).integers(0, spec.num_classes, (64, 96)).astype(np.uint8)
    pixels = np.repeat(classes[..., None], 3, axis=2)
    for file in ("a/aachen_000000_000019_leftImg8bit.png", "b/4191.png"):
        (tmp_path / "in" / file).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "in" / file)
    out = tmp_path / "out"
    label_folder(predictor, [tmp_path / "in"], out, save=("index",), server=name)
    assert shown(out / name) == ["4191.png", "aachen_000000_000019_leftImg8bit.png"]
    for index in ("a/aachen_000000_000019_leftImg8bit.png", "b/4191.png"):
        with Image.open(out / name / Path(index).name) as picture:
            assert picture.mode == "L"
            assert picture.size == (96, 64)
            found = np.asarray(picture)
        assert np.array_equal(found, server_values(name, spec.classes)[classes])
        assert np.array_equal(np.asarray(Image.open(out / "index" / index)), classes)
    with pytest.raises(InputError, match="is there already"):
        label_folder(predictor, [tmp_path / "in"], out, save=(), server=name)
    label_folder(predictor, [tmp_path / "in"], out, save=(), server=name, overwrite=True)


def test_equal_names_in_two_folders(run, tmp_path):
    """A server wants one folder: nothing may be lost in it."""
    for folder in ("rural", "urban"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "1.png")
    images = [tmp_path / "rural", tmp_path / "urban"]
    with pytest.raises(InputError, match=r"would both be written to .*loveda/1\.png"):
        label_folder(predictor_of(run, LOVEDA), images, tmp_path / "out", server="loveda")
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_classes(run, tmp_path):
    for classes in (("ground", "disc", "box"), ADE20K.classes[::-1]):
        with pytest.raises(
            InputError, match=r"'ade20k' is for the 150 classes of ade20k \(wall, building, sky"
        ):
            server_values("ade20k", classes)
    with pytest.raises(InputError, match=r"No format is called 'city'.*cityscapes"):
        server_values("city", CITYSCAPES.classes)


def shown(folder):
    """What a listing shows; what `--resume` reads is hidden."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_command(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    predictor = predictor_of(run, LOVEDA)
    monkeypatch.setattr("ccsnet.predict.load", lambda *_, **__: predictor)
    Image.fromarray(np.full((64, 64, 3), 5, np.uint8)).save(tmp_path / "7.png")
    call = ["predict", str(run.out), str(tmp_path / "7.png"), "--out", str(tmp_path / "out")]
    assert cli.run([*call, "--format", "loveda"]) == 0
    assert "1 image: loveda in" in capsys.readouterr().out
    assert shown(tmp_path / "out") == ["loveda"]
    assert (np.asarray(Image.open(tmp_path / "out" / "loveda" / "7.png")) == 5).all()
    assert cli.run([*call, "--format", "loveda", "--save", "color", "--overwrite"]) == 0
    assert "color, loveda in" in capsys.readouterr().out
    assert shown(tmp_path / "out") == ["color", "loveda"]
    monkeypatch.undo()
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    assert cli.run([*call, "--format", "cityscapes"]) == 2
    assert "the 19 classes of cityscapes" in capsys.readouterr().err


def test_the_command_names_all_formats():
    hint = typing.get_type_hints(cli_predict.PredictArguments)["format"]
    (names, _) = typing.get_args(hint)
    assert set(typing.get_args(names)) == set(FORMATS)
