import dataclasses
import threading

import pytest

from jaxserver.adapters.engine.pace import Pace
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import DeadlineExceeded, EngineFailed, NotReady, ServerFull
from jaxserver.ports.types import FinishReason
from tests import engines
from tests.fakes import ByteTokenizer
from tests.unit.adapters.engine.answers import LONG, ids_of, request
from tests.waiting import eventually


def test_a_full_queue_refuses_at_once_and_takes_requests_again() -> None:
    parts = engines.Parts(config=ServerConfig(max_queue=2))
    with engines.gated(parts) as (engine, gate):
        streams = [engine.generate(LONG) for _ in range(6)]
        with pytest.raises(ServerFull, match="6 requests") as refusal:
            engine.generate(LONG)
        assert refusal.value.retry_after_seconds > 0
        gate.open()
        ends = [list(stream)[-1].finish_reason for stream in streams]

        assert ends == [FinishReason.LENGTH] * 6
        assert len(ids_of(engine.generate(request()))) == 60


def test_a_cancelled_request_makes_room_in_a_full_queue() -> None:
    parts = engines.Parts(config=ServerConfig(max_queue=0))
    with engines.gated(parts) as (engine, gate):
        streams = [engine.generate(LONG) for _ in range(4)]
        with pytest.raises(ServerFull):
            engine.generate(LONG)
        streams[0].cancel()
        gate.allow(1)
        assert list(streams[0])[-1].finish_reason is FinishReason.CANCELLED
        late = engine.generate(request())
        gate.open()

        assert list(late)[-1].finish_reason is FinishReason.LENGTH


def test_the_queue_is_first_come_first_served() -> None:
    records = engines.Records()
    with engines.running(engines.Parts(records=records)) as engine:
        for stream in [engine.generate(request(streaming=False)) for _ in range(24)]:
            list(stream)
    ids = [record.request_id for record in records.all]
    order = [number // 4 for number in ids if number is not None]
    assert len(order) == 24
    assert order == sorted(order)


def test_counts_follow_the_requests() -> None:
    with engines.gated() as (engine, gate):
        streams = [engine.generate(request()) for _ in range(6)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        assert eventually(lambda: engine.queue_length == 2)
        gate.open()
        for stream in streams:
            list(stream)

        assert eventually(lambda: engine.queue_length == 0)
        assert engine.stats.requests_served == 6
        assert engine.stats.prompts_served == 6
        assert engine.stats.tokens_generated == 360


def test_closing_takes_no_more_but_lets_what_runs_and_waits_finish() -> None:
    with engines.gated() as (engine, gate):
        streams = [engine.generate(request()) for _ in range(6)]
        closing = threading.Thread(target=engine.close, args=(30.0,))
        closing.start()

        def refuses() -> bool:
            try:
                engine.generate(request()).cancel()
            except NotReady as refusal:
                return refusal.retry_after_seconds > 0
            return False

        assert eventually(refuses)
        assert closing.is_alive()
        gate.open()
        ends = [list(stream)[-1].finish_reason for stream in streams]
        closing.join(30)

        assert ends == [FinishReason.LENGTH] * 6
        assert not closing.is_alive()
        assert not engine.is_alive()
    with pytest.raises(NotReady):
        engine.generate(request())


def test_closing_leaves_no_thread_and_may_be_done_twice() -> None:
    before = set(threading.enumerate())
    engine = engines.start(engines.Parts())
    list(engine.generate(request()))
    started = set(threading.enumerate()) - before
    engine.close(5.0)
    engine.close(5.0)

    assert len(started) == 5  # the engine's, two of its lane's, and two for text
    assert not any(thread.is_alive() for thread in started)


def test_what_is_not_finished_when_the_time_is_over_fails() -> None:
    with engines.gated() as (engine, gate):
        streams = [engine.generate(LONG) for _ in range(6)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        commands = engine.loop._commands
        before = commands.qsize()
        closing = threading.Thread(target=engine.close, args=(0.01,))
        closing.start()
        assert eventually(lambda: commands.qsize() > before)  # it is told to stop
        gate.open()
        closing.join(30)

        for stream in streams:
            with pytest.raises(EngineFailed, match="stopped"):
                list(stream)


def test_prompts_that_were_never_tokenised_fail_when_it_closes() -> None:
    may_go_on = threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            may_go_on.wait(10)
            return super().encode(text)

    before = set(threading.enumerate())
    engine = engines.start(engines.Parts(tokenizer=Slow()))
    streams = [engine.generate(LONG) for _ in range(3)]
    timer = threading.Timer(0.05, may_go_on.set)
    timer.start()
    engine.close(0.0)
    timer.join()

    for stream in streams:
        with pytest.raises(EngineFailed):
            list(stream)
    assert set(threading.enumerate()) <= before


def test_long_prompts_that_wait_refuse_others_until_they_have_slots() -> None:
    parts = engines.Parts(config=ServerConfig(max_queue_tokens=100))
    with engines.gated(parts) as (engine, gate):
        running = [engine.generate(LONG) for _ in range(4)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        waiting = [engine.generate(request(tuple(range(60)))) for _ in range(2)]
        with pytest.raises(ServerFull, match="tokens are waiting"):
            list(waiting[1])
        gate.open()

        assert len(ids_of(waiting[0])) == 60
        assert all(len(ids_of(stream)) == 300 for stream in running)


def test_an_answer_that_is_late_is_an_error_and_frees_its_slot() -> None:
    now = [0.0]
    parts = engines.Parts(clock=lambda: now[0])
    with engines.gated(parts) as (engine, gate):
        hurried = dataclasses.replace(LONG, deadline_seconds=5.0)
        late, other = engine.generate(hurried), engine.generate(request())
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 2)
        now[0] = 5.0
        gate.open()

        with pytest.raises(DeadlineExceeded, match="deadline_seconds"):
            list(late)
        assert len(ids_of(other)) == 60
        assert eventually(lambda: engine.loop.stats.slots_in_use == 0)


def test_a_request_of_lower_priority_number_overtakes_those_that_wait() -> None:
    records = engines.Records()
    with engines.gated(engines.Parts(records=records)) as (engine, gate):
        running = [engine.generate(request(streaming=False)) for _ in range(4)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        waiting = [
            engine.generate(dataclasses.replace(LONG, priority=priority))
            for priority in (0, 0, 0, 0, 0, -1)
        ]
        engines.tokenised(engine)
        gate.open()
        for stream in [*running, *waiting]:
            list(stream)

    ends = [record.request_id for record in records.all]
    assert ends.index(9) < ends.index(8)
    assert ends.index(9) < ends.index(7)


def test_when_to_come_again_follows_from_what_waits_and_how_fast_things_go() -> None:
    pace = Pace()
    assert pace.seconds_for(1000, 0.0) == 1
    pace.note(0.0, 50)
    pace.note(10.0, 50)
    assert pace.seconds_for(200, 10.0) == 20
    assert pace.seconds_for(0, 10.0) == 1
    assert pace.seconds_for(10**6, 10.0) == 60
