"""An index whose folder may be built anew while it is searched: the newest version is in use."""

import threading
from collections.abc import Sequence
from pathlib import Path

from flashback.errors import IndexFolderError
from flashback.retrieval.index_folder import read_manifest, steadily, verify
from flashback.retrieval.kinds import Index, open_index
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions


class LiveIndex:
    """A `Renewable` index folder. Safe to share between threads.

    A version that was opened stays usable when its files are gone: they are mapped.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the version that is there.

        Raises:
            IndexFolderError: see `open_index`.
        """
        self._folder = Path(folder)
        self._index = open_index(folder)
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
