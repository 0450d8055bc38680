"""What a data set's folder tells of its own preparation: that it goes on, or that it is finished.

A folder in work holds `.preparing.json`, a finished one `prepared.json`. One that was unpacked by
hand and needs no step holds neither.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ccsnet.data.disk import disk_errors
from ccsnet.data.sources import Found
from ccsnet.errors import InputError
from ccsnet.files import atomic_path

UNFINISHED = ".preparing.json"
FINISHED = "prepared.json"


@dataclass(kw_only=True)
class Record:
    """How far a preparation is."""

    dataset: str
    version: str
    """Of ccsnet."""
    archives: list[list[str | int]] = field(default_factory=list)
    """Name and size of the archives that are unpacked."""
    sources: list[str] = field(default_factory=list)
    """What the user named, for when the preparation is gone on with."""
    by_hand: bool = False
    """Whether the folder was unpacked by hand."""
    since: float = 0.0
    """Files that are older, in seconds since 1970, are made again."""
    splits: dict[str, dict[str, int | None]] = field(default_factory=dict)
    """How many images and labels were found in the end, and how many were promised."""

    def has(self, found: Found) -> bool:
        """Whether an archive is unpacked."""
        return _mark(found) in self.archives

    def add(self, found: Found) -> None:
        """Note that an archive is unpacked."""
        if not self.has(found):
            self.archives.append(_mark(found))


def _mark(found: Found) -> list[str | int]:
    return [found.archive.file, found.path.stat().st_size]


def read_record(root: Path, name: str, dataset: str) -> Record | None:
    """A folder's record of that file name; None if there is none.

    Raises:
        InputError: It is damaged, or tells of another data set.
    """
    path = root / name
    if not path.is_file():
        return None
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Delete it, and prepare the folder again."
        ) from error
    if record.dataset != dataset:
        raise InputError(
            f"{root} holds the data set {record.dataset!r}, not {dataset!r}. Name another --out; "
            "files that both have can be linked: give this folder as SOURCE."
        )
    return record


def write_record(root: Path, name: str, record: Record) -> None:
    """Write a folder's record.

    Raises:
        InputError: The disk is full.
    """
    path = root / name
    with disk_errors(path), atomic_path(path) as aside:
        aside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def refuse_unfinished(root: Path, dataset: str) -> None:
    """Refuse to read a folder whose preparation has not come to its end.

    Raises:
        InputError: It has not; the text tells how to go on.
    """
    if (root / UNFINISHED).is_file():
        raise InputError(
            f"{root} is not finished: its preparation was interrupted or is still going on. "
            f"Go on with `ccsnet data prepare {dataset} --out {root}`."
        )
