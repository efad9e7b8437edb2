"""Many clients at once, faults and shutdowns: nobody starves, nothing hangs, nothing leaks."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from torch import Tensor

from command_line import start
from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.server.runner import Runner
from flashback.server.server_settings import ServerSettings
from flashback.server.service import make_service
from flashback.settings import RetrievalSettings
from flashback.writing.generator import Generator
from servers import DEFAULTS, QueryRetriever, Served, chat_reader, serving, until

ENDLESS: dict[str, Any] = {"flashback": {"ignore_eos": True}}


def broken() -> None:
    raise OSError("/secret/path is gone")


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
        for number in range(12)
    ]
    with serving(memory=1, max_active=5) as served, ThreadPoolExecutor(12) as pool:
        alone = [served.complete(**one)["choices"] for one in asked]
        together = list(pool.map(lambda one: served.complete(**one)["choices"], asked))
    for one, other in zip(alone, together, strict=True):
        assert one[0]["text"] == other[0]["text"]
        ours, theirs = (c[0]["logprobs"]["token_logprobs"] for c in (one, other))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.02))
    with serving(chat_reader(window=1024), retriever) as served, ThreadPoolExecutor(1) as pool:
        long = pool.submit(served.complete, "a long one", max_tokens=400)
        until(lambda: served.service.scheduler.load.active == 1)
        served.complete("a short one", max_tokens=4)
        assert not long.done()
        assert long.result()["usage"]["completion_tokens"] == 400


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    held = threading.Event()
    retriever = QueryRetriever()
    retriever.before.append(lambda: held.wait(20))
    with (
        serving(retriever=retriever, max_active=1, max_queue=1) as served,
        ThreadPoolExecutor(2) as pool,
    ):
        first = [pool.submit(served.complete, max_tokens=4) for _ in range(2)]
        until(lambda: served.service.scheduler.load.waiting == 1)
        with pytest.raises(openai.RateLimitError) as error:
            served.client().completions.create(model="llama", prompt="one too many")
        held.set()
        assert [one.result()["choices"][0]["finish_reason"] for one in first] == ["length"] * 2
    assert int(error.value.response.headers["retry-after"]) >= 1
    assert error.value.code == "queue_full"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_costs_nothing_more(stream: bool) -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.05))
    body = {"model": "llama", "prompt": "a", "max_tokens": 2000, "stream": stream} | ENDLESS
    with serving(chat_reader(window=4096), retriever) as served:
        with httpx2.Client(base_url=served.url) as http:
            if stream:
                with http.stream("POST", "/v1/completions", json=body) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    http.post("/v1/completions", json=body, timeout=0.3)
        until(lambda: served.service.scheduler.load.active == 0, seconds=5)
        asked = len(retriever.queries)
        assert asked < 400
        assert served.complete("b", max_tokens=4)["usage"]["completion_tokens"] == 4


def test_a_request_that_takes_too_long_ends_with_what_there_is() -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.1))
    with serving(chat_reader(window=2048), retriever, time_limit=0.3) as served:
        answer = served.complete("a", max_tokens=1000)
    assert 0 < answer["usage"]["completion_tokens"] < 1000
    assert answer["choices"][0]["finish_reason"] == "length"
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


def test_a_client_that_leaves_the_queue_is_done_with(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flashback.server")
    held = threading.Event()
    retriever = QueryRetriever()
    retriever.before.append(lambda: held.wait(20))
    with (
        serving(retriever=retriever, max_active=1, max_queue=1) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(served.complete, max_tokens=4)
        until(lambda: served.service.scheduler.load.active == 1)
        with served.http() as http, pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json={"model": "llama", "prompt": "a"}, timeout=0.3)
        until(lambda: served.service.scheduler.load.waiting == 0)
        until(lambda: len(caplog.records) == 1)  # its line, while the first one is still writing
        held.set()
        assert first.result()["usage"]["completion_tokens"] == 4


LONG_STRIDE: dict[str, Any] = {"flashback": {"stride": 1000, "ignore_eos": True}}


def test_a_long_stride_leaves_turns_to_others() -> None:
    with serving(chat_reader(window=4096)) as served, ThreadPoolExecutor(1) as pool:
        long = pool.submit(served.complete, "a long one", max_tokens=1000, **LONG_STRIDE)
        until(lambda: served.service.scheduler.load.active == 1)
        served.complete("a short one", max_tokens=4)
        assert not long.done()
        answer = long.result()
    assert answer["usage"]["completion_tokens"] == 1000
    assert len(answer["flashback"]["strides"]) == 1


def test_a_long_stride_ends_when_its_time_is_over() -> None:
    with serving(chat_reader(window=4096), time_limit=0.5) as served:
        answer = served.complete("a", max_tokens=1000, **LONG_STRIDE)
    assert 0 < answer["usage"]["completion_tokens"] < 1000
    assert answer["choices"][0]["finish_reason"] == "length"
    (stride,) = answer["flashback"]["strides"]
    assert stride["end"] == len(answer["choices"][0]["text"])
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Lets every model, from now on, write one byte at every token, taking its time."""

    def force(byte: str, seconds: float) -> None:
        token = 1 if byte == "EOS" else chat_reader().encode(byte)[0]
        run = LocalEngine.run

        def always(self: LocalEngine, *given: Any, **more: Any) -> Tensor:
            time.sleep(seconds)
            logits = torch.full_like(run(self, *given, **more), -10.0)
            logits[..., token] = 10.0
            return logits

        monkeypatch.setattr(LocalEngine, "run", always)

    return force


