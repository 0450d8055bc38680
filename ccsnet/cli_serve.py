"""`ccsnet serve`: label images that come over HTTP. Like `cli`, this prints."""

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ccsnet.arguments import parse, positional
from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig
from ccsnet.serve.settings import ServeSettings, Source

if TYPE_CHECKING:
    from ccsnet.serve.engine import WorkerEngine

TOKEN = "CCSNET_TOKEN"
SHORTEST_TOKEN = 16
MODULES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "jinja2")
QUIETER = {
    **dict.fromkeys(("tifffile", "python_multipart", "PIL"), logging.CRITICAL),
    "uvicorn.error": logging.ERROR,
}
"""Loggers that would say of every damaged request what is wrong inside; its sender is told."""


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Where to listen, and what to take."""

    host: str = "127.0.0.1"
    """The address to listen at. 127.0.0.1 is for programs on this machine; 0.0.0.0 for all that
    reach it, and asks for a token."""
    port: int = 8000
    """0: one that is free; the first line says which."""
    token_file: Path | None = None
    """A file with the token that clients must send as `Authorization: Bearer TOKEN`; none: that of
    the environment variable CCSNET_TOKEN, and without either no token is asked for."""
    allow_anonymous: bool = False
    """Listen to other machines without a token: anybody who reaches the port may use the model."""
    settings: ServeSettings = field(default_factory=ServeSettings)
    how: PredictConfig = field(default_factory=PredictConfig)
    also: tuple[str, ...] = ()
    """More runs or files of the same classes: the mean of all is predicted."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""
    quiet: bool = False
    """Log no requests, only what goes wrong."""


def serve(arguments: list[str]) -> int:
    """Label images over HTTP: ccsnet serve RUN [--port 8000] [--token-file FILE] [...].

    RUN is a run's folder, a checkpoint, a model on the hub, or a file of `ccsnet export`. POST an
    image to /predict; /docs shows what else there is. Ctrl-C or SIGTERM stops it after what was
    taken is finished.
    """
    run_name, arguments = positional("run", arguments, "serve", ServeArguments, serve.__doc__)
    options: ServeArguments = parse(ServeArguments, "serve", arguments, description=serve.__doc__)
    token = read_token(options.token_file)
    from ccsnet.runtime import needed

    for module in MODULES:
        needed(module, "serve")
    from ccsnet.serve.launch import is_loopback
    from ccsnet.serve.launch import serve as run_server

    if not is_loopback(options.host) and token is None and not options.allow_anonymous:
        raise InputError(
            f"Other machines reach {options.host}, and no token is asked for. Give one in the "
            f"environment variable {TOKEN} or with --token-file; or say --allow-anonymous if "
            "anybody who reaches the port may use the model."
        )
    if not 0 <= options.port <= 65535:
        raise InputError(f"The port is {options.port}; it must be from 0 to 65535.")
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("ccsnet.serve").setLevel(level)
    for name, least in QUIETER.items():
        logging.getLogger(name).setLevel(least)
    source = Source(
        run=run_name,
        also=options.also,
        config=options.how,
        cpu=options.cpu,
        max_wait=options.settings.max_wait_ms / 1e3,
    )
    left = run_server(
        source,
        options.settings,
        host=options.host,
        port=options.port,
        token=token,
        ready=_tell,
    )
    told = f"{left} images were not finished in time" if left else "all that was taken is answered"
    print(f"Stopped; {told}.", flush=True)
    return 0


def read_token(file: Path | None) -> str | None:
    """The token that clients must send, if there is one.

    Raises:
        InputError: It is too short, or not one word.
        FileNotFoundError: The file is not there.
    """
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"No file {file}. Make one: openssl rand -hex 32 > {file}")
        token, where = file.read_text(encoding="utf-8").strip(), str(file)
    else:
        given = os.environ.get(TOKEN)
        if given is None:
            return None
        token, where = given.strip(), f"The environment variable {TOKEN}"
    if len(token) < SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise InputError(
            f"{where} has {len(token)} characters; a token is one word of at least "
            f"{SHORTEST_TOKEN}, without spaces, such as `openssl rand -hex 32` makes."
        )
    return token


def _tell(url: str, engine: "WorkerEngine") -> None:
    classes = engine.facts.classes
    print(f"Serving {engine.facts.name} ({len(classes)} classes) on {url}", flush=True)
    print(f"{url}/docs says what can be asked. Ctrl-C stops it.", flush=True)
