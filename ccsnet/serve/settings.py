"""The settings of the server; no torch here, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path

from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What the server takes, and how long it waits."""

    queue: int = 32
    """Images that may be taken and not answered yet. Further requests get status 503, which says
    when to come again, instead of growing a queue."""
    max_wait_ms: float = 5.0
    """How long an image may wait for others that go into one forward pass with it; --batch-size
    says how many those are at most. Where enough are waiting, none waits."""
    max_bytes: int = 32 * 2**20
    """Of an image's file; larger ones get status 413 before they are read."""
    max_pixels: int = 40_000_000
    """Of an image; larger ones get status 413 before they are decoded."""
    max_files: int = 16
    """Images in a request to /predict/batch. All together they may have 4 times --max-bytes."""
    timeout: float = 60.0
    """Seconds from a request to its answer, after which it gets status 504 and is dropped."""
    grace: float = 30.0
    """Seconds to finish what was taken when the server is told to stop."""

    def __post_init__(self) -> None:
        for name, least in (("queue", 1), ("max_bytes", 1), ("max_pixels", 1), ("max_files", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        # Not `timeout <= 0`, which NaN would pass.
        if not 0 < self.timeout <= 86_400:
            raise InputError(f"timeout is {self.timeout}; it must be above 0 and at most 86400 s.")
        if not 0 <= self.grace <= 86_400:
            raise InputError(f"grace is {self.grace}; it must be from 0 to 86400 seconds.")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise InputError(f"max_wait_ms is {self.max_wait_ms}; it must be from 0 to 10000.")

    @property
    def max_batch_bytes(self) -> int:
        """Of all the files of one request."""
        return 4 * self.max_bytes


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model a worker opens, and how it sees images; what another process can be told."""

    run: str
    """A run's folder, a checkpoint, a model on the hub, or a file of `ccsnet export`."""
    also: tuple[str, ...] = ()
    config: PredictConfig
    cpu: bool = False
    max_wait: float = 0.005

    @property
    def is_exported(self) -> bool:
        """Whether the model is a file of `ccsnet export`, which needs no torch."""
        return Path(self.run).suffix in (".onnx", ".xml")

    @property
    def name(self) -> str:
        """What strangers are told that the model is called: no path."""
        return Path(self.run).name if Path(self.run).exists() else self.run
