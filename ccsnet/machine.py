"""What figures depend on, this machine and these versions, and the file that keeps them for it."""

import contextlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch

import ccsnet
from ccsnet.files import atomic_path, cache_folder


@runtime_checkable
class Named(Protocol):
    """What a NamedTuple is."""

    def _asdict(self) -> dict[str, Any]: ...


Facts = TypeVar("Facts", bound=Named)


def processor() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():  # Linux only.
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> str:
    """What figures depend on besides the machine."""
    timm = importlib.metadata.version("timm")
    return f"ccsnet {ccsnet.__version__}, torch {torch.__version__}, timm {timm}"


def machine() -> str:
    """What times depend on."""
    return f"{processor()}, {torch.get_num_threads()} threads, {versions()}"


class Cache(Generic[Facts]):
    """Figures by name in a file of the user's cache folder; none if it cannot be read.

    Args:
        file: The file's name.
        key: What the figures depend on besides their names.
        like: An example of them: what is kept and is of another kind is not read.
    """

    def __init__(self, file: str, key: str, like: Facts) -> None:
        self.path = cache_folder() / file
        self.key, self.like = key, like

    def read(self, name: str) -> Facts | None:
        """What is kept under a name."""
        row = self._rows().get(name)
        example = self.like._asdict()
        if not isinstance(row, dict) or set(row) != set(example):
            return None
        values: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in row.items()}
        if any(type(values[field]) is not type(value) for field, value in example.items()):
            return None
        return type(self.like)(**values)

    def write(self, name: str, facts: Facts) -> None:
        """Keep figures under a name; where the folder cannot be written to, they are not kept."""
        everything = self._everything()
        everything[self.key] = self._rows() | {name: facts._asdict()}
        with contextlib.suppress(OSError), atomic_path(self.path, durable=False) as aside:
            aside.write_text(json.dumps(everything, indent=1))

    def _everything(self) -> dict[str, Any]:
        try:
            everything = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return everything if isinstance(everything, dict) else {}

    def _rows(self) -> dict[str, Any]:
        rows = self._everything().get(self.key)
        return rows if isinstance(rows, dict) else {}
