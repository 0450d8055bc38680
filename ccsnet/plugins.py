"""A file is a plug-in, and its name is its name.

`ccsnet/heads/ccs.py` is the head `ccs`; nothing else registers it. A plug-in outside the package is
named `your_module:NAME`.

A file that stands for several things has parts: `ccsnet/heads/smp.py` is `smp.FPN`, `smp.Unet` and
so on. It exports `parts()`, their names with a line on each, and its attribute (`build` of a head)
is a function from a part to what other files export under that name.
"""

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from ccsnet.errors import InputError, unknown_name


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a package: its modules, but for those starting with `_`."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def plugin_notes(package: str) -> dict[str, str]:
    """Every name that `find_plugin` knows, parts included, with a line on it."""
    notes = {}
    for name in plugin_names(package):
        module = importlib.import_module(f"{package}.{name}")
        parts = _parts(module)
        notes |= {f"{name}.{part}": note for part, note in parts.items()}
        if not parts:
            notes[name] = (module.__doc__ or "").partition("\n")[0]
    return notes


def _parts(module: ModuleType) -> dict[str, str]:
    return module.parts() if hasattr(module, "parts") else {}


def find_plugin(package: str, name: str, attribute: str) -> Any:
    """The attribute that a plug-in exports.

    Args:
        package: Where the built-in plug-ins of this kind live, such as "ccsnet.heads".
        name: A plug-in's name, with ".PART" if it has parts, or "your_module:NAME" for an
            attribute of your own module.
        attribute: What a built-in plug-in exports, such as "SPEC".

    Raises:
        InputError: No plug-in has that name, or your module or its attribute does not exist.
    """
    kind = {
        "datasets": "data set",
        "heads": "head",
        "backbones": "backbone",
        "losses": "loss",
    }[package.rpartition(".")[2]]
    if ":" in name and not name.startswith((":", ".")):
        module_name, _, own = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), own)
        except ModuleNotFoundError as error:
            raise InputError(
                f"The {kind} {name!r} needs the module {error.name!r}, which cannot be imported. "
                "Install it, or add its folder to PYTHONPATH."
            ) from error
        except AttributeError as error:
            raise InputError(
                f"The module {module_name!r} has no {own!r}, which the {kind} {name!r} names."
            ) from error
    file, _, part = name.partition(".")
    hint = f"Your own is named `your_module:{attribute}`."
    if kind == "data set":
        hint = f"Your own is a folder with a dataset.yaml, and there is no folder {name!r} here."
    if file in plugin_names(package):
        module = importlib.import_module(f"{package}.{file}")
        parts = _parts(module)
        exported = getattr(module, attribute)
        if part in parts:
            return exported(part)
        if not parts and name == file:
            return exported
        if parts:
            hint = f"Of {file} there are: {', '.join(parts)}."
    near = _own_like(name) if kind == "data set" else []
    raise unknown_name(kind, name, [*plugin_notes(package), *near], hint)


def _own_like(name: str) -> list[str]:
    """Folders here with a data set of the user's own that are called nearly so."""
    own = [file.parent.name for file in Path().glob("*/dataset.yaml")]
    return difflib.get_close_matches(name, own, n=3, cutoff=0.5)
