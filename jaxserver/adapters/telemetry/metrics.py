"""Counts and times of one server, in the text form of Prometheus."""

import itertools
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from jaxserver.ports.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotReady,
    PromptTooLong,
    ServerFull,
)
from jaxserver.ports.status import StatusSnapshot
from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.types import FinishReason

ERRORS = (
    InvalidRequest,
    PromptTooLong,
    ServerFull,
    NotReady,
    DeadlineExceeded,
    EngineFailed,
)
OUTCOMES = (*(end.value for end in FinishReason), *(error.code for error in ERRORS))
"""Counted from 0 on, so that the first one of a kind is seen as a step."""

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_GAUGES = {
    "jaxserver_queue_length": ("queue_length", "Requests that wait for a slot."),
    "jaxserver_queued_tokens": (
        "queued_tokens",
        "Tokens of the prompts that wait for a slot.",
    ),
    "jaxserver_slots": ("slots", "Requests that can run at once."),
    "jaxserver_slots_in_use": ("slots_in_use", "Requests that run."),
    "jaxserver_cache_pages": ("pages_total", "Pages of the cache."),
    "jaxserver_cache_pages_used": (
        "pages_used",
        "Pages that running requests hold.",
    ),
    "jaxserver_cache_pages_cached": (
        "pages_cached",
        "Pages that the prefix tree holds, some of them in use as well.",
    ),
}
_COUNTERS = {
    "jaxserver_prefix_hits": (
        "prefix_hits",
        "Admissions that found a part of their prompt in the prefix tree.",
    ),
    "jaxserver_preemptions": (
        "preemptions",
        "Requests that had to give up their slot and begin again.",
    ),
    "jaxserver_drafted_tokens": (
        "drafted_tokens",
        "Tokens that were guessed and run ahead of being chosen.",
    ),
    "jaxserver_accepted_tokens": (
        "accepted_tokens",
        "Those of the guessed tokens that were chosen.",
    ),
    "jaxserver_compiles_after_ready": (
        "compiles_after_ready",
        "Executables built while serving; more than 0 is a fault.",
    ),
    "jaxserver_failed_dispatches": (
        "failed_dispatches",
        "Steps that failed on the devices.",
    ),
    "jaxserver_unsound_rows": (
        "unsound_rows",
        "Answers that failed since their logits were not numbers.",
    ),
}


class SnapshotCollector(Collector):
    """Reads a server's own numbers when somebody asks, and at no other time."""

    def __init__(self, snapshot: Callable[[], StatusSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        for name, (field, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(snapshot, field))
        for name, (field, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(snapshot, field))


class PlainRegistry(Collector):
    """A registry without the times at which its counters were made."""

    def __init__(self) -> None:
        self.all = CollectorRegistry()

    def collect(self) -> Iterator[Metric]:
        for metric in self.all.collect():
            kept = [s for s in metric.samples if not s.name.endswith("_created")]
            metric.samples = kept
            yield metric


class MetricsTelemetry:
    """Implements the `Telemetry` and `Metrics` ports, for one server alone."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, snapshot: Callable[[], StatusSnapshot]) -> None:
        self._registry = PlainRegistry()
        self._registry.all.register(SnapshotCollector(snapshot))
        self._requests = Counter(
            "jaxserver_requests",
            "Requests that have ended, by finish reason or code of the error.",
            ["outcome"],
            registry=self._registry.all,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._prompt = self._counter(
            "prompt_tokens", "Tokens of the prompts that were given a slot."
        )
        self._cached = self._counter(
            "cached_tokens", "Those of them that the prefix tree held already."
        )
        self._generated = self._counter("generated_tokens", "Tokens of the answers.")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the request until its first token."
        )
        self._inter_token = self._histogram(
            "inter_token_seconds",
            "Between two tokens, where a dispatch brings several its even share.",
            _GAPS,
        )
        self._queue = self._histogram(
            "queue_seconds", "From the request until it was given a slot."
        )
        self._prefill = self._histogram(
            "prefill_seconds", "From the slot until the first token."
        )
        self._decode = self._histogram(
            "decode_seconds", "From the first token until the end."
        )

    def request_finished(self, record: RequestRecord) -> None:
        self._requests.labels(record.outcome).inc()
        self._generated.inc(record.usage.completion_tokens)
        if record.queue_seconds is not None:
            self._prompt.inc(record.usage.prompt_tokens)
            self._cached.inc(record.usage.cached_tokens)
        for histogram, seconds in (
            (self._queue, record.queue_seconds),
            (self._first_token, record.first_token_seconds),
            (self._prefill, record.prefill_seconds),
            (self._decode, record.decode_seconds),
        ):
            if seconds is not None:
                histogram.observe(seconds)
        for before, (seconds, tokens) in itertools.pairwise(record.arrivals):
            gap = (seconds - before.seconds) / tokens
            for _ in range(tokens):
                self._inter_token.observe(gap)

    def close(self) -> None:
        return None

    def scrape(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"jaxserver_{name}", text, registry=self._registry.all)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _WAITS
    ) -> Histogram:
        registry = self._registry.all
        return Histogram(f"jaxserver_{name}", text, registry=registry, buckets=buckets)
