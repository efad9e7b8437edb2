"""The next turn of a conversation: its prompt, without the oldest exchanges if they do not fit.

An exchange is a message of the user and what follows it, up to the user's next one. System messages
at the beginning always stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from flashback.errors import PromptTooLong, SettingsError
from flashback.readers.chat import ChatPrompt, Conversation, Message, message
from flashback.readers.text_reader import TextReader
from flashback.settings import Settings

Exchange = tuple[Message, ...]
_BEFORE = (message("user", "a"), message("assistant", "b"))
"""Stands before exchanges whose tokens are counted."""


@dataclass(frozen=True)
class Cut:
    """The beginning of a conversation that was left out.

    What it costs: the first stride of the answer prefills all that was kept, unless the same
    beginning was cut at the turn before.
    """

    messages: int
    """Left out: the oldest ones behind the system's."""
    tokens: int
    """Of the whole conversation as a prompt."""
    room: int
    """Tokens that fit beside the passages and the answer."""

    def __str__(self) -> str:
        """For people."""
        return (
            f"the first {self.messages} messages were left out: the conversation has {self.tokens} "
            f"tokens, and {self.room} fit beside the passages and the answer"
        )


@dataclass(frozen=True)
class ChatTurn:
    """An answer that can be written."""

    prompt: ChatPrompt
    settings: Settings
    """With the frame for passages."""
    query: Callable[[str], str]
    """The query for what was written so far."""
    cut: Cut | None = None
    """What was left out, if anything."""


def turn_of(
    conversation: Conversation,
    reader: TextReader,
    settings: Settings,
    budget_of: Callable[[Settings], int],
) -> ChatTurn:
    """The turn of a conversation, cut if it must be and `settings.truncate` allows it.

    Cut like a context that jumps: a conversation over its room goes on with the last exchanges that
    fill half of it, so that the cache stays valid for many turns. Where is a function of messages
    and settings, for the turns are gone through from the first.

    Args:
        settings: with the name of a pattern, not `auto`.
        budget_of: B, tokens of the context with these settings; raises SettingsError.

    Raises:
        ChatTemplateError: see `Conversation.prompt`.
        PromptTooLong: the last exchange alone, or the system message, does not fit.
    """
    turn = _turn(conversation, reader, settings)
    budget = _budget(turn, conversation, reader, settings, budget_of)
    room = max(budget - settings.stopping.max_new_tokens, budget // 2)
    tokens = len(turn.prompt.ids)
    if not settings.truncate or tokens <= room:
        return turn
    system, exchanges = _split(conversation.messages)
    last = _turn(replace(conversation, messages=system + exchanges[-1]), reader, settings)
    if len(last.prompt.ids) > budget:
        raise PromptTooLong(
            f"the last message and the system's have {len(last.prompt.ids)} tokens, but only "
            f"{budget} fit the reader's window beside passages and new tokens; shorten them"
        )
    start = _start(*_sizes(exchanges, reader, len(last.prompt.ids)), room)
    while True:
        kept = replace(conversation, messages=sum(exchanges[start:], system))
        turn = _turn(kept, reader, settings)
        if len(turn.prompt.ids) <= budget:
            break
        start += 1  # with this template the parts have fewer tokens than the whole
    left_out = len(sum(exchanges[:start], ()))
    return replace(turn, cut=Cut(left_out, tokens, room)) if start else turn


def _turn(conversation: Conversation, reader: TextReader, settings: Settings) -> ChatTurn:
    prompt = conversation.prompt(reader, settings.retrieval)
    length = settings.retrieval.query_tokens
    return ChatTurn(
        prompt,
        replace(settings, retrieval=prompt.retrieval),
        lambda written: conversation.query(reader, written, length),
    )


def _budget(
    turn: ChatTurn,
    conversation: Conversation,
    reader: TextReader,
    settings: Settings,
    budget_of: Callable[[Settings], int],
) -> int:
    """B; a system message may stand in the frame of passages, and take from it."""
    try:
        return budget_of(turn.settings)
    except SettingsError:
        system, exchanges = _split(conversation.messages)
        if not system:
            raise
        without = replace(conversation, messages=sum(exchanges, ()))
        left = budget_of(_turn(without, reader, settings).settings)
        tokens = len(reader.encode("".join(one["content"] for one in system)))
        raise PromptTooLong(
            f"the system message has {tokens} tokens, but the reader's window has {left} for the "
            "whole conversation beside passages and new tokens; shorten it"
        ) from None


def _split(messages: Sequence[Message]) -> tuple[Exchange, list[Exchange]]:
    """The system messages at the beginning, and the exchanges behind them."""
    system = tuple(takewhile(lambda one: one["role"] == "system", messages))
    rest = messages[len(system) :]
    asked = [at for at, one in enumerate(rest) if one["role"] == "user"]
    bounds = [0, *asked[1:], len(rest)]
    return system, [tuple(rest[start:end]) for start, end in pairwise(bounds)]


def _sizes(
    exchanges: Sequence[Exchange], reader: TextReader, last: int
) -> tuple[list[int], list[int], int]:
    """Tokens of every exchange with its answer, and without; and those that are always there.

    Args:
        last: tokens of the conversation that has the last exchange alone.
    """

    def tokens(messages: Exchange) -> int:
        return len(Conversation((*_BEFORE, *messages)).prompt_ids(reader))

    alone = tokens(())
    whole = [tokens(one) - alone for one in exchanges]
    asked = [tokens(_question(one)) - alone for one in exchanges[:-1]] + whole[-1:]
    return whole, asked, last - whole[-1]


def _question(exchange: Exchange) -> Exchange:
    return exchange[: 1 + [one["role"] for one in exchange].index("user")]


def _start(whole: list[int], asked: list[int], fixed: int, room: int) -> int:
    """The first exchange that is kept at the last turn."""
    start = 0
    for last, question in enumerate(asked):
        if fixed + sum(whole[start:last]) + question > room:
            rest = (one for one in range(start + 1, last)
                    if fixed + sum(whole[one:last]) + question <= room // 2)  # fmt: skip
            start = next(rest, last)
    return start
