"""Which of the processes was lost, when the others wait for it in vain."""

import contextlib
import os
import re
import socket
import threading
import time

import torch.distributed as dist

ROLL_CALL_SECONDS = 3.0
"""How long the others are given to say that they are there.

They notice one that hangs nearly together: all of them wait for it, each from its last message on.
"""
ROLL_CALL_OF_ENDED = 1.0
"""The same where one has ended: that is noticed at once, and launchers soon end the others."""

# Source: what gloo, NCCL and torch's store say; none of them raises a type of its own.
_HANGS = re.compile(r"Timed out waiting|timed out after|[Tt]imeout|wait timeout", re.ASCII)
_ENDED = re.compile(r"closed by peer|Connection reset|Broken pipe|remote process exited|recvValue")
_WHOSE = re.compile(r"gloo|NCCL|nccl|TCPStore|ProcessGroup|[Ss]ocket")
_AFTER = re.compile(r"(\d+) ?(?:ms|milliseconds)")


_place_of_first = ""
"""Where process 0 runs. It may hold the store, which then can no more be asked for it."""


def sign_in() -> None:
    """Leave word where this process runs, for `explain_timeout` in another."""
    global _place_of_first
    if _several():
        store = _store()
        # A launcher that restarts the processes may keep the store, and what they left in it.
        store.delete_key(f"here/{dist.get_rank()}")
        store.set(f"place/{dist.get_rank()}", f"{socket.gethostname()}, process {os.getpid()}")
        store.wait(["place/0"])
        _place_of_first = _place(store, 0)


def explain_timeout(error: BaseException) -> str | None:
    """What a user should know of an error that a lost process has caused in this one.

    The others are asked for first, through the store by which they have found each other; those
    that do not answer are named. The store lives in process 0, or with the torchrun that started
    it.

    Returns:
        None if the error is of another kind.
    """
    text = str(error)
    hangs, ended = bool(_HANGS.search(text)), bool(_ENDED.search(text))
    known = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _WHOSE.search(text)
    )
    if not (known and (hangs or ended) and _several()):
        return None
    lost = _lost(ROLL_CALL_OF_ENDED if ended else ROLL_CALL_SECONDS)
    after = _AFTER.search(text)
    waited = f" for {int(after[1]) / 1000:g} seconds" if after and hangs else ""
    if lost == []:
        return (
            f"One process was slower than the others wait{waited}; all of them are there. Where "
            "that is right (a long validation, a slow disk), set a longer --timeout, and go on "
            "with --resume auto."
        )
    num = dist.get_world_size()
    who = " and ".join(f"process {rank} of {num}{place}" for rank, place in lost)
    if ended:
        what = f"{who} has ended; what it said last, or its scheduler, tells why"
    else:
        what = (
            f"{who} has not answered{waited}: it hangs, or its machine or the network does. If it "
            "only was slow, set a longer --timeout"
        )
    return (
        f"{what[0].upper()}{what[1:]}. The run cannot go on without it. Nothing that was saved is "
        "lost: start all of them again with --resume auto."
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _store() -> dist.Store:
    """By which the processes have found each other."""
    store = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore("ccsnet", store)


def _lost(seconds: float) -> list[tuple[int, str]]:
    """Who does not answer, and where it ran: process 0 if the store, which it holds, does not."""
    found: list[list[tuple[int, str]]] = []

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(_roll_call(seconds))

    # A store in a process that hangs would keep this one waiting as well.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds + 2)
    return found[0] if found else [(0, _place_of_first)]


def _roll_call(seconds: float) -> list[tuple[int, str]]:
    store = _store()
    store.set(f"here/{dist.get_rank()}", "")
    silent = set(range(dist.get_world_size()))
    until = time.monotonic() + seconds
    while silent and time.monotonic() < until:
        silent = {rank for rank in silent if not store.check([f"here/{rank}"])}
        time.sleep(0.1)
    return [(rank, _place(store, rank)) for rank in sorted(silent)]


def _place(store: dist.Store, rank: int) -> str:
    key = f"place/{rank}"
    return f" ({store.get(key).decode()})" if store.check([key]) else ""
