"""What a front knows of its replicas: who is up, who is lost, who waits for whom."""

import asyncio

import httpx2
import pytest

from flashback.server.front_settings import FrontSettings
from flashback.server.replicas import FrontStopped, Replica, ReplicaLost, Replicas, base_of


class Servers:
    """Made-up servers: what each answers to a look."""

    def __init__(self) -> None:
        self.health: dict[str, int | None] = {"a": 200, "b": 200}
        """Statuses; None: the connection fails."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        status = self.health[request.url.host]
        if status is None:
            raise httpx2.ConnectError("refused", request=request)
        models = {"data": [{"id": f"model-{request.url.host}"}]}
        return httpx2.Response(status, json=models)


async def looked_at(servers: Servers) -> Replicas:
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(servers), verify=False)
    replicas = Replicas(FrontSettings(("http://a", "http://b/v1/")), client)
    await replicas.look()
    return replicas


def chosen(replicas: Replicas, model: str, *tried: str) -> str | None:
    found = replicas.next_for(None, model, tried)
    return None if found is None else found[0].url


def test_a_replica_is_lost_after_two_looks_in_a_row_and_returns_after_one() -> None:
    async def live() -> None:
        servers = Servers()
        replicas = await looked_at(servers)
        a, b = replicas.all["http://a"], replicas.all["http://b"]
        assert (a.up, b.up, a.models) == (True, True, ("model-a",))
        servers.health["a"] = None
        await replicas.look()
        assert a.up
        await replicas.look()
        assert (a.up, a.failure) == (False, "ConnectError: refused")
        assert not await Replicas(FrontSettings(("http://c",)), replicas._client).risen(0)
        servers.health["a"] = 503
        await replicas.look()
        assert a.failure == "status 503"
        servers.health["a"] = 404  # a server without such a path is there all the same
        await replicas.look()
        assert a.up
        assert await replicas.risen(0)

    asyncio.run(live())


def test_a_request_goes_to_a_replica_with_its_model() -> None:
    async def live() -> None:
        replicas = await looked_at(Servers())
        assert chosen(replicas, "model-b") == "http://b"
        assert chosen(replicas, "model-b", "http://b") == "http://a"  # which says that it has none
        assert chosen(replicas, "another") == "http://a"
        assert chosen(replicas, "another", "http://a", "http://b") is None

    asyncio.run(live())


def test_whoever_waits_for_a_lost_replica_is_told_at_once() -> None:
    async def live() -> None:
        replica = Replica("http://a")
        replica.rise(())
        waiting = asyncio.create_task(replica.unless_lost(asyncio.Event().wait()))
        await asyncio.sleep(0)
        replica.avoid(ReplicaLost("a connection broke"))
        await asyncio.sleep(0)
        assert not waiting.done()  # others may still get their answers
        replica.fall(ReplicaLost("no answer"))
        with pytest.raises(ReplicaLost, match="no answer"):
            await waiting
        replica.rise(())
        assert await replica.unless_lost(asyncio.sleep(0, "said"))

    asyncio.run(live())


def test_a_front_that_ends_says_so() -> None:
    async def live() -> None:
        replicas = await looked_at(Servers())
        replicas.cut()
        with pytest.raises(FrontStopped) as raised:
            await replicas.all["http://a"].unless_lost(asyncio.Event().wait())
        assert raised.value.error is not None
        assert raised.value.error.code == "shutting_down"

    asyncio.run(live())


def test_an_address_has_no_path() -> None:
    assert {base_of(url) for url in ("http://a", "http://a/", "http://a/v1/")} == {"http://a"}
