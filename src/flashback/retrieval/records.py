"""A stored passage as a record of tantivy, and a record as a hit."""

import json
from typing import Any

import tantivy

from flashback.corpus.duplicates import Stored
from flashback.corpus.place import Place, place_of
from flashback.retrieval import analysis
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions

SAMPLED = "sampled"
"""The term of records that stand for the others, in the field of that name."""


def schema() -> tantivy.Schema:
    """What is shown, what is searched and what may be forbidden are fields of their own."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("document", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("text", stored=True)
    builder.add_bytes_field("sharers", stored=True)
    builder.add_bytes_field("place", stored=True)
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
    heading = passage.title if passage.heading is None else passage.heading
    shown = f"{heading}\n{passage.text}" if titled and heading else passage.text
    record = tantivy.Document()
    record.add_text("id", passage.id)
    # Forbidding a document must hide what it alone has: what others share is looked at when found.
    if stored.copies:
        sharers = [(passage.id, passage.document_id), *stored.copies]
        record.add_bytes("sharers", json.dumps(sharers).encode())
    else:
        record.add_text("document", passage.document_id)
    record.add_text("title", passage.title)
    record.add_bytes("text", shown.encode())
    if passage.place is not None:
        record.add_bytes("place", json.dumps(passage.place.record()).encode())
    if sampled:
        record.add_text(SAMPLED, SAMPLED)
    terms = analysis.terms(f"{passage.title}\n{passage.text}" if titled else passage.text)
    record.add_text("terms", terms)
    return record, terms


def hit_of(record: tantivy.Document, score: float, options: SearchOptions) -> Hit | None:
    """A record as the first document has it that is not forbidden; None if all are.

    Its place is known in the first of its documents alone.
    """
    sharers = _sharers(record)
    allowed = [name for name in sharers if name[1] not in options.forbid_documents]
    if not allowed:
        return None
    place = _place(record) if allowed[0] == sharers[0] else None
    return Hit(*allowed[0], str(record.get_first("title")), text_of(record), score, place)


def text_of(record: tantivy.Document) -> str:
    """The text as it is shown."""
    return _bytes(record, "text").decode()


def _place(record: tantivy.Document) -> Place | None:
    if record.get_first("place") is None:
        return None
    found = json.loads(_bytes(record, "place"))
    return place_of(found) if isinstance(found, dict) else None


def _sharers(record: tantivy.Document) -> list[tuple[str, str]]:
    """Id and document id of a passage in each document that has it."""
    if record.get_first("sharers") is not None:
        shared = json.loads(_bytes(record, "sharers"))
        return [(str(identifier), str(document)) for identifier, document in shared]
    return [(str(record.get_first("id")), str(record.get_first("document")))]


def _bytes(record: tantivy.Document, field: str) -> bytes:
    value: Any = record.get_first(field)
    if value is None:
        raise ValueError(f"a record has no {field!r}")
    return bytes(value)
