"""What a server can, found out by a few requests before anything is written.

What the writing needs and the server lacks is refused: ids that are taken as they are, ids back,
and the model of the tokenizer. What costs time only is told.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flashback.engines.openai_slot import CONNECTOR
from flashback.engines.openai_stream import cached_of
from flashback.engines.openai_wire import Record, Wire
from flashback.errors import EngineError
from flashback.patterns.prompt import Ids

_LONGEST = 256
"""Tokens of the prompt that is sent twice: of its first 255 whole blocks are cached."""


@dataclass(frozen=True)
class Sample:
    """What a tokenizer says of itself."""

    name: str
    split: Ids
    """A text, cut where the tokenizer would not cut it."""
    varied: Ids
    """Ids from all over the vocabulary, the last one of a text among them."""
    text: str
    """What `varied` are, as text."""


@dataclass(frozen=True)
class Abilities:
    """What a server can."""

    window: int | None
    """Positions of a prompt and its continuation; None: it does not say."""
    block: int | None
    """Tokens of a cached block; None: nothing is reused, or nobody knows."""
    notes: tuple[str, ...]
    """What a user should know, a line each."""
    slot_block: int = 0
    """Tokens of a block of the slot that a connector makes; 0: there is none."""
    slot_passages: int = 0
    """Blocks of passages that it keeps."""


def probe(wire: Wire, model: str, sample: Sample) -> Abilities:
    """Ask a server what it can.

    Args:
        model: its name there.

    Raises:
        EngineError: the server cannot be reached, has no such model, or cannot do what is needed.
    """
    window = _window(wire, model)
    room = (window or 1 << 20) - 1
    _check_ids(wire, model, sample, room)
    if len(sample.varied) <= room:
        _check_text(wire, model, sample)
    length = min(_LONGEST, (window or _LONGEST) // 2)
    block, note = _reuse(wire, model, sample.varied, length)
    return Abilities(window, block, (note,) if note else (), *_connector(wire, model, sample))


def _window(wire: Wire, model: str) -> int | None:
    """The positions of a model, which must be there."""
    listed = {str(one.get("id")): one for one in wire.models()}
    if model not in listed:
        names = ", ".join(sorted(listed)) or "no model"
        raise wire.error(f"there is no model {model!r}; expected --model with one of: {names}")
    window = listed[model].get("max_model_len")
    return window if type(window) is int and window > 0 else None


def _asked(wire: Wire, model: str, ids: Sequence[int], **more: object) -> tuple[Record, Record]:
    """The choice of a greedy completion, and the whole answer."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
    answer = wire.whole(body | more)
    try:
        return answer["choices"][0] | {}, answer
    except (KeyError, IndexError, TypeError) as error:
        raise wire.error("an answer that is no completion") from error


def _check_ids(wire: Wire, model: str, sample: Sample, room: int) -> None:
    """Refuse a server that does not take ids as they are, or does not give them back."""
    sent = [*sample.split, *sample.varied][:room]
    try:
        choice, answer = _asked(wire, model, sent, return_token_ids=True)
    except EngineError as error:
        if "(status 400)" not in str(error) and "(status 422)" not in str(error):
            raise
        raise EngineError(
            f"{error}; it was sent token ids of the tokenizer {sample.name}: expected a server "
            "that takes them (vLLM 0.10.2 or newer), and its model's own tokenizer"
        ) from error
    taken = choice.get("prompt_token_ids", answer.get("prompt_token_ids"))
    written = choice.get("token_ids")
    if not taken or not written:
        raise wire.error(
            "gives no token ids back (return_token_ids); expected a server such as vLLM 0.10.2 or "
            "newer"
        )
    if list(taken) != sent:
        raise wire.error(
            f"sent {len(sent)} token ids, and it took {len(taken)} others: it tokenizes anew, or "
            "puts tokens in front; expected a server that takes ids as they are"
        )


def _check_text(wire: Wire, model: str, sample: Sample) -> None:
    """Refuse a server for which the ids are other texts. One that echoes nothing is believed."""
    try:
        choice, _ = _asked(wire, model, sample.varied, echo=True)
    except EngineError as error:
        if "(status 4" in str(error):
            return
        raise
    echoed = _letters(str(choice.get("text", "")))
    expected = _letters(sample.text)
    if len(echoed) >= len(expected) // 2 and not echoed.startswith(expected):
        raise wire.error(
            f"its model {model!r} has other tokens than the tokenizer {sample.name}; give the "
            "model's own --tokenizer"
        )


def _connector(wire: Wire, model: str, sample: Sample) -> tuple[int, int]:
    """What FlashBack's connector has, if the server has that."""
    try:
        _, answer = _asked(wire, model, sample.split, kv_transfer_params={CONNECTOR: {}})
    except EngineError as error:
        if "(status " in str(error):
            return 0, 0
        raise
    told = answer.get("kv_transfer_params")
    found = told.get(CONNECTOR) if isinstance(told, dict) else None
    if not isinstance(found, dict):
        return 0, 0
    block, passages = found.get("block"), found.get("passages")
    return (block, passages) if type(block) is type(passages) is int else (0, 0)


def _letters(text: str) -> str:
    """Without what detokenizers disagree on."""
    return "".join(filter(str.isalnum, text))


def _reuse(wire: Wire, model: str, ids: Ids, length: int) -> tuple[int | None, str]:
    """The size of a cached block, found by sending a new prompt twice; and what to tell."""
    draw = random.Random(os.urandom(8))
    prompt = draw.choices(ids, k=length)
    seconds, cached = [], None
    for _ in range(2):
        began = time.perf_counter()
        _, answer = _asked(wire, model, prompt)
        seconds.append(time.perf_counter() - began)
        cached = cached_of(answer.get("usage"))
    if cached:
        return length - cached, ""
    times = f"{length} tokens took {seconds[0]:.2f} s, and {seconds[1]:.2f} s again"
    if cached is None:
        return None, (
            f"{wire.name} does not say how much of a prompt was cached ({times}): reuse is "
            "shown as 0; start vLLM with `--enable-prompt-tokens-details`"
        )
    return None, (
        f"{wire.name} reuses nothing of a prompt that it has just had ({times}): every stride "
        "computes the whole context; start it with prefix caching"
    )
