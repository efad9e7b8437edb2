"""Many clients at once, faults and shutdowns: nobody starves, nothing hangs, nothing leaks."""

import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from command_line import start
from flashback.errors import SettingsError
from flashback.server.service import make_service
from flashback.server.settings import ServerSettings
from flashback.settings import Pattern, RetrievalSettings
from servers import DEFAULTS, QueryRetriever, chat_reader, serving, until

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
    defaults = replace(DEFAULTS, pattern=Pattern.NONE)
    service = make_service(chat_reader(), None, ServerSettings(), defaults)
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
