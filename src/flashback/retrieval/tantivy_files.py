"""The search library's files: written by one thread, opened without writing, errors in one line."""

import contextlib
import sqlite3
import textwrap
from collections.abc import Iterator
from pathlib import Path

import tantivy

from flashback.errors import IndexFolderError
from flashback.files import temporary_folder
from flashback.retrieval import analysis
from flashback.retrieval.index_folder import Manifest
from flashback.retrieval.records import schema

_HEAP_BYTES = 128_000_000


@contextlib.contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """A full disk in one line; tantivy reports every failure of its files as a ValueError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise IndexFolderError(f"index {folder} cannot be written: {reason}") from error
    except (ValueError, sqlite3.Error) as error:
        raise IndexFolderError(
            f"index {folder} cannot be written: {error} (is the disk full?)"
        ) from error


@contextlib.contextmanager
def writing(data: Path, language: str) -> Iterator[tuple[tantivy.Index, tantivy.IndexWriter]]:
    """The index in a folder, made if there is none, and a writer.

    The writer's threads have ended when the block is left, so that none writes any more.

    Args:
        language: see `analysis.analyzer`.
    """
    index = tantivy.Index(schema(), path=str(data))
    index.register_tokenizer(analysis.NAME, analysis.analyzer(language))
    index.config_reader(reload_policy="manual")
    # One thread: equal scores are ranked alike in every build, and a failure leaves none running.
    writer = index.writer(_HEAP_BYTES, num_threads=1)
    try:
        yield index, writer
    finally:
        writer.wait_merging_threads()


@contextlib.contextmanager
def readable_damage(folder: Path) -> Iterator[None]:
    """Damaged data in one line; tantivy reports it as a ValueError, or panics."""
    try:
        yield
    except BaseException as error:
        # A Rust panic is a BaseException of a class that cannot be imported.
        if isinstance(error, ValueError | OSError) or type(error).__name__ == "PanicException":
            reason = textwrap.shorten(str(error), 200)  # it may quote a whole file
            raise IndexFolderError(
                f"index {folder}: damaged ({reason}); build it again with `flashback index`"
            ) from error
        raise


def open_without_writing(folder: Path, manifest: Manifest) -> tantivy.Index:
    """Open the data of an index that may be read-only.

    tantivy creates lock files beside what it opens, at times from a thread that watches the folder;
    it gets a folder of links to do so. What it has mapped stays mapped when that folder goes.
    """
    with temporary_folder() as links, readable_damage(folder):
        for name in manifest.files:
            if not name.endswith(".lock"):
                (links / name).symlink_to((folder / manifest.data / name).resolve())
        index = tantivy.Index.open(str(links))
        index.register_tokenizer(analysis.NAME, analysis.analyzer())
        index.config_reader(reload_policy="manual")  # maps the files; nothing is reloaded later
        index.searcher()
        return index
