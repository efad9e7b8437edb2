"""A reader without an adapter, then with one after the other: one model in memory at a time."""

from collections.abc import Callable, Iterable
from pathlib import Path

from flashback.readers.adapter import check_base, put_on
from flashback.readers.reader import Reader


class AdaptedReaders:
    """Loads a reader with one adapter after the other.

    The caller must drop its reference to a reader before it asks for another one.
    """

    def __init__(
        self, load: Callable[[], Reader], finish: Callable[[Reader], Reader] | None = None
    ) -> None:
        """Load nothing yet.

        Args:
            load: loads the reader without any adapter, anew at every call.
            finish: applied to a reader after its adapter was merged, such as `for_inference`.
        """
        self._load = load
        self._finish = finish
        self._reader: Reader | None = None
        self._adapter: Path | None = None

    def get(self, adapter: Path | None = None) -> Reader:
        """The reader with an adapter merged into it, or without any; do not change it.

        Raises:
            FlashBackError: the reader or the adapter cannot be loaded, or they are not a pair.
        """
        if self._reader is None or self._adapter != adapter:
            plain = self.take()
            reader = plain if adapter is None else put_on(plain, adapter)
            self._reader = reader if self._finish is None else self._finish(reader)
            self._adapter = adapter
        return self._reader

    def take(self) -> Reader:
        """The reader without an adapter, for the caller to change: it is not returned again."""
        plain = self._adapter is None and self._finish is None
        reader = self._reader if plain else None
        self._reader = self._adapter = None
        return self._load() if reader is None else reader

    def check(self, adapters: Iterable[Path]) -> None:
        """Refuse adapters of other models, before minutes of scoring.

        Raises:
            AdapterError: an adapter is missing, damaged, or belongs to another model.
        """
        folders = list(dict.fromkeys(adapters))
        if not folders:
            return
        plain = self.take()
        for folder in folders:
            check_base(plain, folder)
        if self._finish is None:
            self._reader = plain
