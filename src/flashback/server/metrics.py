"""Counters and histograms for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flashback.engines.protocol import CacheUse
from flashback.server.events import ChoiceEnd, Event, Incident, SpanEnd
from flashback.server.gate import answers_counter
from flashback.server.scheduler import Load
from flashback.server.sources import token_counts

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counts since the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = answers_counter(self.registry)
        self._strides = self._counter("strides", "Strides by pattern", "pattern")
        self._tokens = self._counter(
            "tokens",
            "Prompt tokens reused and prefilled (encoded: its old name), decode passes, tokens "
            "written and scored",
            "kind",
        )
        self._incidents = self._counter("incidents", "Incidents within requests", "event")
        self.index_versions = self._counter(
            "index_versions", "New versions of the index: taken into use, or broken", "result"
        )
        self.index_broken = self._gauge(
            "index_broken", "1 while the newest version of the index cannot be used"
        )
        self._retrieve = self._histogram("retrieve_seconds", "Searches")
        self._prefill = (
            self._histogram("prefill_seconds", "Prefill at stride boundaries"),
            self._histogram("encode_seconds", "The old name of prefill_seconds"),
        )
        self._decode = self._histogram("decode_seconds", "Decoding, per stride")
        self._first = self._histogram("first_stride_seconds", "Arrival to the first stride's end")
        self._jobs = self._gauge("jobs", "Requests active and waiting", "state")
        self._caches = self._gauge("cached_sequences", "Sequences cached between strides")
        self._bytes = self._gauge("cache_bytes", "Their bytes, and those of passages", "kind")

    def note(self, event: Event, pattern: str) -> None:
        """Count an event of a request."""
        if isinstance(event, SpanEnd):
            self._note_stride(event, pattern)
        elif isinstance(event, ChoiceEnd):
            self._tokens.labels("written").inc(event.tokens)
        elif isinstance(event, Incident):
            self._incidents.labels(event.event).inc()

    def _note_stride(self, event: SpanEnd, pattern: str) -> None:
        usage = event.usage
        self._strides.labels(pattern).inc()
        if event.scored:
            self._tokens.labels("scored").inc(event.tokens)
            return
        for kind, tokens in token_counts(usage).items():
            self._tokens.labels(kind).inc(tokens)
        self._retrieve.observe(event.retrieve_seconds)
        for histogram in self._prefill:
            histogram.observe(usage.prefill_seconds)
        self._decode.observe(usage.decode_seconds)

    def first_stride(self, seconds: float) -> None:
        """Note how long a request took to the end of its first stride."""
        self._first.observe(seconds)

    def render(self, load: Load, cached: CacheUse) -> bytes:
        """Prometheus' text format."""
        self._jobs.labels("active").set(load.active)
        self._jobs.labels("waiting").set(load.waiting)
        self._caches.set(cached.sequences)
        self._bytes.labels("sequences").set(cached.sequence_bytes)
        self._bytes.labels("passages").set(cached.passage_bytes)
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"flashback_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"flashback_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(f"flashback_{name}", help, registry=self.registry, buckets=_SECONDS)
