"""What an exchange of passages in a slot costs: -log p of right answers, against prepending.

    python scripts/exchanged_passages.py QUESTIONS.jsonl --model MODEL [--form chat] [--limit 300]

Each question has its own passage in view when it is answered. In the rows "after", it was computed
with another one in view first: that of the nearest earlier question with another passage and answer
(unrelated), or its own with that answer in place of the right one (counterfactual). e is how many
tokens were computed again.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from flashback.corpus.documents import Document
from flashback.patterns.prompt import Ids
from flashback.questions.formats import Question, read_questions
from flashback.questions.forms import Asking, settled_form
from flashback.readers.load import load_reader
from flashback.readers.passages import passage_ids
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings


class Measurement:
    """Questions asked of one reader in one form."""

    def __init__(self, reader: Reader, asking: Asking, passage_tokens: int) -> None:
        self._reader = reader
        self._asking = asking
        self._tokens = passage_tokens
        self._scorer = TargetScorer(reader.model)

    @torch.no_grad()
    def nats(
        self, question: Question, pattern: str, passages: Sequence[str], again: int = 1
    ) -> float:
        """-log p of the right answer, for each of its tokens.

        Args:
            passages: in view one after the other, the last one when it is answered.
            again: e.
        """
        asked = RetrievalSettings(pattern, passage_tokens=self._tokens, recompute_tokens=again)
        prompt = self._asking.prompt(self._reader, question, retrieval=asked)
        retrieval = prompt.retrieval
        frame = self._reader.frame(retrieval.frame, pattern)
        answer = self._asking.answer_ids(self._reader, question)
        shown = [passage_ids(self._reader, [one], retrieval) for one in passages]
        example = self._example(prompt.ids, answer, shown, retrieval)
        arrangement = Arrangement(pattern, frame, self._reader.forbidden)
        (log_probs,) = self._scorer.log_probs([example], arrangement)
        return -float(log_probs[-1].mean())

    def _example(
        self, prompt: Ids, answer: Ids, passages: Sequence[Ids], retrieval: RetrievalSettings
    ) -> Example:
        """A stride that ends with the prompt for every passage but the last, then the answer's."""
        bos = len(self._reader.bos) if prompt[: len(self._reader.bos)] == self._reader.bos else 0
        strides = range(len(passages) - 1, -1, -1)
        ends = [max(len(prompt) - len(answer) * one, 1) for one in strides]  # a short question
        window = Window(
            Document("", "", ""), prompt + answer, bos, tuple(map(Cut, ends)), len(answer)
        )
        return Example(
            window,
            tuple(passages),
            self._tokens,
            recomputed=retrieval.recomputed,
            history=retrieval.history_tokens,
        )


def rows(
    measured: Measurement, question: Question, other: Question, again: Sequence[int]
) -> dict[str, float]:
    """All rows of one question, with each e."""
    passage, wrong = question.passage or "", other.passage or ""
    altered = passage.replace(question.answers[0], other.answers[0])
    found = {
        "none": measured.nats(question, "none", [passage]),
        "prepend": measured.nats(question, "prepend", [passage]),
        "slot": measured.nats(question, "slot", [passage]),
    }
    for kind, before in (("unrelated", wrong), ("counterfactual", altered)):
        for e in again:
            nats = measured.nats(question, "slot", [before, passage], e)
            found[f"slot after {kind}, e = {e}"] = nats
    return found


def other_of(questions: Sequence[Question], at: int) -> Question:
    """The nearest earlier question with another passage and answer; the last are before the first.

    Raises:
        SystemExit: there is none.
    """
    own = questions[at]
    for back in range(1, len(questions)):
        other = questions[at - back]
        if other.passage != own.passage and other.answers[0] != own.answers[0]:
            return other
    raise SystemExit(f"question {own.id!r}: found no other passage with another answer")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--form", default="auto")
    parser.add_argument("--limit", type=int, default=300, help="questions, 2 or more")
    parser.add_argument("--passage-tokens", type=int, default=256)
    parser.add_argument("--recompute-tokens", type=int, nargs="+", default=[16], metavar="E")
    given = parser.parse_args()
    if given.limit < 2:
        parser.error(f"--limit {given.limit}: expected 2 or more, for an interval")
    file = read_questions(given.file)
    usable = [one for one in file.questions if one.answers[0] in (one.passage or "")]
    questions = replace(file, questions=tuple(usable)).sample(given.limit, 0)
    others = [other_of(questions, at) for at in range(len(questions))]
    reader = load_reader(given.model, dtype="float32")
    asking = Asking(settled_form(given.form, reader, questions))
    measured = Measurement(reader, asking, given.passage_tokens)
    table: dict[str, list[float]] = {}
    pairs = zip(questions, others, strict=True)
    for question, other in track(pairs, "scoring", total=len(questions)):
        for name, nats in rows(measured, question, other, given.recompute_tokens).items():
            table.setdefault(name, []).append(nats)
    print(f"{given.model}, {asking.form}, float32, {len(questions)} questions")
    for name, values in table.items():
        against_prepend = zip(values, table["prepend"], strict=True)
        differences = [value - prepended for value, prepended in against_prepend]
        spread = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
        mean, against = statistics.mean(values), statistics.mean(differences)
        print(f"{name:35} {mean:6.3f}  {against:+.3f} (± {spread:.3f})")


if __name__ == "__main__":
    main()
