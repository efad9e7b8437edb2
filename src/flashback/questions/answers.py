"""Questions answered by a row: what the reader writes, and what it gives the right answer.

An answer is one stride, so its passages stay the same. The right answer is scored behind the same
prompt, which the engine then holds. Questions whose prompts begin alike, such as those about one
passage, are asked one after the other, so that what is cached of one is reused for the next. Of a
conversation, the turns before the question are replayed, which says what the row must prefill.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flashback.engines.protocol import Batch, Engine
from flashback.errors import (
    FlashBackError,
    FlashBackWarning,
    PromptTooLong,
)
from flashback.patterns.prompt import Ids
from flashback.questions.examples import answer_example, without_tokens
from flashback.questions.forms import Asking
from flashback.questions.given_answers import given_nats
from flashback.questions.metrics import scores_of
from flashback.questions.passages import Asked, HitsInTurn
from flashback.questions.replay import Turn, counting_engine, replay
from flashback.questions.rows import Row
from flashback.readers.chat import ChatPrompt
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Retriever
from flashback.scoring.examples import Arrangement, Example
from flashback.settings import RetrievalSettings, Settings
from flashback.writing.generator import Generation, Generator

OpenWriter = Callable[[TextReader, Retriever], Generator]
"""Puts a reader and a retriever together."""


@dataclass(frozen=True)
class _Posed:
    """A question as the reader is asked it."""

    asked: Asked
    prompt: ChatPrompt
    example: Example
    """The right answer as the only stride behind the prompt."""


@dataclass(frozen=True)
class Respondent:
    """A row with its reader, ready to answer."""

    row: Row
    reader: TextReader
    """One whose model is elsewhere writes, and scores nothing."""
    settings: Settings
    """The answer's length is the stride, so that an answer is one stride."""
    asking: Asking

    def records(
        self, asked: Sequence[Asked], open_writer: OpenWriter, batch_size: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Answer and score questions, some at a time, in an order that reuses what is cached.

        Returns:
            The number of each question in `asked`, and its record.

        Raises:
            PromptTooLong: a prompt does not fit beside passages and the answer.
            ChatTemplateError: the reader's template refuses a conversation.
            TrainingError: log-probabilities are not finite.
        """
        hits = HitsInTurn()
        writer = open_writer(self.reader, hits)
        batch = writer.open_batch(min(batch_size, len(asked)))
        posed = [self._posed(writer, one) for one in asked]
        talks = any(one.question.history is not None for one in asked)
        counting = (counting_engine(self.reader) if talks else None) or writer.engine
        for numbers in self._rounds(posed, 1 if batch is None else batch.rows):
            some = [posed[number] for number in numbers]
            hits.expect([one.asked for one in some])
            for number, record in zip(numbers, self._answered(some, writer, batch), strict=True):
                yield number, record | self._replayed(asked[number], counting)

    def _rounds(self, posed: Sequence[_Posed], batch_rows: int) -> Iterator[list[int]]:
        """Which questions are asked together, by their numbers; they have the same settings."""
        alike: dict[RetrievalSettings, list[int]] = {}
        for number, one in enumerate(posed):
            alike.setdefault(one.prompt.retrieval, []).append(number)
        for retrieval, numbers in alike.items():
            arrangement = self._arrangement(retrieval)
            prompts = [arrangement.arrange(posed[number].example, 0) for number in numbers]
            for some in rounds([prompt.arranged for prompt in prompts], batch_rows):
                yield [numbers[at] for at in some]

    def _answered(
        self, posed: Sequence[_Posed], writer: Generator, batch: Batch | None
    ) -> Iterator[dict[str, Any]]:
        """The records of questions with the same settings, no more than a batch has rows."""
        retrieval = posed[0].prompt.retrieval
        examples = [one.example for one in posed]
        # Scored first: then the engine holds the prompt, and writing does not prefill it again.
        nats = self._nats(examples, self._arrangement(retrieval), writer.engine, batch)
        ids = [one.prompt.ids for one in posed]
        written = _written(writer, ids, self._settings(retrieval), batch)
        for one, generation, own in zip(posed, written, nats, strict=True):
            yield self._record(one.asked, generation, one.example.window.stride, own)

    def _prompt(self, asked: Asked) -> ChatPrompt:
        pasted = self.row.pasted_into(asked)
        return self.asking.prompt(self.reader, asked.question, pasted, self.settings.retrieval)

    def _settings(self, retrieval: RetrievalSettings) -> Settings:
        return replace(self.settings, retrieval=retrieval)

    def _arrangement(self, retrieval: RetrievalSettings) -> Arrangement:
        """Where passages stand, and their frame."""
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        return Arrangement(retrieval.pattern, frame, self.reader.forbidden)

    def _posed(self, writer: Generator, asked: Asked) -> _Posed:
        """A question with its prompt; refuses what cannot be answered before hours of writing."""
        try:
            prompt = self._prompt(asked)
            writer.check(prompt.ids, self._settings(prompt.retrieval))
            for turn in asked.turns:
                self._check_window(turn, self._prompt(turn))
            if not self._answer(asked):
                raise without_tokens(asked, self.reader)
        except FlashBackError as error:
            raise type(error)(f"{self.row.name}, question {asked.question.id!r}: {error}") from None
        return _Posed(asked, prompt, self._example(asked, prompt))

    def _check_window(self, asked: Asked, prompt: ChatPrompt) -> None:
        example = self._example(asked, prompt)
        arranged = self._arrangement(prompt.retrieval).arrange(example, 0)
        answer = example.window.stride
        positions = arranged.layout.reserved + len(arranged.ids) + answer
        if positions > self.reader.window:
            raise PromptTooLong(
                f"the right answer has {answer} tokens, and needs {positions} positions with "
                f"its prompt; {self.reader.name} has {self.reader.window}; leave the question out"
            )

    def _answer(self, asked: Asked) -> Ids:
        """The right answer; nothing, if a turn before was not answered."""
        if not asked.question.answers:
            return ()
        pasted = self.row.pasted_into(asked)
        return self.asking.answer_ids(self.reader, asked.question, pasted)

    def _example(self, asked: Asked, prompt: ChatPrompt) -> Example:
        """The right answer as the only stride behind the prompt."""
        answer = self._answer(asked)
        return answer_example(self.reader, asked, prompt, answer, shown=self.row.retrieves)

    def _nats(
        self,
        examples: Sequence[Example],
        arrangement: Arrangement,
        engine: Engine,
        batch: Batch | None,
    ) -> Sequence[float | None]:
        """-log p of every right answer; None, if the engine chooses tokens elsewhere.

        Raises:
            TrainingError: log-probabilities are not finite.
        """
        if not engine.capabilities.chooses_here:
            return [None] * len(examples)
        prompts = [arrangement.arrange(one, 0) for one in examples]
        answers = [one.window.targets(one.window.cuts[0]) for one in examples]
        return given_nats(prompts, answers, arrangement.forbidden, engine, batch)

    def _replayed(self, asked: Asked, engine: Engine) -> dict[str, Any]:
        """What a conversation costs; nothing, if it is none."""
        if asked.question.history is None:
            return {}
        turns = []
        for turn in asked.turns:
            prompt = self._prompt(turn)
            example = self._example(turn, prompt)
            arranged = self._arrangement(prompt.retrieval).arrange(example, 0)
            turns.append(Turn(arranged, example.window.ids[len(prompt.ids) :]))
        return replay(turns, engine).record

    def _record(
        self, asked: Asked, generation: Generation, answer_tokens: int, nats: float | None
    ) -> dict[str, Any]:
        question, written = asked.question, generation.text.strip()
        scores = scores_of(written, question.answers)
        return {
            "row": self.row.name,
            "id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            "written": written,
            "tokens": len(generation.tokens),
            "finish_reason": generation.finish_reason,
            "exact_match": scores.exact_match,
            "f1": scores.f1,
            "substring": scores.substring,
            "nats": nats,
            "answer_tokens": answer_tokens,
            "answer_shown": asked.answer_shown,
            **self._supported(asked),
            "passages": [{"id": hit.id, "title": hit.title} for hit in asked.hits],
        }

    def _supported(self, asked: Asked) -> dict[str, Any]:
        """Whether the passage in view of the answer holds what it rests on, if that is known."""
        if not asked.question.support:
            return {}
        return {"support_shown": self.row.has_passages(asked) and asked.support_shown}


def rounds(prompts: Sequence[Ids], batch_rows: int) -> list[list[int]]:
    """Which prompts a batch is given together, by their numbers.

    Sorted, prompts that share a prefix are neighbours. Each row of the batch takes a run of
    neighbours, one a round, and keeps the prefix that the next one shares with the last.
    """
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])
    length = -(-len(order) // batch_rows)
    return [order[first::length] for first in range(length)]


def _written(
    writer: Generator, prompts: Sequence[Ids], settings: Settings, batch: Batch | None
) -> list[Generation]:
    rows = 1 if batch is None else batch.rows
    with warnings.catch_warnings():
        # The stride and the query of an answer are never those that an adapter was trained with.
        warnings.filterwarnings("ignore", "the adapter on", FlashBackWarning)
        done = dict(writer.stream_batch(prompts, settings, batch_size=rows, batch=batch))
    return [done[number] for number in range(len(prompts))]
