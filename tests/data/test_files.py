"""The one search for images."""

import os

import pytest

from ccsnet.data.files import find_images, images_of
from ccsnet.errors import InputError

NAMES = ("B.PNG", "a.png", "deep/c.TIFF", "deep/er/d.jpeg", "z.gif")


@pytest.fixture
def photos(tmp_path):
    """Images in three folders, and what is none."""
    for name in (*NAMES, "notes.txt", "deep/.png", "png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")  # Only names are looked at.
    (tmp_path / "photos" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    return tmp_path / "photos"


def below(photos, found):
    return [path.relative_to(photos).as_posix() for path in found]


def test_images_of_a_folder_folder_by_folder(photos):
    assert below(photos, images_of(photos)) == [
        *("B.PNG", "a.png", "z.gif"),
        *("deep/c.TIFF", "deep/er/d.jpeg"),
    ]
    assert below(photos, images_of(photos, [photos / "deep"])) == ["B.PNG", "a.png", "z.gif"]
    assert below(photos, images_of(photos, [photos / "deep" / "er"]))[-1] == "deep/c.TIFF"


def test_images_of_a_pattern(photos):
    assert below(photos, images_of(str(photos / "*"))) == ["B.PNG", "a.png", "z.gif"]
    assert below(photos, images_of(str(photos / "**" / "*.*"))) == sorted(NAMES)
    assert below(photos, images_of(f"{photos}/[ab].png")) == ["a.png"]


@pytest.mark.parametrize("name", ["notes.txt", "deep/.png", "x[1].png", "*.png"])
def test_a_file_that_is_named_is_an_image(photos, name):
    (photos / name).write_bytes(b"any")
    assert list(images_of(photos / name)) == [photos / name]


def test_only_one_folder_is_read_ahead(photos):
    """So that a hundred thousand images are not listed before the first of them is read."""
    found = images_of(photos)
    assert next(found).name == "B.PNG"
    (photos / "deep" / "later.png").write_bytes(b"any")
    assert "deep/later.png" in below(photos, found)


def test_images_of_several_inputs_once_each_and_sorted(photos, monkeypatch):
    assert below(photos, find_images([photos], [photos / "deep"])) == ["B.PNG", "a.png", "z.gif"]
    assert below(photos, find_images([photos])) == [
        *("B.PNG", "a.png", "deep/c.TIFF", "deep/er/d.jpeg", "z.gif")
    ]
    assert below(photos, find_images([photos / "z.gif", photos]))[0] == "z.gif"
    monkeypatch.chdir(photos)
    assert len(find_images(["a.png", "./a.png", str(photos / "a.png"), photos])) == 5
    assert [str(path) for path in find_images(["deep/c.TIFF"])] == ["deep/c.TIFF"]


def test_nothing_is_found(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for search in (lambda item: list(images_of(item)), lambda item: find_images([item])):
        with pytest.raises(FileNotFoundError, match=r"No file, folder or pattern .*nowhere\.jpg"):
            search(tmp_path / "nowhere.jpg")
        for item in (tmp_path / "empty", str(photos / "*.jpg"), str(photos / "*.txt")):
            with pytest.raises(InputError, match=r"No image in .*: looked for .* in \.jpg, \.jpeg"):
                search(item)
