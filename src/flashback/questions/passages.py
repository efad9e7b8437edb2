"""The passages of questions: looked up once, then the same ones for every row of a table."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flashback.errors import PromptsError
from flashback.questions.formats import Question
from flashback.questions.metrics import stands_in
from flashback.readers.passages import passage_ids
from flashback.readers.queries import Whole, query_of
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Retriever, search
from flashback.settings import RetrievalSettings, SearchOptions

_TOGETHER = 64
"""Questions in a search."""


@dataclass(frozen=True)
class Asked:
    """A question with its passages."""

    question: Question
    hits: tuple[Hit, ...]
    shown: str
    """Its passages as a reader sees them, each cut to m tokens; empty: nothing was found."""

    @property
    def answer_shown(self) -> bool:
        """Whether an answer stands in what is shown."""
        return stands_in(self.question.answers, self.shown)


def look_up(
    questions: Sequence[Question],
    retriever: Retriever | None,
    reader: TextReader,
    settings: RetrievalSettings,
) -> list[Asked]:
    """Every question with what a search for it finds.

    Args:
        retriever: None: each question's own passage is taken from its file.

    Raises:
        PromptsError: a question has no passage of its own.
    """
    found = (
        ([_own(one)] for one in questions)
        if retriever is None
        else _searched(questions, retriever, settings)
    )
    return [
        Asked(question, tuple(hits), "\n\n".join(_shown(hits, reader, settings)))
        for question, hits in zip(questions, found, strict=True)
    ]


def _searched(
    questions: Sequence[Question], retriever: Retriever, settings: RetrievalSettings
) -> Iterator[list[Hit]]:
    for at in range(0, len(questions), _TOGETHER):
        queries = [
            query_of(Whole(one.text), settings.query_form) for one in questions[at : at + _TOGETHER]
        ]
        yield from search(retriever, queries, settings)


def _own(question: Question) -> Hit:
    if question.passage is None:
        raise PromptsError(
            f"--oracle: question {question.id!r} has no passage of its own; expected one in every "
            "question, or use --index"
        )
    name = str(question.id)
    return Hit(name, name, question.title, question.passage, 0.0)


def _shown(hits: Sequence[Hit], reader: TextReader, settings: RetrievalSettings) -> Iterator[str]:
    for hit in hits:
        yield reader.decode(passage_ids(reader, [hit.text], settings)).strip()


class HitsInTurn:
    """A retriever that is told what it will find: a search for each text, in the texts' order."""

    def __init__(self) -> None:
        """Expect nothing yet."""
        self._next: deque[tuple[Hit, ...]] = deque()

    def expect(self, asked: Sequence[Asked]) -> None:
        """Let the next searches find the passages of these questions."""
        self._next = deque(one.hits for one in asked)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [list(self._next.popleft()) for _ in queries]
