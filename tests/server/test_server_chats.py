"""Conversations through the API: parts of messages, answers that were begun, and full windows."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flashback.patterns.registry import PATTERNS
from flashback.settings import Settings, StoppingSettings
from flashback.writing.generator import Generator
from servers import DEFAULTS, QueryRetriever, Served, chat_reader, serving

SHARED: Any = {"model": "llama", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as found:
        yield found


PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


@pytest.mark.parametrize("kind", [PICTURE, {"type": "input_audio", "input_audio": {}}])
def test_a_part_that_is_no_text_is_refused_by_its_name(
    served: Served, kind: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, kind]}]
    with served.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "llama", "messages": messages})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("messages.0.content.1", "unsupported_field")
    assert f"a part of type {kind['type']!r}; expected" in error["message"]


def test_parts_of_text_are_one_message(served: Served) -> None:
    client = served.client()
    parts: Any = [{"type": "text", "text": "Who "}, {"type": "text", "text": "built it?"}]
    found = [
        client.chat.completions.create(messages=[{"role": "user", "content": one}], **SHARED)
        for one in (parts, "Who built it?")
    ]
    assert found[0].choices[0].message.content == found[1].choices[0].message.content
    counts = {one.usage.prompt_tokens for one in found if one.usage is not None}
    assert len(counts) == 1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_answer_that_was_begun_is_continued(pattern: str) -> None:
    retriever = QueryRetriever()
    asked: Any = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It was"}]
    options = {"pattern": pattern, "stride": 16, "ignore_eos": True}
    with serving(chat_reader(window=512), retriever) as own:
        answer = own.client().chat.completions.create(
            model="llama", messages=asked, max_tokens=5, temperature=0,
            extra_body={"flashback": options},
        )  # fmt: skip
        chosen = replace(DEFAULTS, pattern=pattern, stride=16)
        alone = Settings(chosen, stopping=StoppingSettings(5, ignore_eos=True))
        expected = Generator(own.reader, own.service.engine, retriever).chat(asked, alone)
    assert answer.choices[0].message.content == expected.text
    queries = {"Who?\nIt was"[-8:]} if pattern != "none" else set()
    assert set(retriever.queries) == queries


def test_an_outgrown_chat_is_refused_or_says_what_it_leaves_out() -> None:
    said = [
        {"role": role, "content": f"{role} {at} ".ljust(60, ".")}
        for at in range(6)
        for role in ("user", "assistant")
    ]
    body = {"model": "llama", "messages": [*said, {"role": "user", "content": "moon"}]}
    with serving(chat_reader(window=512)) as own, own.http() as http:
        answer = http.post("/v1/chat/completions", json={**body, "max_tokens": 8})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        truncate = {"flashback": {"truncate": True}, "max_tokens": 8}
        found = http.post("/v1/chat/completions", json=body | truncate).json()
        events = found["flashback"]["events"]
        (event,) = (one for one in events if one["event"] == "prompt_truncated")
        count = int(re.findall(r"the first (\d+) messages were left out", event["message"])[0])
        kept = {"model": "llama", "messages": body["messages"][count:], "max_tokens": 8}
        rest = http.post("/v1/chat/completions", json=kept).json()
        huge = {"messages": [{"role": "user", "content": "x" * 800_000}]}
        refused = http.post("/v1/chat/completions", json=body | truncate | huge).json()["error"]
    assert refused["code"] == "context_length_exceeded"
    assert (
        "the last message and the system's have 800000 characters in 1 message,"
        in refused["message"]
    )
    assert found["usage"]["prompt_tokens"] == rest["usage"]["prompt_tokens"]
    assert found["flashback"]["strides"][0]["prefilled"] > 100
