"""A step that does not end costs the engine, but nobody waits for it for ever."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from jaxserver.adapters.engine import text
from jaxserver.adapters.engine.orders import Order
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.core.config import EngineConfig
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.generator import Stream
from tests import engines
from tests.fakes import ByteTokenizer
from tests.unit.adapters.engine.answers import LONG, ids_of, request
from tests.waiting import eventually

LIMIT_SECONDS = 300.0


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "WATCH_SECONDS", 0.01)


@contextlib.contextmanager
def standing(
    tokenizer: ByteTokenizer | None = None,
) -> Iterator[tuple[TextEngine, engines.Gate, Clock]]:
    """An engine whose every step waits for leave, by a clock that stands still."""
    clock = Clock()
    parts = engines.Parts(
        clock=clock,
        config=ServerConfig(watchdog_seconds=LIMIT_SECONDS),
        tokenizer=tokenizer or ByteTokenizer(),
    )
    with engines.gated(parts) as (engine, gate):
        yield engine, gate, clock


def stands_in_step(engine: TextEngine, number: int) -> bool:
    return eventually(lambda: engine.loop.stats.dispatches == number)


def failed(stream: Stream) -> str:
    with pytest.raises(EngineFailed) as failure:
        list(stream)
    return str(failure.value)


def test_a_step_that_hangs_fails_every_open_stream_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with standing() as (engine, gate, clock):
        streams = [engine.generate(LONG) for _ in range(9)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        clock.now += LIMIT_SECONDS + 1

        reasons = {failed(stream) for stream in streams}
        assert reasons == {"a step has taken longer than 300 s"}
        assert "the engine hangs: a step has taken" in caplog.text
        assert not engine.is_alive()
        with pytest.raises(EngineFailed, match="does not run any more"):
            engine.generate(request())


@pytest.mark.parametrize("sizes", [engines.NARROW, engines.PAIR])
def test_a_device_that_hangs_fails_every_open_stream(sizes: EngineConfig) -> None:
    """The engine's thread goes on meanwhile, and so does the other lane, if any."""
    clock, gate = Clock(), threading.Event()
    devices: list[engines.HookedDevice] = []

    def stand(order: Order) -> None:
        gate.wait()

    def prepare(device: engines.HookedDevice) -> None:
        if not devices:
            device.before_run = stand
        devices.append(device)

    parts = engines.Parts(
        sizes=sizes,
        clock=clock,
        config=ServerConfig(watchdog_seconds=LIMIT_SECONDS),
        prepare=prepare,
    )
    with engines.running(parts) as engine:
        streams = [engine.generate(LONG) for _ in range(8)]
        assert eventually(lambda: engine.loop._workers[0].began_seconds is not None)
        assert engine.is_alive()
        clock.now += LIMIT_SECONDS + 1

        assert {failed(stream) for stream in streams} <= {
            "a step has taken longer than 300 s",
            "the engine was stopped",
        }
        assert not engine.is_alive()
        began = time.monotonic()
        assert not engine.close(0.0)
        assert time.monotonic() - began < 5
        gate.set()
        assert eventually(lambda: not engine.loop.is_running())


def test_it_is_not_alive_even_before_anybody_has_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text, "WATCH_SECONDS", 60.0)
    with standing() as (engine, _, clock):
        stream = engine.generate(LONG)
        assert stands_in_step(engine, 1)
        assert engine.is_alive()
        clock.now += LIMIT_SECONDS + 1

        assert not engine.loop.is_alive()
        assert not engine.is_alive()
        with pytest.raises(EngineFailed):
            engine.generate(request())
        stream.cancel()


def test_a_step_may_take_as_long_as_is_allowed() -> None:
    with standing() as (engine, gate, clock):
        stream = engine.generate(request())
        for number in range(1, 5):
            assert stands_in_step(engine, number)
            clock.now += LIMIT_SECONDS
            assert engine.is_alive()
            gate.allow(1)
        gate.open()

        assert len(ids_of(stream)) == 60
        assert engine.is_alive()


def rests(engine: TextEngine) -> bool:
    loop = engine.loop
    begun = [loop._turn_began, *(worker.began_seconds for worker in loop._workers)]
    return begun == [None, None]


def test_an_engine_without_work_never_hangs() -> None:
    with standing() as (engine, gate, clock):
        gate.open()
        for _ in range(3):
            assert len(ids_of(engine.generate(request()))) == 60
            assert eventually(lambda: rests(engine))
            clock.now += 10 * LIMIT_SECONDS
            assert engine.is_alive()


def test_an_asynchronous_reader_hears_that_the_engine_hangs() -> None:
    async def read(stream: Stream) -> None:
        with pytest.raises(EngineFailed):
            [chunk async for chunk in stream]

    with standing() as (engine, _, clock):
        stream = engine.generate(LONG)
        assert stands_in_step(engine, 1)
        clock.now += LIMIT_SECONDS + 1
        asyncio.run(asyncio.wait_for(read(stream), 10))


def test_a_prompt_that_is_being_tokenised_while_the_engine_hangs_fails_too() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            started.set()
            may_go_on.wait(10)
            return super().encode(text)

    with standing(Slow()) as (engine, _, clock):
        hanging, late = engine.generate(request((1, 2))), engine.generate(request("a"))
        assert started.wait(10)
        assert stands_in_step(engine, 1)
        clock.now += LIMIT_SECONDS + 1

        assert failed(late) == failed(hanging)
        may_go_on.set()


def test_closing_a_hanging_engine_neither_waits_nor_says_that_it_ended() -> None:
    with standing() as (engine, gate, clock):
        stream = engine.generate(LONG)
        assert stands_in_step(engine, 1)
        clock.now += LIMIT_SECONDS + 1
        failed(stream)
        ended: list[bool] = []
        closing = threading.Thread(target=lambda: ended.append(engine.close(30.0)))
        closing.start()
        closing.join(5)
        assert ended == [False]

        gate.open()
        assert eventually(lambda: not engine.loop.is_running())
        assert engine.close(0.0)


def test_an_engine_whose_step_ends_after_all_ends_with_it() -> None:
    with standing() as (engine, gate, clock):
        stream = engine.generate(LONG)
        assert stands_in_step(engine, 1)
        clock.now += LIMIT_SECONDS + 1
        failed(stream)
        gate.open()

        assert eventually(lambda: not engine.loop.is_running())
        assert engine.loop.stats.dispatches <= 3
        assert not engine.is_alive()


def test_closing_an_engine_whose_step_does_not_end_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text, "STOP_SECONDS", 0.05)
    with standing() as (engine, _, _):
        stream = engine.generate(LONG)
        assert stands_in_step(engine, 1)

        assert not engine.close(0.01)
        assert failed(stream) == "the engine was stopped"