Forced = Callable[[str, float], None]


def test_tokens_without_text_leave_turns_and_end_in_time(forced: Forced) -> None:
    """A model that says the end of the text for ever."""
    with serving(chat_reader(window=4096), time_limit=3.0) as served, ThreadPoolExecutor(1) as pool:
        forced("EOS", 0.005)
        long = pool.submit(served.complete, "a", max_tokens=1000, **LONG_STRIDE)
        until(lambda: served.service.scheduler.load.active == 1)
        served.complete("b", max_tokens=2)
        assert not long.done()
        answer = long.result()
    assert 0 < answer["usage"]["completion_tokens"] < 1000
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"]


@pytest.mark.parametrize("fault", ["late", "broken"])
def test_what_was_held_back_is_given_out_when_a_text_is_cut_off(fault: str, forced: Forced) -> None:
    """The beginning of a stop text that never came."""
    retriever = QueryRetriever()
    with serving(chat_reader(window=512), retriever, time_limit=0.5) as served:
        forced("a", 0.04)
        searched: list[int] = []
        if fault == "broken":
            retriever.before.append(lambda: searched.append(1) if not searched else broken())
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


def test_a_text_that_ended_by_itself_was_not_cut_off(forced: Forced) -> None:
    with serving(chat_reader(window=512), time_limit=0.3) as served:
        forced("a", 0.05)
        answer = served.complete(max_tokens=100, stop="aaaaaaa", flashback={"stride": 16})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["flashback"]["events"] == []


def test_choices_are_not_begun_when_the_time_is_over(forced: Forced) -> None:
    with serving(chat_reader(window=512), time_limit=0.5) as served:
        forced("a", 0.05)
        answer = served.complete(max_tokens=100, n=5)
    written = [len(choice["text"]) for choice in answer["choices"]]
    assert written[0] > 0
    assert written[1:] == [0] * 4
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert [event["event"] for event in answer["flashback"]["events"]] == ["time_limit"] * 5


SCORED: dict[str, Any] = {"max_tokens": 0, "echo": True, "logprobs": 1}


@pytest.mark.parametrize("pattern", ["append", "prepend", "slot"])
def test_scoring_a_long_text_leaves_turns_to_others(pattern: str) -> None:
    with serving(chat_reader(window=4096)) as served, ThreadPoolExecutor(1) as pool:
        options = {"pattern": pattern, "stride": 4}
        long = pool.submit(served.complete, "the tides " * 80, **SCORED, flashback=options)
        until(lambda: served.service.scheduler.load.active == 1)
        served.complete("b", max_tokens=4)
        assert not long.done()
        assert len(long.result()["choices"][0]["logprobs"]["tokens"]) == 800


def test_scoring_ends_with_its_client_and_its_time() -> None:
    body = {"model": "llama", "prompt": "the tides " * 300} | SCORED
    options = {"pattern": "prepend", "stride": 1}
    with serving(chat_reader(window=4096), time_limit=1.0) as served, served.http() as http:
        answer = http.post("/v1/completions", json=body | {"flashback": options})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "time_limit"
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json=body | {"flashback": options}, timeout=0.2)
        until(lambda: served.service.scheduler.load.active == 0, seconds=5)


