"""Many clients at once, faults and shutdowns: nobody starves, nothing hangs, nothing leaks."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest
from torch import Tensor

from command_line import start
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import CacheUse
from flashback.errors import SettingsError
from flashback.readers.reader import Reader
from flashback.retrieval.guard import within
from flashback.scoring.given import TopModel
from flashback.server import searching
from flashback.server.scheduler import Job
from flashback.server.server_settings import MIB, ServerSettings
from flashback.server.service import make_service
from flashback.settings import RetrievalSettings
from flashback.writing.generator import Generator
from servers import (
    DEFAULTS,
    MINUTES,
    Clock,
    ForcedEngine,
    HookedEngine,
    QueryRetriever,
    Served,
    chat_reader,
    serving,
    until,
)

ENDLESS: dict[str, Any] = {"flashback": {"ignore_eos": True}}


def broken() -> None:
    raise OSError("/secret/path is gone")


def hold(until_set: threading.Event, at: Callable[[], bool] = lambda: True) -> Callable[[], None]:
    """A search, or a token, that takes until an event is set, if a condition is true before it."""

    def wait() -> None:
        if at():
            assert until_set.wait(MINUTES)

    return wait


class Shared:
    """The server of most tests here, with hooks."""

    def __init__(self, served: Served, engine: HookedEngine, retriever: QueryRetriever) -> None:
        self.served = served
        self.engine = engine
        self.retriever = retriever

    def reset(self) -> None:
        """Without hooks, and without requests."""
        self.engine.hooks.clear()
        self.retriever.before.clear()
        self.retriever.queries.clear()
        until(lambda: self.served.load.active == 0)

    def hold_first_until_two(self) -> list[int]:
        """Hold the first token until there is a second request.

        Returns:
            The most tokens of the completion of every token, in the order of all tokens: a list
            that grows.
        """
        order: list[int] = []

        def hook(size: int) -> None:
            order.append(size)
            if len(order) == 1:
                until(lambda: sum((self.served.load.active, self.served.load.waiting)) == 2)

        self.engine.hooks.append(hook)
        return order


@pytest.fixture(scope="module")
def _shared() -> Iterator[Shared]:
    retriever, reader = QueryRetriever(), chat_reader(window=1024)
    engine = HookedEngine(reader, 64 * MIB)
    with serving(reader, retriever, engine=engine) as served:
        yield Shared(served, engine, retriever)


@pytest.fixture
def shared(_shared: Shared) -> Iterator[Shared]:
    _shared.reset()
    yield _shared
    _shared.reset()


@pytest.fixture
def cancelled(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a job of the shared server is cancelled, and when one has ended."""
    found, scheduler = threading.Event(), shared.served.service.scheduler
    cancel = scheduler.cancel

    def seen(job: Job) -> None:
        cancel(job)
        found.set()

    monkeypatch.setattr(scheduler, "cancel", seen)
    return found


def test_clients_at_once_get_what_they_get_alone() -> None:
    """Prompts with a common beginning, patterns that differ, little memory for their caches."""
    patterns = ["append", "prepend", "none", "slot"]
    asked = [
        {
            "prompt": f"The tides follow {number // 2}",
            "max_tokens": 17,
            "logprobs": 1,
            "flashback": {"pattern": patterns[number % 4]},
        }
        for number in range(8)
    ]
    with serving(memory=1, max_active=5) as served, ThreadPoolExecutor(8) as pool:
        alone = [served.complete(**one)["choices"] for one in asked]
        together = list(pool.map(lambda one: served.complete(**one)["choices"], asked))
    for one, other in zip(alone, together, strict=True):
        assert one[0]["text"] == other[0]["text"]
        ours, theirs = (c[0]["logprobs"]["token_logprobs"] for c in (one, other))
        assert ours == pytest.approx(theirs, abs=1e-4)


PLAIN: dict[str, Any] = {"flashback": {"pattern": "none", "ignore_eos": True}}


