"""The routes: requests to orders, orders to jobs, events to answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from flashback.errors import SettingsError
from flashback.server.answers import Answer, ChatShape, CompletionShape, Shape, as_event, as_json
from flashback.server.errors import ApiError, of_settings, of_status
from flashback.server.events import Event, Failed
from flashback.server.gate import Gate
from flashback.server.orders import Order, texts_for_log
from flashback.server.parsing import (
    chat_order,
    check_model,
    check_unicode,
    completion_order,
    search_options,
)
from flashback.server.scheduler import Job
from flashback.server.schema import ChatRequest, CompletionRequest, RetrieveRequest
from flashback.server.searching import GuardedRetriever, RetrievalFailed
from flashback.server.server_settings import OnRetrievalError
from flashback.server.service import Service
from flashback.server.sources import hit_record
from flashback.server.work import Worker
from flashback.version import __version__

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}


def make_app(service: Service) -> FastAPI:
    """The application around a service."""
    app = FastAPI(
        title="FlashBack",
        version=__version__,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
    )
    _add_routes(app, service)
    _add_page(app)
    _add_errors(app)
    settings = service.settings
    app.add_middleware(
        Gate,
        metrics=service.metrics,
        api_key=settings.api_key,
        max_bytes=settings.max_body * 1024,
    )
    if settings.cors_origins:  # around the gate, whose refusals a page wants to read, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send headers of their own
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    _add_writing(app, service)

    @app.post("/v1/retrieve")
    async def retrieve(body: RetrieveRequest) -> Response:
        """Search the index with a batch of queries."""
        check_unicode(body.model_dump())
        return Response(await _retrieve(body, service), media_type="application/json")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model there is."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model by its name."""
        check_model(name, service)
        return _model(service)

    @app.get("/health")
    async def health() -> Response:
        """200 while requests are taken, 503 otherwise."""
        load = service.scheduler.load
        alive = service.scheduler.is_alive
        record = {
            "status": "ok" if alive else "stopping",
            "model": service.model,
            "active": load.active,
            "waiting": load.waiting,
        }
        return JSONResponse(record, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        load = service.scheduler.load
        use = service.engine.cache_use
        held = {"sequences": use.sequence_bytes, "passages": use.passage_bytes}
        text = service.metrics.render(load.active, load.waiting, use.sequences, held)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_writing(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Write on from prompts, or score them."""
        check_unicode(body.model_dump())
        order = completion_order(body, service)
        return await _answer(order, body, CompletionShape(), request, service)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        check_unicode(body.model_dump())
        order = chat_order(body, service)
        return await _answer(order, body, ChatShape(), request, service)


async def _answer(
    order: Order,
    body: CompletionRequest | ChatRequest,
    shape: Shape,
    request: Request,
    service: Service,
) -> Response:
    """Submit an order; its status is decided by its first event, so that a bad prompt is a 400."""
    job = Job(lambda job: Worker(service, order, job).events(), asyncio.get_running_loop())
    seed = order.settings.sampling.seed
    answer = Answer(shape, service.model, seed, order.logprobs is not None)
    log = _Logged(request, order, body.user, answer, with_text=service.settings.log_prompts)
    service.scheduler.submit(job)
    events = _taken(job, answer, service)
    async with _watched(job, request, service):
        first = await anext(events)
        if isinstance(first, Failed):
            log.close()
            raise first.error
        if not body.stream:
            async for event in events:
                if isinstance(event, Failed):
                    log.close()
                    raise event.error
            log.close()
            return Response(as_json(answer.body()), media_type="application/json")
    usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(first, events, answer, log, usage)
    return EventStream(stream, on_end=lambda: service.scheduler.cancel(job))


class EventStream(StreamingResponse):
    """Server-sent events; tells when it ends, also if its client left before the first one."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything there is."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _taken(job: Job, answer: Answer, service: Service) -> AsyncGenerator[Event]:
    """The job's events, each accounted for; leaving early cancels the job."""
    try:
        async for event in job.read():
            answer.take(event)
            yield event
    finally:
        service.scheduler.cancel(job)


async def _stream(
    first: Event, events: AsyncGenerator[Event], answer: Answer, log: "_Logged", usage: bool
) -> AsyncIterator[str]:
    try:
        async with contextlib.aclosing(_chained(first, events)) as every:
            async for event in every:
                for chunk in answer.chunks(event, with_usage=usage):
                    yield as_event(chunk)
                if isinstance(event, Failed):
                    yield as_event(event.error.body())
                    return
        yield "data: [DONE]\n\n"
    finally:
        log.close()


async def _chained(first: Event, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    async with contextlib.aclosing(events):
        yield first
        async for event in events:
            yield event


@contextlib.asynccontextmanager
async def _watched(job: Job, request: Request, service: Service) -> AsyncIterator[None]:
    """Cancel a job if its client leaves while nothing is sent yet."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_LOOK)
        service.scheduler.cancel(job)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


_LOOK = 0.1
"""Seconds between two looks at whether a client is still there."""


class _Logged:
    """What the log says of a request, once it is over."""

    def __init__(
        self, request: Request, order: Order, user: str | None, answer: Answer, *, with_text: bool
    ) -> None:
        self._state = request.scope.setdefault("state", {})
        self._order = order
        self._user = user
        self._answer = answer
        self._with_text = with_text

    def close(self) -> None:
        """Hand it to the gate, which writes the line."""
        answer = self._answer
        record: dict[str, Any] = {
            "pattern": str(self._order.settings.retrieval.pattern),
            "choices": self._order.choices,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "finish_reasons": answer.finish_reasons,
            **answer.totals,
        }
        if answer.events:
            record["events"] = [event["event"] for event in answer.events]
        if answer.error is not None:
            record["error"] = answer.error.error.code or answer.error.error.type
        if self._user is not None:
            record["user"] = self._user
        if self._with_text:
            record["prompts"] = texts_for_log(self._order.prompts)
            record["texts"] = answer.texts
        self._state["log"] = record


async def _retrieve(body: RetrieveRequest, service: Service) -> str:
    retriever = service.retriever
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


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": 0,
        "owned_by": "flashback",
        "flashback": service.description(),
    }


def _add_page(app: FastAPI) -> None:
    folder = files("flashback.server") / "playground"
    texts = {name: (folder / name).read_bytes() for name in _PAGE}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The playground."""
        return Response(texts["index.html"], media_type=_PAGE["index.html"])

    @app.get("/playground/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        """Its script and its style."""
        if name not in texts:
            raise of_status(404, "")
        return Response(texts[name], media_type=_PAGE[name])


def _add_errors(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(_of_validation(error).body(), 400)

    async def unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = of_status(error.status_code, error.detail)
        return JSONResponse(found.body(), found.status, error.headers)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)


_SEVERAL_TYPES = {
    "prompt": "a text, a list of texts, a list of token ids (from 0 on), or a list of such lists; "
    "lists not empty",
    "stop": "a text of 1 to 256 characters, or up to 16 of them",
    "content": "a text, or a list of {'type': 'text', 'text': ...}",
}
"""What to say of fields that may be of several types."""


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request, by the name of its field."""
    problem = error.errors()[0]
    kind = problem["type"]
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON", "invalid_json")
    where = [str(part) for part in problem["loc"] if part != "body"]
    name = where[0] if where else None
    if kind == "extra_forbidden":
        name = ".".join(where)
        return ApiError(
            400, f"the field {name!r} is not supported; leave it out", "unsupported_field", name
        )
    if not where:
        return ApiError(400, "expected a JSON object with Content-Type application/json")
    for at, part in enumerate(where):
        if part in _SEVERAL_TYPES:  # of which pydantic names one, and says that it is not that
            name = ".".join(where[: at + 1])
            return ApiError(400, f"{name}: expected {_SEVERAL_TYPES[part]}", "invalid_value", name)
    if problem["loc"][-1] in where and name in ("flashback", "stream_options", "messages"):
        name = ".".join(where)
    return ApiError(400, f"{name}: {problem['msg'].lower()}", "invalid_value", name)
