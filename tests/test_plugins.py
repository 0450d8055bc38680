import sys

import pytest

from ccsnet.errors import InputError, unknown_name
from ccsnet.plugins import find_plugin, plugin_names


def test_files_are_plugins():
    assert plugin_names("ccsnet.heads") == ["ccs", "fcn", "segformer"]
    assert {"ade20k", "cityscapes", "earth"} <= set(plugin_names("ccsnet.datasets"))


def test_found_by_name():
    from ccsnet.heads import ccs

    assert find_plugin("ccsnet.heads", "ccs", "build") is ccs.build


@pytest.mark.parametrize(
    ("package", "name", "text"),
    [
        ("ccsnet.heads", "segfomer", "No head is called 'segfomer'. Perhaps you meant segformer"),
        ("ccsnet.datasets", "ade20", "No data set is called 'ade20'. Perhaps you meant ade20k"),
        (
            "ccsnet.heads",
            "xyz",
            "Known: ccs, fcn, segformer. Your own is named `your_module:build`",
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
