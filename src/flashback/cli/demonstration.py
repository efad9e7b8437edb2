"""The demonstration: a long text continued with every pattern, and questions about made-up facts.

The documents are about an island that does not exist, so that no reader can know what is in them.
They ship with the package, as do a visitor's diary, which makes prompts long, and the questions.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from flashback.engines.local import LocalEngine
from flashback.errors import IndexFolderError
from flashback.loading import load
from flashback.questions.metrics import stands_in
from flashback.readers.chat import Message, message
from flashback.readers.load import load_token_ends
from flashback.readers.text_reader import TextReader
from flashback.retrieval.indexing import ProgressStart, index_corpus
from flashback.retrieval.kinds import Index, open_index
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.version import __version__
from flashback.writing.generator import Event, Generation, Generator, Writing

WAYS = {
    "slot": "exchanges passages at reserved places",
    "append": "puts passages behind the text",
    "prepend": "puts passages before the text",
    "none": "writes without looking anything up",
}
"""The patterns in the order in which they write, and what they do in five words."""
ANSWERING = ("none", "slot")
"""The patterns that answer questions."""
TASK = (
    "Now write a guide to Tolmere for visitors, in one long text. Tell of the ferry, the "
    "lighthouse, the bakery, the museum, the inn and the seals."
)
"""What the chat model is asked to write behind the diary."""
_GIVEN = "Here is the diary of my holiday on the island of Tolmere."
_READ = "Thank you, I have read your diary."
_CONTINUED = "A guide to Tolmere for visitors\n\nThe ferry to Tolmere"
"""What a reader that does not chat continues behind the diary."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration writes."""

    diary_tokens: int = 1300
    """As many of the diary's paragraphs as fit."""
    new_tokens: int = 80
    warm_up_tokens: int = 18
    """More than a stride."""
    answer_tokens: int = 16
    sampling: SamplingSettings = SamplingSettings()

    def of(self, pattern: str, tokens: int) -> Settings:
        """The same settings for every pattern."""
        return Settings(
            RetrievalSettings(pattern=pattern),
            self.sampling,
            StoppingSettings(max_new_tokens=tokens, ignore_eos=True),
        )


def texts() -> Path:
    """The folder of the texts that ship."""
    return Path(str(files("flashback") / "cli" / "demo_texts"))


def index_folder(model: str) -> Path:
    """Where the demo keeps its index for a reader: in the user's cache."""
    documents = (texts() / "tolmere.jsonl").read_bytes()
    identity = b"\n".join([__version__.encode(), model.encode(), documents])
    return user_cache_path("flashback") / f"demo-{hashlib.sha256(identity).hexdigest()[:16]}"


def open_or_build_index(model: str, progress: ProgressStart) -> tuple[Index, bool]:
    """The index of the documents for a reader, and whether it had to be built.

    Args:
        model: whose tokenizer says where passages are cut.
        progress: see `index_corpus`.

    Raises:
        FlashBackError: the cache folder cannot be written.
    """
    folder = index_folder(model)
    try:
        return open_index(folder), False
    except IndexFolderError:
        ends = load_token_ends(model)
        documents = texts() / "tolmere.jsonl"
        index_corpus(documents, folder, overwrite=True, progress=progress, token_ends=ends)
        return open_index(folder), True


@dataclass(frozen=True)
class Question:
    """Something a visitor asks, and what a right answer contains."""

    text: str
    answers: tuple[str, ...]


def questions() -> list[Question]:
    """The questions that ship."""
    lines = (texts() / "questions.jsonl").read_text("utf-8").splitlines()
    return [Question(one["question"], tuple(one["answers"])) for one in map(json.loads, lines)]


@dataclass(frozen=True)
class Answered:
    """A question with an answer of each pattern."""

    question: Question
    written: dict[str, str]

    def right(self, pattern: str) -> bool:
        """Whether a right answer stands in what was written, as `flashback eval qa` counts it."""
        return stands_in(self.question.answers, self.written[pattern])

    def record(self) -> dict[str, Any]:
        """As plain data."""
        answers = {
            pattern: {"text": text, "right": self.right(pattern)}
            for pattern, text in self.written.items()
        }
        return {"question": self.question.text, "expected": self.question.answers, **answers}