def test_what_is_too_long_to_score_is_refused_before_a_stream_begins() -> None:
    body = {"model": "llama", "prompt": "a" * 400, "stream": True} | SCORED
    with serving() as served, served.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 400


def test_the_same_chats_at_once_have_the_same_answers() -> None:
    """Although the next query is made while the text goes on."""
    options = {"lookahead": 3, "stride": 8, "pattern": "append", "ignore_eos": True}

    def ask(served: Served) -> str:
        messages: Any = [{"role": "user", "content": "What follows the moon?"}]
        answer = served.client().chat.completions.create(
            model="llama",
            messages=messages,
            max_tokens=40,
            temperature=0,
            extra_body={"flashback": options},
        )
        return str(answer.choices[0].message.content)

    with serving(chat_reader(window=512)) as served, ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, [served] * 24))) == 1


def test_caches_of_their_own_are_within_the_budget_and_given_back() -> None:
    engines: list[LocalEngine] = []
    with serving(memory=8, max_active=4) as served, pytest.MonkeyPatch.context() as patch:
        original = Runner._fresh_engine

        def seen(self: Runner) -> Any:
            assert threading.current_thread().name == "flashback-engine"
            engine: Any = original(self)
            engines.append(engine)
            return engine

        patch.setattr(Runner, "_fresh_engine", seen)
        for _ in range(2):
            served.complete(max_tokens=8, flashback={"fresh_cache": True, "pattern": "slot"})
    assert len(engines) == 2
    for engine in engines:
        assert engine.passages.count.encoded > 0
        assert engine.passages.budget == served.engine.passages.budget // 4
        assert (engine.held, engine.passages.bytes) == ((0, 0), 0)


def test_counting_caches_does_not_wait_for_a_pass() -> None:
    with serving() as served, served.http() as http:
        served.complete(max_tokens=4)
        held = threading.Event()

        def work() -> None:
            with served.engine.lock:
                held.wait(20)

        busy = threading.Thread(target=work)
        busy.start()
        assert http.get("/metrics", timeout=5).status_code == 200
        held.set()
        busy.join()


def test_a_second_signal_does_not_wait_for_the_grace() -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.02))
    with (
        serving(chat_reader(window=4096), retriever, grace=60) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        endless = pool.submit(served.complete, max_tokens=3000, **ENDLESS)
        until(lambda: served.service.scheduler.load.active == 1)
        began = time.monotonic()
        served.stop()
        until(lambda: not served.service.scheduler.is_alive)
        served.listener.force_exit = True  # what uvicorn makes of it
        with pytest.raises((AssertionError, httpx2.HTTPError)):
            endless.result()
        served.thread.join(20)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (RetrievalSettings(stride=4, lookahead=4), "--lookahead 4"),
        (RetrievalSettings(passages=99), "leaves -"),
    ],
)
def test_defaults_that_would_refuse_every_request_are_refused(
    defaults: RetrievalSettings, message: str
) -> None:
    with pytest.raises(SettingsError, match=message), serving(defaults=defaults):
        pass


@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_a_retriever_that_fails_ends_the_text_or_is_done_without(fault: str) -> None:
    held = threading.Event()
    for choice, tokens, reason in (("stop", 8, "stop"), ("continue", 16, "length")):
        retriever = QueryRetriever()
        settings: dict[str, Any] = {"on_retrieval_error": choice, "retrieval_limit": 0.3}
        with serving(retriever=retriever, **settings) as served:

            def third(own: QueryRetriever = retriever) -> None:
                if len(own.queries) == 3:
                    broken() if fault == "fails" else held.wait(20)

            retriever.before.append(third)
            answer = served.complete("The tides", max_tokens=16)
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["choices"][0]["finish_reason"] == reason
        (event,) = answer["flashback"]["events"]
        assert event["event"] == "retrieval_error"
        assert "secret" not in json.dumps(answer)
    held.set()


