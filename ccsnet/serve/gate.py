"""Around every request: its id, its line in the log, its place in the counts."""

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccsnet.serve.metrics import Metrics

LOG = logging.getLogger("ccsnet.serve")
ID = "X-Request-Id"
GONE = 499
"""The status, known from nginx, under which a client that went away is counted."""
LINGER = 5.0
"""Seconds for the rest of a body that is thrown away."""
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """Wraps an application.

    Args:
        app: The application.
        metrics: Where requests are counted.
        patience: Bytes of a refused body that are read and thrown away.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, patience: int = 0) -> None:
        self.app, self.metrics, self.patience = app, metrics, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        given = dict(scope["headers"]).get(ID.lower().encode(), b"").decode("latin-1")
        # Any text in the log might be made to look like another line of it.
        number = given if _PLAIN.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = number
        body = Body(scope, receive)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await body.finish(self.patience)
                headers = MutableHeaders(scope=message)
                headers[ID] = number
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, body.receive, answer)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            path = scope.get("raw_path", b"").decode("latin-1")
            LOG.info("%s %s %r %d %.0f ms", number, scope["method"], path, status, 1e3 * seconds)


class Body:
    """A request's body, of which it is known whether it has been read to its end."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        declared = headers.get(b"content-length", b"0")
        self._declared = int(declared[:20]) if declared.isdigit() else 0
        self._waits = b"expect" in headers  # For a word before it sends anything.
        self._read = not (self._declared or b"transfer-encoding" in headers)

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        # After its end, or the client's, there is nothing to wait for.
        self._read |= message["type"] != "http.request" or not message.get("more_body", False)
        self._waits = False
        return message

    async def finish(self, patience: int) -> None:
        """Throw away the rest: who still sends when the connection is closed sees no answer.

        Args:
            patience: Bytes after which it is closed all the same; so it is after `LINGER`.
        """
        if self._waits or self._declared > patience:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._read and patience >= 0:
                    patience -= len((await self.receive()).get("body", b""))


def check_token(request: Request, token: str | None) -> None:
    """Let pass who knows the token.

    Raises:
        HTTPException: With status 401.
    """
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # In the time of a comparison that stops at the first difference one could find a token.
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise HTTPException(
            401,
            "This server asks for a token: send the header `Authorization: Bearer TOKEN`.",
            {"WWW-Authenticate": "Bearer"},
        )
