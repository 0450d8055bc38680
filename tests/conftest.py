"""What several test files share."""

import inspect
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from ccsnet.config import RunConfig
    from ccsnet.metrics import Metrics
    from ccsnet.train import TrainingResult

# A busy machine makes any example slow; how long one takes is not what is tested.
settings.register_profile("ccsnet", deadline=None)
settings.load_profile("ccsnet")

# A shell that starts the tests in the background tells them to ignore Ctrl-C; some press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The maps of the tests are small: two threads that share a processor with other work wait for each
# other and are many times slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _torch_functions_go_unchecked() -> None:
    """torch asks `faster_kernels` about every function and attribute, also those of a check.

    Checks of these calls' types took half of the time of some files; no tensors are among them.
    """
    from ccsnet.cpu_kernels import _Faster

    _Faster.__torch_function__ = inspect.unwrap(_Faster.__torch_function__)


class Run(NamedTuple):
    """A finished run and what it was made of."""

    out: Path
    data: Path
    config: "RunConfig"
    result: "TrainingResult"

    @property
    def best(self) -> "Metrics":
        """Of its best checkpoint, which need not be the last."""
        from ccsnet.evaluate import evaluation_from_json

        path = self.out / "best.json"
        return evaluation_from_json(path.read_text(), path.name).metrics


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set to read; tests that change it make their own."""
    from tests.shapes import make_shapes

    return make_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learnt the shapes roughly; tests only read it."""
    from ccsnet.train import train
    from tests.shapes import tiny_config

    out = tmp_path_factory.mktemp("runs") / "shapes-ccs"
    config = tiny_config(shapes, steps=60, batch_size=4)
    return Run(out, shapes, config, train(config, out))


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; returns its status and what it printed on both streams."""
    from ccsnet import cli

    # It prints warnings its own way, and keeps memory: both would last for all tests.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = cli.run([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command
