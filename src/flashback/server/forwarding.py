"""One request on its way to a replica, and its answer on the way back.

An answer is held back until something of it would be seen: its first text, or all of it if it is
not streamed. Until then a replica that is lost costs nothing but the time; the request goes to the
next one. Behind that nothing is sent again: the stream ends with an error event.
"""

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import httpx2
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from flashback.server.errors import ApiError
from flashback.server.front_metrics import FrontMetrics
from flashback.server.held_events import error_event, events_of, has_begun, is_stopping
from flashback.server.replicas import Replica, ReplicaLost, Replicas

_LOG = logging.getLogger("flashback.server")
_ELSEWHERE = (429, 502, 503, 504)
"""Statuses of a replica that another one may not have."""
_SENT_ON = ("content-type", "retry-after", "cache-control")
_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Forwarded:
    """A request as it is sent on."""

    method: str
    path: str
    content: bytes
    headers: Mapping[str, str]
    key: str | None
    """Of its conversation; see `conversation_key`."""
    model: object = None
    """As it is asked for."""
    log: dict[str, object] = field(default_factory=dict)
    """What the log says of it."""


async def forward(asked: Forwarded, replicas: Replicas, client: httpx2.AsyncClient) -> Response:
    """The answer of the first replica that gives one.

    Raises:
        ApiError: no replica is up, or several were lost over the request.
    """
    refused: dict[str, Response] = {}
    lost: list[str] = []
    while replica := await _next(asked, replicas, refused, lost):
        attempt = Attempt(asked, replica, client, replicas.metrics)
        try:
            answer = await attempt.begun()
        except ReplicaLost as why:
            await attempt.close()
            if why.error is not None:
                raise why.error from why
            attempt.note(why, "before")
            lost.append(replica.url)
            continue
        except BaseException:
            await attempt.close()
            raise
        if answer.status_code not in _ELSEWHERE:
            return answer
        refused[replica.url] = answer
    if refused:
        return list(refused.values())[-1]
    raise no_replica(len(lost))


async def _next(
    asked: Forwarded, replicas: Replicas, refused: Collection[str], lost: Sequence[str]
) -> Replica | None:
    """The replica to try now; None: there is none, or enough were lost.

    One that was lost is tried again only after all others, if it is up again.
    """
    if len(lost) >= replicas.settings.tries:
        return None
    found = replicas.next_for(asked.key, asked.model, {*refused, *lost})
    if found is None and not refused and await replicas.risen(replicas.settings.wait_limit):
        found = replicas.next_for(asked.key, asked.model, ())
    if found is None:
        return None
    replica, home = found
    tries = 1 + len(refused) + len(lost)
    why = "again" if tries > 1 else "home" if home else "spread"
    replicas.metrics.sent.labels(replica.url, why).inc()
    asked.log.update(replica=replica.url, tries=tries)
    return replica


def no_replica(lost: int = 0) -> ApiError:
    """Nobody is there to answer, or several were lost over one request."""
    found = f"{lost} were lost over this request" if lost else "none is up"
    return ApiError(
        503, f"no replica answers: {found}; try again in a moment", "no_replica", retry_after=1
    )


class Attempt:
    """A request at one replica."""

    def __init__(
        self,
        asked: Forwarded,
        replica: Replica,
        client: httpx2.AsyncClient,
        metrics: FrontMetrics,
    ) -> None:
        """Count it at the replica; nothing is sent yet."""
        self._asked = asked
        self._replica = replica
        self._client = client
        self._metrics = metrics
        self._response: httpx2.Response | None = None
        self._open = True
        replica.active += 1

    async def begun(self) -> Response:
        """The answer, once something of it would be seen.

        Raises:
            ReplicaLost: the replica is lost before.
        """
        asked, replica = self._asked, self._replica
        request = self._client.build_request(
            asked.method, replica.url + asked.path, content=asked.content, headers=asked.headers
        )
        response = await replica.unless_lost(self._client.send(request, stream=True))
        self._response = response
        sent_on = {name: response.headers[name] for name in _SENT_ON if name in response.headers}
        if not response.headers.get("content-type", "").startswith(_STREAM):
            content = await replica.unless_lost(response.aread())
            await self.close()
            return Response(content, response.status_code, sent_on)
        events = events_of(response.aiter_bytes())
        held = await self._held(events)
        return Relay(self._relayed(held, events), response.status_code, sent_on, self)

    async def _held(self, events: AsyncIterator[bytes]) -> list[bytes]:
        """The events up to the first one that shows something."""
        held: list[bytes] = []
        while (event := await self._next(events)) is not None:
            if is_stopping(event):
                raise ReplicaLost("it is shutting down")
            held.append(event)
            if has_begun(event):
                break
        return held

    async def _next(self, events: AsyncIterator[bytes]) -> bytes | None:
        async def step() -> bytes | None:
            return await anext(events, None)

        return await self._replica.unless_lost(step())

    async def _relayed(
        self, held: list[bytes], events: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        try:
            for one in held:
                yield one
            while (event := await self._next(events)) is not None:
                yield event
        except ReplicaLost as lost:
            if lost.error is None:
                self.note(lost, "behind")
            yield error_event(lost.error or _broken())

    def note(self, lost: ReplicaLost, when: str) -> None:
        """Count a replica that failed on this request, and avoid it until it is looked at.

        Args:
            when: `before` or `behind` the first text.
        """
        self._metrics.failures.labels(self._replica.url, when).inc()
        self._asked.log.setdefault("lost", f"{self._replica.url}: {lost}")
        _LOG.warning("replica %s failed %s its first text: %s", self._replica.url, when, lost)
        self._replica.avoid(lost)

    async def close(self) -> None:
        """Leave the replica, which stops writing if it still does. More than once is harmless."""
        if self._open:
            self._open = False
            self._replica.active -= 1
            if self._response is not None:
                with anyio.CancelScope(shield=True):
                    await self._response.aclose()


def _broken() -> ApiError:
    return ApiError(
        502,
        "the replica that wrote this was lost; what is above is as it was written, send the "
        "request again",
        "replica_lost",
    )


class Relay(StreamingResponse):
    """A stream that is sent on, and whose replica is left when it ends."""

    def __init__(
        self, events: AsyncIterator[bytes], status: int, headers: dict[str, str], attempt: Attempt
    ) -> None:
        super().__init__(events, status, headers)
        self._attempt = attempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.close()

    async def close(self) -> None:
        """Leave the replica; see `Attempt.close`."""
        await self._attempt.close()
