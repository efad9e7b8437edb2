"""An index folder that is searched and written to by the same program."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from flashback.corpus.passages import Passage
from flashback.retrieval.changes import Changes, changing
from flashback.retrieval.live import LiveIndex


class WritableIndex(LiveIndex):
    """A `Writable` BM25 index; a `LiveIndex`, too.

    Searches may come from any thread, changes from one at a time. From the first change to the
    commit no other process can change the index.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the version that is there.

        Raises:
            IndexFolderError: see `open_index`.
        """
        super().__init__(folder)
        self._held = contextlib.ExitStack()
        self._changes: Changes | None = None

    def add(self, passages: Iterable[Passage]) -> None:
        """See `Writable`.

        Raises:
            IndexFolderError: the index cannot be changed, or another process is changing it.
        """
        self._begun().add(passages)

    def delete(self, documents: Iterable[str]) -> None:
        """See `Writable`; it raises what `add` does."""
        self._begun().delete(documents)

    def commit(self) -> None:
        """See `Writable`.

        Raises:
            IndexFolderError: the folder cannot be written; nothing has changed then.
        """
        changes, self._changes = self._changes, None
        with self._held:
            if changes is not None:
                changes.commit()

    def refresh(self) -> None:
        """See `Writable`."""
        self.renew()

    def _begun(self) -> Changes:
        if self._changes is None:
            self._changes = self._held.enter_context(changing(self._folder))
        return self._changes
