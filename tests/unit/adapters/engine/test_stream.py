import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxserver.adapters.engine.stream import Channel, EngineStream, Waiter, wake
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.generator import SavableStream
from jaxserver.ports.types import Chunk, FinishReason, Usage


def chunk(text: str, finish_reason: FinishReason | None = None) -> Chunk:
    return Chunk(
        text=text,
        token_ids=(1,),
        usage=Usage(prompt_tokens=1, completion_tokens=1),
        finish_reason=finish_reason,
    )


LAST = chunk("last", FinishReason.STOP)


class Nowhere:
    """An answer that goes on nowhere else."""

    def save(self, path: Path, read: tuple[int, ...], is_finished: bool) -> None:
        raise AssertionError

    def fork(self, read: tuple[int, ...], count: int) -> list[SavableStream]:
        raise AssertionError


NOWHERE = Nowhere()


def ignore() -> None:
    """Nobody is to be told."""


def put(channel: Channel, *items: Chunk | EngineFailed) -> None:
    wake([w for item in items if (w := channel.put(item)) is not None])


class Cancels:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_plain_reader_sleeps_until_something_comes() -> None:
    channel = Channel()
    timer = threading.Timer(0.02, put, (channel, LAST))
    timer.start()

    assert list(EngineStream(channel, ignore, NOWHERE)) == [LAST]
    timer.join()


def test_an_asynchronous_reader_sleeps_until_something_comes() -> None:
    channel = Channel()

    async def read() -> list[Chunk]:
        timer = threading.Timer(0.02, put, (channel, LAST))
        timer.start()
        return [c async for c in EngineStream(channel, ignore, NOWHERE)]

    assert asyncio.run(read()) == [LAST]


def test_a_reader_that_was_interrupted_may_read_on() -> None:
    channel = Channel()

    async def read() -> Chunk:
        stream = EngineStream(channel, ignore, NOWHERE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        put(channel, LAST)
        return await anext(stream)

    assert asyncio.run(read()) is LAST


def test_waking_is_one_call_for_each_event_loop() -> None:
    calls: list[tuple[str, int]] = []

    class Loop(asyncio.SelectorEventLoop):
        name = ""

        def call_soon_threadsafe(  # type: ignore[override]  # as it is called here
            self, callback: Callable[..., object], *args: list[object]
        ) -> None:
            calls.append((self.name, len(args[0])))

    loops = [Loop(), Loop()]
    for loop, name in zip(loops, "ab", strict=True):
        loop.name = name
    waiters = [Waiter(loops[i % 2], loops[i % 2].create_future()) for i in range(5)]
    wake(waiters)
    for loop in loops:
        loop.close()

    assert sorted(calls) == [("a", 3), ("b", 2)]


def test_a_closed_event_loop_keeps_no_other_reader_asleep() -> None:
    closed = asyncio.new_event_loop()
    gone = Waiter(closed, closed.create_future())
    closed.close()

    async def read() -> None:
        loop = asyncio.get_running_loop()
        waiting = Waiter(loop, loop.create_future())
        wake([gone, waiting])
        await asyncio.wait_for(waiting.future, 5)

    asyncio.run(read())


def test_an_error_ends_the_iteration() -> None:
    channel = Channel()
    put(channel, chunk("a"), EngineFailed("broken"))
    stream = EngineStream(channel, ignore, NOWHERE)

    assert next(stream).text == "a"
    with pytest.raises(EngineFailed, match="broken"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_that_is_dropped_unread_cancels_once() -> None:
    cancels = Cancels()
    stream = EngineStream(Channel(), cancels, NOWHERE)
    del stream

    assert cancels.count == 1


def test_a_stream_that_was_read_to_its_end_does_not_cancel() -> None:
    channel, cancels = Channel(), Cancels()
    put(channel, LAST)
    with EngineStream(channel, cancels, NOWHERE) as stream:
        list(stream)
    stream.cancel()
    del stream

    assert cancels.count == 0


def test_a_stream_that_failed_does_not_cancel() -> None:
    channel, cancels = Channel(), Cancels()
    put(channel, EngineFailed("broken"))
    stream = EngineStream(channel, cancels, NOWHERE)
    with pytest.raises(EngineFailed):
        next(stream)
    del stream

    assert cancels.count == 0