@dataclass
class Demo:
    """Writes behind the diary with every pattern, each from an empty cache, and answers."""

    writer: Generator
    settings: DemoSettings = field(default_factory=DemoSettings)
    results: dict[str, Generation] = field(default_factory=dict)
    """Of the patterns that have written."""

    @classmethod
    def load(cls, model: str, index: Index, settings: DemoSettings) -> "Demo":
        """Load a reader without an adapter, where figures are comparable.

        Raises:
            FlashBackError: it is missing or unusable.
        """
        writer = load(model, retriever=index, adapter=None, device="cpu", dtype="float32")
        return cls(writer, settings)

    @property
    def chats(self) -> bool:
        """Whether the reader has a chat template."""
        return bool(self.writer.reader.tokenizer.chat_template)

    def warm_up(self, pattern: str) -> None:
        """Let libraries allocate and tune themselves before anything is timed."""
        self._begin(pattern, self.settings.warm_up_tokens).finish()

    def run(self, pattern: str) -> Iterator[Event]:
        """Write with one pattern; its result is in `results` afterwards."""
        writing = self._begin(pattern, self.settings.new_tokens)
        yield from writing
        self.results[pattern] = writing.result

    @property
    def task(self) -> str:
        """What stands behind the diary: a request, or a beginning that is continued."""
        return TASK if self.chats else _CONTINUED

    @property
    def diary_tokens(self) -> int:
        """Of the diary as it stands in the prompt."""
        return len(self.writer.reader.encode(self._diary))

    @cached_property
    def _diary(self) -> str:
        return beginning_of_diary(self.writer.reader, self.settings.diary_tokens)

    def _begin(self, pattern: str, tokens: int) -> Writing:
        assert isinstance(self.writer.engine, LocalEngine)
        self.writer.engine.forget()
        settings = self.settings.of(pattern, tokens)
        if self.chats:
            return self.writer.stream_chat(_conversation(self._diary), settings)
        return self.writer.stream(f"{self._diary}\n\n{_CONTINUED}", settings)

    def answer(self, asked: Iterable[Question], advance: Callable[[], None]) -> Iterator[Answered]:
        """Answer questions without retrieval and with a slot, each in a chat of its own.

        Args:
            advance: called with every answer.
        """
        stopping = StoppingSettings(max_new_tokens=self.settings.answer_tokens)
        for question in asked:
            written = {}
            for pattern in ANSWERING:
                settings = Settings(RetrievalSettings(pattern=pattern), stopping=stopping)
                chat = [message("user", question.text)]
                written[pattern] = self.writer.chat(chat, settings).text.strip()
                advance()
            yield Answered(question, written)

    def record(self) -> dict[str, Any]:
        """What was written, and what every pattern took, as plain data."""
        slowest = self.results["prepend"].seconds
        rows = [
            {
                "pattern": pattern,
                "seconds": result.seconds,
                "times_prepend": slowest / result.seconds,
                "prefilled": result.prefilled,
                "read_after_start": _read_after_start(result),
                "reused": result.reused,
                "tokens": len(result.tokens),
                "text": result.text,
                "titles": [[hit.title for hit in one.passages] for one in result.strides],
            }
            for pattern, result in self.results.items()
        ]
        return {"diary_tokens": self.diary_tokens, "task": self.task, "patterns": rows}


def beginning_of_diary(reader: TextReader, tokens: int) -> str:
    """As many of its paragraphs as fit, the first at least."""
    paragraphs = (texts() / "diary.txt").read_text("utf-8").strip().split("\n\n")
    while len(paragraphs) > 1 and len(reader.encode("\n\n".join(paragraphs))) > tokens:
        paragraphs.pop()
    return "\n\n".join(paragraphs)


def _conversation(diary: str) -> list[Message]:
    return [
        message("user", f"{_GIVEN}\n\n{diary}"),
        message("assistant", _READ),
        message("user", TASK),
    ]


def _read_after_start(result: Generation) -> int:
    """Tokens of prompts that were computed after the first stride, new passages included."""
    return sum(stride.usage.prefilled for stride in result.strides[1:])
