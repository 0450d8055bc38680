"""Label maps as the servers of test sets want them: their own numbers, under the images' names."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError, unknown_name
from ccsnet.plugins import find_plugin


class Format(NamedTuple):
    """What a server wants."""

    dataset: str
    """The data set whose classes the model must know."""
    raw: bool
    """Whether it wants the numbers of the data set's own label files; else class indices."""


FORMATS = {
    # Label ids, 7 for road to 33 for bicycle.
    "cityscapes": Format("cityscapes", raw=True),
    # 1 to 150; 0 would be "other".
    "ade20k": Format("ade20k", raw=True),
    # 0 to 6, although the label files hold 1 to 7.
    "loveda": Format("loveda", raw=False),
}


def server_values(name: str, classes: tuple[str, ...]) -> UInt8[np.ndarray, " num_classes"]:
    """The number that a server's format has for each class index.

    Args:
        name: One of `FORMATS`.
        classes: The model's, which must be the data set's in its order.

    Raises:
        InputError: There is no such format, or the model has other classes.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    wanted = FORMATS[name]
    spec: DatasetSpec = find_plugin("ccsnet.datasets", wanted.dataset, "SPEC")
    if tuple(classes) != spec.classes:
        raise InputError(
            f"The format {name!r} is for the {spec.num_classes} classes of {spec.name} "
            f"({_some(spec.classes)}); this model has {len(classes)} ({_some(classes)}). Use a "
            "model that was trained on them, or leave out --format and take --save index."
        )
    values = np.arange(spec.num_classes, dtype=np.uint8)
    if wanted.raw:
        for raw, index in spec.raw_to_class.items():
            values[index] = raw
    return values


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
