"""Names on the command line to files, and a reason for every file that is left out."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flashback.corpus.documents import BadRecord, CorpusReport
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.format import Source
from flashback.corpus.formats.registry import FORMATS, format_of
from flashback.errors import CorpusError


def find_sources(
    names: Sequence[str], report: CorpusReport, settings: FileSettings | None = None
) -> list[Source]:
    """Expand files, folders and `-` into sources, in a stable order.

    Raises:
        CorpusError: a name is neither a file of a known format, nor a folder, nor `-`, or the
            library for its format is not installed.
    """
    if "" in names:
        raise CorpusError("corpus '': expected a file, a folder or -, found an empty name")
    if "-" in names and sys.stdin is None:
        raise CorpusError("corpus -: standard input is closed")
    if names.count("-") > 1:
        raise CorpusError("corpus -: standard input can be read only once; name it once")
    sources: list[Source] = []
    for name in names:
        path = Path(name)
        if name == "-":
            sources.append(Source(None, "standard input", "standard input", 0))
        elif path.is_dir():
            sources.extend(walk(path, report, settings or FileSettings()))
        else:
            sources.append(_named_file(name, path))
    return sources


def _named_file(name: str, path: Path) -> Source:
    if not path.exists():
        raise CorpusError(f"corpus {name}: no such file or folder")
    known = format_of(name)
    if known is None:
        raise CorpusError(f"corpus {name}: unknown format; expected one of {', '.join(FORMATS)}")
    if known.missing:
        raise CorpusError(f"corpus {name}: {known.missing}")
    return Source(path, printable(name), printable(path.name), path.stat().st_size)


def walk(folder: Path, report: CorpusReport, settings: FileSettings) -> Iterator[Source]:
    """The files of a folder that can be read; the report gets the others."""
    for root, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [
            name
            for name in sorted(folders)
            if _is_wanted_folder(folder, Path(root, name), report, settings)
        ]
        for file in sorted(files):
            path = Path(root, file)
            if _is_wanted(folder, path, report, settings):
                title = printable(path.relative_to(folder).as_posix())
                yield Source(path, printable(path.as_posix()), title, path.stat().st_size)


def _is_wanted_folder(
    folder: Path, path: Path, report: CorpusReport, settings: FileSettings
) -> bool:
    below = path.relative_to(folder).as_posix()
    reason = settings.why_not(below, folder=True)
    if reason is None and path.is_symlink():
        reason = "a link to a folder; name the folder itself"
    if reason is not None:
        report.ignore(f"{printable(path.as_posix())}/", reason)
    return reason is None


def _is_wanted(folder: Path, path: Path, report: CorpusReport, settings: FileSettings) -> bool:
    name = printable(path.as_posix())
    reason = settings.why_not(path.relative_to(folder).as_posix())
    known = format_of(path.name)
    if reason is None and known is None:
        reason = f"unknown format '{path.suffix}'" if path.suffix else "unknown format: no suffix"
    elif reason is None and not path.is_file():
        reason = "no file" if path.exists() else "a link that leads nowhere"
    if reason is not None:
        report.ignore(name, reason)
    elif known is not None and known.missing:
        report.refuse(BadRecord(name, None, known.missing))
        return False
    return reason is None


def _refuse_folder(error: OSError) -> None:
    raise CorpusError(f"corpus {error.filename}: {error.strerror}") from error


def printable(name: str) -> str:
    """A file's name with what is not UTF-8 replaced, so that it can be stored."""
    return os.fsencode(name).decode("utf-8", "replace")
