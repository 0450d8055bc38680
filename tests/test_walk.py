"""What images are called, and where their results go."""

import pytest

from ccsnet.errors import InputError
from ccsnet.walk import Targets, survey, walk_images


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders; only their names are looked at."""
    for name in ("a.png", "B.PNG", "deep/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")
    return tmp_path / "photos"


def names(*inputs):
    return [found.name for found in walk_images(inputs)]


def test_names_are_paths_below_the_shared_folder(photos, monkeypatch):
    assert names(photos) == ["B.PNG", "a.png", "deep/c.png"]
    assert names(photos / "deep" / "c.png") == ["c.png"]
    monkeypatch.chdir(photos)
    assert names("a.png", str(photos / "deep" / "c.png")) == ["a.png", "deep/c.png"]
    assert names("a.png", "./a.png", str(photos / "a.png")) == ["a.png"]
    assert [found.path.as_posix() for found in walk_images(["deep"])] == ["deep/c.png"]


def test_files_lie_below_their_kind(photos, tmp_path):
    plan = Targets(tmp_path / "out", ("index", "prob", "prob_png", "area"), "loveda", (1, 2))
    assert plan.files("deep/c.tif") == {
        "index": "index/deep/c.png",
        "prob": "prob/deep/c.npz",
        "prob_png": "prob_png/deep/c",
        "at": "at/deep/c.png",
        "loveda": "loveda/c.png",  # A server wants one folder.
    }
    assert Targets(tmp_path / "out", ("area",)).files("a.png") == {}


def test_equal_names_clash_in_one_folder_only(photos, tmp_path):
    (photos / "deep" / "a.png").write_bytes(b"any")
    plan = Targets(tmp_path / "out", ("color",))
    assert survey([photos], plan, keep=False) == 4
    with pytest.raises(InputError, match=r"/a\.png and .*deep/a\.png would both .*loveda/a\.png"):
        survey([photos], Targets(tmp_path / "out", (), "loveda"), keep=False)
    (photos / "a.jpg").write_bytes(b"any")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png would both be written to .*a\.png"):
        survey([photos], plan, keep=True)


def test_results_that_are_there(photos, tmp_path):
    plan = Targets(tmp_path / "out", ("color",))
    (tmp_path / "out" / "color").mkdir(parents=True)
    (tmp_path / "out" / "color" / "a.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"color/a\.png is there already.*--resume.*--overwrite"):
        survey([photos], plan, keep=False)
    assert survey([photos], plan, keep=True) == 3
