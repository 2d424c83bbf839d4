import threading

import pytest

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed, NotReady, ServerFull
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
    order = [record.request_id // 4 for record in records.all]
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

    assert len(started) == 3
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
