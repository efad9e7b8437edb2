"""The routes of the server."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from flashback.errors import SettingsError
from flashback.retrieval.guard import OnRetrievalError
from flashback.server.answers import ChatShape, CompletionShape, as_json
from flashback.server.error_handlers import add_error_handlers
from flashback.server.errors import ApiError, of_settings
from flashback.server.parsing import (
    check_model,
    check_unicode,
    checked_chat,
    checked_completion,
    search_options,
)
from flashback.server.schema import ChatRequest, CompletionRequest, RetrieveRequest
from flashback.server.searching import GuardedRetriever, RetrievalFailed
from flashback.server.service import Service
from flashback.server.sources import hit_record
from flashback.server.streaming import answer
from flashback.server.surroundings import add_gate, add_page
from flashback.version import __version__


def make_app(service: Service) -> FastAPI:
    """The application around a service."""
    app = FastAPI(
        title="FlashBack",
        version=__version__,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
    )
    _add_completions(app, service)
    _add_models(app, service)
    _add_state(app, service)
    add_page(app)
    add_error_handlers(app)
    add_gate(app, service.settings, service.metrics.requests)
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts, or score them."""
        check_unicode(body.model_dump())
        checked = checked_completion(body, service)
        return await answer(checked, body, CompletionShape(), request, service)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        check_unicode(body.model_dump())
        checked = checked_chat(body, service)
        return await answer(checked, body, ChatShape(), request, service)

    @app.post("/v1/retrieve")
    async def retrieve(body: RetrieveRequest) -> Response:
        """Search the index with a batch of queries."""
        check_unicode(body.model_dump())
        return Response(await _retrieve(body, service), media_type="application/json")

    @app.post("/v1/reload")
    async def reload() -> dict[str, Any]:
        """Take the newest version of the index into use, now."""
        if (watch := service.watch) is None:
            raise ApiError(400, "this server has no index that could change", "no_index")
        changed = await run_in_threadpool(watch.look)
        if watch.failure is not None:
            raise ApiError(409, f"{watch.failure}; the one before stays in use", "index_broken")
        return {"object": "index", "changed": changed, **watch.state()}


async def _retrieve(body: RetrieveRequest, service: Service) -> str:
    retriever = service.current_retriever
    if retriever is None:
        raise ApiError(400, "this server was started without an index", "no_index")
    try:
        options = search_options(body, service)
    except SettingsError as error:
        raise of_settings(error, service.reader.name, service.model) from error
    limit = service.settings.retrieval_limit
    guarded = GuardedRetriever(retriever, limit, OnRetrievalError.STOP)
    try:
        found = await run_in_threadpool(guarded.search, body.queries, options)
    except RetrievalFailed as error:
        raise ApiError(503, str(error), "retrieval_error") from error
    results = [
        {"index": at, "passages": [hit_record(hit) for hit in hits]}
        for at, hits in enumerate(found)
    ]
    return as_json({"object": "list", "results": results})


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """A list of one model."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model by its name."""
        check_model(name, service)
        return _model(service)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": 0,
        "owned_by": "flashback",
        "flashback": service.description(),
    }


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while requests are accepted, 503 otherwise."""
        load = service.scheduler.load
        alive = service.scheduler.is_alive
        record = {
            "status": "ok" if alive else "stopping",
            "model": service.model,
            "active": load.active,
            "waiting": load.waiting,
            "index": None if service.watch is None else service.watch.state(),
        }
        return JSONResponse(record, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        text = service.metrics.render(service.scheduler.load, service.cache_use)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
