"""Counters for Prometheus, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flashback.server.events import ChoiceEnd, Event, Incident, SpanEnd

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """What happened since the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers by path and status", "path", "status")
        self._strides = self._counter("strides", "Strides by pattern", "pattern")
        self._tokens = self._counter(
            "tokens",
            "Prompt tokens reused and prefilled, decode passes, tokens written and scored",
            "kind",
        )
        self._incidents = self._counter("incidents", "What went wrong within requests", "event")
        self._retrieve = self._histogram("retrieve_seconds", "Searches")
        self._prefill = self._histogram("encode_seconds", "Passes before the first token")
        self._decode = self._histogram("decode_seconds", "Decoding, per stride")
        self._first = self._histogram("first_stride_seconds", "Arrival to the first stride's end")
        self._jobs = self._gauge("jobs", "Requests in work and waiting", "state")
        self._caches = self._gauge("cached_sequences", "Caches kept between strides")
        self._bytes = self._gauge("cache_bytes", "Their bytes, and those of passages", "kind")

    def note(self, event: Event, pattern: str) -> None:
        """Count an event of a request."""
        if isinstance(event, SpanEnd):
            usage = event.usage
            self._strides.labels(pattern).inc()
            if event.scored:
                self._tokens.labels("scored").inc(event.tokens)
                return
            self._tokens.labels("reused").inc(usage.reused)
            self._tokens.labels("encoded").inc(usage.prefilled)
            self._tokens.labels("decoded").inc(usage.decoded)
            self._retrieve.observe(event.retrieve_seconds)
            self._prefill.observe(usage.prefill_seconds)
            self._decode.observe(usage.decode_seconds)
        elif isinstance(event, ChoiceEnd):
            self._tokens.labels("written").inc(event.tokens)
        elif isinstance(event, Incident):
            self._incidents.labels(event.event).inc()

    def first_stride(self, seconds: float) -> None:
        """A request has its first stride."""
        self._first.observe(seconds)

    def render(self, active: int, waiting: int, caches: int, held: dict[str, int]) -> bytes:
        """Prometheus' text format."""
        self._jobs.labels("active").set(active)
        self._jobs.labels("waiting").set(waiting)
        self._caches.set(caches)
        for kind, size in held.items():
            self._bytes.labels(kind).set(size)
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"flashback_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"flashback_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(f"flashback_{name}", help, registry=self.registry, buckets=_SECONDS)
