import dataclasses

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxserver.adapters.telemetry.metrics import OUTCOMES, MetricsTelemetry
from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.status import StatusSnapshot
from jaxserver.ports.telemetry import Arrival, RequestRecord
from jaxserver.ports.types import Usage
from tests.fakes import FixedStatus

FINISHED = RequestRecord(
    request_id=0,
    outcome="length",
    usage=Usage(prompt_tokens=10, completion_tokens=8, cached_tokens=4),
    queue_seconds=0.25,
    first_token_seconds=0.75,
    total_seconds=1.75,
    arrivals=(Arrival(0.75, 1), Arrival(1.25, 5), Arrival(1.75, 2)),
)


def samples(metrics: MetricsTelemetry) -> dict[str, float]:
    """Every sample of a scrape by its name and labels, as they are written."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.scrape().decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found


def fixed() -> MetricsTelemetry:
    return MetricsTelemetry(FixedStatus().snapshot)


def test_a_server_that_has_done_nothing_has_every_metric_at_zero() -> None:
    found = samples(fixed())
    counters = {name: value for name, value in found.items() if "_total" in name}
    assert {f"jaxserver_requests_total{{outcome={o}}}" for o in OUTCOMES} <= {*counters}
    assert set(counters.values()) == {0.0}
    assert all(name.startswith("jaxserver_") for name in found)
    assert not any(name.endswith("_created") for name in found)


def test_times_and_tokens_of_a_finished_request_are_counted() -> None:
    metrics = fixed()
    before = samples(metrics)
    metrics.request_finished(FINISHED)
    after = samples(metrics)

    grown = {
        name.removeprefix("jaxserver_"): value - before[name]
        for name, value in after.items()
        if value != before[name] and "_bucket" not in name
    }
    assert grown == {
        "requests_total{outcome=length}": 1,
        "prompt_tokens_total": 10,
        "cached_tokens_total": 4,
        "generated_tokens_total": 8,
        "time_to_first_token_seconds_count": 1,
        "time_to_first_token_seconds_sum": 0.75,
        "queue_seconds_count": 1,
        "queue_seconds_sum": 0.25,
        "prefill_seconds_count": 1,
        "prefill_seconds_sum": 0.5,
        "decode_seconds_count": 1,
        "decode_seconds_sum": 1.0,
        "inter_token_seconds_count": 7,
        "inter_token_seconds_sum": pytest.approx(1.0),
    }
    assert after["jaxserver_inter_token_seconds_bucket{le=0.1}"] == 5
    assert after["jaxserver_inter_token_seconds_bucket{le=0.25}"] == 7


def test_a_request_that_was_given_no_slot_has_no_times_and_no_prompt() -> None:
    metrics = fixed()
    before = samples(metrics)
    metrics.request_finished(
        dataclasses.replace(
            FINISHED,
            request_id=None,
            outcome="server_full",
            usage=Usage(prompt_tokens=10, completion_tokens=0),
            queue_seconds=None,
            first_token_seconds=None,
            arrivals=(),
        )
    )
    after = samples(metrics)
    assert {name for name in after if after[name] != before[name]} == {
        "jaxserver_requests_total{outcome=server_full}"
    }


@pytest.mark.parametrize("kind", JaxServerError.__subclasses__())
def test_whatever_a_request_fails_with_is_counted(kind: type[JaxServerError]) -> None:
    metrics = fixed()
    metrics.request_finished(dataclasses.replace(FINISHED, outcome=kind.code))
    name = f"jaxserver_requests_total{{outcome={kind.code}}}"
    assert samples(metrics)[name] == 1


def test_the_servers_own_numbers_are_read_when_they_are_asked_for() -> None:
    asked: list[int] = []

    def snapshot() -> StatusSnapshot:
        asked.append(1)
        return dataclasses.replace(
            FixedStatus().snapshot(),
            queue_length=1,
            slots=2,
            slots_in_use=3,
            pages_total=4,
            pages_used=5,
            pages_cached=6,
            prefix_hits=7,
            preemptions=8,
            compiles_after_ready=9,
            failed_dispatches=10,
            unsound_rows=11,
            queued_tokens=12,
            drafted_tokens=13,
            accepted_tokens=14,
        )

    metrics = MetricsTelemetry(snapshot)
    metrics.request_finished(FINISHED)
    assert asked == []
    found = samples(metrics)
    names = (
        "queue_length",
        "slots",
        "slots_in_use",
        "cache_pages",
        "cache_pages_used",
        "cache_pages_cached",
        "prefix_hits_total",
        "preemptions_total",
        "compiles_after_ready_total",
        "failed_dispatches_total",
        "unsound_rows_total",
        "queued_tokens",
        "drafted_tokens_total",
        "accepted_tokens_total",
    )
    assert [found[f"jaxserver_{name}"] for name in names] == list(range(1, 15))
    assert asked == [1]


def test_two_servers_count_for_themselves() -> None:
    one, other = fixed(), fixed()
    one.request_finished(FINISHED)
    assert samples(one)["jaxserver_generated_tokens_total"] == 8
    assert samples(other)["jaxserver_generated_tokens_total"] == 0
