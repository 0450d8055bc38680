"""Your own data: a folder with a `dataset.yaml`. The format is told in docs/own-data.md."""

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ccsnet.datasets._spec import Colour, DatasetSpec, Split
from ccsnet.errors import InputError, unknown_name

FILE_NAME = "dataset.yaml"
REQUIRED = ("classes", "images", "labels")
OPTIONAL = (
    *("name", "colours", "ignore_raw", "raw_values", "splits", "channels"),
    *("short_side", "long_side", "crop", "licence", "source"),
)


def read_spec(path: Path) -> tuple[DatasetSpec, Path]:
    """The data set that a `dataset.yaml` describes, and the folder that its patterns start from.

    Args:
        path: The file, or the folder that holds a `dataset.yaml`.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is not what docs/own-data.md describes; the text names file and key.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        what = f"The folder {path} has no {FILE_NAME}" if path.is_dir() else f"No {path}"
        if not path.is_absolute():
            what += f" in {Path.cwd()}"
        raise FileNotFoundError(
            f"{what}. A data set of your own is a folder with a {FILE_NAME} that names its classes "
            "and its files:\n  classes: [road, car]\n  images: images/{split}/*.jpg\n"
            "  labels: labels/{split}/*.png\n  splits: [train, val]"
        )
    entries = _entries(file)
    classes = _class_names(file, entries["classes"])
    raw_to_class = _raw_to_class(file, entries.get("raw_values"), classes)
    root = file.parent
    text = {key: _text(file, key, entries[key]) for key in ("images", "labels")}
    optional = {
        key: _text(file, key, entries[key]) for key in ("name", "licence") if key in entries
    }
    try:
        spec = DatasetSpec(
            name=optional.get("name", file.resolve().parent.name),
            classes=classes,
            colours=_colours(file, entries.get("colours"), len(classes)),
            raw_to_class=raw_to_class,
            ignore_raw=_ignore_raw(file, entries.get("ignore_raw"), raw_to_class),
            splits=_splits(file, entries.get("splits", ["train", "val"]), **text),
            channels=_whole(file, "channels", entries.get("channels", 3)),
            short_side=_side(file, "short_side", entries),
            long_side=_side(file, "long_side", entries),
            crop=_crop(file, entries.get("crop", [512, 512])),
            licence=optional.get("licence", "not stated"),
            source=_text(file, "source", entries.get("source", f"{file} says where files lie.")),
            default_root=str(root),
        )
    except InputError as error:
        if str(error).startswith(f"{file}: "):
            raise
        raise InputError(f"{file}: {error}") from error
    return spec, root


def distinct_colours(num: int) -> tuple[Colour, ...]:
    """So many colours that differ, always the same ones, black left free for unlabelled pixels."""
    colours: list[Colour] = []
    taken = {(0, 0, 0)}
    for index in range(num):
        # Hues in steps of the golden ratio never repeat and stay far apart for any number.
        hue = (index * 0.61803398875) % 1
        saturation, value = (0.65, 0.9, 0.4)[index % 3], (0.95, 0.65)[index // 3 % 2]
        parts = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)]
        while tuple(parts) in taken:
            parts[index % 3] = (parts[index % 3] + 1) % 256
        colour = (parts[0], parts[1], parts[2])
        taken.add(colour)
        colours.append(colour)
    return tuple(colours)


def _wrong(file: Path, key: str, got: Any, allowed: str) -> InputError:
    return InputError(f"{file}: `{key}` is {got!r}; it must be {allowed}.")


def _entries(file: Path) -> dict[str, Any]:
    """The file's keys, all of them known and none missing."""
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: this is no YAML text: {error}") from error
    if not isinstance(entries, dict):
        raise InputError(
            f"{file}: expected lines of `key: value`, found {type(entries).__name__}. "
            f"Needed keys: {', '.join(REQUIRED)}."
        )
    for key in entries:
        if key not in REQUIRED + OPTIONAL:
            raise InputError(f"{file}: {unknown_name('key', str(key), REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in entries]
    if missing:
        raise InputError(
            f"{file}: the key `{missing[0]}` is missing. Needed: {', '.join(REQUIRED)}."
        )
    # An empty value (`colours:`) means the same as no key.
    return {key: value for key, value in entries.items() if value is not None or key in REQUIRED}


def _text(file: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(file, key, value, "text")
    return value


def _whole(file: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(file, key, value, "a whole number")
    return value


def _side(file: Path, key: str, entries: Mapping[str, Any]) -> int | None:
    return _whole(file, key, entries[key]) if key in entries else None


def _crop(file: Path, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(file, "crop", value, "[height, width]")
    return _whole(file, "crop", value[0]), _whole(file, "crop", value[1])


def _class_names(file: Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(file, "classes", value, "a list of names, such as [road, car]")
    for name in value:
        if isinstance(name, bool):
            raise InputError(
                f"{file}: `classes` holds yes, no, on, off, true or false, which YAML reads as "
                f"{name}. Put that name in quotes."
            )
        if not isinstance(name, str | int):
            raise _wrong(file, "classes", value, "a list of names, such as [road, car]")
    return tuple(str(name).strip() for name in value)


def _colours(file: Path, value: Any, num: int) -> tuple[Colour, ...]:
    if value is None:
        return distinct_colours(num)
    allowed = "a list with one [red, green, blue] (0-255) or '#rrggbb' per class"
    if not isinstance(value, list):
        raise _wrong(file, "colours", value, allowed)
    colours = []
    for colour in value:
        if isinstance(colour, str) and len(colour) == 7 and colour.startswith("#"):
            try:
                colour = list(bytes.fromhex(colour[1:]))
            except ValueError as error:
                raise _wrong(file, "colours", colour, allowed) from error
        if not isinstance(colour, list) or len(colour) != 3:
            raise _wrong(file, "colours", colour, allowed)
        red, green, blue = (_whole(file, "colours", part) for part in colour)
        colours.append((red, green, blue))
    return tuple(colours)


def _raw_to_class(file: Path, value: Any, classes: tuple[str, ...]) -> dict[int, int]:
    if value is None:
        return {index: index for index in range(len(classes))}
    if isinstance(value, list):
        if len(value) != len(classes):
            raise InputError(
                f"{file}: `raw_values` lists {len(value)} values for {len(classes)} classes; give "
                "one per class in the same order, or `value: class name` lines."
            )
        value = dict(zip((_whole(file, "raw_values", raw) for raw in value), classes, strict=True))
        if len(value) != len(classes):
            raise InputError(f"{file}: `raw_values` lists a value twice; each names one class.")
    if not isinstance(value, dict):
        raise _wrong(file, "raw_values", value, "a list of values or `value: class name` lines")
    raw_to_class = {}
    for raw, name in value.items():
        if str(name) not in classes:
            raise InputError(f"{file}: `raw_values`: {unknown_name('class', str(name), classes)}")
        raw_to_class[_whole(file, "raw_values", raw)] = classes.index(str(name))
    return raw_to_class


def _ignore_raw(file: Path, value: Any, raw_to_class: Mapping[int, int]) -> frozenset[int] | None:
    if value is None:
        return frozenset({255}) - frozenset(raw_to_class)
    if value == "rest":
        return None
    values = value if isinstance(value, list) else [value]
    for raw in values:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise _wrong(file, "ignore_raw", value, "a list of whole numbers, or the word rest")
    return frozenset(values)


def _splits(file: Path, value: Any, *, images: str, labels: str) -> dict[str, Split]:
    if not isinstance(value, list) or not value or not all(isinstance(s, str) for s in value):
        raise _wrong(file, "splits", value, "a list of names, such as [train, val]")
    for key, pattern in (("images", images), ("labels", labels)):
        if len(value) > 1 and "{split}" not in pattern:
            raise InputError(
                f"{file}: `{key}` is {pattern!r}, the same files for the splits "
                f"{', '.join(value)}. Write {{split}} where their folders differ, such as "
                f"{key}/{{split}}/*.png."
            )
    return {
        name: Split(images=images.replace("{split}", name), labels=labels.replace("{split}", name))
        for name in value
    }
