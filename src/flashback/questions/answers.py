"""Questions answered by a row: what the reader writes, and what it gives the right answer.

An answer is one stride, so its passages stay the same. Its right answer is scored behind the same
prompt, with the passages where they stood.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashback.corpus.documents import Document
from flashback.errors import (
    FlashBackError,
    FlashBackWarning,
    PromptsError,
    PromptTooLong,
    TrainingError,
)
from flashback.patterns.prompt import Ids
from flashback.questions.formats import Question
from flashback.questions.forms import Asking
from flashback.questions.metrics import scores_of
from flashback.questions.passages import Asked, HitsInTurn
from flashback.questions.rows import Row
from flashback.readers.passages import passage_ids
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Retriever
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.settings import Settings
from flashback.writing.generator import Generation, Generator

OpenWriter = Callable[[TextReader, Retriever], Generator]
"""Puts a reader and a retriever together."""


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
    ) -> Iterator[dict[str, Any]]:
        """Answer and score questions, in their order, some at a time.

        Raises:
            PromptTooLong: a prompt does not fit beside passages and the answer.
            TrainingError: log-probabilities are not finite.
        """
        hits = HitsInTurn()
        writer = open_writer(self.reader, hits)
        prompts = [
            self.asking.prompt(self.reader, *self._pasted(one), self.settings.retrieval).ids
            for one in asked
        ]
        self._check(writer, asked, prompts)
        scorer = TargetScorer(self.reader.model) if isinstance(self.reader, Reader) else None
        for at in range(0, len(asked), batch_size):
            some, ids = asked[at : at + batch_size], prompts[at : at + batch_size]
            hits.expect(some)
            written = _written(writer, ids, self.settings, batch_size)
            examples = list(map(self._example, some, ids))
            nats: list[float | None] = [None] * len(some)
            if scorer is not None:
                nats = [*_nats(scorer, examples, self.arrangement)]
            for one, generation, example, own in zip(some, written, examples, nats, strict=True):
                yield self._record(one, generation, example.window.stride, own)

    @property
    def arrangement(self) -> Arrangement:
        """Where passages stand, and their frame."""
        retrieval = self.settings.retrieval
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        return Arrangement(retrieval.pattern, frame, self.reader.forbidden)

    def _pasted(self, asked: Asked) -> tuple[Question, str]:
        return asked.question, asked.shown if self.row.pasted else ""

    def _check(self, writer: Generator, asked: Sequence[Asked], prompts: Sequence[Ids]) -> None:
        """Refuse a prompt now rather than after hours of writing."""
        for one, prompt in zip(asked, prompts, strict=True):
            try:
                writer.check(prompt, self.settings)
                self._example(one, prompt)
            except FlashBackError as error:
                raise type(error)(
                    f"{self.row.name}, question {one.question.id!r}: {error}"
                ) from None

    def _example(self, asked: Asked, prompt: Ids) -> Example:
        """The right answer as the only stride behind the prompt.

        Raises:
            PromptTooLong: it does not fit the reader's window.
            PromptsError: the reader has no tokens for it.
        """
        answer = self.asking.answer_ids(self.reader, *self._pasted(asked))
        if not answer:
            raise PromptsError(
                f"the right answer {asked.question.answers[0]!r} has no tokens of "
                f"{self.reader.name}; leave the question out, or use another reader"
            )
        retrieval = self.settings.retrieval
        passages: Ids = ()
        if self.row.retrieves:
            passages = passage_ids(self.reader, (hit.text for hit in asked.hits), retrieval)
        example = Example(
            Window(
                Document("", "", ""),
                prompt + answer,
                _bos(self.reader, prompt),
                (Cut(len(prompt)),),
                len(answer),
            ),
            (passages,),
            retrieval.passage_tokens,
            retrieval.passages,
            retrieval.recomputed,
            retrieval.history_tokens,
        )
        arranged = self.arrangement.arrange(example, 0)
        positions = arranged.layout.reserved + len(arranged.ids) + len(answer)
        if positions > self.reader.window:
            raise PromptTooLong(
                f"the right answer has {len(answer)} tokens, and needs {positions} positions with "
                f"its prompt; {self.reader.name} has {self.reader.window}; leave the question out"
            )
        return example

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
            "passages": [{"id": hit.id, "title": hit.title} for hit in asked.hits],
        }


def _written(
    writer: Generator, prompts: Sequence[Ids], settings: Settings, batch_size: int
) -> list[Generation]:
    with warnings.catch_warnings():
        # The stride and the query of an answer are never those that an adapter was trained with.
        warnings.filterwarnings("ignore", "the adapter on", FlashBackWarning)
        return writer.generate_batch(prompts, settings, batch_size=batch_size)


@torch.no_grad()
def _nats(
    scorer: TargetScorer, examples: Sequence[Example], arrangement: Arrangement
) -> list[float]:
    """-log p of every right answer.

    Raises:
        TrainingError: log-probabilities are not finite.
    """
    nats = [-float(one.double().sum()) for one in scorer.log_probs(examples, arrangement)]
    if not all(map(math.isfinite, nats)):
        raise TrainingError(
            "the model's log-probabilities are not finite; use --dtype='float32', or another model"
        )
    return nats


def _bos(reader: TextReader, prompt: Ids) -> int:
    """How many leading ids of a prompt are BOS."""
    return len(reader.bos) if prompt[: len(reader.bos)] == reader.bos else 0
