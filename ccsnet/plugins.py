"""A file is a plug-in, and its name is its name.

`ccsnet/heads/ccs.py` is the head `ccs`; nothing else registers it. A plug-in outside the package is
named `your_module:NAME`.
"""

import importlib
import pkgutil
from typing import Any

from ccsnet.errors import InputError, unknown_name


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a package: its modules, but for those starting with `_`."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def find_plugin(package: str, name: str, attribute: str) -> Any:
    """The attribute that a plug-in exports.

    Args:
        package: Where the built-in plug-ins of this kind live, such as "ccsnet.heads".
        name: A plug-in's name, or "your_module:NAME" for an attribute of your own module.
        attribute: What a built-in plug-in exports, such as "SPEC".

    Raises:
        InputError: No plug-in has that name, or your module or its attribute does not exist.
    """
    kind = {"datasets": "data set", "heads": "head", "backbones": "backbone"}[
        package.rpartition(".")[2]
    ]
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
    names = plugin_names(package)
    if name not in names:
        raise unknown_name(kind, name, names, f"Your own is named `your_module:{attribute}`.")
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
