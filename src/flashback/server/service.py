"""What the server serves with: one reader, one index, one scheduler."""

from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any

from flashback.engines.local import LocalEngine
from flashback.patterns.context import context_budget
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.server.metrics import Metrics
from flashback.server.scheduler import Scheduler
from flashback.server.server_settings import MIB, ServerSettings
from flashback.settings import RetrievalSettings, Settings
from flashback.writing.generator import Generator

_PASSAGE_SHARE = 4
"""One part in so many of the memory is for slot passages."""


@dataclass(frozen=True)
class Service:
    """Everything that a request is worked on with."""

    reader: Reader
    engine: LocalEngine
    retriever: Retriever | None
    settings: ServerSettings
    defaults: RetrievalSettings
    """Of requests that say nothing else."""
    model: str
    """The reader's name in the API."""
    scheduler: Scheduler
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def patterns(self) -> list[str]:
        """What can be asked for."""
        if self.retriever is None:
            return [name for name, pattern in PATTERNS.items() if not pattern.retrieves]
        slot = self.engine.capabilities.slot
        return [
            name
            for name, pattern in PATTERNS.items()
            if self.reader.can_have(pattern) and (slot or not pattern.isolated)
        ]

    def description(self) -> dict[str, Any]:
        """What a client may want to know, such as the playground."""
        adapter = self.reader.adapter
        return {
            "window": self.reader.window,
            "patterns": [str(pattern) for pattern in self.patterns],
            "chat": bool(self.reader.tokenizer.chat_template),
            "adapter": None if adapter is None else str(adapter.pattern),
            "passages": len(self.retriever) if isinstance(self.retriever, Sized) else None,
            "max_tokens": self.settings.max_tokens,
            "defaults": {
                "pattern": str(self.defaults.pattern),
                "stride": self.defaults.stride,
                "passages": self.defaults.passages,
                "passage_tokens": self.defaults.passage_tokens,
                "query_tokens": self.defaults.query_tokens,
            },
        }


def make_service(
    reader: Reader,
    retriever: Retriever | None,
    settings: ServerSettings,
    defaults: RetrievalSettings,
) -> Service:
    """Put the parts together.

    Raises:
        SettingsError: the default pattern needs an index, or the reader cannot have it; the
            defaults leave no room in its window.
        UnsupportedReader: the model's cache cannot be cut back exactly.
    """
    defaults.check_retriever(retriever)
    reader.check_pattern(defaults.pattern)
    memory = settings.memory * MIB
    passages = memory // _PASSAGE_SHARE
    engine = LocalEngine(
        reader.model, reader.window, idle_bytes=memory - passages, passage_bytes=passages
    )
    defaults = Generator(reader, engine, retriever).settled(Settings(defaults)).retrieval
    _check_defaults(reader, defaults)
    model = settings.model_name or reader.name.rstrip("/").rpartition("/")[2] or "reader"
    scheduler = Scheduler(settings.max_active, settings.max_queue)
    return Service(reader, engine, retriever, settings, defaults, model, scheduler)


def _check_defaults(reader: Reader, defaults: RetrievalSettings) -> None:
    """Refuse at the start what would refuse every request that says nothing else."""
    defaults.check_lookahead()
    frame = len(reader.frame(defaults.frame, defaults.pattern))
    passages, tokens = defaults.passages, defaults.passage_tokens
    context_budget(reader.window, passages, tokens, frame, defaults.stride)
