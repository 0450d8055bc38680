"""The page's server: its files, and what it asks for, over HTTP."""

import asyncio
import gzip
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ccsnet.app.guard import Guard
from ccsnet.app.jobs import BusyError, Job
from ccsnet.app.results import (
    Result,
    View,
    jpeg,
    png,
)
from ccsnet.app.settings import AppSettings
from ccsnet.app.state import App, Load, NotThereError, check_models
from ccsnet.app.why import explain, look_at
from ccsnet.data.decode import IMAGE_KINDS
from ccsnet.data.images import image_size, read_image
from ccsnet.datasets._spec import ignore_index_of
from ccsnet.draw import overlay, rgb_of
from ccsnet.errors import InputError
from ccsnet.predict import Prediction, Predictor
from ccsnet.predict_config import PredictConfig
from ccsnet.serve.answers import JPEG_SIDE
from ccsnet.serve.uploads import NO_IMAGE, TOO_LARGE, UploadError, check_num_bytes, decode_upload

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
SAVED = ("index", "color")
LOSSLESS_PIXELS = 4_000_000  # A picture of more is shown as a JPEG.
MAX_NAME = 120


def create_app(
    predictors: Sequence[Predictor],
    names: Sequence[str] | None = None,
    *,
    config: PredictConfig | None = None,
    settings: AppSettings | None = None,
    folder: Sequence[Path] = (),
) -> Starlette:
    """The page for one model, or two of the same classes, as an ASGI application.

    Args:
        predictors: The models.
        names: What the page calls them.
        config: How they see images; none: as in evaluation.
        settings: Limits.
        folder: Images for its gallery.

    Raises:
        InputError: Not one or two models, or of different classes or bands.
    """
    check_models(predictors)
    names = names or [f"model {i + 1}" for i in range(len(predictors))]
    app = App(predictors, names, config or PredictConfig(), settings or AppSettings(), folder)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(app.jobs.close)

    paths = {
        "/": ("GET", _index),
        "/static/{name}": ("GET", _static),
        "/api/about": ("GET", _about),
        "/api/examples/{number:int}/thumbnail": ("GET", _example_thumbnail),
        "/api/examples/{number:int}": ("POST", _open_example),
        "/api/folder/{number:int}": ("POST", _open_from_folder),
        "/api/images": ("POST", _open_upload),
        "/api/jobs/{number}": ("GET", _job),
        "/api/jobs/{number}/cancel": ("POST", _cancel),
        "/api/results/{number}/image": ("GET", _image),
        "/api/results/{number}/{view:int}/label": ("GET", _label),
        "/api/results/{number}/{view:int}/confidence": ("GET", _confidence),
        "/api/results/{number}/{view:int}/why": ("GET", _why),
        "/api/results/{number}/{view:int}/overlay.png": ("GET", _overlay),
        "/api/results/{number}/{view:int}/{kind}.png": ("GET", _saved),
    }
    made = Starlette(
        routes=[Route(path, call, methods=[method]) for path, (method, call) in paths.items()],
        middleware=[Middleware(Guard)],
        exception_handlers={InputError: _refuse, OSError: _refuse},
        lifespan=lifespan,
    )
    made.state.app = app
    return made


def _app(request: Request) -> App:
    return request.app.state.app


def _refuse(_: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NotThereError | FileNotFoundError) else 422
    status = 503 if isinstance(error, BusyError) else getattr(error, "status", status)
    return Json({"error": str(error)}, status)


# The page's own files


def _index(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", media_type="text/html")


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in KINDS}
    if name not in files:  # Looked up, never joined to a path.
        raise NotThereError(f"The page has no file {name[:MAX_NAME]!r}.")
    return FileResponse(files[name], media_type=KINDS[files[name].suffix])


# What is to be labelled, and how far that is


