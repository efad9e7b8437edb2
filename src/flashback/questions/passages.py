"""The passages of questions: looked up once, then the same ones for every row of a table."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

from flashback.errors import PromptsError, SettingsError
from flashback.questions.formats import Question
from flashback.questions.metrics import stands_in
from flashback.readers.passages import passage_ids
from flashback.readers.queries import Whole, query_of
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Listed, Retriever, leaves_of, search
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
    earlier: tuple["Asked", ...] = ()
    """The conversation's turns before it; the right answer of each is what the file answers."""

    @property
    def answer_shown(self) -> bool:
        """Whether an answer stands in what is shown."""
        return stands_in(self.question.answers, self.shown)

    @property
    def support_shown(self) -> bool:
        """Whether all sentences that the answer rests on stand in what is shown."""
        return _holds(self.shown, self.question.support)

    @property
    def source_found(self) -> bool:
        """Whether what the answer rests on was found: its sentences, or a document it names."""
        found = "\n\n".join(hit.text for hit in self.hits)
        named = any(hit.document_id in self.question.sources for hit in self.hits)
        return named or _holds(found, self.question.support)

    @property
    def turns(self) -> Iterator["Asked"]:
        """The conversation's turns in order, this one last, each knowing those before it."""
        for number, one in enumerate(self.earlier):
            yield replace(one, earlier=self.earlier[:number])
        yield self


def _holds(text: str, sentences: Sequence[str]) -> bool:
    return bool(sentences) and all(stands_in([one], text) for one in sentences)


def earlier_turns(question: Question) -> Iterator[Question]:
    """What a user asked before in the same conversation; the right answer is what was answered."""
    said = question.history or ()
    for at, (role, text) in enumerate(said):
        if role == "user":
            replied = [reply for who, reply in said[at + 1 : at + 2] if who == "assistant"]
            name = f"{question.id}, message {at + 1}"
            yield Question(name, text, tuple(replied), history=said[:at])


def look_up(
    questions: Sequence[Question],
    retriever: Retriever | None,
    reader: TextReader,
    settings: RetrievalSettings,
    *,
    own: bool = False,
    titled: bool = False,
) -> list[Asked]:
    """Every question, and every turn before it, with what a search for it finds.

    Args:
        retriever: None: each question's own passage is taken from its file, and turns before it
            have none.
        own: take the passages that each question names by the ids of their documents.
        titled: show the title of each passage above it.

    Raises:
        PromptsError: a question has no passage of its own, or names one that is not there.
        SettingsError: the retriever cannot give passages by their documents.
    """
    turns = [(*earlier_turns(one), one) for one in questions]
    found: Iterator[Sequence[Hit]] = repeat(())
    if retriever is not None:
        found = _searched(list(chain(*turns)), retriever, settings)
    named = _named(questions, retriever) if own and retriever is not None else {}

    def asked(question: Question, hits: Sequence[Hit]) -> Asked:
        if titled:
            hits = [_under_title(hit) for hit in hits]
        return Asked(question, tuple(hits), "\n\n".join(_shown(hits, reader, settings)))

    every = []
    for *before, last in turns:
        earlier = tuple(asked(one, next(found)) for one in before)
        hits = next(found)
        if own or retriever is None:
            hits = _own(last, named if own else None)[: settings.passages]
        every.append(replace(asked(last, hits), earlier=earlier))
    return every


def _searched(
    questions: Sequence[Question], retriever: Retriever, settings: RetrievalSettings
) -> Iterator[list[Hit]]:
    for at in range(0, len(questions), _TOGETHER):
        queries = [
            query_of(Whole(one.text), settings.query_form) for one in questions[at : at + _TOGETHER]
        ]
        yield from search(retriever, queries, settings)


def _named(questions: Sequence[Question], retriever: Retriever) -> Mapping[str, list[Hit]]:
    """The passages of all documents that questions name, in their order in the document."""
    wanted = {name for one in questions for name in one.sources}
    found = defaultdict(list)
    for hit in chain.from_iterable(map(_every, leaves_of(retriever))):
        if hit.document_id in wanted:
            found[hit.document_id].append(hit)
    for hits in found.values():
        hits.sort(key=lambda hit: (hit.place.start or 0) if hit.place else 0)
    return found


def _every(retriever: Retriever) -> Iterator[Hit]:
    if isinstance(retriever, Listed):
        return retriever.every()
    raise SettingsError(
        f"--oracle with {type(retriever).__name__}: it does not list its passages; expected an "
        "index folder"
    )


def _own(question: Question, named: Mapping[str, Sequence[Hit]] | None) -> list[Hit]:
    """A question's own passages.

    Args:
        named: by document, if questions name their passages.
    """
    if question.passage is not None:
        name = str(question.id)
        return [Hit(name, name, question.title, question.passage, 0.0)]
    if named is None:
        raise PromptsError(
            f"--oracle: question {question.id!r} has no passage of its own; expected one in every "
            "question, or use --index"
        )
    if missing := [name for name in question.sources if name not in named]:
        raise PromptsError(
            f"--oracle: question {question.id!r} names the document {missing[0]!r}, which the "
            "index does not have; expected the file's own passages, indexed with --no-deduplicate"
        )
    return list(chain(*(named[name] for name in question.sources)))


def _under_title(hit: Hit) -> Hit:
    text = hit.text.removeprefix(f"{hit.title}\n")
    return replace(hit, text=f"{hit.title}\n\n{text}") if hit.title else hit


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
