"""The text of a case up to its answer, and the prompt in which its passage was exchanged.

The prompt is what the stride loop would make of the same text: the same boundaries, the same
settings, the same patterns. It names the passage that each token was computed with, so an engine
computes the text with the old passage in view, and what is behind the exchange with the new one.

    text   BOS [question] D tokens ‖ question, Answer:
           BOS question D tokens, Answer: ‖
    chat   user: ..., assistant: D tokens, user: question, assistant: ‖
           user: question, assistant: D tokens, The answer is: ‖

‖ is where passages are exchanged. Between two turns of a chat the history is computed anew,
without any passage, so that the exchange is a new request; within an answer it is not.

Symbols: D distance, e tokens computed again.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flashback.declared import AUTO
from flashback.errors import FlashBackError, SettingsError
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.questions.formats import Question
from flashback.questions.forms import Asking
from flashback.questions.question_settings import Form
from flashback.questions.swap_cases import Case, Variant
from flashback.questions.swap_settings import AskedWhen, Exchange, SwapForm
from flashback.readers.chat import RECOMPUTED_IN_CHAT, Conversation
from flashback.readers.messages import message
from flashback.readers.passages import passage_ids
from flashback.readers.text_reader import TextReader
from flashback.settings import RECOMPUTED, RetrievalSettings, Settings
from flashback.writing.generator import Generator
from flashback.writing.plan import Plan, Planner

_OPENING = "First, please tell me something else."
_UNKNOWN = "I do not know."
_CUE = "The answer is:"
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_EVERYTHING = 1 << 20
"""e that is larger than any text."""


@dataclass(frozen=True)
class SwapRow:
    """A pattern, in a slot with an e."""

    pattern: str
    again: int | None = None
    """e; None: everything, or nothing that was computed is kept anyway."""

    @property
    def name(self) -> str:
        """Such as `prepend`, or `slot, e = 16`."""
        if not PATTERNS[self.pattern].isolated:
            return self.pattern
        return f"{self.pattern}, e = {'all' if self.again is None else self.again}"

    def asked_with(self, given: RetrievalSettings) -> RetrievalSettings:
        """The settings of the row."""
        again = _EVERYTHING if self.again is None else self.again
        return replace(given, pattern=self.pattern, recompute_tokens=again)


def swap_rows(
    patterns: Sequence[str], again: tuple[int | None, ...], form: SwapForm
) -> list[SwapRow]:
    """A row for each pattern, in a slot one for each e; prepending, which keeps nothing, first."""
    usual = RECOMPUTED_IN_CHAT if form is SwapForm.CHAT else RECOMPUTED
    rows = [SwapRow("prepend")]
    for name in patterns:
        known = [one if one is None else one or usual for one in again]
        rows += [SwapRow(name, one) for one in (known if PATTERNS[name].isolated else [None])]
    return list(dict.fromkeys(rows))


def settled_swap_form(form: str, reader: TextReader) -> SwapForm:
    """The form that a name stands for.

    Raises:
        SettingsError: the reader has no chat template.
    """
    chats = bool(reader.tokenizer.chat_template)
    if form == AUTO:
        return SwapForm.CHAT if chats else SwapForm.TEXT
    if form == SwapForm.CHAT and not chats:
        raise SettingsError(f"--form='chat': {reader.name} has no chat template; use --form='text'")
    return SwapForm(form)


class Swapped(NamedTuple):
    """A case whose passage was exchanged, up to its answer."""

    prompt: Prompt
    ids: Ids
    """The text, without passages."""
    stale: int
    """How many tokens of it are kept as they were computed with the old passage in view."""


class _Text(NamedTuple):
    """A text up to its answer."""

    ids: Ids
    exchanged: int | None
    """How many tokens stand before the exchange; None: it is between two requests."""
    begun: int
    """How many of the last ids are the beginning of the answer."""
    retrieval: RetrievalSettings


@dataclass(frozen=True)
class Asker:
    """Makes the prompts of one row."""

    row: SwapRow
    writer: Generator
    form: SwapForm
    asked: AskedWhen
    settings: Settings
    filler: str
    seed: int

    def swapped(self, case: Case, exchange: Exchange, distance: int) -> Swapped:
        """The prompt behind which the answer is written.

        Raises:
            FlashBackError: it does not fit the reader's window, or its template refuses it.
        """
        try:
            return self._swapped(case, exchange, distance)
        except FlashBackError as error:
            raise type(error)(f"case {case.id!r}, {self.row.name}: {error}") from None

    def answer_ids(self, case: Case, variant: Variant) -> Ids:
        """The first answer of a passage as what follows the prompt."""
        question = Question(case.id, case.question, case.answers[variant], completion=_CUE)
        form = Form.QUESTION
        if self.form is SwapForm.CHAT:
            form = Form.COMPLETION if self.asked is AskedWhen.BEFORE else Form.CHAT
        return Asking(form).answer_ids(self.writer.reader, question)

    def _swapped(self, case: Case, exchange: Exchange, distance: int) -> Swapped:
        text = self._text(case, exchange, distance)
        plan = self._plan(text.retrieval)
        plan.context(text.ids, self.writer.reader)  # refuses one that is too long
        old, new = (
            passage_ids(self.writer.reader, [case.passages[one]], text.retrieval)
            for one in (exchange.old, exchange.new)
        )
        prompt, seen = None, None
        if text.exchanged is not None:
            prompt = seen = self._arranged(plan, text, text.exchanged, old, None)
            prompt = self._arranged(plan, text, text.exchanged, new, prompt)
        if prompt is None or text.exchanged != len(text.ids):
            prompt = self._arranged(plan, text, len(text.ids), new, prompt)
        stale = 0
        if seen is not None and seen.passage != prompt.passage:
            stale = sum(len(one.ids) for one in prompt.segments if one.passage == seen.passage)
        return Swapped(prompt, text.ids, stale if seen and seen.passage else 0)

    def _arranged(
        self, plan: Plan, text: _Text, length: int, passage: Ids, before: Prompt | None
    ) -> Prompt:
        """The prompt at a boundary behind the first `length` tokens."""
        bos = self.writer.reader.bos
        boundary = Boundary(
            text.ids[:length],
            passage,
            plan.frame,
            len(bos) if text.ids[: len(bos)] == bos else 0,
            plan.reserved,
            text.retrieval.history_tokens,
            text.retrieval.recomputed,
            before,
            length - text.begun,
        )
        return PATTERNS[self.row.pattern].arrange(boundary)

    def _plan(self, retrieval: RetrievalSettings) -> Plan:
        reader, engine, retriever = self.writer.reader, self.writer.engine, self.writer.retriever
        settings = replace(self.settings, retrieval=retrieval)
        return Planner(reader, engine, retriever).plan(settings)

    def _text(self, case: Case, exchange: Exchange, distance: int) -> _Text:
        retrieval = self.row.asked_with(self.settings.retrieval)
        between = self._between(case, distance)
        if self.form is SwapForm.TEXT:
            return self._plain(case, exchange, between, retrieval)
        return self._chat(case, exchange, between, retrieval)

    def _plain(
        self, case: Case, exchange: Exchange, between: Ids, retrieval: RetrievalSettings
    ) -> _Text:
        reader, asked = self.writer.reader, f"Question: {case.question}\n"
        gap = "\n\n" if between else ""
        before = {
            AskedWhen.BEHIND: "",
            AskedWhen.ANSWERED: f"{asked}Answer: {_told(case, exchange)}\n\n",
        }.get(self.asked, f"{asked}{gap[1:]}")
        behind = f"{gap}Answer:" if self.asked is AskedWhen.BEFORE else f"{gap}{asked}Answer:"
        head = (*reader.bos, *reader.encode(before), *between)
        ids = (*head, *reader.encode(behind))
        exchanged = len(ids) if self.asked is AskedWhen.BEFORE else len(head)
        return _Text(ids, exchanged, 0, retrieval)

    def _chat(
        self, case: Case, exchange: Exchange, between: Ids, retrieval: RetrievalSettings
    ) -> _Text:
        said = self.writer.reader.decode(between).strip()
        opening = _OPENING if self.asked is AskedWhen.BEHIND else case.question
        if self.asked is AskedWhen.ANSWERED:
            said = f"{_told(case, exchange)}\n\n{said}"
        if self.asked is AskedWhen.BEFORE:
            messages = [message("assistant", f"{said}\n\n{_CUE}".strip())]
        else:
            messages = [message("assistant", said), message("user", case.question)]
        conversation = Conversation.of([message("user", opening), *messages])
        prompt = conversation.prompt(self.writer.reader, retrieval)
        exchanged = len(prompt.ids) if self.asked is AskedWhen.BEFORE else None
        return _Text(prompt.ids, exchanged, prompt.begun, prompt.retrieval)

    def _between(self, case: Case, distance: int) -> Ids:
        """D tokens of other text, from any of its sentences on; the beginning follows its end."""
        text = case.filler
        if text is None:
            sentences = _SENTENCES.split(self.filler.strip())
            start = random.Random(f"{self.seed} {case.id}").randrange(len(sentences))
            text = " ".join([*sentences[start:], *sentences[:start]])
        ids = self.writer.reader.encode(text)
        if not ids:
            raise SettingsError("the text between the passages has no tokens; give another one")
        while len(ids) < distance:
            ids += self.writer.reader.encode(f" {text}")
        return tuple(ids[:distance])


def _told(case: Case, exchange: Exchange) -> str:
    """What the old passage's answer would be."""
    return case.answers.get(exchange.old, (_UNKNOWN,))[0]
