import os
import stat

import pytest

from ccsnet.files import NAME_BYTES, atomic_path, fits, fitting_name


def test_complete_and_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with atomic_path(path) as aside:
        assert aside.suffix == ".txt"
        aside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with atomic_path(path) as aside:
            aside.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(tmp_path):
    def write():
        with atomic_path(tmp_path / "a.txt"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_it(tmp_path):
    umask = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "a.txt") as aside:
            aside.write_text("whole")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("letter", ["x", "é", "漢", "\U0001f600"])
def test_names_as_long_as_can_be(tmp_path, letter):
    size = len(letter.encode())
    name = "x" * ((NAME_BYTES - 4) % size) + letter * ((NAME_BYTES - 4) // size) + ".txt"
    assert len(name.encode()) == NAME_BYTES
    assert fits(name)
    assert not fits(f"{name}x")
    with atomic_path(tmp_path / name) as aside:
        aside.write_text("whole")
        assert len(os.fsencode(aside.name)) < NAME_BYTES - 64
    assert (tmp_path / name).read_text() == "whole"
    with atomic_path(tmp_path / f"x.{letter * ((NAME_BYTES - 2) // size)}") as aside:
        aside.write_text("whole")


def test_names_that_are_too_long_are_cut_to_their_own():
    names = ["漢" * 83 + str(number) for number in range(10)]
    made = {fitting_name(name, ".claim") for name in names}
    assert len(made) == len(names)
    assert all(fits(name) and name.endswith(".claim") for name in made)
    assert fitting_name("short", ".claim") == "short.claim"


def test_another_folder_holds_it_until_it_is_whole(tmp_path):
    (tmp_path / "aside").mkdir()
    with atomic_path(tmp_path / "a.txt", folder=tmp_path / "aside") as aside:
        assert aside.parent == tmp_path / "aside"
        aside.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert list((tmp_path / "aside").iterdir()) == []
