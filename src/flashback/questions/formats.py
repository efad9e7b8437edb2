"""Files of questions with their answers: JSON lines, NQ-open's, conversations, SQuAD's JSON."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from flashback.errors import FlashBackError, PromptsError
from flashback.readers.messages import messages_of
from flashback.writing.prompts import Id, check_whole, id_of, read_lines

_EXPECTED = (
    'expected JSON lines like {"question": "...", "answers": ["..."]}, with "messages" in place of '
    "the question in a conversation, or SQuAD's JSON"
)
_ROLES = ("system", "user", "assistant")

Said = tuple[str, str]
"""A message: who says it, and what."""


@dataclass(frozen=True)
class Question:
    """A question and what counts as its answer."""

    id: Id
    """As given; else its line, or in SQuAD's JSON its number."""
    text: str
    answers: tuple[str, ...]
    """At least one; the first is the one that is scored."""
    passage: str | None = None
    """The passage that answers it, if the file has one."""
    title: str = ""
    """Of the passage."""
    completion: str | None = None
    """A text that the answer continues, if the file has one."""
    history: tuple[Said, ...] | None = None
    """What was said before it in a conversation, maybe nothing; None: it is asked alone."""
    sources: tuple[str, ...] = ()
    """The ids of the documents that answer it, if the file names some."""
    support: tuple[str, ...] = ()
    """The sentences that the answer rests on, if the file has them."""


@dataclass(frozen=True)
class QuestionFile:
    """All questions of a file that have an answer."""

    name: str
    sha256: str
    questions: tuple[Question, ...]
    unanswerable: int
    """Questions without an answer, which are left out."""

    @property
    def names_passages(self) -> bool:
        """Whether questions name their passages by the ids of documents."""
        return any(one.sources for one in self.questions)

    def sample(self, limit: int, seed: int) -> tuple[Question, ...]:
        """A random sample in the file's order; all of them if `limit` is 0 or more than there are.

        The sample of a larger limit contains that of a smaller one.
        """
        numbers = list(range(len(self.questions)))
        if not 0 < limit < len(numbers):
            return self.questions
        random.Random(seed).shuffle(numbers)
        return tuple(self.questions[number] for number in sorted(numbers[:limit]))

    def solved(self, count: int, seed: int) -> Callable[[Question], tuple[Question, ...]]:
        """Other questions of the file for any question, all different: the same ones if possible.

        Raises:
            PromptsError: there are too few.
        """
        shuffled = list(self.questions)
        random.Random(f"examples {seed}").shuffle(shuffled)
        drawn: dict[str, Question] = {}
        for one in shuffled:
            drawn.setdefault(one.text, one)
        if len(drawn) <= count:
            raise PromptsError(
                f"{self.name}: found {len(drawn)} different questions; expected more than the "
                f"{count} of --examples; lower it"
            )

        def others(question: Question) -> tuple[Question, ...]:
            texts = (text for text in drawn if text != question.text)
            return tuple(drawn[text] for text in islice(texts, count))

        return others


def read_questions(path: Path) -> QuestionFile:
    """Read a file of questions.

    Raises:
        PromptsError: it is missing, of an unknown kind, or damaged, or has no question.
        OSError: it cannot be read.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise PromptsError(f"{path}: found {found}; {_EXPECTED}")
    content, name = path.read_bytes(), str(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{name}: not UTF-8 at byte {error.start + 1}; {_EXPECTED}") from None
    every = list(_squad(name, text) or _json_lines(name, text))
    questions = tuple(one for one in every if one.answers)
    if not questions:
        raise PromptsError(f"{name}: found no question with an answer; {_EXPECTED}")
    left_out = len(every) - len(questions)
    return QuestionFile(name, hashlib.sha256(content).hexdigest(), questions, left_out)


def _squad(name: str, text: str) -> list[Question] | None:
    """The questions of a file of SQuAD's kind; None: it is of another kind."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "data" not in record:
        return None
    try:
        return list(_squad_questions(record["data"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise PromptsError(
            f"{name}: damaged ({found}); expected SQuAD's JSON: data, paragraphs, context, qas"
        ) from None


def _squad_questions(articles: Any) -> Iterator[Question]:
    numbers = count(1)
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                given = () if asked.get("is_impossible") else asked["answers"]
                yield Question(
                    id_of(asked, next(numbers)),
                    _text(asked["question"]),
                    _different(_text(answer["text"]) for answer in given),
                    _text(paragraph["context"]),
                    _title(article),
                )


def _json_lines(name: str, text: str) -> Iterator[Question]:
    def read(number: int, line: str) -> Question:
        try:
            return _question(number, line)
        except ValueError as error:
            raise ValueError(f"{error}; {_EXPECTED}") from None

    return read_lines(name, text.split("\n"), read)


def _question(number: int, line: str) -> Question:
    """One line.

    Raises:
        ValueError: what was found.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict) or not {"question", "messages"} & record.keys():
        raise ValueError("found no question")
    text, history = _asked(record)
    identifier = id_of(record, number)
    answers = record.get("answers", record.get("answer"))
    if answers is None:
        raise ValueError("found no answers")
    many = answers if isinstance(answers, list) else [answers]
    return Question(
        identifier,
        text,
        _different(_text(answer) for answer in many),
        _optional(record.get("passage")),
        _title(record),
        _optional(record.get("completion", record.get("prompt"))),
        history,
        _texts(record, "passages"),
        _texts(record, "support"),
    )


def _asked(record: dict[str, Any]) -> tuple[str, tuple[Said, ...] | None]:
    """The question of a line, and what was said before it.

    Raises:
        ValueError: it has both a question and messages, or what are no messages up to a user's.
    """
    if "messages" not in record:
        return _text(record["question"]), None
    if "question" in record:
        raise ValueError("found both a question and messages")
    try:
        given = messages_of(record["messages"])
    except FlashBackError as error:
        raise ValueError(str(error)) from None
    for number, one in enumerate(given, start=1):
        role, first = one["role"], number == 1
        if role not in _ROLES or (role == "system" and not first):
            raise ValueError(
                f"message {number} has the role {role!r}; expected user or assistant, or system in "
                "the first one"
            )
        check_whole(f"message {number}", one["content"])
    said = tuple((one["role"], one["content"]) for one in given)
    if not said or said[-1][0] != "user":
        found = f"one of role {said[-1][0]!r}" if said else "none"
        raise ValueError(f"expected a last message of the user, found {found}")
    return _text(said[-1][1]), said[:-1]


def _texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """One text or several, or none.

    Raises:
        ValueError: they are no texts.
    """
    given = record.get(name)
    if given is None:
        return ()
    return tuple(map(_text, given if isinstance(given, list) else [given]))


def _text(value: object) -> str:
    """A text that is not empty.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"found {json.dumps(value)[:40]} where a text belongs")
    check_whole("a text", value)
    return value


def _title(record: dict[str, Any]) -> str:
    """A title, which may be empty, missing or null.

    Raises:
        ValueError: it has half a character.
    """
    given = record.get("title")
    title = "" if given is None else str(given)
    check_whole("the title", title)
    return title


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _different(answers: Iterator[str]) -> tuple[str, ...]:
    """Each answer once, without the space around it."""
    return tuple(dict.fromkeys(answer.strip() for answer in answers))
