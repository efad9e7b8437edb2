"""Schedules a checked request and sends its answer, whole or as server-sent events.

A client that leaves cancels its job, at whatever point it leaves.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from flashback.server.answers import Answer, Shape, as_event, as_json
from flashback.server.checked_request import CheckedRequest
from flashback.server.events import Event, Failed
from flashback.server.request_log import RequestLog
from flashback.server.runner import Runner
from flashback.server.scheduler import Job
from flashback.server.schema import ChatRequest, CompletionRequest
from flashback.server.service import Service

_POLL = 0.1
"""Seconds between two looks at whether a client is still there."""


async def answer(
    checked: CheckedRequest,
    body: CompletionRequest | ChatRequest,
    shape: Shape,
    request: Request,
    service: Service,
) -> Response:
    """Schedule a request and answer it.

    The first event decides the status, so that a bad prompt is a 400, streamed or not.

    Raises:
        ApiError: it is refused, or fails before anything of the answer is sent.
    """
    job = Job(
        lambda job: Runner(service, checked, job).events(),
        asyncio.get_running_loop(),
        service.clock,
    )
    seed = checked.settings.sampling.seed
    made = Answer(shape, service.model, seed, checked.logprobs is not None)
    log = RequestLog(request, checked, body.user, made, with_text=service.settings.log_prompts)
    service.scheduler.submit(job)
    events = _taken(job, made, service)
    async with _cancelled_on_disconnect(job, request, service):
        first = _unless_failed(await anext(events), log)
        if not body.stream:
            async for event in events:
                _unless_failed(event, log)
            log.close()
            return Response(as_json(made.body()), media_type="application/json")
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(first, events, made, log, with_usage)
    return EventStream(stream, on_end=lambda: service.scheduler.cancel(job))


def _unless_failed(event: Event, log: RequestLog) -> Event:
    if isinstance(event, Failed):
        log.close()
        raise event.error
    return event


class EventStream(StreamingResponse):
    """Server-sent events.

    Calls `on_end` when it ends, even if its client left before the first event.
    """

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _taken(job: Job, made: Answer, service: Service) -> AsyncGenerator[Event]:
    """The job's events, each taken by the answer; leaving early cancels the job."""
    try:
        async for event in job.read():
            made.take(event)
            yield event
    finally:
        service.scheduler.cancel(job)


async def _stream(
    first: Event, events: AsyncGenerator[Event], made: Answer, log: RequestLog, with_usage: bool
) -> AsyncIterator[str]:
    try:
        async with contextlib.aclosing(_chained(first, events)) as every:
            async for event in every:
                for chunk in made.chunks(event, with_usage=with_usage):
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
async def _cancelled_on_disconnect(
    job: Job, request: Request, service: Service
) -> AsyncIterator[None]:
    """Cancel a job if its client leaves while nothing is sent yet."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_POLL)
        service.scheduler.cancel(job)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