@pytest.mark.parametrize("number", [1, 2])
def test_a_slow_search_is_waited_for_by_its_own_request_alone(number: int) -> None:
    held = threading.Event()
    retriever = QueryRetriever()
    retriever.before.append(lambda: len(retriever.queries) == number and held.wait(20))
    without = {"pattern": "none"}
    with serving(retriever=retriever) as served, ThreadPoolExecutor(1) as pool:
        expected = served.complete("b", max_tokens=8, flashback=without)["choices"]
        slow = pool.submit(served.complete, max_tokens=8)
        until(lambda: len(retriever.queries) == number)
        assert served.complete("b", max_tokens=8, flashback=without)["choices"] == expected
        assert not slow.done()
        until(lambda: served.service.scheduler.load.active == 1)
        held.set()
        assert slow.result()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_client_that_leaves_during_its_search_holds_up_nobody(
    lookahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    held = threading.Event()
    retriever = QueryRetriever()
    retriever.before.append(lambda: len(retriever.queries) == 2 and held.wait(20))
    options = {"ignore_eos": True, "lookahead": lookahead}
    body = {"model": "llama", "prompt": "a", "max_tokens": 40, "flashback": options}
    with serving(retriever=retriever, retrieval_limit=20) as served, served.http() as http:
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=0.5)
        until(lambda: served.service.scheduler.load.active == 0, seconds=5)
        assert "a search failed" not in caplog.text
        assert served.complete("b", max_tokens=4)["usage"]["completion_tokens"] == 4
        held.set()


def test_a_search_that_fails_is_an_error_without_a_path() -> None:
    retriever = QueryRetriever()
    retriever.before.append(broken)
    with serving(retriever=retriever) as served, served.http() as http:
        answer = http.post("/v1/retrieve", json={"queries": ["a"]})
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_our_own_failure_tells_the_client_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as served, served.http() as http:
        layer = served.service.reader.model.model.layers[1]
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


def test_the_log_has_a_line_for_each_request_and_no_prompt_unless_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for log_prompts in (False, True):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "flashback.server"),
            serving(log_prompts=log_prompts) as served,
        ):
            served.complete("a private thing", max_tokens=4, user="u1")
        records = [json.loads(record.message) for record in caplog.records]
        (line,) = [record for record in records if record["path"] == "/v1/completions"]
        assert (line["status"], line["user"], line["completion_tokens"]) == (200, "u1", 4)
        assert ("private" in caplog.text) == log_prompts


def test_told_to_stop_streams_end_with_an_error_event() -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.05))
    with serving(chat_reader(window=4096), retriever, grace=0.1) as served:
        body = {"model": "llama", "prompt": "a", "max_tokens": 2000, "stream": True} | ENDLESS
        with served.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            served.stop()
            last = list(lines)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_told_to_stop_what_can_be_finished_is() -> None:
    retriever = QueryRetriever()
    retriever.before.append(lambda: time.sleep(0.05))
    with (
        serving(retriever=retriever, grace=20) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(served.complete, max_tokens=20)
        until(lambda: served.service.scheduler.load.active == 1)
        served.stop()
        assert answer.result()["usage"]["completion_tokens"] == 20


def test_without_an_index_nothing_is_looked_up() -> None:
    defaults = replace(DEFAULTS, pattern="none")
    reader = chat_reader()
    generator = Generator(reader, LocalEngine(reader.model, reader.window), None)
    service = make_service(generator, ServerSettings(), defaults)
    service.scheduler.close(0)
    assert service.description()["patterns"] == ["none"]


@pytest.mark.timeout(120)
def test_the_command_serves_until_it_is_told_to_stop(index: Path, model_folder: Path) -> None:
    """A process of its own is killed while it streams, and the next one serves at once."""
    arguments = ("serve", "--index", index, "--model", model_folder, "--passage-tokens", "16")
    for _ in range(2):
        server = start(*arguments, "--port", "0", "--grace", "0.1", "--stride", "4")
        assert server.stderr is not None
        try:
            url = ""
            for line in server.stderr:
                if b"http://" in line:
                    url = line.split()[2].decode()
                    break
            body = {
                "model": "tiny-llama",
                "prompt": "the moon",
                "stream": True,
                "max_tokens": 4096,
            } | ENDLESS
            with httpx2.Client(base_url=url, timeout=60) as http:
                assert http.get("/health").status_code == 200
                with http.stream("POST", "/v1/completions", json=body) as answer:
                    lines = (line for line in answer.iter_lines() if line)
                    next(lines)
                    os.kill(server.pid, signal.SIGTERM)
                    last = list(lines)[-1]
            assert "shutting_down" in last
        finally:
            server.terminate()
            server.communicate()
        assert server.returncode in (0, -signal.SIGTERM)