class Json(JSONResponse):
    """Names of files need not be text: what UTF-8 cannot say is escaped."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def _about(request: Request) -> Response:
    return Json(_app(request).about())


def _example_thumbnail(request: Request) -> Response:
    app, number = _app(request), request.path_params["number"]
    _numbered(app.examples, number, "example")
    return Response(app.thumbnail(number), media_type="image/jpeg")


def _open_example(request: Request) -> Response:
    app = _app(request)
    example = _numbered(app.examples, request.path_params["number"], "example")
    return _begun(request, example.name, example.load)


def _open_from_folder(request: Request) -> Response:
    app = _app(request)
    path = _numbered(app.folder, request.path_params["number"], "image of the folder")

    def load() -> Num[np.ndarray, "_ _ _"]:
        height, width = image_size(path)
        if height * width > app.limits.max_pixels:
            raise UploadError(TOO_LARGE, f"{path.name} has {height} x {width} pixels: too many.")
        return read_image(path, app.predictors[0].info.channels)

    return _begun(request, path.name, load)


async def _open_upload(request: Request) -> Response:
    app = _app(request)
    length = request.headers.get("content-length", "0")
    check_num_bytes(int(length) if length.isdecimal() else 0, app.limits)
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            check_num_bytes(len(data), app.limits)
    except ClientDisconnect:
        return Response(status_code=400)
    name = request.query_params.get("name", "")[:MAX_NAME] or "image"
    return _begun(request, name, lambda: _decoded(bytes(data), app))


def _decoded(data: bytes, app: App) -> Num[np.ndarray, "_ _ _"]:
    try:
        return decode_upload(data, app.predictors[0].info.channels, app.limits)
    except UploadError as error:
        if error.status != NO_IMAGE:
            raise
        text = f"This is no image that can be read. Open a {IMAGE_KINDS} file."
        raise UploadError(NO_IMAGE, text) from error


def _begun(request: Request, name: str, load: Load) -> Response:
    seen = request.query_params.get("seen", "tested")
    if seen not in ("tested", "windows"):
        raise InputError(f"An image is seen as 'tested' or in 'windows', not {seen[:MAX_NAME]!r}.")
    brief = "brief" in request.query_params
    job = _app(request).label(name, load, seen, brief)
    return Json({"job": job.number}, 202)


def _numbered(items: Sequence[Any], number: int, what: str) -> Any:
    if not 0 <= number < len(items):
        raise NotThereError(f"There is no {what} number {number}.")
    return items[number]


def _known_job(request: Request) -> Job:
    job = _app(request).jobs.get(request.path_params["number"])
    if job is None:
        raise NotThereError("There is no such job, or it is long over.")
    return job


def _job(request: Request) -> Response:
    job = _known_job(request)
    state = {"state": job.state, "done": job.done, "total": job.total}
    if job.state == "failed":
        state |= {"error": job.error, "status": job.status}
    if job.state == "done":
        state["result"] = job.value
    return Json(state)


def _cancel(request: Request) -> Response:
    _known_job(request).cancel()
    return Json({})


# What has been labelled


def _result(request: Request) -> Result:
    return _app(request).result(request.path_params["number"])


def _view(request: Request) -> tuple[Result, View]:
    result = _result(request)
    return result, _numbered(result.views, request.path_params["view"], "model")


def _image(request: Request) -> Response:
    shown = rgb_of(_result(request).image)
    if shown.shape[0] * shown.shape[1] > LOSSLESS_PIXELS and max(shown.shape) <= JPEG_SIDE:
        return Response(jpeg(shown, 92), media_type="image/jpeg")
    return Response(png(shown), media_type="image/png")


def _label(request: Request) -> Response:
    label = _view(request)[1].label
    return _packed(label.astype(label.dtype.newbyteorder("<")).tobytes())


def _confidence(request: Request) -> Response:
    return _packed(_view(request)[1].confidence.tobytes())


def _packed(data: bytes) -> Response:
    packed = gzip.compress(data, 1, mtime=0)
    headers = {"Content-Encoding": "gzip"}
    return Response(packed, media_type="application/octet-stream", headers=headers)


async def _why(request: Request) -> Response:
    app, (result, _) = _app(request), _view(request)
    index = request.path_params["view"]
    try:
        row, column = (int(request.query_params.get(key, "")) for key in ("row", "column"))
    except ValueError as error:
        raise InputError("Name a pixel: ?row=0&column=0, counted from 0.") from error

    def look() -> dict[str, Any]:
        return explain(look_at(result, index, app.predictors[index]), result, index, row, column)

    return Json(await asyncio.wrap_future(app.jobs.call(look)))


def _overlay(request: Request) -> Response:
    result, view = _view(request)
    predictor = _app(request).predictors[request.path_params["view"]]
    colours, num = predictor.colours, len(predictor.classes)
    try:
        opacity = float(request.query_params.get("opacity", "0.5"))
        hidden = [int(i) for i in request.query_params.get("hidden", "").split(",") if i]
    except ValueError as error:
        raise InputError("An overlay takes ?opacity=0.5&hidden=0,2: numbers.") from error
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity is {opacity}; it must be from 0 to 1.")
    left_out = np.isin(view.label, hidden)
    label = np.where(left_out, ignore_index_of(num), view.label).astype(view.label.dtype)
    return _download(png(overlay(rgb_of(result.image), label, colours, opacity)))


def _saved(request: Request) -> Response:
    """The file that `ccsnet predict --save` would write."""
    result, view = _view(request)
    kind = request.path_params["kind"]
    if kind not in SAVED:
        raise NotThereError(f"No file of a result is called {kind[:MAX_NAME]!r}.")
    predictor = _app(request).predictors[request.path_params["view"]]
    prediction = Prediction(
        label=view.label,
        classes=predictor.classes,
        colours=predictor.colours,
        image=result.image,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.png"
        prediction.save(path, kind)
        return _download(path.read_bytes())


def _download(data: bytes) -> Response:
    headers = {"Content-Disposition": "attachment"}
    return Response(data, media_type="image/png", headers=headers)
