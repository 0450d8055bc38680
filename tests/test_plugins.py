import sys

import pytest

from ccsnet.errors import InputError, unknown_name
from ccsnet.plugins import find_plugin, plugin_names, plugin_notes


def test_files_are_plugins():
    assert plugin_names("ccsnet.heads") == ["ccs", "fcn", "segformer", "segformer_mmseg", "smp"]
    assert {"ade20k", "cityscapes", "earth"} <= set(plugin_names("ccsnet.datasets"))


def test_found_by_name():
    from ccsnet.heads import ccs

    assert find_plugin("ccsnet.heads", "ccs", "build") is ccs.build


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package of heads: `plain`, and `family` with the parts `One` and `Two`."""
    folder = tmp_path / "shelf" / "heads"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").write_text("")
    (folder / "plain.py").write_text('"""Plain: one thing.\n\nMore."""\nbuild = "plain"\n')
    (folder / "family.py").write_text(
        '"""Several things."""\n'
        "def parts(): return {'One': 'The first.', 'Two': 'The second.'}\n"
        "def build(part): return f'built {part}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "shelf.heads"
    for name in [name for name in sys.modules if name.partition(".")[0] == "shelf"]:
        del sys.modules[name]


def test_parts_of_a_plugin(shelf):
    assert find_plugin(shelf, "family.One", "build") == "built One"
    assert find_plugin(shelf, "plain", "build") == "plain"
    assert plugin_names(shelf) == ["family", "plain"]
    assert plugin_notes(shelf) == {
        "family.One": "The first.",
        "family.Two": "The second.",
        "plain": "Plain: one thing.",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("family.one", r"Perhaps you meant family.One .*Of family there are: One, Two\.$"),
        ("family", r"No head is called 'family'. Perhaps you meant family.Two or family.One\?"),
        ("family.", r"No head is called 'family.'. Perhaps you meant family.Two or family.One\?"),
        ("family.One.Two", r"No head is called 'family.One.Two'"),
        ("family.a-third-and-other-thing", r"Known: .* Of family there are: One, Two\.$"),
        ("plain.One", r"No head is called 'plain.One'. Perhaps you meant plain"),
        ("Two", r"Known: family.One, family.Two, plain. Your own is named `your_module:build`"),
        ("plain.", r"No head is called 'plain.'. Perhaps you meant plain"),
    ],
)
def test_unknown_parts(shelf, name, text):
    with pytest.raises(InputError, match=text):
        find_plugin(shelf, name, "build")


def test_decoders_are_parts():
    assert "smp.UPerNet" in plugin_notes("ccsnet.heads")
    with pytest.raises(InputError, match=r"called 'smp.upernet'. Perhaps you meant .*smp.UPerNet"):
        find_plugin("ccsnet.heads", "smp.upernet", "build")
    with pytest.raises(InputError, match=r"called 'UPerNet'. Perhaps you meant smp.UPerNet"):
        find_plugin("ccsnet.heads", "UPerNet", "build")


@pytest.mark.parametrize(
    ("package", "name", "text"),
    [
        ("ccsnet.heads", "segfomer", "No head is called 'segfomer'. Perhaps you meant segformer"),
        ("ccsnet.datasets", "ade20", "No data set is called 'ade20'. Perhaps you meant ade20k"),
        (
            "ccsnet.heads",
            "xyz",
            r"Known: ccs, fcn, segformer, .*smp.DPT, .*Your own is named `your_module:build`",
        ),
        ("ccsnet.heads", "_base", "No head is called '_base'"),
        ("ccsnet.heads", "", "No head is called ''"),
    ],
)
def test_unknown_names(package, name, text):
    with pytest.raises(InputError, match=text):
        find_plugin(package, name, "build")


def test_your_own_module(tmp_path, monkeypatch):
    (tmp_path / "my_heads.py").write_text("def build(channels, num_classes, config):\n    ...\n")
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert callable(find_plugin("ccsnet.heads", "my_heads:build", "build"))
    with pytest.raises(
        InputError, match="'my_heads' has no 'bild', which the head 'my_heads:bild'"
    ):
        find_plugin("ccsnet.heads", "my_heads:bild", "build")
    with pytest.raises(InputError, match="needs the module 'not_installed_anywhere'"):
        find_plugin("ccsnet.heads", "my_broken:build", "build")
    with pytest.raises(InputError, match=r"needs the module 'no_such_module'.*PYTHONPATH"):
        find_plugin("ccsnet.datasets", "no_such_module:SPEC", "SPEC")
    with pytest.raises(InputError, match="':build'"):
        find_plugin("ccsnet.heads", ":build", "build")
    sys.modules.pop("my_heads", None)


def test_long_lists_are_not_printed():
    names = [f"name{i}" for i in range(21)]
    assert str(unknown_name("data set", "zzz", names)) == (
        "No data set is called 'zzz'. `ccsnet list datasets` shows the 21 known names."
    )
