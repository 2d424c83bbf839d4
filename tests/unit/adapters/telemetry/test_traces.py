import dataclasses
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jaxserver.adapters.telemetry.traces import TraceTelemetry
from jaxserver.ports.origin import Origin
from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.types import Usage
from tests.unit.adapters.telemetry.test_metrics import FINISHED

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOLD = f"00-{TRACE}-{PARENT}-01"


def spans(record: RequestRecord) -> dict[str, ReadableSpan]:
    """The spans of one request that ended at `NOW`, by their names."""
    exporter = InMemorySpanExporter()
    telemetry = TraceTelemetry(SimpleSpanProcessor(exporter), now_ns=lambda: NOW)
    telemetry.request_finished(record)
    found = exporter.get_finished_spans()
    telemetry.close()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Of its trace and its own, as headers write them."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def times(span: ReadableSpan) -> tuple[float, float]:
    """Seconds until `NOW` from its begin and its end."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (NOW - span.start_time) / SECOND, (NOW - span.end_time) / SECOND


def test_a_request_is_a_span_and_its_phases_fill_it() -> None:
    found = spans(FINISHED)
    assert {name: times(span) for name, span in found.items()} == {
        "request": (1.75, 0.0),
        "queue": (1.75, 1.5),
        "prefill": (1.5, 1.0),
        "decode": (1.0, 0.0),
    }
    request = found["request"]
    assert request.parent is None
    for name in ("queue", "prefill", "decode"):
        assert parent_of(found[name]) == ids(request)[1]


def test_spans_say_how_many_tokens() -> None:
    found = spans(dataclasses.replace(FINISHED, origin=Origin("mine")))
    assert {name: dict(span.attributes or {}) for name, span in found.items()} == {
        "request": {
            "jaxserver.outcome": "length",
            "jaxserver.x_request_id": "mine",
            "gen_ai.usage.input_tokens": 10,
            "gen_ai.usage.output_tokens": 8,
        },
        "queue": {},
        "prefill": {"jaxserver.prompt_tokens": 10, "jaxserver.cached_tokens": 4},
        "decode": {"jaxserver.generated_tokens": 8},
    }


def test_the_clients_span_is_the_parent() -> None:
    request = spans(dataclasses.replace(FINISHED, origin=Origin("a", TOLD)))["request"]
    assert ids(request)[0] == TRACE
    assert parent_of(request) == PARENT


def test_a_client_that_does_not_record_is_not_recorded() -> None:
    quiet = Origin("a", f"00-{TRACE}-{PARENT}-00")
    assert spans(dataclasses.replace(FINISHED, origin=quiet)) == {}


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_header_that_means_nothing_begins_a_trace_of_its_own(header: str) -> None:
    found = spans(dataclasses.replace(FINISHED, origin=Origin("a", header)))
    assert found["request"].parent is None


def test_a_span_of_the_program_around_is_no_parent() -> None:
    tracer = TracerProvider().get_tracer("around")
    with trace.use_span(tracer.start_span("around")):
        assert spans(FINISHED)["request"].parent is None


@pytest.mark.parametrize(
    ("changes", "phases"),
    [
        (
            {"queue_seconds": None, "first_token_seconds": None},
            {"queue": (1.75, 0.0)},
        ),
        (
            {"first_token_seconds": None},
            {"queue": (1.75, 1.5), "prefill": (1.5, 0.0)},
        ),
        (
            {
                "request_id": None,
                "queue_seconds": None,
                "first_token_seconds": None,
            },
            {},
        ),
    ],
)
def test_the_last_phase_that_began_lasts_until_the_end(
    changes: dict[str, None], phases: dict[str, tuple[float, float]]
) -> None:
    found = spans(dataclasses.replace(FINISHED, **changes))  # type: ignore[arg-type]  # None fits each
    assert found.pop("request") is not None
    assert {name: times(span) for name, span in found.items()} == phases


@pytest.mark.parametrize(
    ("outcome", "is_error"),
    [("stop", False), ("cancelled", False), ("engine_failed", True)],
)
def test_a_request_that_failed_is_marked(outcome: str, is_error: bool) -> None:
    status = spans(dataclasses.replace(FINISHED, outcome=outcome))["request"].status
    assert (status.status_code is trace.StatusCode.ERROR) == is_error


@pytest.mark.parametrize(("told", "name"), [(None, "jaxserver"), ("mine", "mine")])
def test_the_service_has_a_name(
    told: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if told is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", told)
    resource = spans(FINISHED)["request"].resource
    assert resource.attributes["service.name"] == name


def test_it_may_be_closed_more_than_once(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = TraceTelemetry(SimpleSpanProcessor(InMemorySpanExporter()))
    telemetry.close()
    telemetry.close()
    assert caplog.records == []


def test_without_being_asked_for_traces_nothing_of_them_is_imported() -> None:
    program = (
        "import sys, jaxserver.server\n"
        "server = jaxserver.server.JAXServer({'port': 0})\n"
        "server.app(pages=False)\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')"
        " or m.startswith('opentelemetry.exporter')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_usage_of_a_request_that_drew_nothing_is_zero() -> None:
    none = Usage(prompt_tokens=0, completion_tokens=0)
    attributes = spans(dataclasses.replace(FINISHED, usage=none))["request"].attributes
    assert attributes is not None
    assert attributes["gen_ai.usage.output_tokens"] == 0
