"""The files that the documents of an index came from, as they were when they were read.

They are listed in `sources.json` in the index's data folder, by their real paths.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flashback.corpus.documents import Document
from flashback.corpus.formats.format import Source
from flashback.corpus.formats.reading import Watch
from flashback.errors import CorpusError, IndexFolderError
from flashback.retrieval.index_folder import Manifest

SOURCES = "sources.json"
_SETTLED_NS = 2_000_000_000
"""A file that was changed so shortly before it was read may change again at the same time."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a corpus, and the documents that were read from it."""

    name: str
    """As it was called in the corpus; its documents' ids may begin so."""
    bytes: int
    modified_ns: int
    sha256: str
    read_ns: int
    documents: tuple[str, ...] = ()

    def is_like(self, path: Path) -> bool:
        """Whether a file has the same content; it is read only if size and time do not tell.

        Raises:
            OSError: it cannot be read.
        """
        found = path.stat()
        if found.st_size != self.bytes:
            return False
        settled = self.modified_ns + _SETTLED_NS < self.read_ns
        if settled and found.st_mtime_ns == self.modified_ns:
            return True
        return _sha256(path) == self.sha256


Sources = dict[str, SourceFile]
"""By their real paths."""


def load_sources(folder: Path, manifest: Manifest) -> Sources:
    """The files of an index; none if its corpus had no files.

    Raises:
        IndexFolderError: the list is damaged.
    """
    if SOURCES not in manifest.files:
        return {}
    try:
        records = json.loads((folder / manifest.data / SOURCES).read_bytes())
        return {
            path: SourceFile(**record | {"documents": tuple(record["documents"])})
            for path, record in records.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexFolderError(
            f"index {folder}: {manifest.data}/{SOURCES} is damaged ({error}); build the index again"
        ) from error


def stored_sources(sources: Mapping[str, SourceFile]) -> dict[str, bytes]:
    """The file of an index's data folder that lists them."""
    return {SOURCES: json.dumps({path: vars(one) for path, one in sources.items()}).encode()}


def real_path(source: Source) -> str:
    """The name by which a file is known, however it is called in a corpus."""
    assert source.path is not None
    return os.path.realpath(source.path)


def noting_files(noted: Sources) -> Watch:
    """For `read_documents`: each file is noted when its last document was taken.

    With the ids of all of its documents: of those, too, that are left out as another file's.

    Raises:
        CorpusError: a file cannot be read.
    """

    def watch(source: Source, documents: Iterator[Document]) -> Iterator[Document]:
        if source.path is None:
            yield from documents
            return
        file, names = _looked_at(source), list[str]()
        for document in documents:
            if names[-1:] != [document.id]:
                names.append(document.id)
            yield document
        noted[real_path(source)] = replace(file, documents=tuple(names))

    return watch


def _looked_at(source: Source) -> SourceFile:
    """A file as it is before it is read: what is written to it meanwhile is seen the next time."""
    assert source.path is not None
    try:
        found = source.path.stat()
        return SourceFile(
            source.name,
            found.st_size,
            found.st_mtime_ns,
            _sha256(source.path),
            time.time_ns(),
        )
    except OSError as error:
        raise CorpusError(f"corpus {source.name}: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
