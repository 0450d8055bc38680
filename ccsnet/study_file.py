"""Reads the file of a study and checks it as a whole. The format is told in docs/study.md."""

import contextlib
import io
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ccsnet.arguments import parse
from ccsnet.config import RunConfig
from ccsnet.data.opening import PACKAGE
from ccsnet.datasets._folder import read_spec
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError, unknown_name
from ccsnet.loss import SegmentationLoss
from ccsnet.plugins import find_plugin
from ccsnet.preflight import check_settings
from ccsnet.recipes import recipe
from ccsnet.study import (
    Match,
    Row,
    Study,
    folder_name,
    is_known,
    option_words,
    train_options,
    where_words,
)

REQUIRED = ("data", "recipe", "seeds", "baseline", "report", "rows")
OPTIONAL = ("title", "settings", "select", "match")
MATCH_KEYS = ("by", "to", "dims")
MEASURES = ("gmacs", "parameters")
TAKEN = {
    "seed": "`seeds` lists them",
    "dataset": "`data` names it",
    "root": "`--data` of the command line says where data lie",
    "val-split": "`select` names it",
    "out": "`--out` of the command line names it",
    "resume": "a study resumes by itself",
}
"""Options of `ccsnet train` that a study sets itself, and what says them instead."""


def read_study(file: Path, places: Mapping[str, str] | None = None) -> Study:
    """The study that a file describes, all of it checked, with all that is wrong in one message.

    Args:
        file: The YAML file.
        places: Where data sets lie on this machine, by the names that studies have for them.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is not what docs/study.md describes.
    """
    if not file.is_file():
        raise FileNotFoundError(f"No {file}. A study is a YAML file: docs/study.md shows one.")
    try:
        entries = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # It is a safe loader.
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: this is no YAML text: {error}") from error
    reader = _Reader()
    study = reader.study(file.stem, entries, dict(places or {}))
    if study is None:
        many = len(reader.wrong) > 1
        listed = "\n  - ".join(["", *reader.wrong]) if many else f" {reader.wrong[0]}"
        count = f" {len(reader.wrong)} mistakes:" if many else ""
        raise InputError(f"{file}:{count}{listed}")
    return study


