"""The reader as a reranker: how probable it finds the end of a query behind each passage.

In-Context RALM, section 6.1 (arXiv 2302.00083): the score of passage p is the log-probability of
the last r tokens of the text so far behind p and what comes before them. Here the text is the
query, which a search is given: the last ℓ tokens of the context, or a question. The passage stands
in front, framed as the reader's pattern `prepend` has it, trained or not. Queries are short beside
passages, so there is no cache worth sharing: the candidates are one batch.

Symbols: n candidates, r reranked tokens, m tokens of a passage.
"""

import threading
from collections.abc import Sequence

import torch

from flashback.corpus.documents import Document
from flashback.patterns.prompt import Ids
from flashback.readers.passages import passage_ids
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings

_TOKENS = 16
"""r, the paper's s'."""
_PATTERN = "prepend"


class ReaderReranker:
    """A `Reranker`: scores are the geometric means of probabilities, from 0 to 1.

    A passage that scores half of another one makes a token of the query half as probable.
    """

    def __init__(
        self, reader: Reader, passage_tokens: int = RetrievalSettings.passage_tokens
    ) -> None:
        """Take a reader, and m."""
        self.name = reader.name
        self._reader = reader
        self._settings = RetrievalSettings(pattern=_PATTERN, passage_tokens=passage_tokens)
        self._scorer = TargetScorer(reader.model)
        frame = reader.frame(None, _PATTERN)
        self._arrangement = Arrangement(_PATTERN, frame, reader.forbidden)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def scores(self, query: str, hits: Sequence[Hit]) -> list[float]:
        """See `Reranker.scores`; a query without a token that can be scored scores all alike."""
        window = self._window(query, len(hits))
        if window is None:
            return [1.0] * len(hits)
        passages = [passage_ids(self._reader, [hit.text], self._settings) for hit in hits]
        example = Example(window, tuple(passages), self._settings.passage_tokens)
        with self._lock:
            (found,) = self._scorer.log_probs([example], self._arrangement)
        return [float(score) for score in found.mean(1).exp()]

    def _window(self, query: str, cuts: int) -> Window | None:
        """The query, cut once for each candidate before its last r tokens."""
        bos, ids = self._reader.bos, tuple(self._reader.encode(query))
        room = self._reader.window - self._settings.passage_tokens - len(self._arrangement.frame)
        ids = bos + ids[-max(room - len(bos), 0) :] if room > len(bos) else bos
        first = max(len(bos), len(ids) - _TOKENS, 1)
        targets: Ids = ids[first:]
        if not targets:
            return None
        document = Document("", "", query)
        return Window(document, ids, len(bos), (Cut(first),) * cuts, len(targets))
