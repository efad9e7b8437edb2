"""A front before real servers on sockets: who answers, and what happens when one is lost."""

import asyncio
import itertools
import json
import random
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import refused
from flashback.server.affinity import Bound, choose, conversation_key
from flashback.server.errors import stopping
from flashback.server.held_events import error_event, events_of, has_begun, is_stopping
from fronts import Cable, Fronted, cables, fronting
from servers import HookedEngine, Served, serving, until

PROMPTS = [f"The tides number {number}" for number in range(16)]


@dataclass
class Site:
    """Three servers behind cables, and a front before them."""

    servers: list[Served]
    cables: list[Cable]
    front: Fronted

    @property
    def model(self) -> str:
        return self.servers[0].service.model

    def body(self, prompt: str, **fields: Any) -> dict[str, Any]:
        base = {"model": self.model, "prompt": prompt, "max_tokens": 24, "temperature": 0}
        return base | {"flashback": {"ignore_eos": True}} | fields

    def home(self, prompt: str) -> int:
        """The number of the server that a prompt belongs to."""
        urls = [cable.url for cable in self.cables]
        key = conversation_key({"prompt": prompt})
        return urls.index(choose(key, dict.fromkeys(urls, 0), Bound()))

    def whole(self, prompt: str, **fields: Any) -> httpx2.Response:
        with self.front.http() as http:
            return http.post("/v1/completions", json=self.body(prompt, **fields))

    def streamed(self, prompt: str) -> tuple[str, str]:
        """The text of a stream, and how it ended: `[DONE]` or the code of an error."""
        text, end = "", "nothing"
        body = self.body(prompt, stream=True)
        with self.front.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return "", json.loads(answer.read())["error"]["code"]
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                assert end == "nothing"
                data = line.removeprefix("data: ")
                chunk = {} if data == "[DONE]" else json.loads(data)
                text += "".join(choice["text"] for choice in chunk.get("choices", []))
                end = data if data == "[DONE]" else chunk.get("error", {}).get("code", end)
        return text, end

    def hooks(self, number: int) -> list[Any]:
        engine = self.servers[number].service.engine
        assert isinstance(engine, HookedEngine)
        return engine.hooks


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Served]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(max_queue=64)) for _ in range(3)]


@pytest.fixture
def site(servers: list[Served]) -> Iterator[Site]:
    with (
        cables(*(one.url for one in servers)) as between,
        fronting(*(cable.url for cable in between), tries=1000, wait_limit=60) as front,
    ):
        site = Site(servers, between, front)
        until(lambda: len(front.up()) == 3)
        try:
            yield site
        finally:
            for number in range(3):
                site.hooks(number).clear()


@pytest.fixture(scope="module")
def alone(servers: list[Served]) -> dict[str, str]:
    """What a single server writes."""
    fields = {"max_tokens": 24, "flashback": {"ignore_eos": True}}
    return {
        prompt: servers[0].complete(prompt, **fields)["choices"][0]["text"] for prompt in PROMPTS
    }


def test_a_conversation_stays_where_it_is_cached(site: Site) -> None:
    client = openai.OpenAI(base_url=f"{site.front.url}/v1", api_key="none", max_retries=0)
    cached = []
    for prompt in PROMPTS[:6]:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        for _ in range(2):
            answer = client.chat.completions.create(
                model=site.model, messages=messages, max_tokens=4, temperature=0
            )
            said = answer.choices[0].message.content
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "b"}]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    client.close()
    assert all(cached)


def test_the_answers_are_those_of_a_single_server(site: Site, alone: dict[str, str]) -> None:
    for prompt in PROMPTS[:3]:
        assert site.whole(prompt).json()["choices"][0]["text"] == alone[prompt]
        assert site.streamed(prompt) == (alone[prompt], "[DONE]")
    refusal = site.whole("a", max_tokens=-1)
    assert refusal.status_code == 400
    assert refusal.json()["error"]["param"] == "max_tokens"
    with site.front.http() as http:
        answer = http.post("/v1/completions", content=b"{")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
        assert http.post("/v1/completions", json=[1]).status_code == 400
        assert http.get("/v1/models/none-of-them").status_code == 404
        assert http.get(f"/v1/models/{site.model}").json()["id"] == site.model
        assert [one["id"] for one in http.get("/v1/models").json()["data"]] == [site.model]
        assert http.get("/").text.startswith("<!doctype html>")
        found = http.post("/v1/retrieve", json={"queries": ["tides"]}).json()["results"]
        assert found[0]["passages"]
        assert http.post("/v1/reload").status_code == 503  # no replica has an index that changes


