"""The HTTP application: what each address answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect

from .._version import __version__
from ..config.commands import ServeConfig
from ..errors import DataError
from ..inference.detector import Detector
from .batching import Batcher, Found, Full
from .metrics import Metrics
from .middleware import Guard
from .schema import (
    BODY,
    ERRORS,
    PREDICT_ERRORS,
    SCRAPED,
    About,
    Category,
    Health,
    Prediction,
    Problem,
    answer,
)
from .upload import REQUESTS_OF_BYTES, REQUESTS_OF_QUEUE, Limiter, Refused, busy, clean, read_uploads

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

THRESHOLD = Query(
    ge=0,
    le=1,
    allow_inf_nan=False,
    description="Least score of the detections. Without: the model's own threshold; 0: everything.",
)

WORDS = "/predict?threshold=0.5"

FAILED = "the server failed on this image; its log says why"


def create_app(detector: Detector, config: ServeConfig) -> FastAPI:
    """The application around a detector; it has threads of its own, which end with its lifespan."""
    metrics = Metrics()
    limits = (config.max_batch, config.max_wait / 1000, config.queue, config.decoders, config.max_pixels)
    batcher = Batcher(detector, metrics, *limits)
    gate = Limiter(REQUESTS_OF_QUEUE * config.queue, REQUESTS_OF_BYTES * config.max_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(title="retinanet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, config=config, metrics=metrics)
    app.add_exception_handler(RequestValidationError, invalid)
    # the guard has checked it; this is what tells the description's readers
    token = [Depends(HTTPBearer(auto_error=False))] if config.token is not None else []
    app.state.batcher, app.state.gate = batcher, gate

    @app.post(
        "/predict",
        dependencies=token,
        response_model=Prediction,
        responses=PREDICT_ERRORS,
        openapi_extra={"requestBody": BODY},
        summary="Objects in images",
    )
    async def predict(request: Request, threshold: Annotated[float | None, THRESHOLD] = None) -> Response:
        for word in set(request.query_params) - {"threshold"}:
            raise Refused(
                422, f"{clean(word)!r} in the address is unknown; the only word is threshold: {WORDS}"
            )
        limit = detector.threshold if threshold is None else threshold
        with gate.enter(batcher.patience()) as take:
            uploads = await read_uploads(request, config, take)
            names = [name for name, _ in uploads]
            try:
                futures = batcher.submit(uploads)
            except Full as full:
                raise busy(full.seconds) from None
            del uploads  # the bytes go as soon as they are decoded
            outcomes = await outcomes_of(request, futures)
        images: list[dict[str, Any]] = []
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                reason = str(outcome) if isinstance(outcome, DataError) else FAILED
                images.append({"name": name, "error": reason})
            else:
                images.append(answer(name, outcome[1], outcome[0].above(limit), detector.category_ids))
        errors = [image["error"] for image in images if "error" in image]
        if len(errors) < len(images):
            return JSONResponse({"threshold": limit, "images": images})
        return JSONResponse({"detail": "; ".join(errors), "images": images}, 500 if FAILED in errors else 422)

    @app.get("/model", dependencies=token, responses=ERRORS, summary="Classes, threshold and limits")
    async def model() -> About:
        pairs = zip(detector.names, detector.category_ids, strict=True)
        return About(
            version=__version__,
            classes=[Category(name=name, category_id=number) for name, number in pairs],
            threshold=detector.threshold,
            max_images=config.max_images,
            max_bytes=config.max_bytes,
            max_pixels=config.max_pixels,
        )

    @app.get(
        "/healthz",
        responses={503: {"model": Problem, "description": "The detector has stopped."}},
        summary="Alive?",
    )
    async def healthz() -> Health:
        if not batcher.healthy:
            raise Refused(503, "the detector has stopped; the server's log says why")
        return Health(status="ok")

    @app.get(
        "/metrics",
        dependencies=token,
        response_class=Response,
        responses=ERRORS | SCRAPED,
        summary="For Prometheus",
    )
    async def scrape() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (file, kind) in PAGE.items():
        content = (files("retinanet.serve") / "page" / file).read_bytes()
        app.add_api_route(path, fixed(content, kind), include_in_schema=False)
    return app


def fixed(content: bytes, kind: str) -> Any:
    """An endpoint that always answers the same."""

    async def endpoint() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return endpoint


async def outcomes_of(request: Request, futures: Sequence[Future[Found]]) -> list[Found | BaseException]:
    """What the futures give, or ClientDisconnect: then those that are not in a batch yet never will be."""

    async def together() -> list[Found | BaseException]:
        return await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)

    answers, gone = asyncio.create_task(together()), asyncio.create_task(disconnect(request))
    try:
        await asyncio.wait([answers, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        return answers.result()
    finally:
        for future in futures:  # at once: the task would cancel them only when the loop reaches it
            future.cancel()
        gone.cancel()
        answers.cancel()


async def disconnect(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """Parameters that are not what they should be, as a sentence."""
    assert isinstance(error, RequestValidationError)
    texts = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": "; ".join(texts)}, 422)
