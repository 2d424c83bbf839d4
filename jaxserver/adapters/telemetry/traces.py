"""Tells OpenTelemetry of finished requests; needs the extra `otel`."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.types import FinishReason

_GOOD_OUTCOMES = {end.value for end in FinishReason}


class Phase(NamedTuple):
    """A part of a request, in seconds from its begin."""

    name: str
    begin: float
    end: float
    counts: dict[str, int]


class TraceTelemetry:
    """Implements the `Telemetry` port with one span a request and one for each phase.

    The spans are made when the request has ended, with the times at which they were:
    nothing is done for them while it runs.
    """

    def __init__(
        self, processor: SpanProcessor, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("jaxserver")
        self._propagator = TraceContextTextMapPropagator()
        self._now_ns = now_ns

    @classmethod
    def to_collector(cls) -> Self:
        """Sends by OTLP over HTTP, where the `OTEL_*` variables say."""
        return cls(BatchSpanProcessor(OTLPSpanExporter()))

    def request_finished(self, record: RequestRecord) -> None:
        end_ns = self._now_ns()
        begin_ns = end_ns - _nanoseconds(record.total_seconds)
        request = self._tracer.start_span(
            "request",
            self._parent(record),
            SpanKind.SERVER,
            _attributes(record),
            start_time=begin_ns,
        )
        if record.outcome not in _GOOD_OUTCOMES:
            request.set_status(StatusCode.ERROR, record.outcome)
        inside = set_span_in_context(request)
        for phase in _phases(record):
            span = self._tracer.start_span(
                phase.name,
                inside,
                attributes=phase.counts,
                start_time=begin_ns + _nanoseconds(phase.begin),
            )
            span.end(begin_ns + _nanoseconds(phase.end))
        request.end(end_ns)

    def close(self) -> None:
        self._provider.shutdown()

    def _parent(self, record: RequestRecord) -> Context:
        """The client's span; never one that this thread happens to be in."""
        header = record.origin.traceparent
        carrier = {} if header is None else {"traceparent": header}
        return self._propagator.extract(carrier)


def _attributes(record: RequestRecord) -> dict[str, str | int]:
    usage, request_id = record.usage, record.origin.request_id
    return {
        "jaxserver.outcome": record.outcome,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        **({} if request_id is None else {"jaxserver.x_request_id": request_id}),
    }


def _phases(record: RequestRecord) -> Iterator[Phase]:
    """Those it came to; the last of them lasts until the request's end."""
    usage, end = record.usage, record.total_seconds
    admitted, first_token = record.queue_seconds, record.first_token_seconds
    if record.request_id is not None:
        yield Phase("queue", 0.0, end if admitted is None else admitted, {})
    if admitted is not None:
        counts = {
            "jaxserver.prompt_tokens": usage.prompt_tokens,
            "jaxserver.cached_tokens": usage.cached_tokens,
        }
        yield Phase(
            "prefill", admitted, end if first_token is None else first_token, counts
        )
    if first_token is not None:
        counts = {"jaxserver.generated_tokens": usage.completion_tokens}
        yield Phase("decode", first_token, end, counts)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _resource() -> Resource:
    """What the variables say of the service; its name is ours where they say none."""
    found = Resource.create()
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found.merge(Resource({SERVICE_NAME: "jaxserver"}))
    return found
