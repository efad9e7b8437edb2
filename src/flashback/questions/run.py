"""All rows of a comparison on the same questions with the same passages; resumable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from flashback.questions.answers import OpenWriter, Respondent
from flashback.questions.forms import Asking
from flashback.questions.passages import Asked
from flashback.questions.rows import Row
from flashback.readers.text_reader import TextReader
from flashback.settings import RetrievalSettings, Settings

NUMBER = "number"
"""The member of a record that numbers it: row after row, question after question, from 1."""
Record = dict[str, Any]


class Answers(Protocol):
    """Where answers are kept."""

    def kept(self) -> list[Record]:
        """Those of an earlier run."""
        ...

    def append(self, record: Record) -> None:
        """Keep one more."""
        ...


class InMemory:
    """Answers that are not written to a file."""

    def kept(self) -> list[Record]:
        """None."""
        return []

    def append(self, record: Record) -> None:
        """See `Answers`."""


class Readers(Protocol):
    """Where the reader of each row comes from."""

    def get(self, adapter: Path | None = None) -> TextReader:
        """The reader with an adapter, or without any."""
        ...


@dataclass(frozen=True)
class OneReader:
    """A reader that no adapter can be put on, since its model is elsewhere."""

    reader: TextReader

    def get(self, adapter: Path | None = None) -> TextReader:
        """See `Readers.get`."""
        assert adapter is None, "refused before"
        return self.reader


@dataclass(frozen=True)
class Comparison:
    """Rows and questions; every row answers every question."""

    rows: tuple[Row, ...]
    asked: tuple[Asked, ...]
    asking: Asking
    settings: Settings
    """Of all rows, but for pattern, frame and stride."""
    batch_size: int

    def run(
        self,
        readers: Readers,
        open_writer: OpenWriter,
        answers: Answers,
        retrievals: Sequence[RetrievalSettings],
        start: Callable[[int], Callable[[], None]],
    ) -> list[list[Record]]:
        """Every row's records, in the order of the questions.

        Args:
            answers: those kept are not computed again.
            retrievals: of each row, see `Row.given`.
            start: called with the number of answers to come; returns what is called after each.

        Raises:
            FlashBackError: a prompt is too long, or a reader or an adapter cannot be loaded.
        """
        found = {int(record[NUMBER]): record for record in answers.kept()}
        on_answer = start(len(self.rows) * len(self.asked) - len(found))

        def keep(record: Record) -> None:
            answers.append(record)
            found[record[NUMBER]] = record
            on_answer()

        for at, (row, retrieval) in enumerate(zip(self.rows, retrievals, strict=True)):
            left = [number for number in self._numbers(at) if number not in found]
            if left:
                settings = self.row_settings(retrieval)
                # The reader of one row is let go before another one is loaded.
                reader = readers.get(row.arm.adapter)
                respondent = Respondent(row, reader, settings, self.asking)
                del reader
                self._answer(respondent, left, open_writer, keep)
                del respondent
        return [[found[number] for number in self._numbers(at)] for at in range(len(self.rows))]

    def row_settings(self, retrieval: RetrievalSettings) -> Settings:
        """The settings of one row: the whole answer in one stride."""
        stride = self.settings.stopping.max_new_tokens
        return replace(self.settings, retrieval=replace(retrieval, stride=stride))

    def _numbers(self, row: int) -> range:
        first = row * len(self.asked) + 1
        return range(first, first + len(self.asked))

    def _answer(
        self,
        respondent: Respondent,
        numbers: Sequence[int],
        open_writer: OpenWriter,
        keep: Callable[[Record], None],
    ) -> None:
        asked = [self.asked[(number - 1) % len(self.asked)] for number in numbers]
        for at, record in respondent.records(asked, open_writer, self.batch_size):
            keep({NUMBER: numbers[at]} | record)
