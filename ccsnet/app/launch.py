"""Open the page: take a port of this machine, serve, and show it in the browser."""

import contextlib
import errno
import importlib.util
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ccsnet.errors import InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette

HOST = "127.0.0.1"
DEMO = Path("runs/demo")
MAX_FOLDER = 10_000
"""Images of a folder that the gallery takes."""


def check_installed() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        InputError: One is not installed.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"The page needs the package {package}, which is not installed: "
                "pip install 'ccsnet[app]'"
            )


def demo_run() -> Path:
    """The demo's run, which is shown when no model is named.

    Raises:
        InputError: There is none.
    """
    from ccsnet.checkpoint import BEST, LAST

    if not any((DEMO / name).is_file() for name in (BEST, LAST)):
        raise InputError(
            f"Which model? ccsnet app RUN. Without one the demo's is shown, but {DEMO} holds none "
            "yet: `ccsnet demo` (or `make demo`) makes it in minutes."
        )
    return DEMO


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and below, in the order of their names.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: It holds no image, or too many.
    """
    from ccsnet.walk import walk_images

    found: list[Path] = []
    for one in walk_images([folder]):
        found.append(one.path)
        if len(found) > MAX_FOLDER:
            raise InputError(
                f"{folder} holds more than {MAX_FOLDER} images, too many for the page's gallery. "
                "Name a folder inside it; `ccsnet predict` labels folders of any length."
            )
    return found


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address.

    Args:
        port: Its number; 0: any that is free.

    Raises:
        InputError: The port is taken, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; it must be from 0, any that is free, to 65535.")
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
    except OSError as error:
        made.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"cannot be used: {error.strerror}"
        raise InputError(
            f"Port {port} {why}. Leave --port out, and a free one is taken, or name another."
        ) from error
    return made


@contextlib.contextmanager
def serving(app: "Starlette", on: socket.socket) -> Iterator[str]:
    """Serve in a thread while the block runs; gives the page's address."""
    import uvicorn

    server = uvicorn.Server(_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [on]}, name="ccsnet-page")
    thread.start()
    try:
        yield address(on)
    finally:
        server.should_exit = True
        thread.join()
        on.close()


def serve(
    app: "Starlette", on: socket.socket, *, browser: bool, say: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C.

    Args:
        app: The page.
        on: Where it listens.
        browser: Open it in the browser.
        say: Told the address when it answers.

    Raises:
        KeyboardInterrupt: At the end.
    """
    import uvicorn

    class Announcing(uvicorn.Server):
        """A server that tells when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            say(address(on))
            if browser:
                threading.Thread(target=webbrowser.open, args=(address(on),), daemon=True).start()

    with on:
        Announcing(_config(app)).run(sockets=[on])


def address(on: socket.socket) -> str:
    """The page's address."""
    return f"http://{HOST}:{on.getsockname()[1]}/"


def _config(app: "Starlette"):
    import uvicorn

    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
