"""A client that loads a server, in a process of its own; prints what it saw as JSON.

    python -m benchmarks.serve_load PORT photo.jpg --requests 100 --connections 8
    python -m benchmarks.serve_load PORT photo.jpg --requests 100 --rate 5

With `--rate` requests come at random moments, so many a second on average, whether or not earlier
ones are answered: latencies are from the moment at which a request was due. Without it every
connection sends its next request when it has an answer. Each count and wait has an end.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 120.0
"""Seconds for an answer."""
REST = 0.1
"""Seconds that a client waits that was turned away."""


@dataclass(kw_only=True)
class Seen:
    """What became of the requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, int, float]] = field(default_factory=list)
    """When each came, its status, and after how many seconds."""

    def saw(self, status: int, due: float) -> None:
        """Note an answer to a request that was due at a moment."""
        now = time.monotonic()
        self.statuses[status] += 1
        self.answers.append((now, status, now - due))


class Connection:
    """One that is kept, and opened again where the server closed it."""

    def __init__(self, port: int, request: bytes) -> None:
        self.port, self.request = port, request
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self) -> int:
        """The status of an answer; 0 where there was none."""
        try:
            return await asyncio.wait_for(self._ask(), LONGEST)
        except (OSError, EOFError, TimeoutError):
            self.close()
            return 0

    async def _ask(self) -> int:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(self.request)
        await self.writer.drain()
        status, headers = await read_head(self.reader)
        await self.reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return status

    def close(self) -> None:
        """Drop it."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in head[1:] if line]
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    return int(head[0].split()[1]), headers


def post(body: bytes, path: str = "/predict", kind: str = "image/jpeg") -> bytes:
    """A request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def closed_loop(port: int, request: bytes, arguments: argparse.Namespace) -> Seen:
    """Each connection asks again when it has an answer."""
    seen, end = Seen(), time.monotonic() + arguments.seconds
    left = arguments.requests

    def goes_on() -> bool:
        if arguments.until_well:  # So many answers since the last that was none.
            statuses = [status for _, status, _ in seen.answers]
            tail = statuses[-arguments.until_well :]
            if set(statuses) > {200} and tail == [200] * arguments.until_well:
                return False
        return left > 0 and time.monotonic() < end

    async def one() -> None:
        nonlocal left
        connection = Connection(port, request)
        with contextlib.closing(connection):
            while goes_on():
                left -= 1
                due = time.monotonic()
                status = await connection.ask()
                seen.saw(status, due)
                if status != 200:
                    await asyncio.sleep(REST)

    await asyncio.gather(*(one() for _ in range(arguments.connections)))
    return seen


async def open_loop(port: int, request: bytes, arguments: argparse.Namespace) -> Seen:
    """Requests at moments of their own."""
    seen, idle, chance = Seen(), [], random.Random(0)
    due, asked = time.monotonic(), []

    async def one(due: float) -> None:
        connection = idle.pop() if idle else Connection(port, request)
        seen.saw(await connection.ask(), due)
        idle.append(connection)

    for _ in range(arguments.requests):
        due += chance.expovariate(arguments.rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asked)
    for connection in idle:
        connection.close()
    return seen


def told(seen: Seen, seconds: float) -> dict[str, Any]:
    """What is printed."""
    return {
        "seconds": seconds,
        "statuses": {str(status): num for status, num in sorted(seen.statuses.items())},
        "answers": seen.answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load a server.")
    parser.add_argument("port", type=int)
    parser.add_argument("image", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the end of it all")
    parser.add_argument("--until-well", type=int, default=0, help="good answers after bad ones")
    arguments = parser.parse_args()
    request = post(arguments.image.read_bytes())
    loop = open_loop if arguments.rate else closed_loop
    started = time.monotonic()
    seen = asyncio.run(loop(arguments.port, request, arguments))
    print(json.dumps(told(seen, time.monotonic() - started)))


if __name__ == "__main__":
    main()
