"""What a `dataset.yaml` says of classes and of the values or colours that stand for them."""

import colorsys
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ccsnet.datasets._spec import NUM_RAW_VALUES, Colour
from ccsnet.errors import InputError, unknown_name

Raw = TypeVar("Raw", int, Colour)

REST = "rest"
BINARY = "binary"
COLOUR = "[red, green, blue] (0-255) or '#rrggbb' in quotes"


@dataclass(frozen=True)
class Coding:
    """The classes and what stands for them in label files; fields as those of `DatasetSpec`."""

    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    raw_to_class: Mapping[int, int]
    ignore_raw: frozenset[int] | None
    colour_to_class: Mapping[Colour, int] | None = None
    ignore_colours: frozenset[Colour] | None = None


def read_coding(file: Path, entries: Mapping[str, Any]) -> Coding:
    """The coding that a file's keys describe, classes merged and left out as they say.

    Raises:
        InputError: A key is not as docs/own-data.md describes; the text names file and key.
    """
    classes = _class_names(file, entries["classes"])
    ignored = entries.get("ignore_raw")
    if "raw_colours" in entries:
        if "raw_values" in entries:
            raise InputError(
                f"{file}: label files hold numbers (`raw_values`) or colours (`raw_colours`); "
                "leave out one of the two keys."
            )
        by_colour = _colour_to_class(file, entries["raw_colours"], classes)
        shown = {index: colour for colour, index in reversed(by_colour.items())}
        painted = tuple(shown[index] for index in sorted(shown))
        if "colours" in entries or len(painted) < len(classes):
            painted = _colours(file, entries.get("colours"), len(classes))
        coding = Coding(
            classes, painted, {}, frozenset(), by_colour, _ignored_colours(file, ignored)
        )
    else:
        values = _ignored_values(file, ignored)
        by_value = _raw_to_class(file, entries.get("raw_values"), classes, values)
        if ignored is None:
            values = frozenset({255}) - frozenset(by_value)
        painted = _colours(file, entries.get("colours"), len(classes))
        coding = Coding(classes, painted, by_value, values)
    return _regrouped(file, coding, entries)


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


def wrong(file: Path, key: str, got: Any, allowed: str) -> InputError:
    """The error for a value that a key cannot have."""
    return InputError(f"{file}: `{key}` is {got!r}; it must be {allowed}.")