def test_a_short_request_does_not_wait_for_a_long_one(shared: Shared) -> None:
    """It has its turn after two strides of the long one at most: the running one and its next."""
    order = shared.hold_first_until_two()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(shared.served.complete, "a long one", max_tokens=60, **PLAIN)
        until(lambda: bool(order) or long.done())
        shared.served.complete("a short one", max_tokens=3, **PLAIN)
        assert long.result()["usage"]["completion_tokens"] == 60
    first = order.index(3)
    assert first <= 2 * DEFAULTS.stride
    assert order[first:] == [3] * 3 + [4] * (60 - first)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    held = threading.Event()
    retriever, reader = QueryRetriever(), chat_reader()
    retriever.before.append(hold(held))
    with (
        serving(
            reader, retriever, engine=ForcedEngine(reader, "a"), max_active=1, max_queue=1
        ) as served,
        ThreadPoolExecutor(2) as pool,
    ):
        first = [pool.submit(served.complete, max_tokens=4) for _ in range(2)]
        until(lambda: served.load.waiting == 1)
        with pytest.raises(openai.RateLimitError) as error:
            served.client().completions.create(model="llama", prompt="one too many")
        held.set()
        assert [one.result()["choices"][0]["finish_reason"] for one in first] == ["length"] * 2
    assert int(error.value.response.headers["retry-after"]) >= 1
    assert error.value.code == "queue_full"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_costs_nothing_more(
    shared: Shared, cancelled: threading.Event, stream: bool
) -> None:
    tokens: list[int] = []

    def hook(size: int) -> None:
        tokens.append(size)
        hold(cancelled, lambda: len(tokens) == 10)()

    shared.engine.hooks.append(hook)
    served, asked = shared.served, {"max_tokens": 2000} | ENDLESS
    if stream:
        body = {"model": "llama", "prompt": "a", "stream": True} | asked
        with served.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    else:
        with served.asked(**asked):
            until(lambda: len(tokens) == 10)
    until(lambda: served.load.active == 0)
    assert len(tokens) <= 11
    shared.engine.hooks.clear()
    assert served.complete("b", max_tokens=4)["usage"]["completion_tokens"] == 4


def test_a_request_that_takes_too_long_ends_with_what_there_is() -> None:
    clock, retriever, reader = Clock(), QueryRetriever(), chat_reader(window=512)
    retriever.before.append(lambda: clock.advance(0.1))
    engine = ForcedEngine(reader, "a")
    with serving(reader, retriever, engine=engine, clock=clock, time_limit=0.3) as served:
        answer = served.complete("a", max_tokens=100)
    assert 0 < answer["usage"]["completion_tokens"] < 100
    assert answer["choices"][0]["finish_reason"] == "length"
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