@pytest.mark.parametrize("streamed", [False, True])
def test_a_replica_that_dies_before_its_first_text_costs_no_request(
    site: Site, alone: dict[str, str], streamed: bool
) -> None:
    prompt = PROMPTS[0]
    home = site.home(prompt)
    hooks, cable = site.hooks(home), site.cables[home]

    def die(_: int) -> None:
        hooks.clear()
        cable.cut()

    hooks.append(die)
    if streamed:
        assert site.streamed(prompt) == (alone[prompt], "[DONE]")
    else:
        assert site.whole(prompt).json()["choices"][0]["text"] == alone[prompt]
    until(lambda: len(site.front.up()) == 2)
    with site.front.http() as http:
        dead = [one for one in http.get("/health").json()["replicas"] if not one["up"]]
        counts = http.get("/metrics").text
    assert [one["url"] for one in dead] == [cable.url]
    assert dead[0]["failure"]
    assert f'flashback_front_failures_total{{replica="{cable.url}",when="before"}}' in counts
    assert f'flashback_front_replica_up{{replica="{cable.url}"}} 0.0' in counts
    cable.mend()
    until(lambda: len(site.front.up()) == 3)


def test_a_replica_that_dies_while_it_writes_ends_the_text_with_an_error(
    site: Site, alone: dict[str, str]
) -> None:
    prompt = PROMPTS[1]
    home, hooks, seen = site.home(prompt), site.hooks(site.home(prompt)), threading.Event()
    tokens = iter(range(100))

    def cut_later(_: int) -> None:
        if next(tokens) == 12:
            seen.wait()  # until the client has text
            site.cables[home].cut()

    hooks.append(cut_later)
    body = site.body(prompt, stream=True)
    text, codes = "", []
    with site.front.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                text += "".join(choice["text"] for choice in chunk.get("choices", []))
                codes += [chunk["error"]["code"]] if "error" in chunk else []
                seen.set() if text else None
            assert line != "data: [DONE]"
    assert codes == ["replica_lost"]
    assert 0 < len(text) < len(alone[prompt])
    assert alone[prompt].startswith(text)
    hooks.clear()
    site.cables[home].mend()
    until(lambda: len(site.front.up()) == 3)
    assert site.streamed(prompt) == (alone[prompt], "[DONE]")
    until(lambda: site.front.front.replicas.active == 0)


