"""Documents, and what a corpus's reading reports: how many, and what could not be read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flashback.corpus.place import Layout
from flashback.errors import CorpusError

Advance = Callable[[int], None]
"""Called with the number of bytes just consumed, for progress bars."""


@dataclass(frozen=True)
class Document:
    """A titled text. Consecutive documents with the same id are parts of one."""

    id: str
    title: str
    text: str
    layout: Layout = field(default=Layout(), compare=False)
    """Where the text comes from, which does not make it another one."""


def name_of(document: Document) -> tuple[str, str]:
    """Id and title, which together identify a document: files may use the same ids."""
    return document.id, document.title


@dataclass(frozen=True)
class BadRecord:
    """A record or a file that could not be used: where it stands and why."""

    file: str
    line: int | None
    """Or its row in a table without lines; None: the whole file."""
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder that was not to be read, and why."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass
class CorpusReport:
    """Counts, bad records and skipped files of a corpus; filled while it is read."""

    KEPT = 20
    KEPT_FILES = 10_000

    strict: bool = False
    names: tuple[str, ...] = field(default=(), compare=False)
    """What was asked for."""
    documents: int = 0
    bad_records: int = 0
    ignored_files: int = 0
    """Files and folders that were not to be read."""
    examples: list[BadRecord] = field(default_factory=list)
    """The first `KEPT` bad records, and the first `KEPT_FILES` that are whole files."""
    skipped: list[SkippedFile] = field(default_factory=list)
    """The first `KEPT_FILES` of the ignored files."""

    def refuse(self, record: BadRecord) -> None:
        """Count a bad record; in strict mode raise CorpusError instead."""
        if self.strict:
            raise CorpusError(
                f"{record}; correct it, or leave out --strict=True to skip such records"
            )
        self.bad_records += 1
        if len(self.examples) < (self.KEPT if record.line is not None else self.KEPT_FILES):
            self.examples.append(record)

    def ignore(self, file: str, reason: str) -> None:
        """Count a file or folder that is not to be read."""
        self.ignored_files += 1
        if len(self.skipped) < self.KEPT_FILES:
            self.skipped.append(SkippedFile(file, reason))
