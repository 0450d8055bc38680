"""A study: what is compared with what, over which seeds. `study_file` reads one."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ccsnet.config import RunConfig, to_json
from ccsnet.data.opening import PACKAGE
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.plugins import plugin_names

DIMS = tuple(range(8, 1025, 8))
"""What a matched head's `dim` is chosen from, where the file names no others."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Heads of one size: each gets the `dim` with which its model comes nearest one row's."""

    by: Literal["gmacs", "parameters"]
    to: str
    """The row whose size is matched."""
    dims: tuple[int, ...] = DIMS


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is trained once for each seed."""

    name: str
    recipe: str
    words: tuple[str, ...]
    """Options of `ccsnet train`, as its command line takes them."""
    sized: bool
    """Whether the row itself says its `dim`."""
    config: RunConfig
    """What they amount to; the seed is none of the study's."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of rows and seeds on one data set."""

    name: str
    """The file's, without its suffix."""
    title: str
    data: str
    place: str | None
    """Where the data lie on this machine; none: where `data` says."""
    spec: DatasetSpec | None
    """None where the data are not on this machine, and nothing else tells their classes."""
    seeds: tuple[int, ...]
    baseline: str
    select: str
    """The split that checkpoints are chosen on."""
    report: str
    """The split that every chosen checkpoint is evaluated on, once."""
    match: Match | None
    rows: Mapping[str, Row]

    @property
    def where(self) -> list[str]:
        """The data as `ccsnet train` takes them."""
        return where_words(self.data, self.place)


def where_words(data: str, place: str | None) -> list[str]:
    """A data set, and where it lies, as `ccsnet train` takes them."""
    if place is None:
        return [data]
    return [data, "--root", place] if is_known(data) else [place]


def is_known(data: str) -> bool:
    """Whether a data set's files may lie anywhere; else the name is itself a folder or a file."""
    return ":" in data or data in plugin_names(PACKAGE)


def train_options() -> dict[str, Any]:
    """The options of `ccsnet train` and the types of their values."""
    return dict(_leaves(RunConfig))


def _leaves(kind: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            yield from _leaves(typing.cast(type, annotation))
        else:
            yield field.name.replace("_", "-"), annotation


def option_words(option: str, value: Any, options: Mapping[str, Any]) -> list[str]:
    """An option and its value as the command line takes them."""
    if options[option] is bool:
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{option}", *map(str, values)]


def with_dim(row: Row, dim: int) -> Row:
    """The row with another width of its head."""
    model = row.config.model
    head = replace(model.head_config, dim=dim)
    config = replace(row.config, model=replace(model, head_config=head))
    words = list(row.words)
    if "--dim" in words:
        at = words.index("--dim")
        del words[at : at + 2]
    return replace(row, words=(*words, "--dim", str(dim)), config=config)


def folder_name(row: str) -> str:
    """A row's name as part of a folder's."""
    return re.sub(r"[^\w.+=,-]+", "-", row).strip("-.") or "row"


def seeded(row: Row, seed: int) -> str:
    """Everything that decides what a cell trains, but for where things lie, as a text."""
    config = row.config
    settled = replace(config, data=replace(config.data, dataset="", root=None))
    return to_json(replace(settled, train=replace(config.train, seed=seed)))
