"""`flashback serve` in front of another server: several requests at a time, and its failures."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fake_vllm import MODEL, FakeVllm, HangUp, fake_vllm, until_left
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_wire import Wire
from flashback.errors import SettingsError
from flashback.readers.text_reader import TextReader
from flashback.server.service import make_service
from flashback.settings import RetrievalSettings
from flashback.wire.breaker import CircuitBreaker
from servers import Clock, QueryRetriever, Served, chat_reader, serving, until

FIELDS = {"flashback": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(chat_reader()) as found:
        yield found


@pytest.fixture(scope="module")
def served(fake: FakeVllm, clock: Clock) -> Iterator[Served]:
    tokenizer = fake.reader.tokenizer
    reader = TextReader(name="tiny", tokenizer=tokenizer, window=192, window_reason="a test")
    wire = Wire(
        RemoteSettings(base_url=fake.url),
        breaker=CircuitBreaker(5, 5.0, clock),
        sleep=lambda _: None,
    )
    engine = OpenAIEngine(wire, MODEL, 192)
    with serving(reader, QueryRetriever(), engine=engine, max_active=8) as found:
        yield found


@pytest.fixture(autouse=True)
def _whole(fake: FakeVllm, clock: Clock) -> Iterator[None]:
    yield
    fake.at_token = lambda *_: None
    fake.replies.clear()
    clock.advance(5.0)


def test_texts_are_those_of_the_engine_in_this_process(fake: FakeVllm, served: Served) -> None:
    with serving(fake.reader, QueryRetriever()) as local:
        for pattern in ("none", "append", "prepend"):
            fields = {"max_tokens": 14, "flashback": {"pattern": pattern, "ignore_eos": True}}
            theirs, ours = (one.complete("The tides", **fields) for one in (served, local))
            assert theirs["choices"] == ours["choices"]
            sources = [
                [stride["passages"] for stride in one["flashback"]["strides"]]
                for one in (theirs, ours)
            ]
            assert sources[0] == sources[1]


def test_requests_run_at_the_same_time(fake: FakeVllm, served: Served) -> None:
    together = threading.Barrier(4)
    fake.at_token = lambda number, _: together.wait(60) if number == 1 else None

    def ask(prompt: str) -> Any:
        return served.complete(prompt, max_tokens=4, **FIELDS)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, ["a", "b", "c", "d"]))
    assert all(one["choices"][0]["finish_reason"] == "length" for one in found)


def test_an_engine_that_is_down_is_503(fake: FakeVllm, served: Served) -> None:
    fake.replies += [(500, b"", {})]
    with served.http() as http:
        body = {"model": served.service.model, "prompt": "a", "max_tokens": 4}
        answer = http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"] == {
        "message": "the engine behind this server failed; try again in a moment",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert served.complete("a", max_tokens=4, **FIELDS)["choices"][0]["finish_reason"] == "length"


def test_one_that_dies_in_a_text_ends_it_with_an_event(fake: FakeVllm, served: Served) -> None:
    whole = served.complete("The tides", max_tokens=12, **FIELDS)["choices"][0]["text"]
    fake.requests.clear()

    def die(number: int, _: Any) -> None:
        if len(fake.requests) == 3 and number == 2:
            raise HangUp

    fake.at_token = die
    record = served.complete("The tides", max_tokens=12, **FIELDS)
    choice, own = record["choices"][0], record["flashback"]
    assert whole.startswith(choice["text"].rstrip("\ufffd"))
    assert choice["finish_reason"] == "length"
    assert record["usage"]["completion_tokens"] == 10
    assert [(one["event"], one["stride"]) for one in own["events"]] == [("engine_error", 2)]
    assert served.complete("The tides", max_tokens=12, **FIELDS)["choices"][0]["text"] == whole


def test_a_stream_tells_it_too(fake: FakeVllm, served: Served) -> None:
    fake.requests.clear()

    def die(number: int, _: Any) -> None:
        if len(fake.requests) == 2 and number == 1:
            raise HangUp

    fake.at_token = die
    client = served.client()
    stream = client.completions.create(
        model=served.service.model, prompt="a", max_tokens=12, stream=True, extra_body=FIELDS
    )
    events = [getattr(chunk, "flashback", None) or {} for chunk in stream]
    assert [one["event"] for one in events if "event" in one][-1] == "engine_error"


def test_a_client_that_leaves_ends_the_request_behind(fake: FakeVllm, served: Served) -> None:
    began, gone = threading.Event(), threading.Event()

    def wait(number: int, connection: Any) -> None:
        if number == 1:
            began.set()
            assert gone.wait(60)
        if number == 3:
            until_left(connection)

    fake.at_token = wait
    fake.broken.clear()
    with served.asked("a", max_tokens=4, stream=True, temperature=0):
        assert began.wait(60)
    until(lambda: served.load.active == 1)
    job = next(iter(served.service.scheduler._jobs))
    until(lambda: job.cancelled)
    gone.set()
    assert fake.broken.wait(60)
    until(lambda: served.load.active == 0)


def test_what_needs_the_model_here_is_refused_by_name(served: Served) -> None:
    with served.http() as http:
        for fields, named in (
            ({"logprobs": 1}, "logprobs"),
            ({"flashback": {"fresh_cache": True}}, "fresh_cache"),
            ({"flashback": {"pattern": "slot"}}, "slot"),
        ):
            body = {"model": served.service.model, "prompt": "a", "max_tokens": 2} | fields
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 400, answer.text
            assert named in answer.json()["error"]["message"]


def test_a_default_pattern_that_the_engine_cannot_have_is_refused_at_the_start(
    served: Served,
) -> None:
    generator, settings = served.service.generator, served.service.settings
    with pytest.raises(SettingsError, match="pattern='slot': this engine has no slot"):
        make_service(generator, settings, RetrievalSettings("slot"))
