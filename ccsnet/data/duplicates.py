"""Images that are the same picture: by content, and by a hash that survives re-encoding."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int64, UInt8, UInt16

HASH_BYTES = 32
MAX_DISTANCE = 15
"""Bits of 256 in which two hashes of one picture may differ. Source: measured, docs/data-check.md:
a picture saved again as JPEG or scaled differs in at most 10, different ones in 24 or more."""

# Two hashes that differ in at most 15 bits have at least one of 16 parts in common.
NUM_PARTS = MAX_DISTANCE + 1
MAX_AT_ONCE = 1 << 18  # Hashes that are compared at once, 16 MB.

_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)


class Twin(NamedTuple):
    """Two images that look the same."""

    one: int
    """Number of the one in the first list of hashes."""
    other: int
    """Number of the nearest to it in the second."""
    distance: int
    """Bits in which they differ."""


def content_hash(path: Path) -> bytes:
    """16 bytes that only equal files have in common."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def perceptual_hash(
    image: UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"],
) -> UInt8[np.ndarray, " bytes"] | None:
    """256 bits that say where the picture's 16x16 lowest frequencies lie above their median.

    None for an image of one colour, which looks like every other.

    Source: the DCT hash of Zauner, "Implementation and benchmarking of perceptual image hash
    functions" (2010), with 16x16 instead of 8x8 frequencies: 64 bits cannot tell two retinas apart.
    """
    bands = np.ascontiguousarray(image[..., :3])  # OpenCV shrinks no more than four so.
    small = cv2.resize(bands, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small if small.ndim == 2 else small.mean(axis=2)
    if grey.std() < 1e-3 * np.iinfo(image.dtype).max:
        return None
    frequencies = cv2.dct(grey)[:16, :16].ravel()
    # The first is the mean of the picture, which is no frequency.
    return np.packbits(frequencies > np.median(frequencies[1:]))


def find_twins(
    ones: UInt8[np.ndarray, "images bytes"], others: UInt8[np.ndarray, "images2 bytes"]
) -> list[Twin]:
    """For each hash of the first list its nearest of the second, if one is near enough.

    Not all pairs are compared: only those that have one of 16 parts of their bits in common, which
    all near ones have.
    """
    best = np.full(len(ones), MAX_DISTANCE + 1, np.int64)
    nearest = np.zeros(len(ones), np.int64)
    for part in range(NUM_PARTS):
        for left, right in _candidates(_part(ones, part), _part(others, part)):
            distance = _ONES[ones[left] ^ others[right]].sum(axis=1, dtype=np.int64)
            # Of several for one image, the nearest is written last.
            order = np.argsort(-distance, kind="stable")
            left, right, distance = left[order], right[order], distance[order]
            better = distance < best[left]
            best[left[better]] = distance[better]
            nearest[left[better]] = right[better]
    found = np.flatnonzero(best <= MAX_DISTANCE)
    return [Twin(int(i), int(nearest[i]), int(best[i])) for i in found]


def _part(hashes: np.ndarray, part: int) -> np.ndarray:
    """Two bytes of each hash as one number."""
    return hashes[:, 2 * part].astype(np.int64) * 256 + hashes[:, 2 * part + 1]


def _candidates(
    ones: Int64[np.ndarray, " images"], others: Int64[np.ndarray, " images2"]
) -> Iterator[tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]]:
    """All pairs with equal numbers, so many at a time."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], ones, "left")
    ends = np.cumsum(np.searchsorted(others[order], ones, "right") - first)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    for begin in range(0, int(ends[-1]) if len(ends) else 0, MAX_AT_ONCE):
        pairs = np.arange(begin, min(begin + MAX_AT_ONCE, int(ends[-1])))
        left = np.searchsorted(ends, pairs, "right")
        yield left, order[first[left] + pairs - starts[left]]
