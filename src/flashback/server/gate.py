"""A middleware: limits of size, the API key, the log line, and errors without internals.

Pure ASGI, so that streams and disconnections pass through untouched.
"""

import hmac
import json
import logging
import secrets
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashback.server.errors import ApiError, internal

_LOG = logging.getLogger("flashback.server")
_OPEN = ("/", "/health")
"""Answered without a key: the page asks for it, and a health check has none."""
_PAGE = "/playground/"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
]


def answers_counter(registry: CollectorRegistry) -> Counter:
    """The counter of answers, which every application's gate has."""
    name, labels = "flashback_requests", ("path", "status")
    return Counter(name, "Answers by path and status", labels, registry=registry)


class Gate:
    """A middleware around the whole application."""

    def __init__(self, app: ASGIApp, requests: Counter, api_key: str, max_bytes: int) -> None:
        self._app = app
        self._requests = requests
        self._key = api_key.encode()
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_bytes)
        try:
            self._check(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await exchange.refuse(error)
        except Exception:
            _LOG.exception("a request failed")
            await exchange.refuse(internal())
        finally:
            self._account(exchange)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if self._key and path not in _OPEN and not path.startswith(_PAGE):
            self._check_key(headers.get(b"authorization", b""))
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            raise _too_large(self._max_bytes)

    def _check_key(self, header: bytes) -> None:
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise ApiError(
                401,
                "this server asks for a key: send the header Authorization: Bearer KEY",
                "invalid_api_key",
            )

    def _account(self, exchange: "_Exchange") -> None:
        scope = exchange.scope
        route = scope.get("route")
        path = getattr(route, "path", "other")  # not the path itself: there may be any number
        status = exchange.status or 499
        self._requests.labels(path, str(status)).inc()
        record: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": exchange.id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(time.perf_counter() - exchange.began, 4),
            **scope.get("state", {}).get("log", {}),
        }
        _LOG.info(json.dumps(record, ensure_ascii=False))


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; expected at most {most} bytes", "body_too_large")


class _Exchange:
    """A request and its answer: limits the bytes of the body, notes the status."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self.scope = scope
        self.id = secrets.token_hex(8)
        self.began = time.perf_counter()
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._most = max_bytes
        self._left = max_bytes

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                error = _too_large(self._most)
                # The one exception that the framework lets through while it reads a body.
                raise HTTPException(error.status, error.message)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*_SAFE, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": [*message["headers"], *own]}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        if self.status is None:  # else the answer has begun, and can only break off
            response = JSONResponse(error.body(), error.status, error.headers)
            await response(self.scope, self._receive, self.send)
