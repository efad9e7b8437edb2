"""A request whose fields were checked, ready to be scheduled; the same for both endpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashback.patterns.prompt import Ids
from flashback.readers.text_reader import TextReader
from flashback.server.errors import ApiError
from flashback.settings import Settings

FIRST_BOUNDARY = 32
"""Tokens of a scored text before the first passage: as in `flashback eval`."""


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's chat template turns into a prompt."""

    messages: tuple[dict[str, str], ...]

    def prompt_ids(self, reader: TextReader) -> Ids:
        """The prompt, up to where the assistant begins to speak.

        Raises:
            ApiError: the model has no chat template, or its template refuses these messages.
        """
        if not reader.tokenizer.chat_template:
            raise ApiError(
                400,
                "this model has no chat template; use /v1/completions, or serve a chat model",
                "no_chat_template",
            )
        try:
            text: Any = reader.tokenizer.apply_chat_template(
                list(self.messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            raise ApiError(
                400, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return tuple(reader.encode_template(text))

    def query(self, reader: TextReader, written: str, tokens: int) -> str:
        """The last tokens of the last user message and the answer so far, without template."""
        asked = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return reader.decode(reader.encode(f"{asked}\n{written}" if written else asked)[-tokens:])


PromptInput = str | Ids | Conversation
"""A prompt as the client gave it."""


@dataclass(frozen=True)
class CheckedRequest:
    """A request within the server's limits, with all defaults filled in."""

    prompts: tuple[PromptInput, ...]
    settings: Settings
    """The seed is that of the first of `n` choices; each further one has the next seed."""
    n: int = 1
    """Choices for each prompt."""
    write: bool = True
    """False: only score the prompts."""
    echo: bool = False
    """Whether the prompt is part of the text."""
    logprobs: int | None = None
    """How many most probable tokens to give beside each token; None: no log-probabilities."""
    fresh_cache: bool = False
    """Whether to start with empty caches."""
    first_boundary: int = FIRST_BOUNDARY

    @property
    def scores_prompt(self) -> bool:
        return self.echo and self.logprobs is not None

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


def prompts_for_log(prompts: Sequence[PromptInput]) -> list[Any]:
    """The prompts as they came."""
    return [
        list(one.messages)
        if isinstance(one, Conversation)
        else (one if isinstance(one, str) else list(one))
        for one in prompts
    ]
