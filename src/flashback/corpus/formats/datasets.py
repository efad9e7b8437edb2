"""Data sets of the Hugging Face hub, or folders of the same form: their Parquet and text tables.

The hub is asked for data files alone: no code is fetched or run.
"""

import os
import re
import textwrap
from dataclasses import replace
from pathlib import Path

from flashback.corpus.documents import CorpusReport
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.format import Source
from flashback.corpus.formats.registry import FORMATS, format_of
from flashback.corpus.formats.sources import printable, walk
from flashback.errors import CorpusError

_BETWEEN = re.compile(r"[^A-Za-z]+")
"""What stands around the name of a split in a path."""


def find_dataset(
    part: str, folder: str | None, report: CorpusReport, settings: FileSettings
) -> list[Source]:
    """The files of a data set, or of a part of it.

    Args:
        part: `OWNER/NAME` or `OWNER/NAME:PART` on the hub; with a folder, `PART` or all.
            A `PART` is a split, or `CONFIG/SPLIT`: names in the files' paths.
        folder: a local copy.

    Raises:
        CorpusError: there are no such files, or the hub cannot be reached.
    """
    if folder is None:
        name, _, part = part.partition(":")
        if name.count("/") != 1 or "" in name.split("/"):
            raise CorpusError(
                f"corpus dataset:{name}: expected dataset:OWNER/NAME, or dataset@FOLDER"
            )
        base = fetch(name, part)
    else:
        base, name = Path(os.path.expanduser(folder)), folder
        if not base.is_dir():
            raise CorpusError(f"corpus dataset@{folder}: no such folder")
    found = [one for one in walk(base, report, settings) if _is_of(base, one, part, report)]
    if folder is None:  # the cache's folder is of no interest
        found = [replace(one, name=f"{name}/{one.title}") for one in found]
    if not found:
        wanted = f"of part {part!r} " if part else ""
        known = ", ".join(suffix for suffix, known in FORMATS.items() if known.records)
        raise CorpusError(f"corpus dataset {name}: no files {wanted}in it; expected {known}")
    return found


def _is_of(base: Path, source: Source, part: str, report: CorpusReport) -> bool:
    """Whether a file has records of a part; if not, the report gets it."""
    known = format_of(source.name)
    assert source.path is not None
    if known is None or not known.records:
        report.ignore(source.name, "no records: a data set's tables are read")
        return False
    below = source.path.relative_to(base).as_posix()
    is_in_part = all(map(_names(below).__contains__, filter(None, part.split("/"))))
    if not is_in_part:
        report.ignore(source.name, f"not of part {part!r}")
    return is_in_part


def _names(path: str) -> set[str]:
    """The folders of a path, the name of its file, and the words in both."""
    parts = [*path.split("/"), path.rpartition("/")[2].partition(".")[0]]
    return {*parts, *(word for part in parts for word in _BETWEEN.split(part))}


def fetch(name: str, part: str) -> Path:
    """The folder in the hub's cache with the files of a data set, downloaded if it is not there."""
    from huggingface_hub import snapshot_download

    middle = "".join(f"{one}*" for one in part.split("/") if one)
    suffixes = (suffix for suffix, known in FORMATS.items() if known.records)
    try:
        found = snapshot_download(
            name, repo_type="dataset", allow_patterns=[f"*{middle}{suffix}" for suffix in suffixes]
        )
    except Exception as error:  # the hub's client raises almost anything
        reason = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
        raise CorpusError(
            f"corpus dataset:{printable(name)} cannot be fetched: {reason} "
            f"({type(error).__name__}); a folder can be named instead, as in dataset@FOLDER"
        ) from error
    return Path(found)
