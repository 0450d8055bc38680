"""From a model and an address to a server, and to its end: what was taken is finished."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ccsnet.errors import InputError
from ccsnet.serve.engine import WorkerEngine
from ccsnet.serve.service import Serving, create_app
from ccsnet.serve.settings import ServeSettings, Source

LOG = logging.getLogger("ccsnet.serve")
CONNECTIONS = 256  # Beyond those of the queue; each takes little.
IDLE = 30  # Seconds that a connection without requests is kept.
POLL = 0.05


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is one that is free.

    Raises:
        InputError: The address is taken, or not one of this machine.
    """
    where = f"Port {port} of {host}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise InputError(
            f"No address {host!r}: {error}. --host takes one of this machine, such as 127.0.0.1, "
            "or 0.0.0.0 for all of them."
        ) from error
    made = socket.socket(family, kind, number)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(0)  # Two that are bound and do not listen yet would not see each other.
    except OSError as error:
        made.close()
        reasons = {
            errno.EADDRINUSE: f"{where} is taken by another program; stop that, or give another "
            "--port (0: any that is free).",
            errno.EACCES: f"{where} is for the administrator; give a --port above 1023.",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; --host 127.0.0.1 is "
            "for programs on it, 0.0.0.0 for those outside, too.",
        }
        text = reasons.get(error.errno or 0, f"{where} cannot be used: {error.strerror}.")
        raise InputError(text) from error
    return made


def serve(
    source: Source,
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    token: str | None,
    ready: Callable[[str, WorkerEngine], None],
) -> int:
    """Open a model and answer requests until a signal asks to stop; then finish what was taken.

    Args:
        source: The model.
        settings: Limits and patience.
        host: The address to listen at.
        port: Its port; 0: one that is free.
        token: What clients must know.
        ready: Told the server's URL and the model when the first request can come.

    Returns:
        How many images that were taken could not be finished in time.

    Raises:
        InputError: The address or the model cannot be used.
    """
    with bound(host, port) as listening:
        engine = WorkerEngine(source)
        try:
            engine.start()
            app = create_app(engine, settings, token)
            number = listening.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            return asyncio.run(
                _run(app, listening, lambda: ready(f"http://{shown}:{number}", engine))
            )
        finally:
            engine.stop()


class Server(uvicorn.Server):
    """Uvicorn's server; signals are ours: it would stop listening before anything is finished."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Leave the signals alone."""
        yield


async def _run(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> int:
    serving: Serving = app.state.serving
    grace = serving.settings.grace
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=serving.settings.queue + CONNECTIONS,
        timeout_keep_alive=IDLE,
        # Only answers that are being sent are left by then.
        timeout_graceful_shutdown=max(1, math.ceil(0.1 * grace)),
    )
    server = Server(config)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    left = 0

    def stop(number: int, frame: FrameType | None = None) -> None:
        if serving.stopping:  # Who asks twice does not want to wait.
            server.should_exit = server.force_exit = True
        LOG.info("Asked to stop (%s).", signal.Signals(number).name)
        serving.stopping = True
        loop.call_soon_threadsafe(asked.set)

    async def drain() -> None:
        nonlocal left
        await asked.wait()
        until = loop.time() + grace
        while serving.places.taken and loop.time() < until and not server.should_exit:
            await asyncio.sleep(POLL)
        left = serving.places.taken
        server.should_exit = True

    async def announce() -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(POLL / 5)
        if server.started:
            ready()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    helpers = [asyncio.create_task(drain()), asyncio.create_task(announce())]
    try:
        await server.serve(sockets=[listening])
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    return left
