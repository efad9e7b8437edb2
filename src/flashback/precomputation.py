"""All passages of an index encoded for the slot, as `generate` will ask for them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flashback.engines.cache.passages import size_of
from flashback.engines.local import LocalEngine
from flashback.engines.passage_store import Owner, write_store
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.fingerprint import computation_of
from flashback.readers.reader import Reader
from flashback.settings import RetrievalSettings


@dataclass(frozen=True)
class Precomputation:
    """What will be encoded, and how much that is."""

    reader: Reader
    engine: LocalEngine
    room: int
    """R, positions."""
    passages: tuple[Ids, ...]
    """Cut and framed, each once."""
    bytes: int
    """Of all keys and values."""

    @classmethod
    def of(
        cls, reader: Reader, texts: Iterable[str], settings: RetrievalSettings
    ) -> "Precomputation":
        """Cut and frame passages; encode one to know how large they are.

        Raises:
            SettingsError: the slot leaves no room in the reader's window.
        """
        frame, most = reader.frame(settings.frame, settings.pattern), settings.passage_tokens
        cut = (tuple(reader.encode(text)[:most]) for text in texts)
        passages = tuple(dict.fromkeys(frame.around(ids) for ids in cut if ids))
        room = PATTERNS["slot"].reserved(1, most, frame)
        if room >= reader.window:
            raise SettingsError(
                f"--passage-tokens {most}: a slot of {room} positions leaves no room in the "
                f"reader's window of {reader.window}; lower it"
            )
        engine = LocalEngine(reader.model, reader.window, passage_bytes=0)
        per_token = size_of(engine.encode_passage(passages[0], room)) // len(passages[0])
        size = per_token * sum(map(len, passages))
        return cls(reader, engine, room, passages, size)

    def run(self, out: Path, on_passage: Callable[[], None] = lambda: None) -> None:
        """Encode and write them.

        Raises:
            PassageStoreError: they cannot be written; nothing is left.
        """
        dtype = self.reader.placement.dtype_name
        owner = Owner(computation_of(self.reader.model), dtype, self.room)
        encode = self.engine.encode_passage
        write_store(out, owner, self.passages, lambda ids: encode(ids, self.room), on_passage)
