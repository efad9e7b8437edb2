"""Kinds of indexes: which retriever reads a folder. A new kind is a file and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from flashback.declared import Registry
from flashback.errors import IndexFolderError
from flashback.retrieval.bm25 import KIND as BM25
from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.index_folder import Manifest, read_manifest
from flashback.retrieval.index_settings import DENSE
from flashback.retrieval.protocol import Retriever, Sampled


@runtime_checkable
class Index(Retriever, Sampled, Protocol):
    """A retriever that reads an index folder."""

    @property
    def folder(self) -> Path:
        """Where it is."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the folder says about itself."""
        ...

    def __len__(self) -> int:
        """Passages."""
        ...


KINDS: Registry[Callable[[Path], Index]] = Registry("index kind")
"""By the `kind` of a folder's manifest: opens the folder."""

KINDS.register(BM25, BM25Index.open)


# NumPy takes a while to import.
def _open_dense(folder: Path) -> Index:
    from flashback.retrieval.dense import DenseIndex

    return DenseIndex.open(folder)


def _open_arrays(folder: Path) -> Index:
    from flashback.retrieval.arrays import ArrayIndex

    return ArrayIndex.open(folder)


KINDS.register(DENSE, _open_dense)
KINDS.register("bm25s", _open_arrays)


def open_index(folder: str | Path) -> Index:
    """Open an index folder with the retriever that its manifest names.

    Raises:
        IndexFolderError: missing, foreign, damaged, half-written, or of an unknown kind.
    """
    folder = Path(folder)
    kind = read_manifest(folder).content.kind
    if kind not in KINDS:
        raise IndexFolderError(f"index {folder}: kind {kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[kind](folder)