def test_a_client_that_leaves_the_queue_is_done_with(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flashback.server")
    held = threading.Event()
    retriever, reader = QueryRetriever(), chat_reader()
    retriever.before.append(hold(held))
    with (
        serving(
            reader, retriever, engine=ForcedEngine(reader, "a"), max_active=1, max_queue=1
        ) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(served.complete, max_tokens=4)
        until(lambda: served.load.active == 1)
        with served.asked():
            until(lambda: served.load.waiting == 1)
        until(lambda: served.load.waiting == 0)
        until(lambda: len(caplog.records) == 1)  # its line, while the first one is still writing
        held.set()
        assert first.result()["usage"]["completion_tokens"] == 4


TURN = 64
"""Tokens of a long stride after which others have a turn."""
LONG_STRIDE: dict[str, Any] = {"flashback": {"stride": 500, "ignore_eos": True, "pattern": "none"}}


def test_a_long_stride_leaves_turns_to_others(shared: Shared) -> None:
    order = shared.hold_first_until_two()
    with ThreadPoolExecutor(1) as pool:
        options = {"stride": 200, "pattern": "none", "ignore_eos": True}
        long = pool.submit(shared.served.complete, max_tokens=200, flashback=options)
        until(lambda: bool(order) or long.done())
        shared.served.complete("a short one", max_tokens=4, **PLAIN)
        answer = long.result()
    assert order.index(4) <= 2 * TURN
    assert answer["usage"]["completion_tokens"] == 200
    assert len(answer["flashback"]["strides"]) == 1


def slow_engine(reader: Reader, byte: str, clock: Clock, seconds: float) -> ForcedEngine:
    """Every token takes so many seconds of a clock."""
    return ForcedEngine(reader, byte, lambda _: clock.advance(seconds))


def test_a_long_stride_ends_when_its_time_is_over() -> None:
    clock, reader = Clock(), chat_reader(window=4096)
    engine = slow_engine(reader, "a", clock, 0.01)
    with serving(reader, engine=engine, clock=clock, time_limit=0.5) as served:
        answer = served.complete("a", max_tokens=500, **LONG_STRIDE)
    assert 50 <= answer["usage"]["completion_tokens"] <= 53
    assert answer["choices"][0]["finish_reason"] == "length"
    (stride,) = answer["flashback"]["strides"]
    assert stride["end"] == len(answer["choices"][0]["text"])
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


def test_tokens_without_text_leave_turns_and_end_in_time() -> None:
    """An engine that writes the end of the text for ever."""
    clock, reader = Clock(), chat_reader(window=4096)
    engine = slow_engine(reader, "EOS", clock, 0.005)
    with (
        serving(reader, engine=engine, clock=clock, time_limit=2.0) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        shared = Shared(served, cast("HookedEngine", engine), QueryRetriever())
        order = shared.hold_first_until_two()
        long = pool.submit(served.complete, "a", max_tokens=500, **LONG_STRIDE)
        until(lambda: bool(order) or long.done())
        served.complete("b", max_tokens=2, flashback={"pattern": "none"})
        answer = long.result()
    assert order.index(2) <= 2 * TURN
    assert 400 <= answer["usage"]["completion_tokens"] <= 403
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


@pytest.mark.parametrize("fault", ["late", "broken"])
def test_what_was_held_back_is_given_out_when_a_text_is_cut_off(fault: str) -> None:
    """The beginning of a stop text that never came."""
    clock, retriever, reader = Clock(), QueryRetriever(), chat_reader(window=512)
    engine = slow_engine(reader, "a", clock, 0.04)
    limit = 0.5 if fault == "late" else 1e5
    with serving(reader, retriever, engine=engine, clock=clock, time_limit=limit) as served:
        if fault == "broken":
            retriever.before.append(lambda: broken() if len(retriever.queries) > 1 else None)
        stop, stride = "a" * 200 + "b", 8 if fault == "broken" else 4
        answer = served.complete(
            max_tokens=100, stop=stop, logprobs=0, flashback={"stride": stride}
        )
    (choice,), count = answer["choices"], answer["usage"]["completion_tokens"]
    assert 0 < count < 100
    assert choice["text"] == "a" * count
    if fault == "late":
        assert answer["flashback"]["strides"][-1]["end"] == count
    assert choice["logprobs"]["tokens"] == ["a"] * count
    (event,) = answer["flashback"]["events"]
    assert event["event"] == ("retrieval_error" if fault == "broken" else "time_limit")


def test_a_text_that_ended_by_itself_was_not_cut_off() -> None:
    """Its last token comes when the time is over."""
    clock, reader = Clock(), chat_reader(window=512)
    engine = slow_engine(reader, "a", clock, 0.05)
    with serving(reader, engine=engine, clock=clock, time_limit=0.32) as served:
        answer = served.complete(max_tokens=100, stop="aaaaaaa", flashback={"stride": 16})
    assert clock() > 0.32
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["flashback"]["events"] == []


def test_choices_are_not_begun_when_the_time_is_over() -> None:
    clock, reader = Clock(), chat_reader(window=512)
    engine = slow_engine(reader, "a", clock, 0.05)
    with serving(reader, engine=engine, clock=clock, time_limit=0.5) as served:
        answer = served.complete(max_tokens=100, n=5)
    written = [len(choice["text"]) for choice in answer["choices"]]
    assert written[0] > 0
    assert written[1:] == [0] * 4
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"] * 5


SCORED: dict[str, Any] = {"max_tokens": 0, "echo": True, "logprobs": 1}


@pytest.fixture
def at_pass(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is called at every pass of a text that is scored."""
    hooks: list[Callable[[], object]] = []
    log_probs = TopModel.log_probs

    def hooked(self: TopModel, *given: Any) -> Tensor:
        for hook in hooks:
            hook()
        return log_probs(self, *given)

    monkeypatch.setattr(TopModel, "log_probs", hooked)
    return hooks


@pytest.mark.parametrize("pattern", ["append", "prepend", "slot"])
def test_scoring_a_long_text_leaves_turns_to_others(
    shared: Shared, at_pass: list[Callable[[], object]], pattern: str
) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("pass")
        if len(order) == 1:
            until(lambda: sum((shared.served.load.active, shared.served.load.waiting)) == 2)

    at_pass.append(first)
    shared.engine.hooks.append(lambda _: order.append("token"))
    with ThreadPoolExecutor(1) as pool:
        options = {"pattern": pattern, "stride": 4}
        text = "the tides " * 50
        long = pool.submit(shared.served.complete, text, **SCORED, flashback=options)
        until(lambda: bool(order) or long.done())
        shared.served.complete("b", max_tokens=4, **PLAIN)
        assert len(long.result()["choices"][0]["logprobs"]["tokens"]) == 500
    assert order.index("token") <= 2
    assert order[-1] == "pass"


def test_scoring_ends_when_its_time_is_over(at_pass: list[Callable[[], object]]) -> None:
    clock = Clock()
    at_pass.append(lambda: clock.advance(0.3))
    body = {"model": "llama", "prompt": "the tides " * 40} | SCORED
    reader = chat_reader(window=1024)
    with serving(reader, clock=clock, time_limit=1.0) as served, served.http() as http:
        options = {"pattern": "prepend", "stride": 4}
        answer = http.post("/v1/completions", json=body | {"flashback": options})
    assert clock() == pytest.approx(1.2)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "time_limit"


def test_scoring_ends_with_its_client(
    shared: Shared, cancelled: threading.Event, at_pass: list[Callable[[], object]]
) -> None:
    passes: list[int] = []
    at_pass += [lambda: passes.append(1), hold(cancelled, lambda: len(passes) == 2)]
    options = {"pattern": "prepend", "stride": 4}
    with shared.served.asked("the tides " * 40, **SCORED, flashback=options):
        until(lambda: len(passes) == 2)
    until(lambda: shared.served.load.active == 0)
    assert len(passes) == 2


def test_what_is_too_long_to_score_is_refused_before_a_stream_begins(shared: Shared) -> None:
    body = {"model": "llama", "prompt": "a" * 2000, "stream": True} | SCORED
    with shared.served.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 400


def test_the_same_chats_at_once_have_the_same_answers(shared: Shared) -> None:
    """Although the next query is made while the text goes on."""
    options = {"lookahead": 3, "stride": 8, "pattern": "append", "ignore_eos": True}
    client = shared.served.client()

    def ask(_: int) -> str:
        messages: Any = [{"role": "user", "content": "What follows the moon?"}]
        answer = client.chat.completions.create(
            model="llama",
            messages=messages,
            max_tokens=32,
            temperature=0,
            extra_body={"flashback": options},
        )
        return str(answer.choices[0].message.content)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(12)))) == 1


def test_caches_of_their_own_are_within_the_budget_and_given_back() -> None:
    engines: list[LocalEngine] = []
    with serving(memory=8, max_active=4) as served, pytest.MonkeyPatch.context() as patch:
        whole = served.service.engine
        assert isinstance(whole, LocalEngine)
        fresh = LocalEngine.fresh

        def seen(self: LocalEngine, share: int) -> LocalEngine:
            assert threading.current_thread().name == "flashback-engine"
            engines.append(fresh(self, share))
            return engines[-1]

        patch.setattr(LocalEngine, "fresh", seen)
        for _ in range(2):
            served.complete(max_tokens=8, flashback={"fresh_cache": True, "pattern": "slot"})
    assert len(engines) == 2
    for engine in engines:
        assert engine.passages.count.prefilled > 0
        assert engine.budget.limit == whole.budget.limit // 4
        assert engine.cache_use == CacheUse(0, 0, 0)


def test_counting_caches_does_not_wait_for_a_pass(shared: Shared) -> None:
    shared.served.complete(max_tokens=4)
    held, holds = threading.Event(), threading.Event()

    def work() -> None:
        with shared.engine.passes.lock:
            holds.set()
            held.wait(MINUTES)

    busy = threading.Thread(target=work)
    busy.start()
    assert holds.wait(MINUTES)
    with shared.served.http() as http:
        assert http.get("/metrics").status_code == 200
    assert busy.is_alive()
    held.set()
    busy.join()


def endless(served: Served, http: httpx2.Client) -> Any:
    """A stream of a text that no test is long enough for."""
    body = {"model": served.service.model, "prompt": "a", "max_tokens": 1 << 20, "stream": True}
    return http.stream("POST", "/v1/completions", json=body | ENDLESS)


def one_at_a_time(_: int) -> None:
    """Leave the processor to others at every token of an endless text."""
    time.sleep(0.002)


def test_a_second_signal_does_not_wait_for_the_grace() -> None:
    reader = chat_reader(window=4096)
    engine = ForcedEngine(reader, "a", one_at_a_time)
    with (
        serving(reader, engine=engine, grace=1e5, max_tokens=1 << 20) as served,
        served.http() as http,
        endless(served, http) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        served.stop()
        until(lambda: not served.service.scheduler.is_alive)
        served.listener.force_exit = True  # what uvicorn makes of it
        with contextlib.suppress(httpx2.HTTPError):
            assert "[DONE]" not in "".join(lines)
        served.thread.join(MINUTES)
        assert not served.thread.is_alive()


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (RetrievalSettings(stride=4, lookahead=4), "lookahead=4"),
        (RetrievalSettings(passages=99), "leaves -"),
    ],
)
def test_defaults_that_would_refuse_every_request_are_refused(
    defaults: RetrievalSettings, message: str
) -> None:
    with pytest.raises(SettingsError, match=message), serving(defaults=defaults):
        pass


@pytest.mark.parametrize("choice", ["stop", "continue"])
@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_a_retriever_that_fails_ends_the_text_or_is_done_without(
    fault: str, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, reason = {"stop": (8, "stop"), "continue": (16, "length")}[choice]
    held, retriever, reader = threading.Event(), QueryRetriever(), chat_reader()

    def third() -> None:
        if len(retriever.queries) == 3:
            broken() if fault == "fails" else held.wait(MINUTES)

    def short_if_it_hangs(seconds: float, *given: Any) -> Any:
        assert seconds == 1e5
        hangs = fault == "hangs" and len(retriever.queries) == 2
        return within(0.01 if hangs else seconds, *given)

    retriever.before.append(third)
    monkeypatch.setattr(searching, "within", short_if_it_hangs)
    settings: dict[str, Any] = {"on_retrieval_error": choice}
    with serving(reader, retriever, engine=ForcedEngine(reader, "a"), **settings) as served:
        answer = served.complete("The tides", max_tokens=16)
    held.set()
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == reason
    (event,) = answer["flashback"]["events"]
    assert event["event"] == "retrieval_error"
    assert "secret" not in json.dumps(answer)


@pytest.mark.parametrize("number", [1, 2])
def test_a_slow_search_is_waited_for_by_its_own_request_alone(shared: Shared, number: int) -> None:
    held, served = threading.Event(), shared.served
    shared.retriever.before.append(hold(held, lambda: len(shared.retriever.queries) == number))
    with ThreadPoolExecutor(1) as pool:
        expected = served.complete("b", max_tokens=8, **PLAIN)["choices"]
        slow = pool.submit(served.complete, max_tokens=8)
        until(lambda: len(shared.retriever.queries) == number)
        assert served.complete("b", max_tokens=8, **PLAIN)["choices"] == expected
        assert not slow.done()
        until(lambda: served.load.active == 1)
        held.set()
        assert slow.result()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_client_that_leaves_during_its_search_holds_up_no_other(
    shared: Shared, lookahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    held, served = threading.Event(), shared.served
    shared.retriever.before.append(hold(held, lambda: len(shared.retriever.queries) == 2))
    options = {"ignore_eos": True, "lookahead": lookahead}
    with served.asked(max_tokens=40, flashback=options):
        until(lambda: len(shared.retriever.queries) == 2)
    until(lambda: served.load.active == 0)
    assert "a search failed" not in caplog.text
    assert served.complete("b", max_tokens=4)["usage"]["completion_tokens"] == 4
    held.set()


def test_a_search_that_fails_is_an_error_without_a_path(shared: Shared) -> None:
    shared.retriever.before.append(broken)
    with shared.served.http() as http:
        answer = http.post("/v1/retrieve", json={"queries": ["a"]})
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_our_own_failure_tells_the_client_nothing(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = shared.served
    with served.http() as http:
        layer = shared.engine.model.model.layers[1]
        monkeypatch.setattr(layer, "forward", lambda *_, **__: 1 / 0)
        body = {"model": "llama", "prompt": "a"}
        with caplog.at_level(logging.ERROR):
            answer = http.post("/v1/completions", json=body)
        monkeypatch.undo()
        assert served.complete("a", max_tokens=4)["usage"]["completion_tokens"] == 4
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "ivision" not in answer.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_a_line_for_each_request_and_no_prompt_unless_asked(
    caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    reader = chat_reader()
    with (
        caplog.at_level(logging.INFO, "flashback.server"),
        serving(reader, engine=ForcedEngine(reader, "a"), log_prompts=log_prompts) as served,
    ):
        served.complete("a private thing", max_tokens=4, user="u1")
    records = [json.loads(record.message) for record in caplog.records]
    (line,) = [record for record in records if record["path"] == "/v1/completions"]
    assert (line["status"], line["user"], line["completion_tokens"]) == (200, "u1", 4)
    assert ("private" in caplog.text) == log_prompts


def test_at_shutdown_streams_end_with_an_error_event() -> None:
    reader = chat_reader(window=4096)
    engine = ForcedEngine(reader, "a", one_at_a_time)
    with (
        serving(reader, engine=engine, grace=0.1, max_tokens=1 << 20) as served,
        served.http() as http,
        endless(served, http) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        served.stop()
        last = list(lines)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_at_shutdown_what_fits_the_grace_is_finished() -> None:
    """The signal comes while a token is computed."""
    reader, tokens = chat_reader(), list[int]()
    engine = ForcedEngine(reader, "a", tokens.append)
    with serving(reader, engine=engine, grace=1e5) as served, ThreadPoolExecutor(1) as pool:
        stopping = lambda: not served.service.scheduler.is_alive  # noqa: E731
        engine.hooks.append(lambda _: until(stopping) if len(tokens) == 5 else None)
        answer = pool.submit(served.complete, max_tokens=20)
        until(lambda: len(tokens) == 5)
        served.stop()
        assert answer.result()["usage"]["completion_tokens"] == 20


def test_without_an_index_nothing_is_looked_up() -> None:
    defaults, reader = replace(DEFAULTS, pattern="none"), chat_reader()
    generator = Generator(reader, ForcedEngine(reader, "a"), None)
    service = make_service(generator, ServerSettings(), defaults)
    service.scheduler.close(0)
    assert service.description()["patterns"] == ["none"]


@pytest.mark.timeout(900)
def test_the_command_serves_until_a_signal(index: Path, model_folder: Path) -> None:
    """Another process gets the signal while it streams."""
    arguments = ("serve", "--index", index, "--model", model_folder, "--passage-tokens", "16")
    server = start(*arguments, "--port", "0", "--grace", "0.1", "--stride", "4")
    assert server.stderr is not None
    try:
        url = ""
        for line in server.stderr:
            if b"http://" in line:
                url = line.split()[2].decode()
                break
        body = {"model": "tiny-llama", "prompt": "the moon", "stream": True, "max_tokens": 4096}
        with httpx2.Client(base_url=url, timeout=MINUTES) as http:
            assert http.get("/health").status_code == 200
            with http.stream("POST", "/v1/completions", json=body | ENDLESS) as answer:
                lines = (line for line in answer.iter_lines() if line)
                next(lines)
                os.kill(server.pid, signal.SIGTERM)
                last = list(lines)[-1]
        assert "shutting_down" in last
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode in (0, -signal.SIGTERM)
