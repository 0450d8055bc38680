"""Several real processes: a function in each of them, or a program under torchrun."""

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

# One thread each, and no other network than the machine's own.
# Nor a store that a restart takes over: it holds the addresses of the processes that are gone.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}

# What a launcher sets, and a test that itself runs under one must not hand on.
OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def in_processes(
    function: Callable[..., Any], num: int, *arguments: Any, timeout: float = 60
) -> list[Any]:
    """What a function returns in each of several processes that gloo connects, by their rank.

    Args:
        function: One at the top level of a module of the tests; what it takes and returns is
            pickled.
        num: How many processes.
        arguments: What it is called with in each of them.
        timeout: Seconds until all are ended.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        call = (function.__module__, function.__qualname__, num, arguments)
        (folder / "call").write_bytes(pickle.dumps(call))
        workers = [
            stack.enter_context(
                _ended([sys.executable, "-m", "tests.processes", name, str(rank)], {})
            )
            for rank in range(num)
        ]
        until = time.monotonic() + timeout
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers) or time.monotonic() > until:
                break  # Those that are left wait for the one that failed.
            time.sleep(0.05)
        for rank, worker in enumerate(workers):
            if worker.poll():
                raise AssertionError(f"Process {rank} failed.\n{''.join(worker.communicate())}")
        assert all(worker.poll() == 0 for worker in workers), f"not done in {timeout} s"
        return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(num)]


def _worker(folder: Path, rank: int) -> None:
    """One of the processes."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    module, name, num, arguments = pickle.loads((folder / "call").read_bytes())
    function = getattr(importlib.import_module(module), name)
    store = dist.FileStore(str(folder / "store"), num)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num)
    result = pickle.dumps(function(*arguments))
    (folder / f"result{rank}").write_bytes(result)
    dist.barrier()
    dist.destroy_process_group()


def start(
    arguments: Sequence[str],
    num: int,
    *,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A program in several processes under torchrun; on leaving the block all of them are ended.

    Args:
        arguments: The program: a file, or "-m" and a module, and what it is given.
        num: How many processes.
        options: Of torchrun, such as "--max-restarts=1".
        env: Added to the environment.
    """
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
    ]
    return _ended([*torchrun, *options, *arguments], env or {})


def launch(
    arguments: Sequence[str],
    num: int,
    *,
    options: Sequence[str] = (),
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`start`, and the end of it.

    Raises:
        subprocess.TimeoutExpired: It did not end by itself.
    """
    with start(arguments, num, options=options, env=env) as process:
        out, error = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@contextlib.contextmanager
def _ended(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A program with a session of its own, so that it ends with all that it has started."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**inherited, **ENVIRONMENT, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Workers of torchrun have sessions of their own: they are found while it still lives.
        if process.poll() is None:
            for pid in [process.pid, *descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.communicate()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have; Linux only."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Before the fields stands the name, in brackets; it may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                child = int(stat.parent.name)
                found += [child, *descendants(child)]
    return found


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), int(sys.argv[2]))