def is_whole(value: Any) -> bool:
    """Whether YAML read a whole number; it reads `yes` as a bool, which Python counts as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def _class_names(file: Path, value: Any) -> tuple[str, ...]:
    allowed = "a list of names, such as [road, car]"
    if not isinstance(value, list):
        raise wrong(file, "classes", value, allowed)
    for name in value:
        if isinstance(name, bool):
            raise InputError(
                f"{file}: `classes` holds yes, no, on, off, true or false, which YAML reads as "
                f"{name}. Put that name in quotes."
            )
        if not isinstance(name, str | int):
            raise wrong(file, "classes", value, allowed)
    return tuple(str(name).strip() for name in value)


def _colour(file: Path, key: str, value: Any) -> Colour:
    parts: list[Any] = value if isinstance(value, list) else []
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        parts = list(bytes.fromhex(value[1:]))
    elif isinstance(value, str):
        parts = [int(p) if p.isdecimal() else p for p in re.split(r"[\s,]+", value.strip())]
    if len(parts) != 3 or not all(is_whole(part) and 0 <= part <= 255 for part in parts):
        raise wrong(file, key, value, COLOUR)
    return parts[0], parts[1], parts[2]


def _colours(file: Path, value: Any, num: int) -> tuple[Colour, ...]:
    if value is None:
        return distinct_colours(num)
    if not isinstance(value, list):
        raise wrong(file, "colours", value, f"a list with one {COLOUR} per class")
    return tuple(_colour(file, "colours", colour) for colour in value)


def _index(file: Path, key: str, name: Any, classes: tuple[str, ...]) -> int:
    if str(name) not in classes:
        raise InputError(f"{file}: `{key}`: {unknown_name('class', str(name), classes)}")
    return classes.index(str(name))


def _one_per_class(file: Path, key: str, num: int, classes: tuple[str, ...]) -> None:
    kind = key.removeprefix("raw_")
    if num != len(classes):
        raise InputError(
            f"{file}: `{key}` lists {num} {kind} for {len(classes)} classes; give one per class in "
            f"the same order, or `{kind.removesuffix('s')}: class name` lines."
        )


def _colour_to_class(file: Path, value: Any, classes: tuple[str, ...]) -> dict[Colour, int]:
    key = "raw_colours"
    if isinstance(value, list):
        _one_per_class(file, key, len(value), classes)
        pairs = list(zip(value, range(len(classes)), strict=True))
    elif isinstance(value, dict):
        pairs = [(colour, _index(file, key, name, classes)) for colour, name in value.items()]
    else:
        raise wrong(file, key, value, "a list of colours or `'#rrggbb': class name` lines")
    found: dict[Colour, int] = {}
    for written, index in pairs:
        colour = _colour(file, key, written)
        if colour in found:
            raise InputError(f"{file}: `{key}` lists {colour} twice; each colour names one class.")
        found[colour] = index
    return found


def _ignored_colours(file: Path, value: Any) -> frozenset[Colour] | None:
    if value == REST:
        return None
    if value is None:
        return frozenset()
    one = isinstance(value, str) or (isinstance(value, list) and all(map(is_whole, value)))
    colours = [value] if one and value else value
    if not isinstance(colours, list):
        raise wrong(file, "ignore_raw", value, f"a list of {COLOUR}, or the word {REST}")
    return frozenset(_colour(file, "ignore_raw", colour) for colour in colours)


def _ignored_values(file: Path, value: Any) -> frozenset[int] | None:
    if value == REST:
        return None
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(map(is_whole, values)):
        hint = " (colours need `raw_colours`)" if "#" in str(value) or "[[" in str(value) else ""
        allowed = f"a list of whole numbers, or the word {REST}{hint}"
        raise wrong(file, "ignore_raw", value, allowed)
    return frozenset(values)


def _raw_to_class(
    file: Path, value: Any, classes: tuple[str, ...], ignored: frozenset[int] | None
) -> dict[int, int]:
    key = "raw_values"
    if value is None:
        return {index: index for index in range(len(classes))}
    if value == BINARY:
        if len(classes) != 2:
            raise InputError(
                f"{file}: `{key}: {BINARY}` needs 2 classes, first what 0 means, then all else; "
                f"`classes` names {len(classes)}."
            )
        value = {0: classes[0], f"1-{NUM_RAW_VALUES - 1}": classes[1]}
    allowed = f"a list of values, `value: class name` lines, or the word {BINARY}"
    if isinstance(value, list):
        _one_per_class(file, key, len(value), classes)
        for raw in value:
            if not is_whole(raw):
                raise wrong(file, key, raw, "a whole number")
        if len(set(value)) != len(value):
            raise InputError(f"{file}: `{key}` lists a value twice; each names one class.")
        return {raw: index for index, raw in enumerate(value)}
    if not isinstance(value, dict):
        raise wrong(file, key, value, allowed)
    single, ranges = {}, {}
    for raw, name in value.items():
        index = _index(file, key, name, classes)
        if is_whole(raw):
            single[raw] = index
            continue
        for part in _range(file, raw):
            if part in ranges:
                raise InputError(f"{file}: `{key}` has the value {part} in two ranges.")
            ranges[part] = index
    # A value that is named by itself needs not be cut out of its range.
    return {raw: index for raw, index in ranges.items() if raw not in (ignored or ())} | single


def _range(file: Path, text: Any) -> range:
    found = re.fullmatch(r"(\d+)\s*-\s*(\d+)", str(text))
    first, last = (int(found[1]), int(found[2])) if found else (1, 0)
    if not first <= last < NUM_RAW_VALUES:
        allowed = f"a whole number or a range such as 128-255, up to {NUM_RAW_VALUES - 1}"
        raise wrong(file, "raw_values", text, allowed)
    return range(first, last + 1)


def _regrouped(file: Path, coding: Coding, entries: Mapping[str, Any]) -> Coding:
    """The same with the classes that `merge` joins as one, and without those in `ignore`."""
    group = _groups(file, coding.classes, entries)
    if not group:
        return coding
    if len(coding.colours) != len(coding.classes):
        raise InputError(
            f"{file}: {len(coding.classes)} classes but {len(coding.colours)} colours; give one "
            "colour per class, also for those that are merged or ignored."
        )
    names = [group.get(name, name) for name in coding.classes]
    kept = list(dict.fromkeys(name for name in names if name is not None))

    def split(
        means: Mapping[Raw, int], ignored: frozenset[Raw] | None
    ) -> tuple[dict[Raw, int], frozenset[Raw] | None]:
        new = {raw: names[old] for raw, old in means.items()}
        gone = frozenset(raw for raw, name in new.items() if name is None)
        found = {raw: kept.index(name) for raw, name in new.items() if name is not None}
        return found, None if ignored is None else ignored | gone

    colours = tuple(coding.colours[names.index(name)] for name in kept)
    by_value = split(coding.raw_to_class, coding.ignore_raw)
    if coding.colour_to_class is None:
        return Coding(tuple(kept), colours, *by_value)
    by_colour = split(coding.colour_to_class, coding.ignore_colours)
    return Coding(tuple(kept), colours, *by_value, *by_colour)


def _groups(
    file: Path, classes: tuple[str, ...], entries: Mapping[str, Any]
) -> dict[str, str | None]:
    """What becomes of the classes that `merge` and `ignore` name: another name, or None."""
    merge = entries.get("merge", {})
    if not isinstance(merge, dict) or not all(isinstance(part, list) for part in merge.values()):
        raise wrong(file, "merge", merge, "lines of `new name: [class, class]`")
    ignored = entries.get("ignore", [])
    if not isinstance(ignored, list):
        raise wrong(file, "ignore", ignored, "a list of class names, such as [sky]")
    group: dict[str, str | None] = {}
    parts = [*((str(new), old, "merge") for new, olds in merge.items() for old in olds)]
    parts += [(None, old, "ignore") for old in ignored]
    for new, old, key in parts:
        name = classes[_index(file, key, old, classes)]
        if name in group:
            raise InputError(
                f"{file}: `{key}` names the class {name!r}, which `merge` or `ignore` has already; "
                "a class can go one way only."
            )
        group[name] = new
    for new in map(str, merge):
        if new in classes and group.get(new, new) != new:
            raise InputError(f"{file}: `merge` makes a class {new!r} that is merged or ignored.")
        if new in classes and new not in group:
            raise InputError(
                f"{file}: `merge` makes a class {new!r}, but `classes` has one that is not part of "
                "it. Add it to the list, or choose another name."
            )
    return group
