"""Everything that goes wrong, as an answer: a status, a sentence, the request's id."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ccsnet.serve.engine import WorkerLostError
from ccsnet.serve.gate import GONE
from ccsnet.serve.places import FullError
from ccsnet.serve.schemas import Problem
from ccsnet.serve.uploads import UploadError

MEANINGS = {
    400: "The form cannot be read.",
    401: "The token is wrong, or there is none.",
    413: "The image has too many bytes or pixels.",
    415: "What was sent is no image.",
    422: "The image is damaged or has other bands, or a parameter has no such value.",
    500: "The server failed; its log says why.",
    503: "No room, or no model for the moment; Retry-After says when to come again.",
    504: "There was no result in time.",
}

WAIT_FOR_WORKER = 3
"""Seconds that clients are told to wait while a worker starts."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the server's own document says of statuses."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": Problem, "description": MEANINGS[status]}
        if status == 503:
            found[status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return found


def problem(
    request: Request, status: int, text: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer that says what is wrong."""
    content = {"error": text, "request_id": getattr(request.state, "request_id", "")}
    return JSONResponse(content, status, dict(headers or {}))


def unavailable(request: Request, text: str, retry_after: int) -> JSONResponse:
    """The answer that asks to come again."""
    return problem(request, 503, text, {"Retry-After": str(retry_after)})


def add_handlers(app: FastAPI) -> None:
    """Let an application answer in this way whatever is raised in it."""
    # A body that was not read to its end must not be taken for the next request's head.
    shut = {"Connection": "close"}

    @app.exception_handler(UploadError)
    async def refused(request: Request, error: UploadError) -> JSONResponse:
        return problem(request, error.status, str(error), shut if error.status == 413 else None)

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> JSONResponse:
        text = f"All places are taken. Come again in {error.retry_after} s."
        return unavailable(request, text, error.retry_after)

    @app.exception_handler(WorkerLostError)
    async def lost(request: Request, error: WorkerLostError) -> JSONResponse:
        text = "The process that computes has ended, and is started again. Send the image again."
        return unavailable(request, text, WAIT_FOR_WORKER)

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        text = "There was no result in time. Send a smaller image, or come again later."
        return problem(request, 504, text, shut)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return problem(request, GONE, "You went away.")

    @app.exception_handler(HTTPException)
    async def refused_by_routes(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404:
            text = "There is nothing at this address. /docs says what can be asked."
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            text = f"{request.method} is not taken here: send {allowed}. /docs says how."
        return problem(request, error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return problem(request, 422, "; ".join(told))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return problem(request, 500, MEANINGS[500])
