"""A stored passage as a record of tantivy, and a record as a hit."""

import json
from collections.abc import Iterable
from typing import Any

import tantivy

from flashback.corpus.duplicates import Owner, Stored, owned, owner_of, passage_digest
from flashback.corpus.passages import Passage
from flashback.retrieval import analysis
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions

SAMPLED = "sampled"
"""The term of records that stand for the others, in the field of that name."""


def schema() -> tantivy.Schema:
    """What is shown, what is searched and what may be forbidden are fields of their own."""
    builder = tantivy.SchemaBuilder()
    builder.add_bytes_field("id", stored=True)
    builder.add_text_field("document", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("heading", stored=True)
    builder.add_bytes_field("text", stored=True)
    builder.add_bytes_field("place", stored=True)
    builder.add_bytes_field("sharers", stored=True)
    builder.add_text_field("sharer", tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("number", stored=True, fast=True)
    builder.add_unsigned_field("key", indexed=True)
    builder.add_text_field(SAMPLED, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("terms", tokenizer_name=analysis.NAME, index_option="freq")
    return builder.build()


def record_of(stored: Stored, *, titled: bool, sampled: bool) -> tuple[tantivy.Document, str]:
    """A passage as a record, and its terms.

    Args:
        titled: the title is searched, and shown before the text.
        sampled: the record stands for others, see `BM25Index.sample`.
    """
    passage = stored.passage
    record = tantivy.Document()
    record.add_bytes("id", passage.id.encode())
    # Forbidding a document must hide what it alone has: what others share is looked at when found.
    if len(stored.owners) == 1:
        record.add_text("document", passage.document_id)
    else:
        for owner in stored.owners:
            record.add_text("sharer", owner.document_id)
    if stored.repeats:
        record.add_bytes("sharers", json.dumps([one.row() for one in stored.owners]).encode())
    elif passage.place is not None:
        record.add_bytes("place", json.dumps(passage.place.record()).encode())
    record.add_text("title", passage.title)
    if passage.heading is not None:
        record.add_bytes("heading", passage.heading.encode())
    record.add_bytes("text", shown_of(passage, titled=titled).encode())
    record.add_unsigned("number", stored.owners[0].number)
    record.add_unsigned("key", key_of(passage_digest(passage)))
    if sampled:
        record.add_text(SAMPLED, SAMPLED)
    terms = terms_of(passage, titled=titled)
    record.add_text("terms", terms)
    return record, terms


def shown_of(passage: Passage, *, titled: bool) -> str:
    """A passage as the reader gets it."""
    heading = passage.title if passage.heading is None else passage.heading
    return f"{heading}\n{passage.text}" if titled and heading else passage.text


def terms_of(passage: Passage, *, titled: bool) -> str:
    """The words by which a passage is found."""
    return analysis.terms(f"{passage.title}\n{passage.text}" if titled else passage.text)


def key_of(identity: bytes) -> int:
    """The same for equal passages, and rarely for others, of their `passage_digest`."""
    return int.from_bytes(identity[:8])


def stored_of(record: tantivy.Document, *, titled: bool) -> Stored:
    """What `record_of` made a record of."""
    title = str(record.get_first("title"))
    heading = None if record.get_first("heading") is None else _bytes(record, "heading").decode()
    above = title if heading is None else heading
    text = text_of(record).removeprefix(f"{above}\n" if titled and above else "")
    return owned(Passage("", "", title, text, heading), _owners(record))


def hit_of(record: tantivy.Document, score: float, options: SearchOptions) -> Hit | None:
    """A record as the first document has it that is not forbidden; None if all are."""
    title = str(record.get_first("title"))
    return hit_among(_owners(record), title, text_of(record), score, options)


def hit_among(
    owners: Iterable[Owner], title: str, text: str, score: float, options: SearchOptions
) -> Hit | None:
    """A passage as the first of its documents has it that is not forbidden; None if all are."""
    for owner in owners:
        if owner.document_id not in options.forbid_documents:
            return Hit(owner.id, owner.document_id, title, text, score, owner.place)
    return None


def text_of(record: tantivy.Document) -> str:
    """The text as it is shown."""
    return _bytes(record, "text").decode()


def _owners(record: tantivy.Document) -> list[Owner]:
    """The documents that have a passage, in the order of the corpus."""
    if record.get_first("sharers") is not None:
        return [owner_of(row) for row in json.loads(_bytes(record, "sharers"))]
    value: Any = record.get_first("number")
    place = None if record.get_first("place") is None else json.loads(_bytes(record, "place"))
    document = str(record.get_first("document"))
    return [owner_of((_bytes(record, "id").decode(), document, value, 1, place))]


def _bytes(record: tantivy.Document, field: str) -> bytes:
    value: Any = record.get_first(field)
    if value is None:
        raise ValueError(f"a record has no {field!r}")
    return bytes(value)