class Deaths:
    """At every 151st token, on whatever replica, one dies, or the dead one returns."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._draw = random.Random(0)
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._down: list[Cable] = []
        self.count = 0

    def __call__(self, _: int) -> None:
        with self._lock:
            if next(self._tokens) % 151:
                return
            if self._down:
                self._down.pop().mend()
            elif len(self._site.front.up()) == 3:
                self._down.append(self._draw.choice(self._site.cables))
                self._down[0].cut()
                self.count += 1


def test_replicas_die_and_return_while_sixteen_clients_write(
    site: Site, alone: dict[str, str]
) -> None:
    deaths = Deaths(site)
    for number in range(3):
        site.hooks(number).append(deaths)

    def ask(number: int) -> tuple[str, str, str]:
        """Three of four are streamed."""
        prompt = PROMPTS[number % 16]
        if number % 4:
            return prompt, *site.streamed(prompt)
        answer = site.whole(prompt)
        assert answer.status_code == 200, answer.text
        return prompt, answer.json()["choices"][0]["text"], "[DONE]"

    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(ask, range(64)))
    assert deaths.count >= 3
    ends = [end for _, _, end in seen]
    assert set(ends) <= {"[DONE]", "replica_lost"}
    for prompt, text, end in seen:
        assert text == alone[prompt] if end == "[DONE]" else alone[prompt].startswith(text)
    for cable in site.cables:
        cable.mend()
    until(lambda: len(site.front.up()) == 3)
    until(lambda: site.front.front.replicas.active == 0)


def test_a_request_that_replicas_die_of_is_given_up(servers: list[Served]) -> None:
    urls = [one.url for one in servers]
    with cables(*urls) as between, fronting(*(one.url for one in between), tries=2) as front:
        until(lambda: len(front.up()) == 3)
        site = Site(servers, between, front)
        for number in range(3):
            site.hooks(number).append(lambda _, cable=between[number]: cable.cut())
        answer = site.whole("a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
        assert "2 were lost over this request" in answer.json()["error"]["message"]
        until(lambda: len(front.up()) == 1)
        for number in range(3):
            site.hooks(number).clear()
        assert site.whole("a").status_code == 200


def test_a_hot_conversation_does_not_fill_one_replica(site: Site) -> None:
    waiting, go = threading.Semaphore(0), threading.Event()

    def hold(_: int) -> None:
        waiting.release()
        go.wait()

    for number in range(3):
        site.hooks(number).append(hold)
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(site.whole, PROMPTS[0], max_tokens=1) for _ in range(12)]
        until(lambda: site.front.front.replicas.active == 12)
        counts = sorted(one.active for one in site.front.front.replicas.all.values())
        go.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert counts[-1] <= 8
    assert counts[1] >= 4


def test_a_client_that_leaves_leaves_the_replica_too(site: Site) -> None:
    prompt = PROMPTS[2]
    arrived, go = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        arrived.set()
        go.wait()

    site.hooks(site.home(prompt)).append(hold)
    body = site.body(prompt)
    with site.front.http() as http:
        limit = httpx2.Timeout(60, read=0.5)
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=limit)
    assert arrived.is_set()
    until(lambda: site.front.front.replicas.active == 0)
    go.set()
    until(lambda: site.servers[site.home(prompt)].load.active == 0)


def test_without_replicas_requests_wait_until_one_is_there(site: Site) -> None:
    for cable in site.cables:
        cable.cut()
    until(lambda: not site.front.up())
    with site.front.http() as http:
        assert http.get("/health").status_code == 503
        assert http.get("/v1/models").status_code == 503
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.whole, "a")
        site.cables[1].mend()
        assert answer.result().status_code == 200


def test_without_replicas_requests_are_refused_at_last() -> None:
    with fronting("http://127.0.0.1:9", wait_limit=0) as front, front.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert answer.headers["retry-after"]


def test_a_replica_that_stops_hands_its_requests_on(alone: dict[str, str]) -> None:
    with serving() as one, serving() as other, fronting(one.url, other.url) as front:
        until(lambda: len(front.up()) == 2)
        site = Site([one, other], [], front)
        prompt = PROMPTS[3]
        key = conversation_key({"prompt": prompt})
        home = choose(key, {one.url: 0, other.url: 0}, Bound())
        served = one if home == one.url else other
        engine = served.service.engine
        assert isinstance(engine, HookedEngine)
        arrived, go = threading.Event(), threading.Event()

        def hold(_: int) -> None:
            arrived.set()
            go.wait()

        engine.hooks.append(hold)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(site.streamed, prompt)
            arrived.wait()
            served.stop()
            until(lambda: not served.service.scheduler.is_alive)
            until(lambda: front.up() == [({one.url, other.url} - {home}).pop()])
            go.set()
            assert answer.result() == (alone[prompt], "[DONE]")


def test_a_front_that_stops_ends_what_it_cannot_finish(site: Site) -> None:
    prompt = PROMPTS[4]
    arrived, go = threading.Event(), threading.Event()
    tokens = iter(range(100))

    def hold(_: int) -> None:
        if next(tokens) == 8:
            arrived.set()
            go.wait()

    site.hooks(site.home(prompt)).append(hold)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.streamed, prompt)
        arrived.wait()
        site.front.stop()
        text, end = answer.result()
    go.set()
    assert end == "shutting_down"
    assert text


def test_a_front_asks_for_its_own_key(site: Site) -> None:
    urls = [cable.url for cable in site.cables]
    with fronting(*urls, api_key="secret") as front:
        until(lambda: len(front.up()) == 3)
        with front.http() as http:
            assert http.post("/v1/completions", json=site.body("a")).status_code == 401
        with front.http(headers={"Authorization": "Bearer secret"}) as http:
            assert http.post("/v1/completions", json=site.body("a")).status_code == 200


def test_the_addresses_of_a_name_are_replicas(site: Site) -> None:
    url = site.cables[0].url
    with fronting(url.replace("http://127.0.0.1", "dns+http://localhost")) as front:
        until(lambda: url in front.up())
        with front.http() as http:
            assert http.post("/v1/completions", json=site.body("a")).status_code == 200


TEXT = b'data: {"choices": [{"text": "a"}]}\n\n'
EMPTY = b'data: {"choices": [{"text": "", "finish_reason": null}]}\n\n'


@given(
    st.lists(st.sampled_from([TEXT, EMPTY, b": comment\n\n", b"data: [DONE]\r\n\r\n"])),
    st.lists(st.integers(0, 400)),
)
def test_events_are_whole_however_they_arrive(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(events)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})

    async def parts() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(edges):
            yield stream[start:end]

    async def found() -> list[bytes]:
        return [event async for event in events_of(parts())]

    assert asyncio.run(found()) == events


@pytest.mark.parametrize(
    ("event", "begun"),
    [
        (TEXT, True),
        (EMPTY, False),
        (b": ping\n\n", False),
        (b"data: [DONE]\n\n", True),
        (b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n', False),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', True),
        (b'data: {"choices": [{"delta": {"tool_calls": [{}]}}]}\n\n', True),
        (b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n', True),
        (b'data: {"choices": []}\n\n', False),
        (b'data: {"error": {"code": "x"}}\n\n', True),
        (b"data: 3\n\n", True),
    ],
)
def test_an_answer_begins_with_its_first_text(event: bytes, begun: bool) -> None:
    assert has_begun(event) is begun


def test_a_server_that_stops_is_told_from_other_errors() -> None:
    assert is_stopping(error_event(stopping()))
    assert not is_stopping(b'data: {"error": {"code": "internal_error"}}\n\n')
    assert not is_stopping(TEXT)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--replica", "host:8000"], "--replica host:8000: expected a server's address"),
        (["--replica", "http://a/x?y"], "expected a server's address, such as http://host:8000"),
        (["--replica", "http://a", "--model", "x"], "--model: not with --replica; give it to the"),
        (["--check-every", "3"], "--check-every: only with --replica"),
    ],
)
def test_what_a_front_cannot_have_is_one_line(arguments: list[str], line: str) -> None:
    assert line in refused("serve", *arguments)
