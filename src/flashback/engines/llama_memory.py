"""What llama.cpp's cells hold: texts and passages, each a sequence, shared by tags.

Numbers of sequences: texts, then passages, then two spare ones.

    text      [0, h) and [h + R, ...)    what of a text is computed
    passage   [h + R - p, h + R)         computed once, behind its sink, whose cells are freed

A text's sequence is also the tag of the one passage that it sees: exchanging passages takes that
tag from the cells of one and gives it to those of another. A beginning that two texts share has the
tags of both.
"""

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from flashback.engines.llama_library import LlamaContext, NoCells
from flashback.errors import SettingsError
from flashback.patterns.held import HeldTokens
from flashback.patterns.prompt import Ids, PlacedPassage, Prompt
from flashback.sampling import Sampler

T = TypeVar("T")
_WORTH_SHARING = 8
"""Tokens; less in common does not justify cutting another text's sequence."""


@dataclass(eq=False)
class TextSequence(HeldTokens):
    """A text whose tokens are held."""

    number: int = field(kw_only=True)
    """That of its sequence."""
    writer: "weakref.ref[Sampler] | None" = field(default=None, kw_only=True)
    """The sampler of the text that it was last used for; dead when that text is finished."""
    leased: bool = field(default=False, kw_only=True)
    """Whether a completion goes on with it."""
    lost: bool = field(default=False, kw_only=True)
    """Whether its cells were taken away for others."""
    used: int = field(default=0, kw_only=True)
    """The time of its last pass."""

    @property
    def spans(self) -> Iterator[tuple[int, int]]:
        """The positions of its tokens, [start, end) each, without those of the passage."""
        layout, count = self.layout, len(self.ids)
        if not layout.reserved:
            yield 0, count
            return
        yield 0, min(count, layout.history)
        if count > layout.history:
            yield layout.passage_end, layout.position(count)


@dataclass(frozen=True)
class Numbers:
    """How many sequences a memory has, besides two spare ones."""

    texts: int
    passages: int
    idle: int | None = None
    """Texts that are kept when no completion goes on with them, beside none that does; None: as
    many as there are numbers for."""

    @property
    def sequences(self) -> int:
        return self.texts + self.passages + 2

    @property
    def spare(self) -> tuple[int, int]:
        return self.sequences - 2, self.sequences - 1


