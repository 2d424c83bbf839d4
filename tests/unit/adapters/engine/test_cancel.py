import dataclasses
import threading
import time

import pytest

from jaxserver.adapters.engine.text import TextEngine
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import DeadlineExceeded
from jaxserver.ports.types import FinishReason, GenerationRequest
from tests import engines
from tests.fakes import ByteTokenizer
from tests.unit.adapters.engine.answers import LONG, ids_of, request
from tests.waiting import eventually

PROMPT = request(tuple(range(200)), max_new_tokens=100)
"""Four chunks of a narrow engine to prefill."""


def fills_slots(engine: TextEngine, gate: engines.Gate) -> bool:
    engines.tokenised(engine)
    return gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)


def in_slots(engine: TextEngine, count: int) -> bool:
    return eventually(lambda: engine.loop.stats.slots_in_use == count)


def in_queue(engine: TextEngine, count: int) -> bool:
    return eventually(lambda: engine.loop.stats.queue_length == count)


def at_dispatch(engine: TextEngine, count: int) -> bool:
    """The engine waits for leave to make that dispatch, counted from 1."""
    return eventually(lambda: engine.loop.stats.dispatches == count)


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [(PROMPT, 0), (PROMPT, 3), (LONG, 0), (LONG, 1), (LONG, 5)],
    ids=["admitted", "prefilling", "first step", "first block", "decoding"],
)
def test_a_cancelled_request_frees_its_slot_within_two_dispatches(
    wanted: GenerationRequest, steps: int
) -> None:
    with engines.gated() as (engine, gate):
        stream = engine.generate(wanted)
        gate.allow(steps)
        assert at_dispatch(engine, steps + 1)
        assert in_slots(engine, 1)
        before = engine.loop.stats.dispatches
        stream.cancel()
        gate.open()

        assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
        assert in_slots(engine, 0)
        assert engine.loop.stats.dispatches - before <= 2


def test_a_cancelled_request_leaves_the_queue_within_two_dispatches() -> None:
    with engines.gated() as (engine, gate):
        running = [engine.generate(LONG) for _ in range(4)]
        assert fills_slots(engine, gate)
        waiting = engine.generate(LONG)
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.queue_length == 1)
        before = engine.loop.stats.dispatches
        waiting.cancel()
        gate.allow(2)

        [last] = waiting
        assert last.finish_reason is FinishReason.CANCELLED
        assert last.usage.completion_tokens == 0
        assert in_queue(engine, 0)
        assert engine.loop.stats.dispatches - before <= 2
        gate.open()
        assert {list(s)[-1].finish_reason for s in running} == {FinishReason.LENGTH}


def test_who_waits_for_two_lanes_may_leave_or_be_late() -> None:
    with engines.running(engines.Parts(sizes=engines.PAIR)) as engine:
        running = [engine.generate(LONG) for _ in range(8)]
        assert in_slots(engine, 8)
        assert engine.loop.stats.pages_total == engine.loop.stats.pages_used == 8
        left = engine.generate(LONG)
        late = engine.generate(dataclasses.replace(LONG, deadline_seconds=0.001))
        left.cancel()

        assert [c.finish_reason for c in left] == [FinishReason.CANCELLED]
        with pytest.raises(DeadlineExceeded):
            list(late)
        assert {len(ids_of(stream)) for stream in running} == {300}
        assert in_slots(engine, 0)


def test_a_freed_slot_goes_to_the_next_in_the_queue() -> None:
    with engines.gated() as (engine, gate):
        running = [engine.generate(LONG) for _ in range(4)]
        assert fills_slots(engine, gate)
        waiting = engine.generate(request())
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.queue_length == 1)
        before = engine.loop.stats.dispatches
        running[2].cancel()
        gate.allow(2)

        assert in_queue(engine, 0)
        assert engine.loop.stats.dispatches - before <= 2
        assert engine.loop.stats.slots_in_use == 4
        gate.open()
        assert list(waiting)[-1].finish_reason is FinishReason.LENGTH


def test_what_was_cancelled_leaves_nothing_behind_in_its_slot() -> None:
    with engines.running() as engine:
        alone = ids_of(engine.generate(request()))
        for chunks in range(5):
            with engine.generate(LONG) as stream:
                for _ in range(chunks):
                    next(stream)
            assert ids_of(engine.generate(request())) == alone


def test_cancelling_one_answer_changes_no_other() -> None:
    with engines.running() as engine:
        alone = ids_of(engine.generate(request()))
        streams = [engine.generate(request()) for _ in range(8)]
        for stream in streams[::2]:
            stream.cancel()

        assert [ids_of(stream) for stream in streams[1::2]] == [alone] * 4


def test_an_answer_that_is_not_wanted_is_not_even_tokenised() -> None:
    tokenised, may_go_on = list[str](), threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            tokenised.append(text)
            may_go_on.wait(10)
            return super().encode(text)

    with engines.running(engines.Parts(tokenizer=Slow())) as engine:
        first, second = (engine.generate(request(text)) for text in ("one", "two"))
        second.cancel()
        may_go_on.set()

        assert list(second)[-1].finish_reason is FinishReason.CANCELLED
        assert list(first)[-1].finish_reason is FinishReason.LENGTH
    assert tokenised == ["one"]


def test_an_answer_cancelled_while_it_is_tokenised_never_runs() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            started.set()
            may_go_on.wait(10)
            return super().encode(text)

    with engines.running(engines.Parts(tokenizer=Slow())) as engine:
        stream = engine.generate(LONG)
        assert started.wait(10)
        stream.cancel()
        may_go_on.set()

        assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
        assert engine.loop.stats.dispatches <= 2


def test_a_stop_string_frees_the_slot_within_two_dispatches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engines.gated() as (engine, gate):
        cancel, before = engine.loop.cancel, list[int]()

        def cancel_and_go_on(request_id: int, kept: int) -> None:
            before.append(engine.loop.stats.dispatches)
            cancel(request_id, kept)
            gate.open()

        monkeypatch.setattr(engine.loop, "cancel", cancel_and_go_on)
        wanted = request(logit_bias={97: 100.0}, stop=("aaa",), max_new_tokens=300)
        gate.allow(4)
        *_, last = engine.generate(wanted)

        assert last.finish_reason is FinishReason.STOP
        assert in_slots(engine, 0)
        assert engine.loop.stats.dispatches - before[0] <= 2


def test_a_reader_that_stalls_slows_nobody_and_loses_nothing() -> None:
    config = ServerConfig(max_queue=0)
    with engines.running(engines.Parts(config=config)) as engine:
        alone = ids_of(engine.generate(LONG))
        stalled = engine.generate(LONG)
        for _ in range(12):
            assert ids_of(engine.generate(LONG)) == alone

        assert in_slots(engine, 0)
        assert ids_of(stalled) == alone


def test_cancelling_while_others_come_and_go_leaks_nothing() -> None:
    with engines.running() as engine:

        def come_and_go(nth: int) -> None:
            for turn in range(10):
                wish = dataclasses.replace(LONG, streaming=turn % 2 == 0)
                with engine.generate(wish) as stream:
                    time.sleep(0.001 * (nth * turn % 7))
                    for _ in range(turn % 3):
                        next(stream)

        threads = [threading.Thread(target=come_and_go, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert in_slots(engine, 0)
        assert in_queue(engine, 0)
        assert eventually(lambda: engine.queue_length == 0)
        assert eventually(lambda: engine.stats.requests_served == 80)
