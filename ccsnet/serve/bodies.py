"""Requests' bodies: read no further than the limits, and only while somebody waits."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable
from typing import NamedTuple, TypeVar

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from ccsnet.serve.settings import ServeSettings
from ccsnet.serve.uploads import NO_IMAGE, TOO_LARGE, UNUSABLE, UploadError

FORM = "multipart/form-data"
RAW = ("image/", "application/octet-stream")
FRAME = 64 * 1024  # Bytes of a form around its files.
FIELDS = 8  # Of a form, that are no files; they are not looked at.

Result = TypeVar("Result")


class Sent(NamedTuple):
    """A file of a request."""

    name: str
    """As the client calls it: shown to it again, and nothing else."""
    data: bytes


class InMemory(MultiPartParser):
    """Starlette's parser; files stay in memory, for the body's size is limited before."""

    spool_max_size = sys.maxsize


async def one_image(request: Request, settings: ServeSettings) -> bytes:
    """The image that is the request's body, or the file of its form.

    Raises:
        UploadError: It is too large, of no kind of image, or not there.
        ClientDisconnect: Who sends it went away.
    """
    kind = _kind(request)
    if kind == FORM:
        return (await _files(request, settings.max_bytes + FRAME, 1))[0].data
    if kind and not kind.startswith(RAW):
        raise UploadError(
            NO_IMAGE,
            f"The content type is {kind!r}; it must be image/png, image/jpeg or another image's, "
            "application/octet-stream, or a form: curl --data-binary @photo.jpg --header "
            "'Content-Type: image/jpeg', or curl --form file=@photo.jpg",
        )
    return b"".join([part async for part in _limited(request, settings.max_bytes)])


async def many_images(request: Request, settings: ServeSettings) -> list[Sent]:
    """The files of a form.

    Raises:
        UploadError: They are too large or too many, or there is none.
        ClientDisconnect: Who sends them went away.
    """
    if _kind(request) != FORM:
        raise UploadError(
            NO_IMAGE,
            "Several images come as a form: curl --form files=@one.jpg --form files=@two.jpg",
        )
    return await _files(request, settings.max_batch_bytes + FRAME, settings.max_files)


def places_of(request: Request, settings: ServeSettings) -> int:
    """How many images of the largest size a form may hold the bytes of, known before it is read.

    A form takes so many places while it comes, so that all bodies together have a bound.
    """
    declared = _declared(request)
    size = settings.max_batch_bytes if declared is None else declared
    most = -(-settings.max_batch_bytes // settings.max_bytes)
    return min(max(1, -(-size // settings.max_bytes)), most, settings.queue)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What work comes to; it is cancelled when the client goes away, or this is cancelled.

    Asks for a request whose body has been read.

    Raises:
        ClientDisconnect: The client went away.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _kind(request: Request) -> str:
    """The content type without its parameters.

    Raises:
        UploadError: The body is packed.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UploadError(
            NO_IMAGE, "The body is packed (Content-Encoding). Images are already; send it as it is."
        )
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body, part by part, unless it says that it is too large, or is."""
    if (_declared(request) or 0) > most:
        raise _too_large(most)
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > most:
            raise _too_large(most)
        yield part


def _declared(request: Request) -> int | None:
    """The bytes that a body says it has."""
    text = request.headers.get("content-length", "")
    return int(text[:20]) if text.isascii() and text.isdigit() else None


def _too_large(most: int) -> UploadError:
    return UploadError(
        TOO_LARGE,
        f"The request's body has more than the {most:,} bytes that it may have here. Send smaller "
        "images, or fewer at once.",
    )


async def _files(request: Request, most: int, max_files: int) -> list[Sent]:
    if "boundary=" not in request.headers["content-type"]:
        raise HTTPException(
            400, "The form's content type names no boundary; let the client set it."
        )
    parser = InMemory(
        request.headers, _limited(request, most), max_files=max_files, max_fields=FIELDS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message}") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    sent = [Sent((file.filename or "")[:255], await file.read()) for file in files]
    await form.close()
    if not sent:
        raise UploadError(UNUSABLE, "The form has no file. Send one: curl --form file=@photo.jpg")
    return sent
