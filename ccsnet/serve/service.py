"""The routes: what can be asked of the server over HTTP, and what it answers."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from jaxtyping import Num

import ccsnet
from ccsnet.data.parallel import num_processors
from ccsnet.serve.answers import JPEG, MEDIA, PNG, archive, areas, picture_of
from ccsnet.serve.bodies import Sent, many_images, one_image, places_of, unless_gone
from ccsnet.serve.docs_page import POLICY, docs_page
from ccsnet.serve.engine import Engine
from ccsnet.serve.gate import Gate, check_token
from ccsnet.serve.metrics import CONTENT_TYPE, Metrics
from ccsnet.serve.models import Failure, Label
from ccsnet.serve.places import Budget, Places
from ccsnet.serve.problems import WAIT_FOR_WORKER, add_handlers, problems, unavailable
from ccsnet.serve.schemas import BATCH, IMAGE, Areas, Batch, Classes, Health, pictures
from ccsnet.serve.settings import ServeSettings
from ccsnet.serve.uploads import (
    TOO_LARGE,
    Limits,
    UploadError,
    decode_upload,
    upload_bytes,
)

ZIP = "application/zip"
DECODED = 6
"""Bytes that decoded images have together at most, for each of --max-pixels: two of the largest."""

Output = Literal["label", "palette", "areas", "overlay", "overlay-jpeg"]
Result = TypeVar("Result")


@dataclass(kw_only=True)
class Serving:
    """What the routes share."""

    engine: Engine
    settings: ServeSettings
    token: str | None
    metrics: Metrics = field(default_factory=Metrics)
    stopping: bool = False
    """Whether nothing new is taken."""

    def __post_init__(self) -> None:
        self.places = Places(self.settings.queue)
        self.budget = Budget(DECODED * self.settings.max_pixels)
        self.limits = Limits(max_bytes=self.settings.max_bytes, max_pixels=self.settings.max_pixels)
        self.pool = concurrent.futures.ThreadPoolExecutor(num_processors(), "ccsnet-images")
        self.engine.on_batch = self.metrics.saw_batch
        self.engine.on_restart = self.metrics.restarts.inc
        self.metrics.queue.set_function(lambda: self.places.taken)
        self.metrics.ready.set_function(lambda: self.status == "ready")

    @property
    def status(self) -> Literal["ready", "starting", "stopping"]:
        """Whether images are taken."""
        if self.stopping or self.engine.state == "stopped":
            return "stopping"
        return self.engine.state

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Do what takes a processor, off the event loop; as many at once as there are."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    async def result(
        self,
        data: bytes,
        make: Callable[[Num[np.ndarray, "H W C"], Label], Result],
    ) -> Result:
        """What is made of an image and its label map.

        Raises:
            UploadError: The image cannot be used.
            WorkerLostError: What computed it is gone.
        """
        amount = await self.in_thread(upload_bytes, data, self.limits)
        async with self.budget.take(amount):
            channels = self.engine.facts.channels
            image = await self.in_thread(decode_upload, data, channels, self.limits)
            label = await self.engine.label(image)
            if isinstance(label, Failure):
                raise UploadError(label.status, label.text)
            return await self.in_thread(make, image, label)

    async def one_of_batch(self, sent: Sent, output: Output) -> dict[str, Any]:
        """What becomes of an image of several; with `data` where it has a picture."""

        def make(image: np.ndarray, label: Label) -> dict[str, Any]:
            found: dict[str, Any] = {"status": 200, "result": areas(label, self.engine.facts)}
            if output != "areas":
                found["data"] = picture_of(output, self.engine.facts)(image, label)
            return found

        try:
            return {"name": sent.name, **await self.result(sent.data, make)}
        except UploadError as error:
            return {"name": sent.name, "status": error.status, "error": str(error)}


def create_app(
    engine: Engine, settings: ServeSettings | None = None, token: str | None = None
) -> FastAPI:
    """The server's application; `app.state.serving` is what its routes share.

    Args:
        engine: Labels images; ready, or soon to be.
        settings: Limits and patience.
        token: Asked for by all routes that do or tell something; none: by none.
    """
    serving = Serving(engine=engine, settings=settings or ServeSettings(), token=token)
    settings = serving.settings
    app = FastAPI(
        title=f"ccsnet: {engine.facts.name}",
        description="Images in, label maps out. Every answer has a request id (X-Request-Id).",
        version=ccsnet.__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.state.serving = serving
    add_handlers(app)
    app.add_middleware(
        Gate,  # pyright: ignore[reportArgumentType]
        metrics=serving.metrics,
        patience=settings.max_batch_bytes,
    )

    def permitted(request: Request) -> None:
        check_token(request, token)

    # The scheme is for the document; `permitted` looks.
    bearer = [Depends(HTTPBearer(auto_error=False))] if token is not None else []
    closed = [*bearer, Depends(permitted)]
    unauthorised = (401,) if token is not None else ()
    refusals = problems(400, *unauthorised, 413, 415, 422, 500, 503, 504)

    def turned_away(request: Request) -> Response | None:
        """The answer where nothing is taken, for the moment or for good."""
        if serving.status == "ready":
            return None
        wait = WAIT_FOR_WORKER if serving.status == "starting" else max(1, round(settings.grace))
        text = "The model is started again." if serving.status == "starting" else "Stopping."
        return unavailable(request, f"{text} Come again in {wait} s.", wait)

    @app.post(
        "/predict",
        dependencies=closed,
        responses={200: {"model": Areas, **pictures(PNG, JPEG)}, **refusals},
        response_class=Response,
        openapi_extra=IMAGE,
        summary="Label an image",
        response_description="What the parameter says.",
    )
    async def predict(
        request: Request,
        output: Annotated[
            Output,
            Query(
                description="label: a PNG whose grey values are class numbers, of the image's "
                "size; palette: the same with the classes' colours as palette; overlay: the "
                "classes painted over the image; overlay-jpeg: the same, smaller; areas: JSON with "
                "the classes' shares."
            ),
        ] = "label",
    ) -> Response:
        if (answer := turned_away(request)) is not None:
            return answer
        async with asyncio.timeout(settings.timeout):
            with serving.places.take():
                data = await one_image(request, settings)
                if output == "areas":
                    work = serving.result(data, lambda _, label: areas(label, engine.facts))
                    return JSONResponse(await unless_gone(request, work))
                picture = picture_of(output, engine.facts)
                work = serving.result(data, picture)
                return Response(await unless_gone(request, work), media_type=MEDIA[output])

    @app.post(
        "/predict/batch",
        dependencies=closed,
        responses={200: {"model": Batch, **pictures(ZIP)}, **refusals},
        response_class=Response,
        openapi_extra=BATCH,
        summary="Label several images",
        response_description="What became of each image.",
    )
    async def predict_batch(
        request: Request,
        output: Annotated[
            Output,
            Query(
                description="areas: JSON with the classes' shares in every image; any other: an "
                "archive (zip) of such pictures, in which areas.json has the same JSON. An image "
                "that cannot be used has its error there, and the others go on."
            ),
        ] = "areas",
    ) -> Response:
        if (answer := turned_away(request)) is not None:
            return answer
        async with asyncio.timeout(settings.timeout):
            with serving.places.take(num := places_of(request, settings)):
                files = await many_images(request, settings)
                if len(files) > serving.places.total:
                    raise UploadError(
                        TOO_LARGE,
                        f"The form has {len(files)} images; {serving.places.total} are taken at "
                        "once here. Send fewer.",
                    )
                with serving.places.take(max(0, len(files) - num)):
                    work = _all(serving.one_of_batch(file, output) for file in files)
                    results = await unless_gone(request, work)
            pictures = [result.pop("data", None) for result in results]
            if output == "areas":
                return JSONResponse({"images": results})
            suffix = ".jpg" if MEDIA[output] == JPEG else ".png"
            packed = await serving.in_thread(archive, results, pictures, suffix)
        return Response(packed, media_type=ZIP)

    @app.get(
        "/classes",
        dependencies=closed,
        responses=problems(*unauthorised),
        summary="The classes",
        response_description="By class number.",
    )
    async def classes() -> Classes:
        facts = engine.facts
        found = [
            {"index": index, "name": name, "colour": colour}
            for index, (name, colour) in enumerate(zip(facts.classes, facts.colours, strict=True))
        ]
        return Classes.model_validate(
            {
                "model": facts.name,
                "dataset": facts.dataset,
                "channels": facts.channels,
                "classes": found,
            }
        )

    @app.get(
        "/health",
        responses={503: {"model": Health, "description": "Not for the moment."}},
        summary="Whether images are taken",
        response_description="They are.",
    )
    async def health(response: Response) -> Health:
        response.status_code = 200 if serving.status == "ready" else 503
        taken = serving.places.taken
        return Health(status=serving.status, model=engine.facts.name, queue=taken)

    @app.get(
        "/metrics",
        dependencies=closed,
        responses={200: {"content": {"text/plain": {}}}, **problems(*unauthorised)},
        response_class=Response,
        summary="Counts for Prometheus",
        response_description="In its text format.",
    )
    async def metrics() -> Response:
        return Response(serving.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        page = docs_page(app.openapi(), str(request.base_url))
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse("docs")

    return app


async def _all(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What several come to at once; the first error ends all of them."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
