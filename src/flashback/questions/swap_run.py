"""Cases asked behind an exchange of passages: what is written, and how probable both answers are.

Both come from the engine that writes (`questions/given_answers.py`). What is measured is a function
of the prompt, so a prompt that several rows or exchanges share, such as a prepended passage's, is
computed once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from flashback.errors import PromptsError
from flashback.patterns.prompt import Prompt
from flashback.questions.given_answers import given_nats
from flashback.questions.metrics import normalized, place_of
from flashback.questions.run import NUMBER, Answers, Record
from flashback.questions.swap_cases import Case, Variant
from flashback.questions.swap_prompts import Asker, Swapped
from flashback.questions.swap_settings import Exchange
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings
from flashback.writing.detokenization import Detokenizer, StopFinder
from flashback.writing.generator import Generator


@dataclass(frozen=True)
class Outcome:
    """What a reader makes of a prompt."""

    written: str
    """Greedy."""
    nats: dict[Variant, float]
    """-log p of each answer, all its tokens."""
    tokens: dict[Variant, int]


@dataclass(frozen=True)
class Swaps:
    """All rows of a comparison, for all cases, distances and exchanges; resumable."""

    askers: tuple[Asker, ...]
    """A row each."""
    cases: tuple[Case, ...]
    exchanges: tuple[Exchange, ...]
    distances: tuple[int, ...]
    writer: Generator

    def check(self) -> None:
        """Refuse a case now rather than after hours of writing.

        Raises:
            FlashBackError: a prompt does not fit, or the reader has no tokens for an answer.
        """
        patterns = {asker.row.pattern: asker for asker in self.askers}
        for case, asker in product(self.cases, patterns.values()):
            for variant in case.answers:
                if not asker.answer_ids(case, variant):
                    raise PromptsError(
                        f"case {case.id!r}: the answer {case.answers[variant][0]!r} has no tokens "
                        f"of {self.writer.reader.name}; leave the case out"
                    )
            asker.swapped(case, self.exchanges[0], self.distances[-1])

    def run(self, answers: Answers, start: Callable[[int], Callable[[], None]]) -> list[Record]:
        """Every record: case after case, distance, exchange, row.

        Args:
            answers: those kept are not computed again.
            start: called with the number of answers to come; returns what is called after each.

        Raises:
            FlashBackError: see `check`; or log-probabilities are not finite.
        """
        found = {int(record[NUMBER]): record for record in answers.kept()}
        number = 0
        of_case = len(self.distances) * len(self.exchanges) * len(self.askers)
        on_answer = start(len(self.cases) * of_case - len(found))
        for case, distance in product(self.cases, self.distances):
            outcomes: dict[Prompt, Outcome] = {}
            for exchange, asker in product(self.exchanges, self.askers):
                number += 1
                if number in found:
                    continue
                swapped = asker.swapped(case, exchange, distance)
                if swapped.prompt not in outcomes:
                    outcomes[swapped.prompt] = self._outcome(asker, case, swapped)
                record = {NUMBER: number, "distance": distance} | _record(
                    asker, case, exchange, swapped, outcomes[swapped.prompt]
                )
                answers.append(record)
                found[number] = record
                on_answer()
        return [found[one] for one in sorted(found)]

    def _outcome(self, asker: Asker, case: Case, swapped: Swapped) -> Outcome:
        """Write an answer, and score both."""
        nats, tokens = {}, {}
        for variant in case.answers:
            ids = asker.answer_ids(case, variant)
            forbidden, engine = self.writer.reader.forbidden, self.writer.engine
            (nats[variant],) = given_nats([swapped.prompt], [ids], forbidden, engine)
            tokens[variant] = len(ids)
        return Outcome("".join(self._written(asker, swapped)).strip(), nats, tokens)

    def _written(self, asker: Asker, swapped: Swapped) -> Iterator[str]:
        """The pieces of a greedy answer."""
        reader, stopping = self.writer.reader, asker.settings.stopping
        sampler = Sampler(SamplingSettings(), swapped.ids, reader.forbidden)
        text, stops = Detokenizer(reader, swapped.ids), StopFinder(stopping.stop)
        longest = stopping.max_new_tokens
        with self.writer.engine.complete(swapped.prompt, longest, sampler) as completion:
            for token in completion:
                if token in reader.eos:
                    break
                piece, stopped = stops.push(text.push(token))
                yield piece
                if stopped:
                    return
        piece, stopped = stops.push(text.finish())
        yield piece if stopped else piece + stops.finish()


def _record(
    asker: Asker, case: Case, exchange: Exchange, swapped: Swapped, outcome: Outcome
) -> Record:
    """One answer as plain data."""
    right, rival = case.answers[exchange.wanted], case.answers[exchange.rival]
    nats, tokens = outcome.nats, outcome.tokens
    per_token = {one: nats[one] / tokens[one] for one in nats}
    found, other = place_of(right, outcome.written), place_of(rival, outcome.written)
    return {
        "exchange": str(exchange),
        "row": asker.row.name,
        "kind": case.kind,
        "id": case.id,
        "question": case.question,
        "answers": list(right),
        "old_answers": list(rival),
        "written": outcome.written,
        "exact_match": 100.0 * (normalized(outcome.written) in map(normalized, right)),
        "substring": 100.0 * _first(found, other),
        "old_written": 100.0 * _first(other, found),
        "old_wins": 100.0 * (per_token[exchange.rival] < per_token[exchange.wanted]),
        "nats": nats[exchange.wanted],
        "answer_tokens": tokens[exchange.wanted],
        "old_nats": nats[exchange.rival],
        "old_answer_tokens": tokens[exchange.rival],
        "stale_tokens": swapped.stale,
    }


def _first(place: int | None, other: int | None) -> bool:
    """Whether an answer stands in a text, and not behind the other one."""
    return place is not None and (other is None or place <= other)
