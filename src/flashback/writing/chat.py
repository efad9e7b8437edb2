"""The next turn of a conversation: its prompt, without the oldest exchanges if they do not fit.

An exchange is a message of the user and what follows it, up to the user's next one. System messages
at the beginning always stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise, takewhile

from flashback.errors import PromptTooLong, SettingsError
from flashback.readers.chat import ChatPrompt, Conversation
from flashback.readers.messages import Message, message
from flashback.readers.passages import LONGEST_TOKEN
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
    at_least: bool = False
    """Whether the whole conversation has more: so many of its tokens were counted."""

    def __str__(self) -> str:
        """For people."""
        tokens = f"at least {self.tokens}" if self.at_least else str(self.tokens)
        return (
            f"the first {self.messages} messages were left out: the conversation has {tokens} "
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
    every = len(conversation.messages)
    conversation = _worth_tokenizing(conversation, reader.window, truncate=settings.truncate)
    dropped = every - len(conversation.messages)
    turn = _turn(conversation, reader, settings)
    budget = _budget(turn, conversation, reader, settings, budget_of)
    room = max(budget - settings.stopping.max_new_tokens, budget // 2)
    tokens = len(turn.prompt.ids)
    if not settings.truncate or tokens <= room:
        cut = Cut(dropped, tokens, room, at_least=True)
        return replace(turn, cut=cut) if dropped else turn
    system, exchanges = _split(conversation.messages)
    last = _turn(replace(conversation, messages=system + exchanges[-1]), reader, settings)
    if len(last.prompt.ids) > budget:
        raise PromptTooLong(
            f"the last message and the system's have {len(last.prompt.ids)} tokens, but only "
            f"{budget} fit the reader's window beside passages and new tokens; shorten them"
        )
    start = _start(*_sizes(exchanges, reader, len(last.prompt.ids)), room)
    while True:
        kept = replace(conversation, messages=(*system, *chain(*exchanges[start:])))
        turn = _turn(kept, reader, settings)
        if len(turn.prompt.ids) <= budget:
            break
        start += 1  # with this template the parts have fewer tokens than the whole
    left_out = dropped + sum(map(len, exchanges[:start]))
    cut = Cut(left_out, tokens, room, at_least=dropped > 0)
    return replace(turn, cut=cut) if left_out else turn


def _worth_tokenizing(conversation: Conversation, window: int, *, truncate: bool) -> Conversation:
    """The conversation without the oldest exchanges that can never fit, by their characters alone.

    What can fit is left as it is. The rest would be rendered and tokenized whole, message by
    message, before it is found to be too long. Cut as in `turn_of`, in characters for tokens.

    Raises:
        PromptTooLong: all of it must fit and cannot, or the last exchange and the system's cannot.
    """
    most = window * LONGEST_TOKEN
    if _characters(conversation.messages) <= most:
        return conversation
    system, exchanges = _split(conversation.messages)
    kept = (*system, *exchanges[-1]) if truncate else conversation.messages
    if _characters(kept) > most:
        of = "the last message and the system's have" if truncate else "the conversation has"
        size = sum(len(one["content"]) for one in kept)
        raise PromptTooLong(
            f"{of} {size} characters in {len(kept)} message{'s' * (len(kept) > 1)}, which cannot "
            f"fit the reader's window of {window} tokens; shorten them"
        )
    fixed = _characters(system)
    whole = [_characters(one) for one in exchanges]
    asked = [_characters(_question(one)) for one in exchanges[:-1]] + whole[-1:]
    start = _start(whole, asked, fixed, most)
    return replace(conversation, messages=(*system, *chain(*exchanges[start:])))


def _characters(messages: Sequence[Message]) -> int:
    """At most `LONGEST_TOKEN` for each token of a prompt: a message's turn takes one, too.

    Some templates leave out white space around a message.
    """
    return sum(len(one["content"].strip()) + LONGEST_TOKEN for one in messages)


def _turn(conversation: Conversation, reader: TextReader, settings: Settings) -> ChatTurn:
    prompt = conversation.prompt(reader, settings.retrieval)
    return ChatTurn(
        prompt,
        replace(settings, retrieval=prompt.retrieval),
        lambda written: conversation.query(reader, written, settings.retrieval),
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
        without = replace(conversation, messages=tuple(chain(*exchanges)))
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
    before = [0, *accumulate(whole)]

    def held(first: int, last: int) -> int:
        return fixed + before[last] - before[first] + asked[last]

    start = 0
    for last in range(len(asked)):
        if held(start, last) > room:
            rest = (one for one in range(start + 1, last) if held(one, last) <= room // 2)
            start = next(rest, last)
    return start