class _Loader(yaml.SafeLoader):
    """Refuses what stands twice, of which plain YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # What `<<` brings, a key of the mapping itself may say otherwise.
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):  # The base class says so.
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Reader:
    """Collects what is wrong, so that all of it is told at once.

    Attributes:
        wrong: The mistakes, in the order of the file's keys.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.options = train_options()

    def study(self, name: str, entries: Any, places: dict[str, str]) -> Study | None:
        """The study, or None when something is wrong."""
        if not isinstance(entries, dict):
            self.wrong.append(
                f"expected lines of `key: value`, found {type(entries).__name__}. "
                f"Needed keys: {', '.join(REQUIRED)}."
            )
            return None
        self._known("key", entries, REQUIRED + OPTIONAL)
        missing = [key for key in REQUIRED if entries.get(key) is None]
        if missing:
            self.wrong.append(f"needed and missing: {', '.join(missing)}.")
        data = self._text(entries, "data", "")
        base = self._text(entries, "recipe", "own")
        select = self._text(entries, "select", "val")
        settings = self._settings("settings", entries.get("settings"), recipe_too=False)
        place = self._place(data, places)
        self._recipe("recipe", base)
        where = where_words(data, place)
        given = entries.get("rows")
        names = list(map(str, given)) if isinstance(given, dict) else []
        rows = self._rows(given, base, settings, [*where, "--val-split", select])
        spec = self._spec(data, place)
        study = Study(
            name=name,
            title=self._text(entries, "title", name),
            data=data,
            place=place,
            spec=spec,
            seeds=self._seeds(entries.get("seeds")),
            baseline=self._text(entries, "baseline", ""),
            select=select,
            report=self._text(entries, "report", select),
            match=self._match(entries.get("match"), entries.get("baseline"), names),
            rows=rows,
        )
        if names and "baseline" in entries and study.baseline not in names:
            self.wrong.append(f"baseline: {unknown_name('row', study.baseline, names)}")
        self._splits(study)
        return None if self.wrong else study

    def _known(self, kind: str, given: Mapping[Any, Any], allowed: Sequence[str]) -> None:
        for key in given:
            if key not in allowed:
                self.wrong.append(str(unknown_name(kind, str(key), allowed)))

    def _text(self, entries: Mapping[str, Any], key: str, otherwise: str) -> str:
        value = entries.get(key)
        if value is None:
            return otherwise
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # A row may be called 1.
        if not isinstance(value, str) or not value:
            self.wrong.append(f"`{key}` is {value!r}; it must be text.")
            return otherwise
        return value

    def _recipe(self, where: str, name: str) -> bool:
        try:
            recipe(name)
        except InputError as error:
            self.wrong.append(f"{where}: {error}")
            return False
        return True

    def _place(self, data: str, places: dict[str, str]) -> str | None:
        place = places.pop(data, None)
        for other in places:
            self.wrong.append(f"--data names {other!r}; the data of this study are {data!r}.")
        return place

    def _seeds(self, value: Any) -> tuple[int, ...]:
        if value is None:
            return ()
        whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
        if not whole or not value or len(set(value)) < len(value):
            self.wrong.append(
                f"`seeds` is {value!r}; it must be a list of different whole numbers from 0, such "
                "as [0, 1, 2]."
            )
            return ()
        return tuple(value)

    def _settings(self, where: str, value: Any, *, recipe_too: bool) -> dict[str, Any]:
        """Options by name; what cannot be one is told and left out."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.wrong.append(
                f"{where}: {value!r} is not `option: value` lines, such as head: ccs."
            )
            return {}
        found = {}
        for key, item in value.items():
            if key == "recipe" and recipe_too:
                found[key] = item
            elif key in TAKEN:
                self.wrong.append(f"{where}: leave out `{key}`: {TAKEN[key]}.")
            elif key not in self.options:
                names = [*self.options, *(["recipe"] if recipe_too else [])]
                error = unknown_name("option", str(key), names, "Options: ccsnet train --help.")
                self.wrong.append(f"{where}: {error}")
            elif self.options[key] is bool and not isinstance(item, bool):
                self.wrong.append(f"{where}: `{key}` is {item!r}; it must be true or false.")
            elif isinstance(item, dict):
                self.wrong.append(f"{where}: `{key}` is {item!r}; it must be a value or a list.")
            else:
                found[key] = item
        return found

    def _rows(
        self, value: Any, base: str, settings: Mapping[str, Any], common: list[str]
    ) -> dict[str, Row]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            self.wrong.append(
                f"`rows` is {value!r}; it must be `name: {{option: value}}` lines, such as "
                "ccs: {head: ccs}."
            )
            return {}
        rows: dict[str, Row] = {}
        folders: dict[str, str] = {}
        for key, item in value.items():
            name, before = str(key), len(self.wrong)
            own = self._settings(f"row {name!r}", item, recipe_too=True)
            if len(self.wrong) > before:
                continue
            start = str(own.pop("recipe", base))
            if start != base and not self._recipe(f"row {name!r}", start):
                continue
            options = {**settings, **own}
            words = tuple(w for k, v in options.items() for w in option_words(k, v, self.options))
            config = self._config(f"row {name!r}", start, [*common, *words])
            if config is None:
                continue
            row = Row(name=name, recipe=start, words=words, sized="dim" in own, config=config)
            twin = next((one for one in rows.values() if one.config == config), None)
            if twin is not None:
                self.wrong.append(f"The rows {twin.name!r} and {name!r} train the same.")
            # Lower case, as on some systems capitals make no other name.
            other = folders.setdefault(folder_name(name).lower(), name)
            if other != name:
                self.wrong.append(
                    f"The rows {other!r} and {name!r} would share the folder "
                    f"{folder_name(name)}-SEED; call one otherwise."
                )
            rows[name] = row
        return rows

    def _config(self, where: str, start: str, words: list[str]) -> RunConfig | None:
        """What a row's options amount to; as `ccsnet train` reads them."""
        said = io.StringIO()
        try:
            default = recipe(start)
        except InputError:
            return None  # Told already.
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                config: RunConfig = parse(
                    RunConfig, "train", ["--dataset", *words], default=default
                )
            find_plugin("ccsnet.heads", config.model.head, "build")
            train = config.train
            SegmentationLoss(loss=train.loss, coarse_loss=train.coarse_loss)
            check_settings(config, 1)
        except SystemExit:
            self.wrong.append(f"{where}: {_without_box(said.getvalue())}")
        except (InputError, ValueError) as error:
            self.wrong.append(f"{where}: {error}")
        else:
            return config
        return None

    def _spec(self, data: str, place: str | None) -> DatasetSpec | None:
        """What the data set is, as far as it can be known without preparing it."""
        try:
            if is_known(data):
                spec = find_plugin(PACKAGE, data, "SPEC")
                return spec if isinstance(spec, DatasetSpec) else None
            if data:
                return read_spec(Path(place or data).expanduser())[0]
        except FileNotFoundError:
            pass
        except InputError as error:
            self.wrong.append(f"data: {error}")
        return None

    def _match(self, value: Any, baseline: Any, rows: Sequence[str]) -> Match | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong.append(f"`match` is {value!r}; it must be lines such as by: gmacs.")
            return None
        self._known("key of `match`", value, MATCH_KEYS)
        by, to, dims = value.get("by"), str(value.get("to", baseline)), value.get("dims")
        if by not in MEASURES:
            self.wrong.append(f"match: `by` is {by!r}; it must be {' or '.join(MEASURES)}.")
            return None
        if rows and to not in rows:
            self.wrong.append(f"match: `to`: {unknown_name('row', to, rows)}")
        if dims is None:
            return Match(by=by, to=to)
        if (
            not isinstance(dims, list)
            or not dims
            or not all(type(d) is int and d > 0 for d in dims)
        ):
            self.wrong.append(
                f"match: `dims` is {dims!r}; it must be a list such as [64, 96, 128]."
            )
            return None
        return Match(by=by, to=to, dims=tuple(sorted(set(dims))))

    def _splits(self, study: Study) -> None:
        if study.spec is None:
            return
        spec = study.spec
        labelled = [name for name in spec.splits if all(part.labels for part in spec.parts(name))]
        learnt = {row.config.data.train_split for row in study.rows.values()}
        for key, split in (("select", study.select), ("report", study.report)):
            if split not in labelled:
                known = ", ".join(labelled) or "none"
                self.wrong.append(
                    f"`{key}` is {split!r}; the splits of {spec.name} with labels are: {known}."
                )
            elif split in learnt:
                self.wrong.append(f"`{key}` is {split!r}, which is what the models learn from.")
        others = [name for name in labelled if name not in {*learnt, study.select}]
        if study.report == study.select and others:
            self.wrong.append(
                f"`report` is {study.report!r}, on which checkpoints are chosen. Report on "
                f"{' or '.join(others)}, which no choice has seen."
            )


def _without_box(text: str) -> str:
    """An argument parser's message without the frame that it draws."""
    bare = " ".join(re.sub(r"[│╭╰╮╯─]+|-{5,}", " ", text).split())
    message = re.split(r"(?:Argument|For full) helptext", bare)[0].strip()
    return re.sub(r"^(?:Value error|Invalid choice|Parsing error) ", "", message)
