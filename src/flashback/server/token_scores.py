"""Log-probabilities of tokens as the API gives them: by the token's text and its place in a text.

Symbols: k most probable tokens beside each one, V vocabulary.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from flashback.patterns.prompt import Ids
from flashback.readers.text_reader import TextReader
from flashback.scoring.given import ScoredText
from flashback.scoring.model import without_forbidden
from flashback.server.errors import ApiError
from flashback.server.events import TokenScore
from flashback.server.token_names import TokenName, TokenNames
from flashback.writing.detokenization import Detokenizer

Top = tuple[tuple[TokenName, float], ...]
_LOWEST = -9999.0
"""In place of minus infinity, which JSON does not have."""


def token_scores(
    scored: ScoredText, ids: Ids, reader: TextReader, offsets: Sequence[int], skipped: int
) -> list[TokenScore]:
    """The tokens of a given text.

    Args:
        offsets: see `text_offsets`.
        skipped: leading tokens that are not the client's: a BOS that was put before its text.
    """
    names = TokenNames(reader)
    scores = []
    for at in range(skipped, len(ids)):
        name = names.at_start if at == skipped else names
        own: tuple[float | None, Top] = (None, ())
        if at >= scored.first:
            own = _named(scored.rows[at - scored.first], name)
        scores.append(TokenScore(name(ids[at]), offsets[at], *own))
    return scores


def text_offsets(reader: TextReader, ids: Ids, spelled_from: int) -> list[int]:
    """The character at which each token's text begins, and the length of the whole text.

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


def _named(row: Tensor, names: Callable[[int], TokenName]) -> tuple[float, Top]:
    """The log-probability of a token and the most probable tokens, from a row of `TopModel`."""
    values = row.tolist()
    top = (len(values) - 1) // 2
    best = [names(int(token)) for token in values[1 + top :]]
    return _finite(values[0]), tuple(zip(best, map(_finite, values[1 : 1 + top]), strict=True))


def _finite(log_prob: float) -> float:
    return max(log_prob, _LOWEST)


class TokenRecorder:
    """Called at every token of one text; keeps its score until the text it begins in is sent."""

    def __init__(self, reader: TextReader, top: int | None, check: Callable[[], None]) -> None:
        """Begin.

        Args:
            top: k; None: keep no scores.
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
        """The next token follows `context`, at `offset` characters of the choice's text."""
        self._detokenizer = Detokenizer(self._reader, context)
        self._offset = offset

    def __call__(self, logits: Tensor | None, token: int) -> None:
        """Record a token and the logits (V,) that it was chosen from.

        Raises:
            ApiError: log-probabilities are wanted, but the engine has no logits here.
        """
        self._check()
        self.tokens += 1
        if self._top is None:
            return
        if logits is None:
            raise ApiError(
                400,
                "logprobs: this server's engine chooses tokens elsewhere and gives no "
                "log-probabilities; leave it out",
                "unsupported_field",
                "logprobs",
            )
        all_log_probs = without_forbidden(logits, self._reader.forbidden).log_softmax(-1)
        best = all_log_probs.topk(self._top)
        top = tuple(
            (self._names(one), _finite(value))
            for one, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        log_prob = _finite(float(all_log_probs[token]))
        self._pending.append(TokenScore(self._names(token), self._offset, log_prob, top))
        self._offset += len(self._detokenizer.push(token))

    def take(self, end: int) -> tuple[TokenScore, ...]:
        """Remove and return the tokens that begin before `end`."""
        ready = [one for one in self._pending if one.offset < end]
        self._pending = self._pending[len(ready) :]
        return tuple(ready)

    def rest(self) -> tuple[TokenScore, ...]:
        """Remove and return all tokens, once there is no more text."""
        ready, self._pending = tuple(self._pending), []
        return ready
