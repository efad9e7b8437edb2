"""Indexes whose folders may be built anew while they are searched: the newest is in use."""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from flashback.errors import FlashBackError, IndexFolderError
from flashback.retrieval.index_folder import read_manifest, steadily, verify
from flashback.retrieval.kinds import Index, open_index
from flashback.retrieval.protocol import Hit, Retriever, over_leaves
from flashback.settings import SearchOptions


class LiveIndex:
    """A `Renewable` index folder. Safe to share between threads.

    A version that was opened stays usable when its files are gone: they are mapped.
    """

    def __init__(self, index: str | Path | Index) -> None:
        """Take an index, or open the version that is in a folder.

        Raises:
            IndexFolderError: see `open_index`.
        """
        self._index = index if isinstance(index, Index) else open_index(index)
        self._folder = self._index.folder
        self._renewing = threading.Lock()

    @property
    def name(self) -> str:
        """See `Renewable`."""
        return str(self._folder)

    @property
    def current(self) -> Index:
        """See `Renewable`."""
        return self._index

    @property
    def version(self) -> str:
        """See `Renewable`."""
        return self._index.manifest.digest

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; all queries are answered from one version."""
        return self._index.search(queries, options)

    def renew(self) -> bool:
        """See `Renewable`; every byte that is new is read and checked first."""
        with self._renewing:
            newer = steadily(self._folder, self._newer)
            if newer is not None:
                self._index = newer
            return newer is not None

    def _newer(self) -> Index | None:
        if read_manifest(self._folder) == self._index.manifest:
            return None
        checked = verify(self._folder, self._index.manifest)
        opened = open_index(self._folder)
        if opened.manifest != checked:
            raise IndexFolderError(f"index {self._folder}: changed while it was opened; try again")
        return opened


class LiveRetriever:
    """A `Renewable` made of others, such as fused indexes: each index is renewed as it changes."""

    def __init__(self, retriever: Retriever) -> None:
        """Take a retriever; what in it is no index folder stays as it is."""
        self.indexes: list[LiveIndex] = []
        self._live = over_leaves(retriever, self._lived)
        self._current = retriever
        self._used = [one.current for one in self.indexes]
        self._renewing = threading.Lock()

    def _lived(self, leaf: Retriever) -> Retriever:
        if not isinstance(leaf, Index):
            return leaf
        self.indexes.append(LiveIndex(leaf))
        return self.indexes[-1]

    @property
    def name(self) -> str:
        """See `Renewable`."""
        return " + ".join(one.name for one in self.indexes)

    @property
    def current(self) -> Retriever:
        """See `Renewable`."""
        return self._current

    @property
    def version(self) -> str:
        """See `Renewable`."""
        versions = " ".join(one.version for one in self.indexes)
        return hashlib.sha256(versions.encode()).hexdigest()[:16]

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; all queries are answered from one version of each index."""
        return self._current.search(queries, options)

    def renew(self) -> bool:
        """See `Renewable`; when one is unusable, the others are renewed nevertheless."""
        with self._renewing:
            failures = []
            try:
                for number, one in enumerate(self.indexes, start=1):
                    try:
                        one.renew()
                    except FlashBackError as error:
                        reason = str(error).removeprefix(f"index {one.name}: ")
                        named = f"{Path(one.name).name}, index {number} of {len(self.indexes)}"
                        failures.append(f"{named}: {reason}")
            finally:
                changed = self._take()
            if failures:
                raise IndexFolderError(f"index {self.name}: {'; '.join(failures)}")
            return changed

    def _take(self) -> bool:
        """Use the newest version of every index; whether one of them was not in use."""
        newest = [one.current for one in self.indexes]
        changed = any(one is not used for one, used in zip(newest, self._used, strict=True))
        if changed:
            self._current = over_leaves(self._live, _version)
            self._used = newest
        return changed


def _version(leaf: Retriever) -> Retriever:
    return leaf.current if isinstance(leaf, LiveIndex) else leaf


def live(retriever: Retriever) -> Retriever:
    """The same retriever, `Renewable` if there are index folders in it."""
    if isinstance(retriever, Index):
        return LiveIndex(retriever)
    found = LiveRetriever(retriever)
    return found if found.indexes else retriever
