"""The routes of cluster/wire.py, as a FastAPI application.

Invariant: exactly those routes, each answer of the type that is written there, and a `Problem` for everything else:
what is not valid, a route that is not there, a fault. A request whose client has gone is not answered any further,
and its sampling ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from cluster.bearer import Bearer
from cluster.front_door import App, BodyLimits, FrontDoor, content_length, problem
from cluster.refusal import Refusal, engine_down
from cluster.serving import Serving
from cluster.wire import (
    API,
    PREFIX,
    Activated,
    ActivateRequest,
    FileName,
    GenerateReply,
    GenerateRequest,
    Health,
    Info,
    Manifest,
    Message,
    Problem,
    ScoreReply,
    ScoreRequest,
    Stored,
    Version,
)
from cluster.worker_metrics import WorkerMetrics

Reply = TypeVar("Reply", bound=Message)
VersionInPath = Annotated[Version, Path()]
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 503)
}


def make_app(serving: Serving, bearer: Bearer, limits: BodyLimits | None = None) -> App:
    """The application behind its front door."""
    metrics = WorkerMetrics(serving, bearer)
    return FrontDoor(make_routes(serving, metrics), bearer, limits or BodyLimits(), metrics.answered)


def make_routes(serving: Serving, metrics: WorkerMetrics) -> FastAPI:
    """The routes alone, without token or limits."""
    # No pages of its own: the routes are those of wire.py, and nothing else is served.
    app = FastAPI(
        title="mlx_sumrl worker",
        version=str(API),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        responses=REFUSALS,
    )
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _refused)

    @app.get(f"{PREFIX}/info", response_model=Info)
    async def info() -> Response:
        return _json(serving.info())

    @app.get(f"{PREFIX}/health", response_model=Health)
    async def health() -> Response:
        return _json(serving.health())

    @app.post(f"{PREFIX}/generate", response_model=GenerateReply)
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        return _json(await _while_connected(request, serving.generate(asked)))

    @app.post(f"{PREFIX}/score", response_model=ScoreReply)
    async def score(asked: ScoreRequest, request: Request) -> Response:
        return _json(await _while_connected(request, serving.score(asked)))

    @app.post(f"{PREFIX}/weights/{{version}}", response_model=Stored)
    async def announce(version: VersionInPath, manifest: Manifest) -> Response:
        return _json(serving.store.announce(version, manifest))

    @app.put(
        f"{PREFIX}/weights/{{version}}/{{file}}",
        response_model=Stored,
        openapi_extra={
            "requestBody": {
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            }
        },
    )
    async def receive(version: VersionInPath, file: FileName, request: Request) -> Response:
        length = content_length(request.scope)
        return _json(await serving.store.receive(version, file, request.stream(), length))

    @app.post(f"{PREFIX}/weights/{{version}}/complete", response_model=Stored)
    async def complete(version: VersionInPath) -> Response:
        return _json(await serving.store.complete(version))

    @app.post(f"{PREFIX}/activate", response_model=Activated)
    async def activate(asked: ActivateRequest) -> Response:
        # Not tied to the connection: half an activation helps nobody, and asking again tells how it ended.
        return _json(await asyncio.shield(asyncio.ensure_future(serving.activate(asked))))

    @app.get(f"{PREFIX}/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _while_connected(request: Request, answering: Coroutine[Any, Any, Reply]) -> Reply:
    """The answer, in a task of its own that ends when the client hangs up."""
    task = asyncio.create_task(answering)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(499, "the client hung up")
        if task.cancelled():
            raise engine_down("the request was cut off; ask again")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(reply: Message) -> Response:
    """Written by pydantic once, and not validated again: a reply can hold 100,000 numbers."""
    return Response(reply.model_dump_json(), media_type="application/json")


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    where = ".".join(str(part) for part in found[0]["loc"])[:200]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _problem(422, f"{where}: {found[0]['msg']}{more}; see cluster/wire.py for what is asked for")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        400: "the body cannot be read; send JSON as cluster/wire.py has it",
        404: f"there is no such route; those of API {API} begin with {PREFIX}",
        405: f"{request.method} is not what this route is asked with; see cluster/wire.py",
    }
    own = isinstance(error, Refusal)
    sentence = str(error.detail) if own else sentences.get(error.status_code, str(error.detail))
    return _problem(error.status_code, sentence, dict(error.headers or {}))


def _problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return Response(problem(sentence), status, headers, media_type="application/json")
