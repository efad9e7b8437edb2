"""--no-audit, and the audit of what an evaluation shows to a reader.

Only what was shown can change a figure, and each passage is compared with the text that it was
shown for: so it costs little, and holds for every retriever, also one that does not list what it
has. `flashback index audit` compares a whole index.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.audit import record_of
from flashback.retrieval.audit import Text, audit_shown
from flashback.retrieval.protocol import Hit

if TYPE_CHECKING:
    from flashback.questions.passages import Asked
    from flashback.scoring.retrieved_windows import RetrievedWindows

Shown = tuple[Text, Sequence[Hit]]
"""A text of an evaluation and passages that were shown for it."""
_KEPT = 5
"""Documents in a record."""

audit_option = click.option(
    "--audit/--no-audit",
    default=True,
    show_default=True,
    help="Compare what is shown with what it is shown for, word by word.",
)


def shown_in(retrieved: "RetrievedWindows") -> Iterator[Shown]:
    """The documents of windows, each with the passages of its boundaries."""
    for window, found in zip(retrieved.windows, retrieved.found, strict=True):
        document = window.document
        text = Text(document.id, document.title, document.text)
        yield text, [hit for hits in found.hits for hit in hits]


def shown_for(asked: "Iterable[Asked]") -> Iterator[Shown]:
    """Questions, each with its passages. An answer should stand in them, a question should not."""
    for one in asked:
        yield Text("", "", one.question.text), one.hits


def audit_record(shown: Iterable[Shown]) -> dict[str, Any]:
    """What an audit found, as plain data."""
    found = record_of(audit_shown(shown))
    return found | {"found": found["found"][:_KEPT]}
