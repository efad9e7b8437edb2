"""Log-probabilities of the tokens of a given text, with passages as `flashback eval` shows them.

The first `first_boundary` tokens of a text (BOS included) are read without a passage; from there
on, a passage is looked up every s tokens. Passages that largely repeat the text are left out.

Knows token ids, readers and retrievers. Knows nothing of the server and its API.

Symbols: T tokens of the text, s stride, k most probable tokens beside each one, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashback.corpus.documents import Document
from flashback.errors import PromptTooLong
from flashback.patterns.context import context_budget
from flashback.patterns.prompt import Ids
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.lookup import Found, Lookup, examples_of
from flashback.scoring.model import ScoringModel, Steps, without_forbidden
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings


class TopModel(ScoringModel):
    """A scoring model that also gives the k most probable tokens.

    A target has a row of 1 + 2k numbers: its log-probability, the log-probabilities of the k most
    probable tokens, and the ids of these.
    """

    def __init__(self, model: nn.Module, top: int) -> None:
        """Take a model.

        Args:
            model: see `ScoringModel`.
            top: k.
        """
        super().__init__(model)
        self._top = top

    def log_probs(self, logits: Tensor, targets: Sequence[Ids], forbidden: Ids) -> Tensor:
        """Rows (B, keep, 1 + 2k) from logits (B, keep, V)."""
        chosen = super().log_probs(logits, targets, forbidden)
        every = without_forbidden(logits, forbidden).log_softmax(-1)
        best = every.topk(min(self._top, logits.shape[-1]))
        # Ids below 2^24 are exact in float32.
        return torch.cat([chosen[..., None], best.values, best.indices.float()], -1)


@dataclass(frozen=True)
class ScoredStride:
    """A stride [start, end) of a given text and the passages it was read with."""

    start: int
    """Its first token."""
    end: int
    passages: tuple[Hit, ...]


@dataclass(frozen=True)
class ScoredText:
    """A text with the log-probabilities of its tokens."""

    rows: Tensor
    """(T - first, 1 + 2k), see `TopModel`."""
    first: int
    """The first token that has a row."""
    strides: tuple[ScoredStride, ...]
    """They tile the tokens."""


@torch.inference_mode()
def score_text(
    ids: Ids,
    reader: Reader,
    retriever: Retriever | None,
    settings: RetrievalSettings,
    first_boundary: int,
    top: int,
) -> Steps[ScoredText]:
    """Score a text as the pattern reads it, stopping after every pass.

    Args:
        ids: the text, T tokens.
        first_boundary: tokens before the first passage.
        top: k.

    Raises:
        PromptTooLong: the text does not fit beside passages.
        SettingsError: the window is too small for the settings, or there is no retriever.
    """
    grid = grid_of(ids, reader, retriever, settings, first_boundary)
    scorer = TargetScorer(TopModel(reader.model, top))
    rows = [torch.zeros(0, 1 + 2 * top)]
    strides = [ScoredStride(0, grid.head_end, ())]
    if (head := grid.head()) is not None:
        plain = Arrangement("none", forbidden=reader.forbidden)
        (log_probs,) = yield from scorer.steps([Example(head, ((),))], plain)
        rows.append(log_probs.flatten(0, 1).cpu())
    if (body := grid.body(reader, settings.stride)) is not None:
        assert retriever is not None
        found = next(Lookup(reader, retriever, settings).search([body]))
        frame = reader.frame(settings.frame, settings.pattern)
        shown = Arrangement(settings.pattern, frame, reader.forbidden)
        examples = examples_of([body], [found], reader, settings)
        (log_probs,) = yield from scorer.steps(examples, shown)
        rows.append(log_probs.flatten(0, 1)[: len(ids) - grid.head_end].cpu())
        strides += grid.strides(body, found)
    return ScoredText(torch.cat(rows), grid.first, tuple(strides))


def grid_of(
    ids: Ids,
    reader: TextReader,
    retriever: Retriever | None,
    settings: RetrievalSettings,
    first_boundary: int,
) -> "Grid":
    """The strides of a given text, checked against the reader's window.

    Raises:
        PromptTooLong: the text does not fit beside passages.
        SettingsError: the window is too small for the settings, or there is no retriever.
    """
    settings.check_retriever(retriever)
    reader.check_pattern(settings.pattern)
    bos = len(reader.bos) if ids[: len(reader.bos)] == reader.bos else 0
    grid = Grid(ids, bos, first_boundary if settings.retrieves else len(ids))
    grid.check_length(reader, settings)
    return grid


@dataclass(frozen=True)
class Grid:
    """The strides of a given text: the head [0, boundary), then a stride every s tokens."""

    ids: Ids
    bos: int
    """How many leading ids are BOS."""
    boundary: int
    """The first one, if the text is that long."""

    @property
    def first(self) -> int:
        """The first token that has one before it."""
        return max(self.bos, 1)

    @property
    def head_end(self) -> int:
        """Where the head ends."""
        return min(max(self.boundary, self.first), len(self.ids))

    def head(self) -> Window | None:
        """The part that is read without a passage; None: it has no targets."""
        length = self.head_end - self.first
        if length <= 0:
            return None
        nothing = Document("", "", "")
        return Window(nothing, self.ids[: self.head_end], self.bos, (Cut(self.first),), length)

    def body(self, reader: TextReader, stride: int) -> Window | None:
        """The part that is read with passages; None: the text ends before it.

        The last stride is padded with ids that are not counted.
        """
        boundaries = range(self.head_end, len(self.ids), stride)
        if not boundaries:
            return None
        padding = (0,) * (boundaries[-1] + stride - len(self.ids))
        cuts = tuple(map(Cut, boundaries))
        document = Document("", "", reader.decode(self.ids))
        return Window(document, self.ids + padding, self.bos, cuts, stride)

    def strides(self, body: Window, found: Found) -> list[ScoredStride]:
        """The strides of the body with their passages."""
        return [
            ScoredStride(cut.boundary, min(cut.boundary + body.stride, len(self.ids)), hits)
            for cut, hits in zip(body.cuts, found.hits, strict=True)
        ]

    def check_length(self, reader: TextReader, settings: RetrievalSettings) -> None:
        """Refuse a text that does not fit.

        Raises:
            PromptTooLong: the text is too long.
            SettingsError: the window is too small for the settings.
        """
        longest = reader.window
        if settings.retrieves:
            frame = len(reader.frame(settings.frame, settings.pattern))
            budget = context_budget(
                reader.window, settings.passages, settings.passage_tokens, frame, settings.stride
            )
            # The last boundary may be at the budget; a stride follows it.
            strides = max(budget - self.head_end, 0) // settings.stride
            longest = self.head_end + (strides + 1) * settings.stride
        if len(self.ids) > longest:
            raise PromptTooLong(
                f"the prompt has {len(self.ids)} tokens, but only {longest} can be scored in the "
                f"reader's window of {reader.window}; shorten it"
            )
