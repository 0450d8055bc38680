"""Which images of a folder are finished, and who works on the others: a small file for each.

Several processes that share a folder, on one machine or several, need nothing else of each other.
"""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from ccsnet.errors import InputError
from ccsnet.files import atomic_path, fitting_name

STALE_SECONDS = 900.0
"""Age at which a claim from another machine counts as left behind.

If it was not, the image is labelled twice, with the same result.
"""

SOURCE_BYTES = 1 << 16
"""Of each end of an image's file, to know it again."""


class Answer(NamedTuple):
    """Whose an image is."""

    whose: Literal["ours", "done", "taken"]
    record: Mapping[str, Any] | None = None
    """What was noted of it, where it is done."""


class Claims:
    """The records of a folder's images.

    Args:
        folder: Where they lie; made if missing.
        settings: What decides how a result looks, as a text. Records made otherwise are refused,
            or made anew.
        anew: Do again what other calls have done.
    """

    def __init__(self, folder: Path, settings: str, *, anew: bool = False) -> None:
        self.folder, self.settings, self.anew = folder, settings, anew
        self._owner = {"host": socket.gethostname(), "process": os.getpid(), "at": time.time_ns()}
        self._held: set[str] = set()

    def ask(
        self, name: str, kinds: Collection[str], out: Path, source: str | None = None
    ) -> Answer:
        """Whether to make the results of an image; "ours" must be finished or dropped.

        Args:
            name: The image's.
            kinds: What is wanted of it.
            out: Where the files are that a record tells of.
            source: What tells the image from another of its name; none: it is not compared.

        Raises:
            InputError: It was made with other settings, or of another image.
        """
        record = self._finished(name, kinds, out, source)
        claim = self._path(name, ".claim")
        if record is not None:
            if claim.exists() and not self._is_alive(claim):  # Killed between its last two steps.
                claim.unlink(missing_ok=True)
            return Answer("done", record)
        claim.parent.mkdir(parents=True, exist_ok=True)
        if not self._create(claim):
            if self._is_alive(claim):
                return Answer("taken")
            claim.unlink(missing_ok=True)
            if not self._create(claim):
                return Answer("taken")
        self._held.add(name)
        # Another process may have finished it, and taken its claim away, between both looks.
        record = self._finished(name, kinds, out, source)
        if record is not None:
            self.drop(name)
            return Answer("done", record)
        return Answer("ours")

    def is_taken(self, name: str) -> bool:
        """Whether another process may still be at work on an image."""
        claim = self._path(name, ".claim")
        return name not in self._held and claim.exists() and self._is_alive(claim)

    @property
    def holds_any(self) -> bool:
        """Whether there is an image of ours that is neither finished nor dropped."""
        return bool(self._held)

    def is_own(self, record: Mapping[str, Any]) -> bool:
        """Whether this call has finished an image."""
        return record.get("by") == self._owner

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Note that all of an image's files are written."""
        text = json.dumps({"settings": self.settings, "by": self._owner, **record})
        with atomic_path(self._path(name, ".json"), durable=False) as aside:
            aside.write_text(text)
        self.drop(name)

    def drop(self, name: str) -> None:
        """Leave an image to whoever asks next."""
        self._path(name, ".claim").unlink(missing_ok=True)
        self._held.discard(name)

    def drop_all(self) -> None:
        """Leave all that is not finished."""
        for name in list(self._held):
            self.drop(name)

    def records(self) -> Iterator[dict[str, Any]]:
        """What was noted of every finished image with these settings, sorted, one at a time."""
        for path in self._record_files():
            record = _read(path)
            if record is not None and record.get("settings") == self.settings:
                yield record

    def count(self) -> int:
        """Finished images, whatever their settings."""
        return sum(1 for _ in self._record_files())

    def _record_files(self) -> Iterator[Path]:
        for folder, inner, files in os.walk(self.folder):
            inner.sort()
            for name in sorted(files):
                if name.endswith(".json") and not name.startswith("."):
                    yield Path(folder) / name

    def _path(self, name: str, suffix: str) -> Path:
        image = PurePosixPath(name)
        return self.folder / image.parent / fitting_name(image.name, suffix)

    def _finished(
        self, name: str, kinds: Collection[str], out: Path, source: str | None
    ) -> dict[str, Any] | None:
        record = _read(self._path(name, ".json"))
        if record is None or (self.anew and not self.is_own(record)):
            return None
        if not all((out / file).exists() for file in record["files"]):
            return None
        if record["settings"] != self.settings:
            raise InputError(
                f"{out} holds a result of {name} by another model or with other settings. Give "
                "another --out folder, or --overwrite."
            )
        if None not in (source, record.get("source")) and source != record["source"]:
            raise InputError(
                f"{out} holds a result of another image of the name {name}, or this one has "
                "changed since. Give another --out folder, or --overwrite."
            )
        return record if set(kinds) <= set(record["kinds"]) else None

    def _create(self, claim: Path) -> bool:
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            # Not `json.dump`, which leaves a few thousand bytes to the garbage collector each time.
            file.write(json.dumps(self._owner))
        return True

    def _is_alive(self, claim: Path) -> bool:
        """Whether the one who made a claim may still work on it."""
        owner = _read(claim)
        if owner is not None and owner.get("host") == self._owner["host"]:
            if owner == self._owner:
                return True
            # A number that another program has now is taken for its owner, until the claim is old.
            if os.name == "posix" and not _exists(owner["process"]):
                return False
        with contextlib.suppress(FileNotFoundError):
            return time.time() - claim.stat().st_mtime < STALE_SECONDS
        return False


def source_of(path: Path) -> str:
    """What tells an image from others: its length, and a digest of its beginning and its end.

    The time of a file would not do: machines that share the work may have copies of their own.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.blake2b(file.read(SOURCE_BYTES), digest_size=16)
        file.seek(max(0, size - SOURCE_BYTES))
        digest.update(file.read(SOURCE_BYTES))
    return f"{size}-{digest.hexdigest()}"


def _read(path: Path) -> dict[str, Any] | None:
    """A file's object; None where there is none, or it is not whole."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It is there, but another user's.
        return True
    return True
