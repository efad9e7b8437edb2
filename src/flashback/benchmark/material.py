"""Text and passages of the run-time benchmark, the same for every arm.

The text is given, not the reader's own: every token is sampled, at its usual cost, and then
replaced by the next token of the text. So contexts, queries and passages are the
same in every arm and repeat, whatever the reader would have written.

    random    seeded random tokens, passages all different (paper section 4.3)
    real      a document and the passages that an index finds for it, none of its own among them
"""

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor

from flashback.benchmark.shapes import word
from flashback.corpus.documents import Document
from flashback.errors import CorpusError, ReaderError
from flashback.patterns.prompt import Ids
from flashback.readers.passages import passage_ids
from flashback.readers.queries import query_text
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, Retriever, search
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SearchOptions


@dataclass(frozen=True)
class Material:
    """A text as long as the longest context and a stride, and where its passages come from."""

    name: str
    text: Ids
    retriever: Retriever
    """Finds the same for the same query, whatever was searched for before."""
    document: Document | None = None
    """The document of a real text; its own passages are left out."""

    @property
    def is_real(self) -> bool:
        """Whether the text is a document's and the passages an index's."""
        return self.document is not None

    def forbidding(self, settings: RetrievalSettings) -> RetrievalSettings:
        """The same settings without passages of the document itself and of its title."""
        if self.document is None:
            return settings
        titles = tuple(filter(None, [self.document.title]))
        return replace(settings, forbid_titles=titles, forbid_documents=(self.document.id,))

    def passages(
        self, reader: Reader, contexts: Sequence[int], settings: RetrievalSettings
    ) -> list[Ids]:
        """The passages found behind each of these contexts, cut to m tokens."""
        found = []
        for length in contexts:
            query = query_text(reader, self.text[:length], settings)
            hits = search(self.retriever, [query], settings)[0]
            found += [passage_ids(reader, [hit.text], settings) for hit in hits]
        return list(filter(None, found))


@dataclass(frozen=True)
class RandomPassages:
    """A retriever of random passages, each made from its query: the same for all arms."""

    reader: Reader
    tokens: int

    def __post_init__(self) -> None:
        """Refuse a reader that cannot be shown any.

        Raises:
            ReaderError: its tokenizer has no tokens for them.
        """
        if not self.reader.encode(word(0)):
            raise ReaderError(
                f"model {self.reader.name}: its tokenizer has no tokens for a passage of random "
                "words; expected a tokenizer of text"
            )

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [[self._passage(query, rank) for rank in range(options.k)] for query in queries]

    def _passage(self, query: str, rank: int) -> Hit:
        drawn = random.Random(zlib.crc32(query.encode()) + rank)
        size = self.reader.vocabulary_size
        text = " ".join(word(drawn.randrange(size)) for _ in range(self.tokens))
        return Hit(str(rank), "", "", text, 1.0)


def random_material(reader: Reader, length: int, passage_tokens: int) -> Material:
    """The paper's: random tokens, passages of random tokens."""
    generator = random.Random(1)
    text = tuple(generator.randrange(reader.vocabulary_size) for _ in range(length))
    return Material("random tokens", text, RandomPassages(reader, passage_tokens))


def real_material(
    reader: Reader, documents: Iterable[Document], retriever: Retriever, length: int
) -> Material:
    """The first document that is long enough, behind BOS if the reader has one.

    Args:
        length: how many tokens are needed.

    Raises:
        CorpusError: no document is long enough.
    """
    longest = 0
    for document in _whole(documents):
        text = reader.bos + tuple(reader.encode(document.text))
        if len(text) >= length:
            return Material(document.id, text[:length], retriever, document)
        longest = max(longest, len(text))
    raise CorpusError(
        f"no document is long enough: {length} tokens of this reader are needed, the longest has "
        f"{longest}; give longer --text, or lower --lengths"
    )


def _whole(documents: Iterable[Document]) -> Iterator[Document]:
    """Long files come in parts."""
    for _, parts in groupby(documents, key=lambda document: document.id):
        first, *rest = parts
        yield replace(first, text="".join(part.text for part in (first, *rest)))


class Dictation(Sampler):
    """Chooses as another sampler does, and then writes a given text instead."""

    def __init__(self, sampler: Sampler, text: Iterator[int]) -> None:
        super().__init__(sampler.settings, sampler.history, sampler.forbidden)
        self._text = text

    def choose(self, logits: Tensor) -> int:
        """Pick a token from `logits` (V,), and return the text's."""
        super().choose(logits)
        return next(self._text)
