"""Text and token ids at a boundary: the query made of a context, the ids made of passages."""

from collections.abc import Iterable, Sequence

from flashback.patterns.prompt import Ids
from flashback.readers.text_reader import TextReader
from flashback.settings import RetrievalSettings


def query_text(reader: TextReader, context: Sequence[int], settings: RetrievalSettings) -> str:
    """The text of the last ℓ tokens of a context, which passages are retrieved for (section 3)."""
    return reader.decode(context[-settings.query_tokens :])


def passage_ids(reader: TextReader, texts: Iterable[str], settings: RetrievalSettings) -> Ids:
    """The ids of retrieved passages, each cut to its first m tokens, concatenated in order."""
    limit = settings.passage_tokens
    return tuple(token for text in texts for token in reader.encode(text)[:limit])
