"""Conversations: messages that a reader's chat template turns into a prompt."""

from dataclasses import dataclass
from typing import Any

from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.text_reader import TextReader
from flashback.settings import FrameText


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's chat template turns into a prompt."""

    messages: tuple[dict[str, str], ...]

    def prompt_ids(self, reader: TextReader) -> Ids:
        """The prompt, up to where the assistant begins to speak.

        Raises:
            SettingsError: the model has no chat template, or its template refuses these messages.
        """
        if not reader.tokenizer.chat_template:
            raise SettingsError(f"{reader.name} has no chat template; use a chat model")
        try:
            text: Any = reader.tokenizer.apply_chat_template(
                list(self.messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            raise SettingsError(f"the chat template refuses these messages: {error}") from error
        return tuple(reader.encode_template(text))

    def query(self, reader: TextReader, written: str, tokens: int) -> str:
        """The last tokens of the last user message and the answer so far, without template."""
        asked = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return reader.decode(reader.encode(f"{asked}\n{written}" if written else asked)[-tokens:])


def chat_frame(reader: TextReader, pattern: str, conversation: Conversation) -> FrameText | None:
    """The text around passages in a chat; None: the reader's own frame."""
    return None
