"""The servers behind a front: which are there, what each has to do, and which one is next.

A replica is up after it answered a look, and lost when a connection to it breaks or two looks in a
row fail. Whoever waits for a lost replica is told at once.
"""

import asyncio
import contextlib
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from flashback.server.affinity import Bound, choose, weight
from flashback.server.errors import ApiError, stopping
from flashback.server.front_metrics import FrontMetrics
from flashback.server.front_settings import DNS, FrontSettings

T = TypeVar("T")

_FAILED_LOOKS = 2
"""In a row: a replica that is up is lost then."""


class ReplicaLost(Exception):
    """A replica that cannot be waited for any longer; the message says why."""

    error: ApiError | None = None
    """What clients are told, if it is not the replica's fault."""


class FrontStopped(ReplicaLost):
    """The front itself ends."""

    def __init__(self) -> None:
        super().__init__("the front stops")
        self.error = stopping()


@dataclass(eq=False)
class Replica:
    """One server, and the requests it has from this front."""

    url: str
    """Without a path."""
    up: bool = False
    failure: str = "not looked at yet"
    """Why it is not up; empty if it is."""
    models: tuple[str, ...] = ()
    active: int = 0
    failed_looks: int = 0
    lost: "asyncio.Future[ReplicaLost]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def rise(self, models: tuple[str, ...]) -> None:
        """It takes requests from now on."""
        self.up, self.failure, self.models, self.failed_looks = True, "", models, 0
        if self.lost.done():
            self.lost = asyncio.get_running_loop().create_future()

    def avoid(self, why: ReplicaLost) -> None:
        """It takes no new requests until it is looked at; those that it has may go on."""
        self.up, self.failure = False, str(why)

    def fall(self, why: ReplicaLost) -> None:
        """It takes none, and whoever waits for it need not any longer."""
        self.avoid(why)
        if not self.lost.done():
            self.lost.set_result(why)

    async def unless_lost(self, step: Coroutine[Any, Any, T]) -> T:
        """What a step returns.

        Raises:
            ReplicaLost: the replica is lost before, or the connection breaks.
        """
        lost, task = self.lost, asyncio.ensure_future(step)
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except httpx2.HTTPError as error:
            why = ReplicaLost(f"{type(error).__name__}: {error}".strip(": "))
            raise why from error
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx2.HTTPError):
                    await task
        raise lost.result()


class Replicas:
    """All of them, looked at again and again."""

    def __init__(self, settings: FrontSettings, client: httpx2.AsyncClient) -> None:
        """Know the addresses; look at none yet.

        Args:
            client: asks replicas.
        """
        self.settings = settings
        self._client = client
        self._bound = Bound(settings.load_factor, settings.free_requests)
        self._names = [url for url in settings.replicas if url.startswith(DNS)]
        self._fixed = {base_of(url) for url in settings.replicas if not url.startswith(DNS)}
        self._found: dict[str, set[str]] = {}
        self._risen = asyncio.Event()
        self.metrics = FrontMetrics()
        self.all: dict[str, Replica] = {}

    async def watch(self) -> None:
        """Look at all of them for ever."""
        while True:
            await asyncio.sleep(self.settings.check_every)
            await self.look()

    async def look(self) -> None:
        """Find the replicas, and ask each whether it is there."""
        await asyncio.gather(*(self._resolve(name) for name in self._names))
        wanted = self._fixed.union(*self._found.values())
        for url in wanted - set(self.all):
            self.all[url] = Replica(url)
        for url in set(self.all) - wanted:
            # What it has, it may finish.
            del self.all[url]
            self.metrics.forget(url)
        await asyncio.gather(*(self._look_at(one) for one in list(self.all.values())))

    async def _resolve(self, name: str) -> None:
        """The addresses of a name; those known before if there are none."""
        parts = urlsplit(name.removeprefix(DNS))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with contextlib.suppress(OSError, UnicodeError):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(parts.hostname, port, type=1)
            hosts = {str(address[0]) for *_, address in found}
            shown = (f"[{host}]" if ":" in host else host for host in hosts)
            self._found[name] = {f"{parts.scheme}://{host}:{port}" for host in shown}

    async def _look_at(self, replica: Replica) -> None:
        try:
            answer = await self._ask(replica, "/health")
            if answer.status_code >= 500:
                raise ReplicaLost(f"status {answer.status_code}")
            if not replica.up:
                replica.rise(_names_of(await self._ask(replica, "/v1/models")))
                self._risen.set()
                self._risen = asyncio.Event()
            replica.failed_looks = 0
        except (httpx2.HTTPError, ReplicaLost) as error:
            replica.failed_looks += 1
            why = f"{type(error).__name__}: {error}".strip(": ").removeprefix("ReplicaLost: ")
            if replica.failed_looks >= _FAILED_LOOKS or not replica.up:
                replica.fall(ReplicaLost(why))

    async def _ask(self, replica: Replica, path: str) -> httpx2.Response:
        return await self._client.get(replica.url + path, timeout=self.settings.check_limit)

    def next_for(
        self, key: str | None, model: object, tried: Collection[str]
    ) -> tuple[Replica, bool] | None:
        """The replica that a request goes to, and whether it belongs there; None: none is left.

        Those with the model, if there are any: else any may say that there is no such model.

        Args:
            tried: URLs of replicas that it was sent to; they may be up again.
        """
        up = [one for one in self.all.values() if one.up and one.url not in tried]
        fitting = [one for one in up if model in one.models] or up
        active = {one.url: one.active for one in fitting}
        if not active:
            return None
        url = choose(key, active, self._bound)
        home = key is None or url == max(active, key=lambda name: weight(key, name))
        return self.all[url], home

    async def risen(self, seconds: float) -> bool:
        """Whether a replica is up, or comes up within some seconds."""
        if not any(one.up for one in self.all.values()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._risen.wait(), seconds)
        return any(one.up for one in self.all.values())

    @property
    def active(self) -> int:
        """Requests of all replicas."""
        return sum(one.active for one in self.all.values())

    def state(self) -> list[dict[str, Any]]:
        """Of each replica, as plain data."""
        return [
            {
                "url": one.url,
                "up": one.up,
                "active": one.active,
                "models": list(one.models),
                **({"failure": one.failure} if one.failure else {}),
            }
            for one in self.all.values()
        ]

    def cut(self) -> None:
        """Give up all requests: the front ends."""
        for one in self.all.values():
            one.fall(FrontStopped())

    def render(self) -> bytes:
        """The metrics, with the state of each replica now."""
        for one in self.all.values():
            self.metrics.up.labels(one.url).set(one.up)
            self.metrics.active.labels(one.url).set(one.active)
        return self.metrics.render()


def base_of(url: str) -> str:
    """A server's address without a path."""
    return url.rstrip("/").removesuffix("/v1")


def _names_of(answer: httpx2.Response) -> tuple[str, ...]:
    """The models that a server lists; none if it lists nothing that can be read."""
    try:
        return tuple(str(one["id"]) for one in answer.json()["data"])
    except (ValueError, TypeError, KeyError):
        return ()
