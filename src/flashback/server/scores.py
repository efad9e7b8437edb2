"""Log-probabilities of tokens: of those that are written, and of texts that are given.

Where the stride grid of a given text starts: as in `flashback eval`, its first `first_boundary`
tokens (BOS included) are read without a passage; from there on, a passage is looked up every s
tokens. Passages that largely repeat the text are left out, as they are there.

Symbols: T tokens of the text, s stride, k tokens told beside each one, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashback.corpus.documents import Document
from flashback.errors import PromptTooLong
from flashback.patterns.context import context_budget
from flashback.patterns.prompt import Ids
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.lookup import Found, Lookup, examples_of
from flashback.scoring.passes import Passes, Steps
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.server.events import TokenScore
from flashback.server.token_names import TokenName, TokenNames
from flashback.settings import RetrievalSettings
from flashback.writing.detokenization import Detokenizer

Top = tuple[tuple[TokenName, float], ...]
_NEVER = -9999.0
"""In place of minus infinity, which JSON does not have."""


class TopPasses(Passes):
    """Also tells the most probable tokens: targets have rows of 1 + 2k instead of one number.

    The log-probability of the target, those of the k most probable tokens, and their ids.
    """

    def __init__(self, model: nn.Module, top: int) -> None:
        super().__init__(model)
        self._top = top

    def log_probs(self, logits: Tensor, targets: Sequence[Ids], forbidden: Ids) -> Tensor:
        """(B, keep, 1 + 2k) from logits (B, keep, V)."""
        chosen = super().log_probs(logits, targets, forbidden)
        best = _log_probs(logits, forbidden).topk(min(self._top, logits.shape[-1]))
        # Ids below 2^24 are exact in float32.
        return torch.cat([chosen[..., None], best.values, best.indices.float()], -1)


class TopScorer(TargetScorer):
    """A scorer whose log-probabilities are rows of `TopPasses`."""

    def __init__(self, model: nn.Module, top: int) -> None:
        super().__init__(model)
        self._passes = TopPasses(model, top)


def _log_probs(logits: Tensor, forbidden: Ids) -> Tensor:
    logits = logits.float()
    if forbidden:
        never = torch.tensor(forbidden, device=logits.device)
        logits = logits.index_fill(-1, never, float("-inf"))
    return logits.log_softmax(-1)


@dataclass(frozen=True)
class ScoredStride:
    """A part of a given text, and what stood behind it."""

    start: int
    """Its first token."""
    end: int
    passages: tuple[Hit, ...]


@dataclass(frozen=True)
class ScoredText:
    """A text with the log-probabilities of its tokens."""

    rows: Tensor
    """(T - first, 1 + 2k), see `TopPasses`."""
    first: int
    """The first token that has one."""
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

    Raises:
        PromptTooLong: the text does not fit beside passages.
        SettingsError: the window is too small for the settings, or there is no retriever.
    """
    grid = grid_of(ids, reader, retriever, settings, first_boundary)
    scorer = TopScorer(reader.model, top)
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
    reader: Reader,
    retriever: Retriever | None,
    settings: RetrievalSettings,
    first_boundary: int,
) -> "Grid":
    """Where the strides of a given text are.

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
    """Where the strides of a given text are: [0, boundary) plain, then every s tokens."""

    ids: Ids
    bos: int
    boundary: int
    """The first one, if the text is that long."""

    @property
    def first(self) -> int:
        """The first token that something comes before."""
        return max(self.bos, 1)

    @property
    def head_end(self) -> int:
        return min(max(self.boundary, self.first), len(self.ids))

    def head(self) -> Window | None:
        """What is read without a passage."""
        length = self.head_end - self.first
        if length <= 0:
            return None
        nothing = Document("", "", "")
        return Window(nothing, self.ids[: self.head_end], self.bos, (Cut(self.first),), length)

    def body(self, reader: Reader, stride: int) -> Window | None:
        """What is read with passages; the last stride is filled up with what does not count."""
        boundaries = range(self.head_end, len(self.ids), stride)
        if not boundaries:
            return None
        filler = (0,) * (boundaries[-1] + stride - len(self.ids))
        cuts = tuple(map(Cut, boundaries))
        document = Document("", "", reader.decode(self.ids))
        return Window(document, self.ids + filler, self.bos, cuts, stride)

    def strides(self, body: Window, found: Found) -> list[ScoredStride]:
        """The cuts of the body with their passages."""
        return [
            ScoredStride(cut.boundary, min(cut.boundary + body.stride, len(self.ids)), hits)
            for cut, hits in zip(body.cuts, found.hits, strict=True)
        ]

    def check_length(self, reader: Reader, settings: RetrievalSettings) -> None:
        """Refuse what does not fit.

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


