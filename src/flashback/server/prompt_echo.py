"""A prompt as the beginning of a choice's text, scored if log-probabilities were asked for.

Runs on the engine's thread. Yields a `Turn` after every pass.
"""

import time
from collections import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flashback.engines.protocol import Usage
from flashback.patterns.prompt import Ids
from flashback.scoring.given import ScoredText, score_text
from flashback.server.checked_request import CheckedRequest, PromptInput
from flashback.server.choice import Progress, TimeLimit
from flashback.server.errors import ApiError
from flashback.server.events import Event, Piece, SpanEnd, SpanStart, TokenScore, Turn
from flashback.server.searching import GuardedRetriever, RetrievalFailed
from flashback.server.service import Service
from flashback.server.token_scores import text_offsets, token_scores


@dataclass(frozen=True)
class PromptEcho:
    """Gives the prompts of one request back as text."""

    service: Service
    request: CheckedRequest
    limit: TimeLimit

    def events(
        self, progress: Progress, ids: Ids, prompt: PromptInput, guard: GuardedRetriever | None
    ) -> Iterator[Event]:
        """The prompt's text, in its strides if it is scored.

        Raises:
            ApiError: the time is over, or a search failed.
        """
        reader = self.service.reader
        given = isinstance(prompt, str)
        shown = prompt if isinstance(prompt, str) else reader.decode(ids)
        progress.characters = len(shown)
        if not self.request.scores_prompt:
            yield Piece(progress.choice, shown)
            return
        scored, seconds = yield from self._score(ids, guard)
        # What was put in front of a text; a BOS that it begins with itself is the client's.
        skipped = len(ids) - len(reader.encode_given(prompt)) if isinstance(prompt, str) else 0
        offsets = text_offsets(reader, ids, skipped if given else len(ids))
        tokens = token_scores(scored, ids, reader, offsets, skipped)
        yield from _scored_spans(progress, shown, scored, offsets, tokens, seconds)

    def _score(
        self, ids: Ids, guard: GuardedRetriever | None
    ) -> abc.Generator[Event, None, tuple[ScoredText, float]]:
        """The scores of a prompt, and the seconds that they took."""
        request, reader = self.request, self.service.scoring_reader
        assert request.logprobs is not None
        assert reader is not None, "see parsing.py"
        retrieval, first = request.settings.retrieval, request.first_boundary
        seconds = 0.0
        try:
            steps = score_text(ids, reader, guard, retrieval, first, request.logprobs)
            while True:
                began = time.perf_counter()
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value, seconds + time.perf_counter() - began
                seconds += time.perf_counter() - began
                self.limit.job.check()
                if self.limit.is_over():
                    raise ApiError(503, self.limit.message, "time_limit")
                yield Turn()
        except RetrievalFailed as error:
            raise ApiError(503, f"{error}; nothing was scored", "retrieval_error") from error


def _scored_spans(
    progress: Progress,
    shown: str,
    scored: ScoredText,
    offsets: Sequence[int],
    tokens: Sequence[TokenScore],
    seconds: float,
) -> Iterator[Event]:
    """A span for each stride of a given text; together they are the text.

    Args:
        offsets: of all its tokens.
        tokens: the client's own, the last ones.
    """
    skipped = len(offsets) - 1 - len(tokens)
    last = scored.strides[-1]
    for stride in scored.strides:
        start = min(offsets[stride.start], len(shown))
        end = len(shown) if stride is last else min(offsets[stride.end], len(shown))
        own = tokens[max(stride.start - skipped, 0) : stride.end - skipped]
        yield SpanStart(progress.choice, progress.stride, start, stride.passages, scored=True)
        yield Piece(progress.choice, shown[start:end], tuple(own))
        tokens_scored = stride.end - stride.start
        usage = Usage(prefill_seconds=seconds / len(scored.strides))
        yield SpanEnd(progress.choice, progress.stride, end, tokens_scored, usage, 0.0, scored=True)
        progress.stride += 1
