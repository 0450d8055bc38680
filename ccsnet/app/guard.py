"""Who may ask the page's server, and what a browser may do with its answers.

The server listens on this machine alone, but any web site that the user has open could send it
requests, or, by having its own name lead to 127.0.0.1, even read the answers (DNS rebinding). So
only requests to this machine's own names, and such as no other site sent, are answered.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})

# A page may load what this server gives it, and nothing else from anywhere.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Answers 403 to requests that are not the page's own, and sets `HEADERS` on all answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = _refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            answer = JSONResponse({"error": refusal}, 403)
            await answer(scope, receive, send_with_headers)


def _refusal(headers: Headers) -> str | None:
    host = headers.get("host", "")
    if _name_of(host) not in OWN_NAMES:
        return "This page answers to 127.0.0.1 and localhost only."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "Another site sent this request."
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return "Another site sent this request."
    return None


def _name_of(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
