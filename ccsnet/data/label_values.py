"""What the values or colours of a label file mean: class indices, or an error that names the file.

Letters: H W height and width.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16, UInt32

from ccsnet.datasets._spec import Colour, DatasetSpec
from ccsnet.errors import InputError

STRIP = 1 << 20
"""Pixels that are turned from colours to classes at once: what lies between fits the cache."""


def classes_of_values(
    path: Path, raw: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"], spec: DatasetSpec
) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The class of every pixel, of the numbers that a label file holds.

    Raises:
        InputError: One of them is neither a class nor ignored; the text names the file.
    """
    lookup = spec.lookup()
    if raw.dtype == np.uint8:
        # The largest value settles most labels; cv2.LUT is several times faster than indexing.
        strange = (~lookup.known[:256]).view(np.uint8)
        unknown = strange[: int(raw.max()) + 1].any() and cv2.LUT(raw, strange).any()
        if lookup.shift is not None and not unknown:
            same = lookup.shift == 0 and raw.flags.writeable  # Pillow's arrays are not.
            return raw if same else raw + np.uint8(lookup.shift)
        if spec.label_dtype == np.uint8 and not unknown:
            return np.asarray(cv2.LUT(raw, lookup.table[:256]))
    else:
        unknown = not lookup.known[raw].all()
    if unknown:
        raise InputError(_unknown_values(path, raw, spec))
    return lookup.table[raw]


def classes_of_colours(
    path: Path, rgb: UInt8[np.ndarray, "H W 3"], spec: DatasetSpec
) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The class of every pixel, of the colours that a label file holds.

    Raises:
        InputError: One of them is neither a class nor ignored; the text names the file.
    """
    assert spec.colour_to_class is not None, "the caller has checked"
    table = _colour_table(
        tuple(spec.colour_to_class.items()), spec.ignore_colours, spec.num_classes
    )
    found = np.empty(rgb.shape[:2], table.dtype)
    rows = max(1, STRIP // max(1, rgb.shape[1]))
    for top in range(0, len(rgb), rows):
        np.take(table, colour_codes(rgb[top : top + rows]), out=found[top : top + rows])
    if spec.ignore_colours is not None:
        unknown = found == _unknown_code(table.dtype)
        if unknown.any():
            raise InputError(_unknown_colours(path, rgb[unknown], spec))
    # 65535 for unlabelled becomes 255 where 255 classes leave no value for unlisted colours.
    return found.astype(spec.label_dtype, copy=False)


def colour_codes(rgb: UInt8[np.ndarray, "H W 3"]) -> UInt32[np.ndarray, "H W"]:
    """One number per colour: red << 16 | green << 8 | blue."""
    # OpenCV's fourth byte is the highest of a little-endian number.
    four = np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGRA))
    return (four.view("<u4")[..., 0] & 0xFFFFFF).astype(np.uint32, copy=False)


def colour_of(code: int) -> Colour:
    """The colour that a code stands for."""
    return code >> 16, code >> 8 & 255, code & 255


def hex_colour(colour: Colour) -> str:
    """A colour as dataset.yaml and web pages write it: #rrggbb."""
    return "#" + bytes(colour).hex()


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _unknown_code(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) - 1


@lru_cache(maxsize=2)  # A process reads one data set, or trains on one and measures another.
def _colour_table(
    classes: tuple[tuple[Colour, int], ...], ignored: frozenset[Colour] | None, num_classes: int
) -> UInt8[np.ndarray, "16777216"] | UInt16[np.ndarray, "16777216"]:
    """Colour code -> class index; the type's largest for unlabelled, the next for unlisted."""
    dtype = np.dtype(np.uint8 if num_classes <= 254 else np.uint16)
    unlabelled = np.iinfo(dtype).max
    table = np.full(1 << 24, unlabelled if ignored is None else _unknown_code(dtype), dtype)
    for colour in ignored or ():
        table[_code(colour)] = unlabelled
    for colour, index in classes:
        table[_code(colour)] = index
    return table


def _unknown_colours(path: Path, wrong: UInt8[np.ndarray, "N 3"], spec: DatasetSpec) -> str:
    assert spec.colour_to_class is not None, "the caller has checked"
    codes, counts = np.unique(colour_codes(wrong[None]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    known = list(spec.colour_to_class)
    shown, near = [], 0
    for rank, i in enumerate(order[:100]):
        colour = colour_of(int(codes[i]))
        distances = np.abs(np.array(known) - np.array(colour)).max(axis=1)
        nearest = known[int(distances.argmin())]
        near += bool(distances.min() <= 32)
        if rank < 5:
            name = spec.classes[spec.colour_to_class[nearest]]
            shown.append(f"{colour} ({counts[i]:,} pixels; nearest is {nearest}, {name!r})")
    more = f"\n  and {len(codes) - 5:,} more colours" if len(codes) > 5 else ""
    blurred = (
        "Many colours close to those of the classes come from saving the mask as JPEG, from "
        "smooth edges or from scaling it: make it again without (PNG, nearest neighbour). "
        if len(codes) > len(known) or near > len(order[:100]) // 2
        else ""
    )
    return (
        f"The label {path} holds colours that {spec.name!r} does not list:\n  "
        + "\n  ".join(shown)
        + f"{more}\n{blurred}If such pixels are unlabelled, add the colour to `ignore_raw` in "
        "dataset.yaml (the word rest takes all); if they are a class, say which in `raw_colours`; "
        "else mend the file."
    )


def _unknown_values(path: Path, raw: np.ndarray, spec: DatasetSpec) -> str:
    lookup = spec.lookup()
    values, counts = np.unique(raw, return_counts=True)
    wrong = [(int(v), int(c)) for v, c in zip(values, counts, strict=True) if not lookup.known[v]]
    shown = ", ".join(f"{value} ({count:,} pixels)" for value, count in wrong[:8])
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    ignored = f" and {_ranges(spec.ignore_raw)} for unlabelled" if spec.ignore_raw else ""
    return (
        f"The label {path} holds {shown}{more}. Allowed in {spec.name!r}: "
        f"{_ranges(spec.raw_to_class)} for the {spec.num_classes} classes{ignored}. If such pixels "
        "are unlabelled, add the value to `ignore_raw` in dataset.yaml; if they are a class, say "
        "which in `raw_values`; else mend the file."
    )


def _ranges(values: Iterable[int]) -> str:
    """Whole numbers in short: 0-3, 7."""
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
