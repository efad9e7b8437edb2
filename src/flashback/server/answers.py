"""Answers in OpenAI's shapes, made of events: whole or as a stream, with a `flashback` object.

Knows JSON objects. Knows nothing of HTTP.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashback.engines.protocol import Usage
from flashback.server.events import (
    ChoiceEnd,
    ChoiceStart,
    Done,
    Event,
    Failed,
    Incident,
    Piece,
    SpanEnd,
    SpanStart,
    TokenScore,
)
from flashback.server.sources import end_record, incident_record, start_record, token_counts
from flashback.server.token_names import TokenName

Record = dict[str, Any]


class Shape(Protocol):
    """The records of one of OpenAI's endpoints."""

    prefix: str
    """Of ids."""
    whole: str
    """`object` of a whole answer."""
    part: str
    """`object` of a chunk of a stream."""

    def choice(self, number: int, text: str, scores: "Scores", finish: str | None) -> Record:
        """A whole choice."""
        ...

    def delta(self, number: int, text: str, scores: "Scores", finish: str | None) -> Record:
        """New text of a choice."""
        ...

    def opening(self, number: int) -> Record | None:
        """The first chunk of a choice in a stream; None: there is none."""
        ...


Scores = Sequence[TokenScore] | None


class CompletionShape:
    """POST /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, number: int, text: str, scores: Scores, finish: str | None) -> Record:
        """See `Shape.choice`."""
        log_probs = None if scores is None else self._log_probs(scores)
        return {"index": number, "text": text, "logprobs": log_probs, "finish_reason": finish}

    delta = choice

    def opening(self, number: int) -> Record | None:
        """There is none."""
        return None

    def _log_probs(self, scores: Sequence[TokenScore]) -> Record:
        return {
            "tokens": [one.token.in_completions for one in scores],
            "token_logprobs": [one.log_prob for one in scores],
            "top_logprobs": [self._top(one) for one in scores],
            "text_offset": [one.offset for one in scores],
        }

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        """The most probable tokens; of several that look alike the best one."""
        if not score.top:
            return None
        best: dict[str, float] = {}
        for token, log_prob in score.top:
            best.setdefault(token.in_completions, log_prob)
        if score.log_prob is not None:
            best.setdefault(score.token.in_completions, score.log_prob)
        return best


class ChatShape:
    """POST /v1/chat/completions."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, text: str, scores: Scores, finish: str | None) -> Record:
        """See `Shape.choice`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": number,
            "message": message,
            "logprobs": self._log_probs(scores),
            "finish_reason": finish,
        }

    def delta(self, number: int, text: str, scores: Scores, finish: str | None) -> Record:
        """See `Shape.delta`."""
        return {
            "index": number,
            "delta": {"content": text} if text else {},
            "logprobs": self._log_probs(scores),
            "finish_reason": finish,
        }

    def opening(self, number: int) -> Record | None:
        """The role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def _log_probs(self, scores: Scores) -> Record | None:
        if scores is None:
            return None
        return {"content": [self._token(one) for one in scores], "refusal": None}

    def _token(self, score: TokenScore) -> Record:
        top = [_spelled(token, log_prob) for token, log_prob in score.top]
        return _spelled(score.token, score.log_prob) | {"top_logprobs": top}


def _spelled(token: TokenName, log_prob: float | None) -> Record:
    own = None if token.bytes is None else list(token.bytes)
    return {"token": token.text, "logprob": log_prob, "bytes": own}


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: str | None = None


