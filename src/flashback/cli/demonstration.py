"""The demonstration: what patterns cost behind a long text, and questions about made-up facts.

The documents are about an island that does not exist, so that no reader can know what is in them.
They ship with the package, as do a visitor's diary, which makes prompts long, and the questions.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from flashback.engines.local import LocalEngine
from flashback.errors import IndexFolderError
from flashback.loading import load
from flashback.questions.metrics import stands_in
from flashback.readers.load import load_token_ends
from flashback.readers.messages import Message, message
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
ASKED = (
    "Who founded the library of Tolmere?",
    "How many pupils does the school of Tolmere have?",
    "Which bread is the bakery of Tolmere known for?",
    "How many letters does the Museum of Lost Letters keep?",
    "What is the cheese of Tolmere called?",
)
"""What the reader writes about behind the diary: each question needs another passage."""
_GIVEN = "Here is the diary of my holiday on the island of Tolmere."
_READ = "Thank you, I have read your diary."


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration writes."""

    diary_tokens: int = 1300
    """As many of the diary's paragraphs as fit."""
    stride_tokens: int = 16
    """Of each line: a stride, so that something is looked up for each."""
    answer_tokens: int = 16

    @property
    def new_tokens(self) -> int:
        """Of all lines."""
        return self.stride_tokens * len(ASKED)

    def of(self, pattern: str, tokens: int) -> Settings:
        """The same settings for every pattern."""
        stopping = StoppingSettings(max_new_tokens=tokens, ignore_eos=True)
        return Settings(RetrievalSettings(pattern=pattern), stopping=stopping)


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
    results: dict[str, list[Generation]] = field(default_factory=dict)
    """Of the patterns that have written: what they wrote to each question."""

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
        for _ in self.run(pattern, ASKED[:2]):
            pass

    def run(self, pattern: str, asked: Sequence[str] = ASKED) -> Iterator[tuple[str, Event]]:
        """Write a stride for each question, from an empty cache; what is written is in `results`.

        A reader that chats is asked one after another. Any other continues the diary: each request
        of a longer text would begin its slot anew.

        Yields:
            events with their questions, or with an empty text.
        """
        assert isinstance(self.writer.engine, LocalEngine)
        self.writer.engine.forget()
        written = self.results[pattern] = []
        for question in asked if self.chats else [""]:
            writing = self._begin(pattern, asked, [one.text for one in written])
            for event in writing:
                yield question, event
            written.append(writing.result)

    @property
    def diary_tokens(self) -> int:
        """Of the diary as it stands in the prompt."""
        return len(self.writer.reader.encode(self._diary))

    @cached_property
    def _diary(self) -> str:
        return beginning_of_diary(self.writer.reader, self.settings.diary_tokens)

    def _begin(self, pattern: str, asked: Sequence[str], written: Sequence[str]) -> Writing:
        stride = self.settings.stride_tokens
        if self.chats:
            chat = _chat(self._diary, asked, written)
            return self.writer.stream_chat(chat, self.settings.of(pattern, stride))
        settings = self.settings.of(pattern, stride * len(asked))
        sampled = replace(settings, sampling=SamplingSettings(temperature=1.0, seed=1))
        return self.writer.stream(self._diary, sampled)

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
        slowest = _seconds(self.results["prepend"])
        rows = [
            {
                "pattern": pattern,
                "seconds": _seconds(written),
                "times_prepend": slowest / _seconds(written),
                "prefilled": sum(one.prefilled for one in written),
                "read_after_start": _read_after_start(written),
                "tokens": sum(len(one.tokens) for one in written),
                "texts": [one.text for one in written],
                "titles": [[hit.title for hit in one.sources] for one in written],
            }
            for pattern, written in self.results.items()
        ]
        return {"diary_tokens": self.diary_tokens, "asked": ASKED, "patterns": rows}


def beginning_of_diary(reader: TextReader, tokens: int) -> str:
    """As many of its paragraphs as fit, the first at least."""
    paragraphs = (texts() / "diary.txt").read_text("utf-8").strip().split("\n\n")
    while len(paragraphs) > 1 and len(reader.encode("\n\n".join(paragraphs))) > tokens:
        paragraphs.pop()
    return "\n\n".join(paragraphs)


def _chat(diary: str, asked: Sequence[str], written: Sequence[str]) -> list[Message]:
    """The conversation up to the next question."""
    turns = [message("user", question) for question in asked[: len(written) + 1]]
    said = [message("user", f"{_GIVEN}\n\n{diary}"), message("assistant", _READ)]
    for question, answer in zip(turns, written, strict=False):
        said += [question, message("assistant", answer)]
    return [*said, turns[-1]]


def _seconds(written: Sequence[Generation]) -> float:
    return sum(one.seconds for one in written)


def _read_after_start(written: Sequence[Generation]) -> int:
    """Tokens of prompts that were computed after the first stride, new passages included."""
    strides = [stride for one in written for stride in one.strides]
    return sum(stride.usage.prefilled for stride in strides[1:])
