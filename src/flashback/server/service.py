"""The service behind the routes: generator, scheduler, settings and metrics."""

import time
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flashback.engines.protocol import CacheUse, CachingEngine, Engine
from flashback.patterns.context import context_budget
from flashback.patterns.registry import PATTERNS
from flashback.readers.passages import unseen_note
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Renewable, Retriever, Sampled
from flashback.server.index_watch import IndexWatch
from flashback.server.metrics import Metrics
from flashback.server.prompt_examples import PromptExamples
from flashback.server.scheduler import Scheduler
from flashback.server.server_settings import ServerSettings
from flashback.settings import RetrievalSettings, Settings
from flashback.writing.generator import Generator


@dataclass(frozen=True)
class Service:
    """Everything that requests are answered with."""

    generator: Generator
    settings: ServerSettings
    defaults: RetrievalSettings
    """Of requests that give no other value."""
    model: str
    """The reader's name in the API."""
    scheduler: Scheduler
    metrics: Metrics = field(default_factory=Metrics)
    watch: IndexWatch | None = None
    """None: the index stays as it is."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; the time limit of requests is measured with it."""
    examples: PromptExamples = field(default_factory=PromptExamples)

    @property
    def reader(self) -> TextReader:
        return self.generator.reader

    @property
    def engine(self) -> Engine:
        return self.generator.engine

    @property
    def retriever(self) -> Retriever | None:
        return self.generator.retriever

    @property
    def current_retriever(self) -> Retriever | None:
        """The version of the index in use; a request keeps the one that it begins with."""
        retriever = self.retriever
        return retriever.current if isinstance(retriever, Renewable) else retriever

    @property
    def caching_engine(self) -> CachingEngine | None:
        """The engine, if its caches are in this process."""
        engine = self.engine
        return engine if isinstance(engine, CachingEngine) else None

    @property
    def cache_use(self) -> CacheUse:
        """Sizes of the caches now; zeros for an engine that caches in another process."""
        engine = self.caching_engine
        return CacheUse(0, 0, 0) if engine is None else engine.cache_use

    @property
    def scoring_reader(self) -> Reader | None:
        """The reader, if its model is in this process and can score prompts."""
        reader = self.reader
        return reader if isinstance(reader, Reader) else None

    @property
    def patterns(self) -> list[str]:
        """The patterns that a request may ask for, by name."""
        return [
            name
            for name, pattern in PATTERNS.items()
            if self.generator.supports(pattern)
            and not (pattern.retrieves and self.retriever is None)
        ]

    def description(self) -> dict[str, Any]:
        """The `flashback` object of the model in /v1/models."""
        adapter, defaults = self.reader.adapter, self.defaults
        shown = (
            *("pattern", "stride", "passages", "passage_tokens", "query_tokens", "query_form"),
        )
        return {
            "window": self.reader.window,
            "patterns": self.patterns,
            "pattern_summaries": {name: PATTERNS[name].summary for name in self.patterns},
            "chat": bool(self.reader.tokenizer.chat_template),
            "adapter": None if adapter is None else adapter.pattern,
            "passages": len(self.retriever) if isinstance(self.retriever, Sized) else None,
            "examples": self.examples.of(self.current_retriever),
            "max_tokens": self.settings.max_tokens,
            "defaults": {name: getattr(defaults, name) for name in shown},
        }


def make_service(
    generator: Generator,
    settings: ServerSettings,
    defaults: RetrievalSettings,
    clock: Callable[[], float] = time.monotonic,
) -> Service:
    """Start a scheduler for a generator.

    Args:
        generator: reader, engine and retriever. The caches of `settings.max_active` requests
            share its engine, whose memory budget is its own.
        settings: limits of the server.
        defaults: retrieval settings of requests that give no others.
        clock: see `Service.clock`.

    Raises:
        SettingsError: the default pattern needs an index, or the reader does not support it; the
            defaults leave no room in its window.
    """
    reader = generator.reader
    defaults.check_retriever(generator.retriever)
    defaults = generator.settled(Settings(defaults)).retrieval
    generator.check_pattern(defaults.pattern)
    _check_defaults(reader, defaults)
    model = settings.model_name or reader.name.rstrip("/").rpartition("/")[2] or "reader"
    threads = min(settings.max_active, generator.engine.capabilities.concurrent)
    scheduler = Scheduler(settings.max_active, settings.max_queue, threads)
    metrics, retriever = Metrics(), generator.retriever
    watch = None
    if isinstance(retriever, Renewable):
        note = partial(_unseen, reader, retriever, defaults.passage_tokens)
        watch = IndexWatch(retriever, metrics, settings.reload_every, note)
    return Service(generator, settings, defaults, model, scheduler, metrics, watch, clock)


def _unseen(reader: TextReader, index: Renewable, passage_tokens: int) -> str | None:
    """See `unseen_note`; None, too, for an index without samples."""
    current = index.current
    texts = current.sample() if isinstance(current, Sampled) else []
    return unseen_note(reader, texts, passage_tokens)


def _check_defaults(reader: TextReader, defaults: RetrievalSettings) -> None:
    """Refuse at the start what would refuse every request that gives no other values."""
    defaults.check_lookahead()
    frame = len(reader.frame(defaults.frame, defaults.pattern))
    passages, tokens = defaults.passages, defaults.passage_tokens
    context_budget(reader.window, passages, tokens, frame, defaults.stride)