def token_scores(
    scored: ScoredText, ids: Ids, reader: Reader, offsets: Sequence[int], skipped: int
) -> list[TokenScore]:
    """The tokens of a given text.

    Args:
        offsets: see `text_offsets`.
        skipped: leading tokens that are not the client's: a BOS that was put before its text.
    """
    names = TokenNames(reader)
    scores = []
    for at in range(skipped, len(ids)):
        told: tuple[float | None, Top] = (None, ())
        if at >= scored.first:
            told = _told(scored.rows[at - scored.first], names)
        scores.append(TokenScore(names(ids[at]), offsets[at], *told))
    return scores


def text_offsets(reader: Reader, ids: Ids, spelled_from: int) -> list[int]:
    """Where each token's text begins; at the end, the length of the whole text.

    Args:
        spelled_from: the first of the tokens that were given as text, special ones among them.
    """
    detokenizer, special = Detokenizer(reader, []), set(reader.tokenizer.all_special_ids)
    offsets = [0]
    for at, token in enumerate(ids):
        piece = detokenizer.push(token)
        if at >= spelled_from and token in special:
            piece += reader.show([token])
        offsets.append(offsets[-1] + len(piece))
    offsets[-1] += len(detokenizer.finish())
    return offsets


def _told(row: Tensor, names: TokenNames) -> tuple[float, Top]:
    """The log-probability of a token, and the most probable ones."""
    values = row.tolist()
    top = (len(values) - 1) // 2
    best = [names(int(token)) for token in values[1 + top :]]
    return _finite(values[0]), tuple(zip(best, map(_finite, values[1 : 1 + top]), strict=True))


def _finite(log_prob: float) -> float:
    return max(log_prob, _NEVER)


class TokenRecorder:
    """Told of every token of one text; keeps scores until the text they begin in is given out."""

    def __init__(self, reader: Reader, top: int | None, check: Callable[[], None]) -> None:
        """Begin.

        Args:
            top: how many of the most probable tokens to keep; None: keep nothing.
            check: called at every token; may raise to end the text.
        """
        self._reader = reader
        self._top = top
        self._check = check
        self._detokenizer = Detokenizer(reader, [])
        self._names = TokenNames(reader)
        self._offset = 0
        self._pending: list[TokenScore] = []
        self.tokens = 0

    def begin(self, context: Ids, offset: int) -> None:
        """The tokens to come stand behind `context`, at `offset` characters of the text."""
        self._detokenizer = Detokenizer(self._reader, context)
        self._offset = offset

    def __call__(self, logits: Tensor | None, token: int) -> None:
        """Take note of a token and the logits (V,) it was chosen from."""
        self._check()
        self.tokens += 1
        if self._top is None or logits is None:
            return
        log_probs = _log_probs(logits, self._reader.forbidden)
        best = log_probs.topk(self._top)
        top = tuple(
            (self._names(one), _finite(value))
            for one, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        log_prob = _finite(float(log_probs[token]))
        self._pending.append(TokenScore(self._names(token), self._offset, log_prob, top))
        self._offset += len(self._detokenizer.push(token))

    def take(self, end: int) -> tuple[TokenScore, ...]:
        """The tokens that begin before `end` and were not taken yet."""
        ready = [one for one in self._pending if one.offset < end]
        self._pending = self._pending[len(ready) :]
        return tuple(ready)

    def rest(self) -> tuple[TokenScore, ...]:
        """The tokens that were not taken yet, once there is no more text."""
        ready, self._pending = tuple(self._pending), []
        return ready