@dataclass
class Answer:
    """Collects the events of a request; gives records."""

    shape: Shape
    model: str
    seed: int
    scored: bool
    """Whether log-probabilities were asked for."""
    id: str = ""
    created: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    totals: dict[str, int] = field(default_factory=lambda: {**token_counts(Usage()), "strides": 0})
    events: list[Record] = field(default_factory=list)
    error: Failed | None = None
    _choices: dict[int, _Choice] = field(default_factory=dict)
    _starts: dict[int, SpanStart] = field(default_factory=dict)
    _strides: list[Record] = field(default_factory=list)
    _jumps: list[Record] = field(default_factory=list)
    _prompts: dict[int, int] = field(default_factory=dict)
    """Prompt tokens of choices whose first stride has not ended."""

    def __post_init__(self) -> None:
        self.id = f"{self.shape.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def take(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, ChoiceStart):
            self._begin(event)
        elif isinstance(event, SpanStart):
            self._starts[event.choice] = event
        elif isinstance(event, Piece):
            choice = self._choices[event.choice]
            choice.text.append(event.text)
            choice.scores.extend(event.scores)
        elif isinstance(event, SpanEnd):
            self._end_span(event)
        elif isinstance(event, Incident):
            self.events.append(incident_record(event))
        elif isinstance(event, ChoiceEnd):
            self._end(event)
        elif isinstance(event, Failed):
            self.error = event

    def _begin(self, event: ChoiceStart) -> None:
        self._choices[event.choice] = _Choice()
        if event.first_of_prompt:
            self.prompt_tokens += event.prompt_tokens
            self._prompts[event.choice] = event.prompt_tokens

    def _end_span(self, event: SpanEnd) -> None:
        start = self._starts[event.choice]
        passages = start_record(start)["passages"]
        self._strides.append(
            end_record(event, start) | {"scored": start.scored, "passages": passages}
        )
        self.totals["strides"] += 1
        if start.scored:
            return
        for kind, tokens in token_counts(event.usage).items():
            self.totals[kind] += tokens
        prompt = self._prompts.pop(event.choice, 0)
        self.cached_tokens += min(event.usage.cached, prompt)

    def _end(self, event: ChoiceEnd) -> None:
        self._choices[event.choice].finish = event.finish_reason
        self.completion_tokens += event.tokens
        self._jumps += [{"choice": event.choice, "tokens": at} for at in event.jumps]

    @property
    def texts(self) -> list[str]:
        """Every choice's text so far."""
        return ["".join(choice.text) for choice in self._choices.values()]

    @property
    def finish_reasons(self) -> list[str | None]:
        return [choice.finish for choice in self._choices.values()]

    def usage(self) -> Record:
        """OpenAI's usage object.

        `cached_tokens`: prompt tokens that the first stride found in the cache.
        """
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def summary(self) -> Record:
        """The `flashback` object, without the strides."""
        return {
            "seed": self.seed,
            "totals": self.totals,
            "jumps": self._jumps,
            "events": self.events,
        }

    def body(self) -> Record:
        """The whole answer."""
        choices = [
            self.shape.choice(
                number,
                "".join(choice.text),
                choice.scores if self.scored else None,
                choice.finish,
            )
            for number, choice in self._choices.items()
        ]
        return {
            "id": self.id,
            "object": self.shape.whole,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": self.usage(),
            "flashback": {"strides": self._strides, **self.summary()},
        }

    def chunks(self, event: Event, *, with_usage: bool) -> Iterator[Record]:
        """The chunks of a stream for an event that was taken."""
        delta = self.shape.delta
        if isinstance(event, ChoiceStart):
            opening = self.shape.opening(event.choice)
            if opening is not None:
                yield self._chunk([opening], with_usage)
        elif isinstance(event, Piece):
            scores = event.scores if self.scored else None
            yield self._chunk([delta(event.choice, event.text, scores, None)], with_usage)
        elif isinstance(event, ChoiceEnd):
            yield self._chunk([delta(event.choice, "", None, event.finish_reason)], with_usage)
        elif isinstance(event, Done):
            if with_usage:
                yield self._chunk([], False) | {"usage": self.usage(), "flashback": self.summary()}
        elif isinstance(event, SpanStart | SpanEnd | Incident):
            # With a choice without text: many clients read the first choice of every chunk.
            nothing = delta(event.choice, "", None, None)
            yield self._chunk([nothing], with_usage) | {"flashback": self._record(event)}

    def _record(self, event: SpanStart | SpanEnd | Incident) -> Record:
        if isinstance(event, SpanStart):
            return {"event": "stride_start"} | start_record(event)
        if isinstance(event, SpanEnd):
            return {"event": "stride_end"} | end_record(event, self._starts[event.choice])
        return incident_record(event)

    def _chunk(self, choices: list[Record], with_usage: bool) -> Record:
        chunk: Record = {
            "id": self.id,
            "object": self.shape.part,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        return chunk | ({"usage": None} if with_usage else {})


def as_json(record: Record) -> str:
    """Compact JSON, without numbers that JSON does not have."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_event(record: Record) -> str:
    """One server-sent event."""
    return f"data: {as_json(record)}\n\n"
