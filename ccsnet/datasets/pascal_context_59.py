"""PASCAL Context with its 59 classes; pixels of the background are unlabelled.

The files are those of `pascal_context_60`.
"""

from ccsnet.datasets._spec import DatasetSpec
from ccsnet.datasets.pascal_context_60 import (
    ARCHIVES,
    CLASSES,
    COLOURS,
    LICENCE,
    SPLITS,
    STEPS,
    source,
)

SPEC = DatasetSpec(
    name="pascal_context_59",
    classes=tuple(CLASSES)[1:],
    colours=COLOURS[1:],
    raw_to_class={index: index - 1 for index in range(1, len(CLASSES))},
    ignore_raw=frozenset({0}),
    splits=SPLITS,
    licence=LICENCE,
    source=source("pascal_context_59"),
    default_root="data/pascal_context_59",
    short_side=520,
    long_side=520,
    crop=(480, 480),
    archives=ARCHIVES,
    steps=STEPS,
)
