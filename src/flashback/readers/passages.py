"""Retrieved passages as the token ids that a reader is shown, and what is not shown of them."""

from collections.abc import Iterable, Sequence

from flashback.patterns.prompt import Ids
from flashback.readers.text_reader import TextReader
from flashback.settings import RetrievalSettings

LONGEST_TOKEN = 128
"""Characters; what is behind as many for each token that fits is not shown, and not tokenized."""


def passage_ids(reader: TextReader, texts: Iterable[str], settings: RetrievalSettings) -> Ids:
    """The ids of retrieved passages, each cut to its first m tokens, concatenated in order."""
    limit = settings.passage_tokens
    longest = limit * LONGEST_TOKEN
    return tuple(token for text in texts for token in reader.encode(text[:longest])[:limit])


def unseen_note(reader: TextReader, texts: Sequence[str], passage_tokens: int) -> str | None:
    """What a user should know if passages are longer than the tokens shown of them; else None.

    Args:
        texts: passages that stand for all.
        passage_tokens: m.
    """
    longest = passage_tokens * LONGEST_TOKEN
    sizes = [len(reader.encode(text[:longest])) for text in texts]
    long = [size for size in sizes if size > passage_tokens]
    if not long:
        return None
    lost = sum(long) - passage_tokens * len(long)
    return (
        f"{len(long)} of {len(sizes)} passages looked at are longer than the {passage_tokens} "
        f"tokens that are shown of them; {lost / sum(sizes):.1%} of the text is never seen. Index "
        f"again with --model={reader.name!r}, or raise --passage-tokens"
    )
