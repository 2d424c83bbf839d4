import itertools

import pytest

from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.types import GenerationRequest
from tests import engines
from tests.unit.adapters.engine.answers import LONG, request
from tests.waiting import eventually


def test_each_request_is_heard_of_once_with_how_it_ended() -> None:
    records = engines.Records()
    with engines.gated(engines.Parts(records=records)) as (engine, gate):
        stream = engine.generate(LONG)
        gate.allow(4)
        next(stream)
        stream.cancel()
        gate.open()
        list(stream)
        list(engine.generate(request()))
        list(engine.generate(request(logit_bias={97: 100.0}, stop=("aa",))))
        with pytest.raises(InvalidRequest):
            list(engine.generate(GenerationRequest(prompt=())))
        assert eventually(lambda: len(records.all) == 4)

    assert [record.request_id for record in records.all] == [0, 1, 2, 3]
    outcomes = [record.outcome for record in records.all]
    assert outcomes == ["cancelled", "length", "stop", "invalid_request"]
    counts = [record.usage.completion_tokens for record in records.all]
    assert 0 < counts[0] < 300
    assert counts[1:] == [60, 2, 0]


def test_times_are_in_order_and_not_longer_than_it_took() -> None:
    records = engines.Records()
    with engines.running(engines.Parts(records=records)) as engine:
        for stream in [engine.generate(request()) for _ in range(9)]:
            list(stream)

    assert len(records.all) == 9
    for record in records.all:
        assert record.queue_seconds is not None
        assert record.first_token_seconds is not None
        times = [
            0.0,
            record.queue_seconds,
            record.first_token_seconds,
            record.total_seconds,
        ]
        assert all(a <= b for a, b in itertools.pairwise(times))
        assert record.total_seconds < 60


def test_a_request_that_never_ran_has_neither_queue_nor_first_token() -> None:
    records = engines.Records()
    with engines.running(engines.Parts(records=records)) as engine:
        with pytest.raises(InvalidRequest):
            list(engine.generate(GenerationRequest(prompt=(-1,))))
        assert eventually(lambda: len(records.all) == 1)

    [record] = records.all
    assert record.queue_seconds is None
    assert record.first_token_seconds is None


def test_what_was_cut_off_is_counted() -> None:
    records = engines.Records()
    with engines.running(engines.Parts(records=records)) as engine:
        wanted = GenerationRequest(prompt="x" * 500, truncate=True)
        *_, last = engine.generate(wanted)

    room = engines.MAX_LEN - engines.NARROW.max_stream_tokens
    assert last.usage.prompt_tokens == room
    assert last.usage.prompt_tokens_dropped == 501 - room
    assert records.all[0].usage == last.usage
