"""Counters of a front for Prometheus."""

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from flashback.server.gate import answers_counter


class FrontMetrics:
    """Counts since the start."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = answers_counter(registry)
        self.sent = Counter(
            "flashback_front_sent",
            "Requests sent to a replica: home, spread (home has too many), again (one failed)",
            ("replica", "why"),
            registry=registry,
        )
        self.failures = Counter(
            "flashback_front_failures",
            "Replicas lost in a request: before its first text (sent again), or behind (broken)",
            ("replica", "when"),
            registry=registry,
        )
        self.up = Gauge(
            "flashback_front_replica_up",
            "1 while a replica takes requests",
            ("replica",),
            registry=registry,
        )
        self.active = Gauge(
            "flashback_front_active",
            "Requests at a replica now",
            ("replica",),
            registry=registry,
        )

    def forget(self, replica: str) -> None:
        """Leave out a replica that is no longer one."""
        for gauge in (self.up, self.active):
            with contextlib.suppress(KeyError):
                gauge.remove(replica)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
