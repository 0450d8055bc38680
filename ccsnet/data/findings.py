"""What `ccsnet data check` found: problems by kind, and what each split holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from ccsnet.data.sampling import suggested_weights
from ccsnet.datasets._spec import DatasetSpec

KINDS: Mapping[str, bool] = {
    "missing folder or list": True,
    "wrong list": True,
    "empty split": True,
    "duplicate names": True,
    "missing label": True,
    "unreadable image": True,
    "wrong bands": True,
    "mixed depths": True,
    "unreadable label": True,
    "wrong label values": True,
    "sizes differ": True,
    "no labelled pixel in the split": True,
    "no labelled pixel": False,
    "class never occurs": False,
    "other number than published": False,
    "same file in two splits": False,
    "same file twice": False,
    "near-duplicate in two splits": False,
}
"""Every kind of problem, and whether training or evaluation fails on it."""


class Problem(NamedTuple):
    """Something wrong with a split."""

    kind: str
    """One of `KINDS`."""
    split: str
    file: Path | None
    """What it is wrong with; None: the split as a whole."""
    text: str
    """What is wrong, and what to do."""


@dataclass
class SplitFacts:
    """What a split holds; N classes."""

    images: int
    labelled: bool
    """Whether it comes with labels."""
    pixels: Int64[np.ndarray, " N"]
    """Of each class."""
    pixels_where: Int64[np.ndarray, " N"]
    """Labelled pixels of the images that hold the class."""
    images_with: Int64[np.ndarray, " N"]
    """Images that hold the class."""
    unlabelled: int = 0
    """Pixels."""

    @staticmethod
    def empty(num_classes: int, images: int, labelled: bool) -> "SplitFacts":
        """Nothing counted yet."""
        first, second, third = np.zeros((3, num_classes), np.int64)
        return SplitFacts(images, labelled, first, second, third)

    def add(self, counts: Int64[np.ndarray, " N"], unlabelled: int) -> None:
        """Count one label map."""
        present = counts > 0
        self.pixels += counts
        self.pixels_where[present] += counts.sum()
        self.images_with += present
        self.unlabelled += unlabelled

    @property
    def shares(self) -> list[float | None]:
        """Of each class among the labelled pixels; None where nothing is labelled."""
        total = int(self.pixels.sum())
        return [int(n) / total if total else None for n in self.pixels]

    @property
    def unlabelled_share(self) -> float | None:
        """Of all pixels of the labels."""
        total = int(self.pixels.sum()) + self.unlabelled
        return self.unlabelled / total if total else None


@dataclass
class CheckReport:
    """All that was found."""

    spec: DatasetSpec
    root: Path
    needed: tuple[str, ...]
    """Splits without which training, or what was asked for, fails."""
    train_split: str = "train"
    splits: dict[str, SplitFacts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(KINDS[p.kind] and p.split in self.needed for p in self.problems)

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """What `--class-weights auto` makes of the training split; None if it has no labels."""
        facts = self.splits.get(self.train_split)
        if facts is None or not facts.pixels.any():
            return None
        return suggested_weights(facts.pixels, facts.pixels_where)

    def by_kind(self) -> dict[str, list[Problem]]:
        """The problems of each kind that there is, what training fails on first."""
        found: dict[str, list[Problem]] = {}
        for kind in KINDS:
            if problems := [p for p in self.problems if p.kind == kind]:
                found[kind] = problems
        return found

    def name_of(self, file: Path) -> str:
        """A file's path below the data's folder."""
        return str(file.relative_to(self.root) if file.is_relative_to(self.root) else file)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        weights = self.class_weights
        return {
            "dataset": self.spec.name,
            "root": str(self.root),
            "training_would_fail": self.fails,
            "splits": {
                name: _facts(facts, self.spec.classes) for name, facts in self.splits.items()
            },
            "class_weights": weights and dict(zip(self.spec.classes, weights, strict=True)),
            "problems": [
                {
                    "kind": p.kind,
                    "fatal": KINDS[p.kind],
                    "split": p.split,
                    "file": None if p.file is None else self.name_of(p.file),
                    "text": p.text,
                }
                for p in self.problems
            ],
        }


def _facts(facts: SplitFacts, classes: Sequence[str]) -> dict[str, Any]:
    rows = zip(classes, facts.pixels, facts.shares, facts.images_with, strict=True)
    return {
        "images": facts.images,
        "labelled": facts.labelled,
        "unlabelled_share": facts.unlabelled_share,
        "classes": {
            name: {"pixels": int(pixels), "share": share, "images": int(images)}
            for name, pixels, share, images in rows
        },
    }
