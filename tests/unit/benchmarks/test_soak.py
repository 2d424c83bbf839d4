import asyncio
import dataclasses

import psutil
import pytest

from benchmarks import soak, soak_clients
from benchmarks.soak_clients import Wrong, judged
from benchmarks.soak_verdict import (
    FEWEST_SAMPLES,
    MIB,
    Sample,
    checks_of_samples,
    checks_of_status,
    flat,
    report,
)
from tests.unit.tiny_server import tiny_servers

STEADY = Sample(
    seconds=0,
    resident_bytes=700 * MIB,
    threads=20,
    handles=30,
    slots_in_use=0,
    pages_used=0,
    queue_length=0,
)
STATUS = {
    "state": "ready",
    "compiles_after_ready": 0,
    "failed_dispatches": 0,
    "unsound_rows": 0,
}


def broken_by(samples: list[Sample]) -> set[str]:
    return {check.name for check in checks_of_samples(samples) if not check.holds}


def test_a_steady_server_holds_everything() -> None:
    assert broken_by([STEADY] * 12) == set()
    assert all(check.holds for check in checks_of_status(STATUS))


@pytest.mark.parametrize(
    ("field", "step", "name"),
    [
        ("resident_bytes", 3 * MIB, "resident memory, MiB"),
        ("threads", 1, "threads"),
        ("handles", 1, "file handles"),
    ],
)
def test_what_grows_all_the_time_is_found(field: str, step: int, name: str) -> None:
    grown = [
        dataclasses.replace(STEADY, **{field: getattr(STEADY, field) + step * number})
        for number in range(12)
    ]
    assert broken_by(grown) == {name}


@pytest.mark.parametrize("field", ["slots_in_use", "pages_used", "queue_length"])
def test_what_is_held_at_rest_is_found(field: str) -> None:
    held = dataclasses.replace(STEADY, **{field: 1})
    (name,) = broken_by([STEADY] * 8 + [held])
    assert name.endswith("at rest")


@pytest.mark.parametrize("key", [key for key in STATUS if key != "state"])
def test_what_the_server_says_of_itself_is_heard(key: str) -> None:
    (broken,) = [
        each for each in checks_of_status({**STATUS, key: 1}) if not each.holds
    ]
    assert broken.name == key


def test_growth_while_it_warms_up_is_no_leak() -> None:
    assert flat("x", [1, 50, 90, 100, 100, 100, 100, 100, 100], 0).holds


def test_few_samples_say_nothing() -> None:
    assert not flat("x", [1, 1, 1, 1, 1], 0).holds


def test_the_report_has_a_row_for_each_kind_and_each_check() -> None:
    counts = {("asks", "answered"): 3, ("asks", "refused"): 1, ("leaves", "left"): 2}
    text = report(counts, checks_of_status({**STATUS, "state": "failed"}))
    assert "| asks | 3 | 0 | 1 |" in text
    assert "| ready at the end | NO | failed |" in text


def test_a_request_is_answered_refused_or_wrong() -> None:
    whole = 'data: {"choices": []}\n\ndata: [DONE]\n\n'
    assert judged(200, None, whole, streamed=True) == "answered"
    assert judged(429, "1", "", streamed=True) == "refused"
    for status, waits, text in (
        (500, None, ""),
        (429, None, ""),
        (200, None, 'data: {"choices": []}\n\n'),
        (200, None, 'data: {"error": {}}\n\ndata: [DONE]\n\n'),
    ):
        with pytest.raises(Wrong):
            judged(status, waits, text, streamed=True)


def test_a_tiny_server_comes_through_some_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak_clients, "LONGEST_TEXT", 4)
    monkeypatch.setattr(soak_clients, "AT_ONCE", 20)
    monkeypatch.setattr(soak_clients, "LONGEST_STALL_SECONDS", 0.2)
    monkeypatch.setattr(soak_clients, "LONGEST_PAUSE_SECONDS", 0.002)
    monkeypatch.setattr(soak, "SETTLE_SECONDS", 0.1)
    with tiny_servers() as servers:
        server = servers.open(max_queue=8)
        done = asyncio.run(soak.soak(server.fire(), psutil.Process(), 3.0, 1))
    broken = {check.name for check in done.checks if not check.holds}
    # A few seconds are all warm-up, of a process that the clients live in too.
    assert broken <= {"resident memory, MiB", "threads", "file handles"}, done.tally
    assert len(done.samples) >= FEWEST_SAMPLES
    assert done.tally.counts["comes in crowds", "done"] == len(done.samples)
    assert done.tally.counts["asks", "answered"]