class LlamaMemory:
    """The texts and passages in a context's cells; what was used longest ago makes room."""

    def __init__(self, context: LlamaContext, numbers: Numbers) -> None:
        """Begin with none."""
        self.context, self.numbers = context, numbers
        self.lock = threading.RLock()
        """Held during a pass, and while a sequence changes."""
        self.texts: list[TextSequence] = []
        self.passages: OrderedDict[PlacedPassage, tuple[int, int]] = OrderedDict()
        """Their numbers and the times of their last use; those used longest ago first."""
        self._ticks = itertools.count(1)

    # Texts

    def take(self, prompt: Prompt, writer: Sampler | None) -> tuple[TextSequence, int]:
        """Lease a sequence that holds the beginning of a prompt.

        Returns:
            The sequence, laid out as the prompt, and how many tokens of it it holds.
        """
        with self.lock:
            own = [one for one in self.texts if not one.leased and _is_of(one, writer)]
            shared, found = self._most_shared(prompt, own)
            if found is not None and (found in own or _is_free(found, shared)):
                sequence = found
            else:
                sequence = self._new_text(found)
                if found is not None:
                    self._copy_beginning(found, sequence, shared)
            for one in own:
                if one is not sequence:
                    self._drop(one)
            self._drop_idle(sequence)
            self._cut(sequence, shared)
            self._lay_out(sequence, prompt)
            sequence.writer = None if writer is None else weakref.ref(writer)
            sequence.leased, sequence.used = True, next(self._ticks)
            return sequence, shared

    def give_back(self, sequence: TextSequence) -> None:
        """End a lease and keep what the sequence holds."""
        sequence.leased = False

    def give_up(self, sequence: TextSequence) -> None:
        """Drop a sequence whose pass failed."""
        with self.lock:
            self._drop(sequence)

    def extend(self, sequence: TextSequence, ids: Sequence[int]) -> Tensor:
        """Compute new tokens behind a sequence, with the passage in view that it has.

        Returns:
            The logits of the last one, (V,); valid until the next pass.

        Raises:
            SettingsError: there are too few cells, even without all else that is held.
        """
        sequence.used = next(self._ticks)
        logits, most = None, self.context.pass_tokens
        for start in range(0, len(ids), most):
            part, last = ids[start : start + most], start + most >= len(ids)

            def run(part: Sequence[int] = part, last: bool = last) -> Tensor | None:
                with self._without_gap(sequence):
                    number, position = sequence.number, sequence.position
                    return self.context.decode(number, part, position, logits=last)

            logits = self._with_room(run, sequence)
            sequence.append(part)
        assert logits is not None
        return logits

    @contextmanager
    def _without_gap(self, sequence: TextSequence) -> Iterator[None]:
        """See `LlamaContext.bridged`: where the first token behind h sees no passage."""
        layout, held = sequence.layout, len(sequence.ids)
        if not layout.reserved or held != layout.history or not held or sequence.passage:
            yield
            return
        spare = self.numbers.spare
        with self.context.bridged(sequence.number, held - 1, sequence.position, spare):
            yield

    def _most_shared(
        self, prompt: Prompt, own: Sequence[TextSequence]
    ) -> tuple[int, TextSequence | None]:
        """How much of a prompt a sequence holds, if it is worth it, and which one."""
        below_limit = len(self.texts) < self.numbers.texts
        best: tuple[int, TextSequence | None] = (0, None)
        for one in (*own, *reversed(self.texts)):
            shared = one.common_prefix(prompt)
            least = _WORTH_SHARING if below_limit and one not in own else 1
            if shared >= least and shared > best[0] and self._is_whole(one):
                best = shared, one
        return best

    def _is_whole(self, sequence: TextSequence) -> bool:
        """Whether no cell was overwritten, as llama.cpp does with those outside of a window."""
        return not self.context.model.slides or self.context.span(sequence.number)[0] == 0

    def _new_text(self, kept: TextSequence | None) -> TextSequence:
        """An empty sequence; another one gives its number if there is none left."""
        if len(self.texts) >= self.numbers.texts:
            others = [one for one in self.texts if one is not kept]
            self._drop(min(others, key=lambda one: (one.leased, one.used)))
        taken = {one.number for one in self.texts}
        number = next(one for one in range(self.numbers.texts) if one not in taken)
        sequence = TextSequence(number=number)
        self.texts.append(sequence)
        return sequence

    def _drop_idle(self, taken: TextSequence) -> None:
        """Every token looks at the masks of all cells in use: keep no more texts than wanted."""
        idle = [one for one in self.texts if not one.leased and one is not taken]
        if self.numbers.idle is not None:
            idle.sort(key=lambda one: one.used)
            for one in idle[: max(len(idle) + 1 - self.numbers.idle, 0)]:
                self._drop(one)

    def _drop(self, sequence: TextSequence) -> None:
        if sequence in self.texts:
            self.texts.remove(sequence)
            self.context.untag(sequence.number)
            sequence.lost = True

    def _copy_beginning(self, source: TextSequence, empty: TextSequence, length: int) -> None:
        """Let an empty sequence have the first tokens of another; no passage is in view there."""
        empty.layout, empty.salt = source.layout, source.salt
        empty.ids, empty.views = [*source.ids], [*source.views]
        empty.keep(length)
        for start, end in empty.spans:
            if start < end:
                self.context.tag(source.number, empty.number, start, end)

    def _cut(self, sequence: TextSequence, length: int) -> None:
        """Forget everything from `length` on."""
        if length < len(sequence.ids):
            self.context.untag(sequence.number, sequence.layout.position(length))
            if length < sequence.layout.history:  # it stood behind
                sequence.passage = ()
            sequence.keep(length)

    def _lay_out(self, sequence: TextSequence, prompt: Prompt) -> None:
        """Let the next tokens stand where a prompt has them."""
        if (prompt.layout, prompt.salt) != (sequence.layout, sequence.salt):
            self.hide(sequence)  # the passage in view stands elsewhere
            sequence.layout, sequence.salt = prompt.layout, prompt.salt

    # Passages

    def hide(self, sequence: TextSequence) -> None:
        """Let a text see no passage."""
        if sequence.passage:
            end = sequence.layout.passage_end
            self.context.untag(sequence.number, end - len(sequence.passage), end)
            sequence.passage = ()

    def show(self, sequence: TextSequence, passage: PlacedPassage) -> bool:
        """Exchange the passage in view; say whether it was held already.

        Raises:
            SettingsError: there are too few cells for it.
        """
        self.hide(sequence)
        known = passage in self.passages
        number = self.passages[passage][0] if known else self._prefill(passage, sequence)
        self.passages[passage] = number, next(self._ticks)
        self.passages.move_to_end(passage)
        start = passage.end - len(passage.ids)
        self.context.tag(number, sequence.number, start, passage.end)
        sequence.passage = passage.ids
        return known

    def _prefill(self, passage: PlacedPassage, sequence: TextSequence) -> int:
        """Compute a passage in a sequence of its own; its number."""
        if len(self.passages) >= self.numbers.passages:
            self._drop_passage()
        taken = {number for number, _ in self.passages.values()}
        first = self.numbers.texts
        number = next(n for n in range(first, first + self.numbers.passages) if n not in taken)
        ids, start, most = passage.behind_sink, passage.positions.start, self.context.pass_tokens
        try:
            for at in range(0, len(ids), most):

                def run(part: Ids = ids[at : at + most], position: int = start + at) -> None:
                    self.context.decode(number, part, position, logits=False)

                self._with_room(run, sequence)
            if passage.sink:
                self.context.untag(number, start, start + len(passage.sink))
        except BaseException:
            self.context.untag(number)
            raise
        return number

    def _drop_passage(self) -> None:
        _, (number, _) = self.passages.popitem(last=False)
        self.context.untag(number)

    # Room

    def _with_room(self, run: Callable[[], T], kept: TextSequence) -> T:
        """Run a pass; while cells are missing, what was used longest ago makes room."""
        while True:
            try:
                return run()
            except NoCells:
                if not self._make_room(kept):
                    raise SettingsError(
                        f"llama.cpp's {self.context.cells} cells of keys and values are too few "
                        "for this prompt and its passage; use a larger --window, or shorter "
                        "passages"
                    ) from None

    def _make_room(self, kept: TextSequence) -> bool:
        """Drop a text or a passage; a leased text last. False: there is nothing left."""
        texts = [one for one in self.texts if one is not kept]
        idle = [one for one in texts if not one.leased]
        oldest = min((one.used for one in idle), default=None)
        passage = next(iter(self.passages.values()))[1] if self.passages else None
        if passage is not None and (oldest is None or passage < oldest):
            self._drop_passage()
        elif texts:
            self._drop(min(texts, key=lambda one: (one.leased, one.used)))
        else:
            return False
        return True

    def forget(self) -> None:
        """Drop everything; a completion under way computes its text again."""
        with self.lock:
            for one in self.texts:
                one.lost = True
            self.texts.clear()
            self.passages.clear()
            self.context.clear()


def _is_of(sequence: TextSequence, writer: Sampler | None) -> bool:
    """Whether a writer's own text used it last."""
    return writer is not None and sequence.writer is not None and sequence.writer() is writer


def _is_free(sequence: TextSequence, shared: int) -> bool:
    """Whether a sequence may be cut to what it shares, for nobody needs the rest."""
    unclaimed = sequence.writer is None or sequence.writer() is None
    return not sequence.leased and unclaimed and 2 * shared >= len(sequence.ids)
