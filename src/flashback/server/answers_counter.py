"""The counter of answers, which every application has."""

from prometheus_client import CollectorRegistry, Counter


def answers_counter(registry: CollectorRegistry) -> Counter:
    """What the gate counts."""
    name, labels = "flashback_requests", ("path", "status")
    return Counter(name, "Answers by path and status", labels, registry=registry)
