"""What each turn of a conversation costs a server: tokens prefilled, and the time to the first one.

    flashback serve --index IDX --model MODEL --dtype float32
    python scripts/conversation_cost.py CHATS.jsonl [--url http://127.0.0.1:8000/v1] [--chats 3]

CHATS has a line `{"messages": [...]}` for each conversation. Its own answers are sent back as the
history, whatever the model answered. Prepending is measured beside the slot, on the same turns.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

PATTERNS = ("slot", "prepend")


@dataclass(frozen=True)
class Turn:
    """The first stride of an answer, and the rest of it."""

    prompt: int
    """Tokens of the conversation."""
    prefilled: int
    cached: int
    later: int
    """The most tokens prefilled at a later stride; 0 if there was none."""
    seconds: float
    """To the first token: retrieval and prefill."""


def turns(
    client: openai.OpenAI, model: str, messages: list[dict[str, str]], pattern: str, tokens: int
) -> Iterator[Turn]:
    """The turns of one conversation, answered one after the other."""
    for at, message in enumerate(messages):
        if message["role"] != "user":
            continue
        asked: Any = messages[: at + 1]
        extra = {"pattern": pattern, "ignore_eos": True}
        answer = client.chat.completions.create(
            model=model, messages=asked, max_tokens=tokens, extra_body={"flashback": extra}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        first, *later = answer.model_dump()["flashback"]["strides"]
        yield Turn(
            answer.usage.prompt_tokens,
            first["prefilled"],
            answer.usage.prompt_tokens_details.cached_tokens or 0,
            max((one["prefilled"] for one in later), default=0),
            first["seconds"]["retrieve"] + first["seconds"]["prefill"],
        )


def main() -> None:
    """Measure, and print a table for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--chats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9, help="of the user")
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    with given.file.open(encoding="utf-8") as lines:
        every = [json.loads(line)["messages"] for line in lines]
    asked = [sum(one["role"] == "user" for one in messages) for messages in every]
    chats = [one for one, count in zip(every, asked, strict=True) if count >= given.turns]
    client = openai.OpenAI(base_url=given.url, api_key="none")
    model = client.models.list().data[0].id
    for pattern in PATTERNS:
        measured = [
            list(turns(client, model, messages, pattern, given.max_tokens))[: given.turns]
            for messages in chats[: given.chats]
        ]
        print(f"\n{model}, {pattern}: medians of {len(measured)} conversations")
        print("turn  prompt  cached  prefilled  later strides  seconds")
        for number, rows in enumerate(zip(*measured, strict=True), start=1):
            prompt, cached, prefilled, later, seconds = (
                statistics.median(getattr(row, name) for row in rows)
                for name in ("prompt", "cached", "prefilled", "later", "seconds")
            )
            print(
                f"{number:4} {prompt:7.0f} {cached:7.0f} {prefilled:10.0f} {later:14.0f} "
                f"{seconds:8.2f}"
            )


if __name__ == "__main__":
    main()
