"""What each turn of a conversation costs a server: tokens prefilled, and the time to the first one.

    flashback serve --index IDX --model MODEL --dtype float32
    python scripts/conversation_cost.py CHATS.jsonl [--url http://127.0.0.1:8000/v1] [--chats 3]
    python scripts/conversation_cost.py CHATS.jsonl --together 4 --system "Answer briefly."

CHATS has a line `{"messages": [...]}` for each conversation. Its own answers are sent back as the
history, whatever the model answered. Prepending is measured beside the slot, on the same turns.
Each pattern of each run has a cache salt of its own, so that nothing is cached before; the
conversations of a run share what begins alike.
"""

import argparse
import json
import statistics
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import openai

PATTERNS = ("slot", "prepend")
Messages = list[dict[str, str]]


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


@dataclass(frozen=True)
class Run:
    """A model, and how it is asked."""

    client: openai.OpenAI
    model: str
    pattern: str
    tokens: int
    salt: str

    def turns(self, messages: Messages) -> Iterator[Turn]:
        """The turns of one conversation, answered one after the other, each when it is wanted."""
        for at, message in enumerate(messages):
            if message["role"] == "user":
                yield self._turn(messages[: at + 1])

    def _turn(self, messages: Any) -> Turn:
        answer = self.client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=self.tokens,
            extra_body={
                "cache_salt": self.salt,
                "flashback": {"pattern": self.pattern, "ignore_eos": True},
            },
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        first, *later = answer.model_dump()["flashback"]["strides"]
        return Turn(
            answer.usage.prompt_tokens,
            first["prefilled"],
            answer.usage.prompt_tokens_details.cached_tokens or 0,
            max((one["prefilled"] for one in later), default=0),
            first["retrieve_seconds"] + first["prefill_seconds"],
        )


def measured(
    run: Run, chats: Sequence[Messages], turns: int, together: int = 1
) -> list[list[Turn]]:
    """The first turns of every conversation.

    Args:
        together: how many conversations are sent at once.
    """
    with ThreadPoolExecutor(together) as threads:
        return list(threads.map(lambda chat: list(islice(run.turns(chat), turns)), chats))


def with_system(messages: Messages, text: str | None) -> Messages:
    """A conversation with this system message instead of its own; None: as it is."""
    if text is None:
        return messages
    others = [one for one in messages if one["role"] != "system"]
    return [{"role": "system", "content": text}, *others]


def chosen(path: Path, count: int, turns: int) -> list[Messages]:
    """The first conversations of a file that have enough turns of the user."""
    with path.open(encoding="utf-8") as lines:
        every = [json.loads(line)["messages"] for line in lines if line.strip()]
    long = [one for one in every if sum(m["role"] == "user" for m in one) >= turns]
    if len(long) < count:
        raise SystemExit(
            f"{path}: found {len(long)} conversations of {turns} turns or more; expected {count}"
        )
    return long[:count]


def table(found: Sequence[Sequence[Turn]]) -> Iterator[str]:
    """The medians of each turn, then what each conversation prefilled at its first."""
    yield "turn  prompt  cached  prefilled  later strides  seconds"
    for number, rows in enumerate(zip(*found, strict=True), start=1):
        prompt, cached, prefilled, later, seconds = (
            statistics.median(getattr(row, name) for row in rows)
            for name in ("prompt", "cached", "prefilled", "later", "seconds")
        )
        yield (
            f"{number:4} {prompt:7.0f} {cached:7.0f} {prefilled:10.0f} {later:14.0f} {seconds:8.2f}"
        )
    firsts = (f"{turns[0].prefilled} of {turns[0].prompt}" for turns in found)
    yield f"prefilled at the first turn, by conversation: {', '.join(firsts)}"


def main() -> None:
    """Measure, and print a table for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--chats", type=int, default=3, help="at least as many as --together")
    parser.add_argument("--turns", type=int, default=9, help="of the user")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--together", type=int, default=1, help="conversations sent at once")
    parser.add_argument("--system", help="a system message for all, instead of their own")
    given = parser.parse_args()
    if min(given.chats, given.turns, given.max_tokens, given.together) < 1:
        parser.error("--chats, --turns, --max-tokens and --together: expected at least 1")
    found = chosen(given.file, max(given.chats, given.together), given.turns)
    chats = [with_system(messages, given.system) for messages in found]
    client = openai.OpenAI(base_url=given.url, api_key="none")
    model = client.models.list().data[0].id
    for pattern in PATTERNS:
        run = Run(client, model, pattern, given.max_tokens, uuid.uuid4().hex)
        asked = f"{len(chats)} conversations, {given.together} at once"
        print(f"\n{model}, {pattern}: medians of {asked}")
        for line in table(measured(run, chats, given.turns, given.together)):
            print(line)


if __name__ == "__main__":
    main()
