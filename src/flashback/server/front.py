"""A front: OpenAI's API before several servers, without a model and without a state of its own.

A request goes to the replica that holds its conversation (`affinity`). Any number of fronts may
stand beside each other: all find the same replicas.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from flashback.server.affinity import conversation_key
from flashback.server.error_handlers import add_error_handlers
from flashback.server.errors import ApiError, stopping
from flashback.server.forwarding import Forwarded, Relay, forward, no_replica
from flashback.server.front_settings import FrontSettings
from flashback.server.replicas import Replica, ReplicaLost, Replicas
from flashback.server.server_settings import ServerSettings
from flashback.server.sockets import config_of, logged
from flashback.server.surroundings import add_gate, add_page
from flashback.version import __version__

KEY = "FLASHBACK_REPLICA_KEY"
"""The environment variable with the replicas' key; without it clients' own keys are sent on."""
_KEPT = 2.0
"""Seconds that an idle connection is kept: less than uvicorn's 5, then it is closed."""
_SESSION = "x-session-id"
_POLL = 0.05
"""Seconds between looks at whether requests have ended."""


class Front:
    """Replicas, and the client that asks them."""

    def __init__(self, front: FrontSettings, settings: ServerSettings) -> None:
        """Open no connection yet."""
        self.settings = settings
        self.stopping = False
        self._key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self.client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=front.check_limit),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEPT),
            headers=headers,
            # Certificates take long to load.
            verify=any("https://" in url for url in front.replicas),
        )
        self.replicas = Replicas(front, self.client)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the replicas, once before it begins and then again and again."""
        await self.replicas.look()
        watching = asyncio.create_task(self.replicas.watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await self.client.aclose()

    async def sent_on(self, request: Request) -> Response:
        """The answer of a replica to a request.

        Raises:
            ApiError: the body is no JSON object, the front stops, or see `forward`.
        """
        if self.stopping:
            raise stopping()
        content = await request.body()
        body = _object(content) if content else {}
        asked = Forwarded(
            request.method,
            request.url.path,
            content,
            self._headers(request),
            conversation_key(body, request.headers.get(_SESSION)),
            body.get("model", request.url.path.removeprefix("/v1/models/")),
            request.scope.setdefault("state", {}).setdefault("log", {}),
        )
        return await _unless_gone(request, forward(asked, self.replicas, self.client))

    def _headers(self, request: Request) -> dict[str, str]:
        names = ["content-type", "accept", _SESSION, *(() if self._key else ("authorization",))]
        return {name: request.headers[name] for name in names if name in request.headers}

    async def asked_all(self, method: str, path: str, request: Request) -> dict[str, Any]:
        """What each replica that is up answers with status 200, by its URL.

        Raises:
            ApiError: none does.
        """
        headers = self._headers(request)

        async def ask(one: Replica) -> Any:
            with contextlib.suppress(ReplicaLost, ValueError):
                asking = self.client.request(method, one.url + path, headers=headers)
                answer = await one.unless_lost(asking)
                return answer.json() if answer.status_code == 200 else None

        up = [one for one in self.replicas.all.values() if one.up]
        answers = await asyncio.gather(*(ask(one) for one in up))
        found = {one.url: got for one, got in zip(up, answers, strict=True) if got is not None}
        if not found:
            raise no_replica()
        return found


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """An answer, unless its client leaves before it begins."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, waiting = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait((answering, waiting), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            if isinstance(late := await answering, Relay):  # it was about to begin
                await late.close()
        return Response(status_code=499)
    finally:
        answering.cancel()
        waiting.cancel()


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", "invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "expected a JSON object with Content-Type application/json")
    return found


def make_front_app(front: Front) -> FastAPI:
    """The application around a front."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with front.running():
            yield

    app = FastAPI(
        title="FlashBack", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    _add_state(app, front)
    _add_sent_on(app, front)
    add_page(app)
    add_error_handlers(app)
    add_gate(app, front.settings, front.replicas.metrics.requests)
    return app


def _add_state(app: FastAPI, front: Front) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while a replica takes requests, 503 otherwise."""
        replicas = front.replicas.state()
        status = "ok" if any(one["up"] for one in replicas) else "no_replica"
        status = "stopping" if front.stopping else status
        record = {"status": status, "active": front.replicas.active, "replicas": replicas}
        return JSONResponse(record, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(front.replicas.render(), media_type=kind)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The models of all replicas, each once."""
        answers = await front.asked_all("GET", "/v1/models", request)
        lists = (got.get("data", []) for got in answers.values() if isinstance(got, dict))
        by_name = {one["id"]: one for found in lists for one in found}
        return {"object": "list", "data": [by_name[name] for name in sorted(by_name)]}

    @app.post("/v1/reload")
    async def reload(request: Request) -> dict[str, Any]:
        """Every replica takes the newest version of its index into use, now."""
        answers = await front.asked_all("POST", "/v1/reload", request)
        return {"object": "list", "replicas": answers}


def _add_sent_on(app: FastAPI, front: Front) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue prompts, or score them."""
        return await front.sent_on(request)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await front.sent_on(request)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST"])
    async def other(request: Request) -> Response:
        """Whatever else the replicas can do."""
        return await front.sent_on(request)


class FrontListener(uvicorn.Server):
    """A uvicorn server that lets requests end before it closes."""

    def __init__(self, front: Front) -> None:
        super().__init__(config_of(make_front_app(front), lifespan=True))
        self._front = front

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end within the grace, end the rest with an error, then close.

        A second signal ends all of them now.
        """
        front, loop = self._front, asyncio.get_running_loop()
        front.stopping = True
        ends = loop.time() + front.settings.grace
        while front.replicas.active and loop.time() < ends and not self.force_exit:
            await asyncio.sleep(_POLL)
        front.replicas.cut()
        await super().shutdown(sockets)


def serve_front(front: FrontSettings, settings: ServerSettings, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    with logged():
        FrontListener(Front(front, settings)).run(sockets=[bound])
