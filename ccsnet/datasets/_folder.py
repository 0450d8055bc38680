"""Your own data: a folder with a `dataset.yaml`. The format is told in docs/own-data.md."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ccsnet.datasets._folder_labels import distinct_colours, is_whole, read_coding, wrong
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.errors import InputError, unknown_name

__all__ = ["FILE_NAME", "distinct_colours", "read_spec"]

FILE_NAME = "dataset.yaml"
REQUIRED = ("classes", "images", "labels")
OPTIONAL = (
    *("name", "root", "colours", "raw_values", "raw_colours", "ignore_raw", "merge", "ignore"),
    *("splits", "split", "channels", "short_side", "long_side", "crop", "window"),
    *("licence", "source"),
)
SHARED = ("train", "val", "test")
"""What the numbers of `split` are the shares of."""


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
        what = f"No {path}"
        if not path.is_absolute():
            what += f" in {Path.cwd()}"
        if path.is_dir():
            what = (
                f"The folder {path} has no {FILE_NAME}. `ccsnet data init {path}` looks at its "
                "images and labels and writes one"
            )
        raise FileNotFoundError(
            f"{what}. A data set of your own is a folder with a {FILE_NAME} that names its classes "
            "and its files:\n  classes: [road, car]\n  images: images/{split}/*.jpg\n"
            "  labels: labels/{split}/*.png\n  splits: [train, val]"
        )
    entries = _entries(file)
    coding = read_coding(file, entries)
    text = {
        key: _text(file, key, entries[key])
        for key in ("images", "labels", "name", "root", "licence", "source")
        if key in entries
    }
    root = file.parent / Path(text["root"]).expanduser() if "root" in text else file.parent
    try:
        spec = DatasetSpec(
            name=text.get("name", file.resolve().parent.name),
            **vars(coding),
            splits=_splits(file, entries, text["images"], text["labels"]),
            channels=_whole(file, "channels", entries.get("channels", 3)),
            short_side=_side(file, "short_side", entries),
            long_side=_side(file, "long_side", entries),
            crop=_two(file, "crop", entries.get("crop", [512, 512]), "[height, width]"),
            window=_window(file, entries.get("window")),
            licence=text.get("licence", "not stated"),
            source=text.get("source", f"{file} says where files lie."),
            default_root=str(root),
        )
    except InputError as error:
        if str(error).startswith(f"{file}: "):
            raise
        raise InputError(f"{file}: {error}") from error
    return spec, root


def _entries(file: Path) -> dict[str, Any]:
    """The file's keys, all of them known and none missing."""
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        colour = re.search(rb"#[0-9a-fA-F]{6}", file.read_bytes())
        hint = " Colours need quotes: '#rrggbb'." if colour else ""
        raise InputError(f"{file}: this is no YAML text: {error}{hint}") from error
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
        raise wrong(file, key, value, "text")
    return value


def _whole(file: Path, key: str, value: Any) -> int:
    if not is_whole(value):
        raise wrong(file, key, value, "a whole number")
    return value


def _side(file: Path, key: str, entries: Mapping[str, Any]) -> int | None:
    return _whole(file, key, entries[key]) if key in entries else None


def _two(file: Path, key: str, value: Any, allowed: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise wrong(file, key, value, allowed)
    return _whole(file, key, value[0]), _whole(file, key, value[1])


def _window(file: Path, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    side, stride = _two(file, "window", value, "[side, stride]")
    if not 0 < stride <= side:
        raise wrong(file, "window", value, "[side, stride] with 0 < stride <= side")
    return side, stride


def _splits(file: Path, entries: Mapping[str, Any], images: str, labels: str) -> dict[str, Split]:
    # Files are found by their plain paths: `./images//*.jpg` is images/*.jpg.
    images, labels = (PurePosixPath(pattern).as_posix() for pattern in (images, labels))
    patterns = {"images": images, "labels": labels}
    for key, pattern in patterns.items():
        _check_braces(file, key, pattern)
    if images == labels:
        raise InputError(
            f"{file}: `images` and `labels` are both {images!r}; labels lie in another folder, or "
            "their names differ, such as images: data/*.jpg and labels: data/*_mask.png."
        )
    if "split" in entries:
        if "splits" in entries:
            raise InputError(f"{file}: `split` (shares) and `splits` (names): leave out one.")
        return _shares(file, entries["split"], patterns)
    value = entries.get("splits", ["train", "val"])
    if isinstance(value, list):
        value = {name: name for name in value if isinstance(name, str)} if value else None
    allowed = "a list of names, such as [train, val], or `name: list.txt` or `name: folder` lines"
    if not isinstance(value, dict) or len(value) != len(entries.get("splits", value)):
        raise wrong(file, "splits", entries["splits"], allowed)
    splits = {}
    for name, where in value.items():
        if not isinstance(name, str) or not isinstance(where, str) or not where:
            raise wrong(file, "splits", entries["splits"], allowed)
        listed = where.endswith(".txt")
        spelt = name if listed else where
        splits[name] = Split(
            images=images.replace("{split}", spelt),
            labels=labels.replace("{split}", spelt),
            names=where if listed else None,
        )
    for key, pattern in patterns.items():
        together = [name for name, where in value.items() if not where.endswith(".txt")]
        if len(together) > 1 and "{split}" not in pattern:
            raise InputError(
                f"{file}: `{key}` is {pattern!r}, the same files for the splits "
                f"{', '.join(together)}. Write {{split}} where their folders differ, such as "
                f"{key}/{{split}}/*.png; or `split: 0.8` for a random share to train on; or "
                "`splits: {train: train.txt, val: val.txt}` for lists of names."
            )
    return splits


def _check_braces(file: Path, key: str, pattern: str) -> None:
    rest = re.sub(r"\{[^{},]*(,[^{},]*)+\}", "", pattern.replace("{split}", ""))
    if "{" in rest or "}" in rest:
        raise InputError(
            f"{file}: `{key}` is {pattern!r}; braces hold the word split, or what a file may be "
            "called, such as *.{jpg,png}."
        )


def _shares(file: Path, value: Any, patterns: Mapping[str, str]) -> dict[str, Split]:
    """Splits by the names' hashes: a share to train on, the rest to validate on, or all three."""
    allowed = "a share to train on, such as 0.8, or shares of train, val and test that add up to 1"
    shares = value if isinstance(value, list) else [value]
    if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in shares):
        raise wrong(file, "split", value, allowed)
    if len(shares) == 1:
        shares = [shares[0], 1 - shares[0]]
    if not 2 <= len(shares) <= 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise wrong(file, "split", value, allowed)
    for key, pattern in patterns.items():
        if "{split}" in pattern:
            raise InputError(
                f"{file}: `{key}` is {pattern!r}; `split` divides the files of one pattern. Write "
                "it without {split}, or name the folders as `splits`."
            )
    # Rounded, so that 0.8 + 0.1 ends where 0.9 does.
    ends = [round(sum(shares[: i + 1]), 9) for i in range(len(shares) - 1)]
    return {
        name: Split(images=patterns["images"], labels=patterns["labels"], share=share)
        for name, share in zip(SHARED, zip([0.0, *ends], [*ends, 1.0], strict=True), strict=False)
    }
