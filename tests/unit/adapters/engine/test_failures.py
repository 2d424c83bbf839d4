import asyncio
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from jaxserver.adapters.engine.orders import Order
from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.generator import Stream
from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.types import Chunk, FinishReason, SamplingParams
from tests import engines
from tests.engines import NARROW, PAIR
from tests.fakes import ByteTokenizer
from tests.unit.adapters.engine.answers import LONG, ids_of, request
from tests.waiting import eventually


class Breaks:
    """Raises at some of the steps of a kind, counted from 0."""

    def __init__(self, kind: str, *at: int) -> None:
        self._kind = kind
        self._at = at
        self._count = -1

    def __call__(self, kind: str) -> None:
        if kind == self._kind:
            self._count += 1
            if self._count in self._at:
                raise RuntimeError("out of memory")


def breaking(kind: str, *at: int, sizes: EngineConfig = NARROW) -> engines.Parts:
    """One whose steps fail while they are made ready."""

    def prepare(device: engines.HookedDevice) -> None:
        device.before_step = Breaks(kind, *at)

    return engines.Parts(sizes=sizes, prepare=prepare)


def breaking_in_run(kind: str, *at: int, sizes: EngineConfig = NARROW) -> engines.Parts:
    """One whose steps fail when the device is to run them, on the lane's thread."""

    def prepare(device: engines.HookedDevice) -> None:
        breaks = Breaks(kind, *at)
        device.before_run = lambda order: breaks(order.kind)

    return engines.Parts(sizes=sizes, prepare=prepare)


Fail: TypeAlias = Callable[..., engines.Parts]


def fails(stream: Stream) -> bool:
    try:
        list(stream)
    except EngineFailed:
        return True
    return False


def expected() -> tuple[int, ...]:
    with engines.running() as engine:
        return ids_of(engine.generate(request()))


@pytest.mark.parametrize("fail", [breaking, breaking_in_run])
@pytest.mark.parametrize(
    ("kind", "at"), [("prefill", 0), ("prefill", 2), ("decode", 0), ("decode", 4)]
)
def test_a_step_that_fails_is_made_again_and_no_answer_changes(
    kind: str, at: int, fail: Fail, caplog: pytest.LogCaptureFixture
) -> None:
    wish = dataclasses.replace(
        request(tuple(range(80))), sampling=SamplingParams(seed=3, logprobs=2)
    )
    with engines.running() as engine:
        whole = list(engine.generate(wish))
    with engines.running(fail(kind, at)) as engine:
        streams = [engine.generate(wish) for _ in range(3)]

        for chunks in [list(stream) for stream in streams]:
            assert tokens_of(chunks) == tokens_of(whole)
            assert (
                chunks[-1].usage.completion_tokens == whole[-1].usage.completion_tokens
            )
        assert engine.loop.stats.failed_dispatches == 1
        assert "RuntimeError: out of memory" in caplog.text


def test_where_a_lane_fails_the_others_go_on() -> None:
    with engines.running(engines.Parts(sizes=PAIR)) as engine:
        wishes = [request(f"{letter}bc") for letter in "defghijk"]
        whole = [ids_of(engine.generate(wish)) for wish in wishes]
    lanes: list[engines.HookedDevice] = []
    resets: list[int] = []

    def prepare(device: engines.HookedDevice) -> None:
        if lanes:
            breaks = Breaks("decode", 3)
            device.before_run = lambda order: breaks(order.kind)
        device.before_reset = functools.partial(resets.append, len(lanes))
        lanes.append(device)

    with engines.running(engines.Parts(sizes=PAIR, prepare=prepare)) as engine:
        streams = [engine.generate(wish) for wish in wishes]
        assert [ids_of(stream) for stream in streams] == whole
        assert engine.loop.stats.failed_dispatches == 1
    assert len(lanes) == PAIR.lanes
    assert resets == [1]


def tokens_of(chunks: list[Chunk]) -> list[tuple[int, float]]:
    logprobs = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    return [(entry.token_id, entry.logprob) for entry in logprobs]


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_request_whose_step_fails_twice_fails_and_the_engine_goes_on(
    kind: str,
) -> None:
    with engines.running(breaking(kind, 0, 1)) as engine:
        assert fails(engine.generate(request()))
        assert engine.is_alive()
        assert engine.loop.stats.slots_in_use == 0
        assert ids_of(engine.generate(request())) == expected()


def test_requests_that_wait_survive_steps_that_fail() -> None:
    with engines.gated(breaking("decode", 4, 5)) as (engine, gate):
        firsts = [request(f"{letter}bc") for letter in "defg"]
        streams = [engine.generate(asked) for asked in (*firsts, *[request()] * 3)]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        gate.open()

        assert [fails(stream) for stream in streams[:4]] == [True] * 4
        assert [ids_of(stream) for stream in streams[4:]] == [expected()] * 3


def test_an_outcome_that_cannot_be_read_is_a_failed_step() -> None:
    spoilt: list[Any] = []

    def spoil(order: Order, outcome: Any) -> None:
        if order.kind == "decode" and not spoilt:
            spoilt.append(outcome)
            outcome.tokens.delete()

    def prepare(device: engines.HookedDevice) -> None:
        device.after_run = spoil

    with engines.running(engines.Parts(prepare=prepare)) as engine:
        assert ids_of(engine.generate(request())) == expected()
        assert engine.loop.stats.failed_dispatches == 1


def test_each_reader_gets_an_error_of_its_own() -> None:
    with engines.gated(breaking("decode", 4, 5)) as (engine, gate):
        streams = [engine.generate(request(f"{letter}bc")) for letter in "defg"]
        engines.tokenised(engine)
        assert gate.allow_until(lambda: engine.loop.stats.slots_in_use == 4)
        gate.open()
        errors = []
        for stream in streams:
            with pytest.raises(EngineFailed, match="RuntimeError") as failure:
                list(stream)
            errors.append(failure.value)

        assert len({id(error) for error in errors}) == 4


def no_memory() -> None:
    raise MemoryError("no cache")


def dying() -> engines.Parts:
    """A step fails, and then there is no memory for another state."""

    def prepare(device: engines.HookedDevice) -> None:
        device.before_step = Breaks("decode", 0)
        device.before_reset = no_memory

    return engines.Parts(prepare=prepare)


def test_an_engine_that_dies_fails_every_open_stream_and_says_so() -> None:
    with engines.gated(dying()) as (engine, gate):
        streams = [engine.generate(request()) for _ in range(9)]
        gate.open()

        assert [fails(stream) for stream in streams] == [True] * 9
        assert not engine.is_alive()
        with pytest.raises(EngineFailed, match="does not run any more"):
            engine.generate(request())


def test_an_error_in_the_plan_ends_the_engine_without_hanging_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with engines.gated() as (engine, gate):
        streams = [engine.generate(LONG) for _ in range(6)]
        monkeypatch.setattr(scheduler, "plan", broken)
        gate.open()

        assert [fails(stream) for stream in streams] == [True] * 6
        assert not engine.is_alive()


def test_a_prompt_tokenised_after_the_engine_died_fails_too() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            started.set()
            may_go_on.wait(10)
            return super().encode(text)

    dies = dying()

    def prepare(device: engines.HookedDevice) -> None:
        dies.prepare(device)
        die = device.before_step

        def die_later(kind: str) -> None:
            started.wait(10)
            die(kind)

        device.before_step = die_later

    parts = dataclasses.replace(dies, prepare=prepare, tokenizer=Slow())
    with engines.running(parts) as engine:
        killer = engine.generate(request((1, 2)))
        late = engine.generate(request("late"))
        assert fails(killer)
        assert started.wait(10)
        may_go_on.set()

        assert fails(late)


def test_an_asynchronous_reader_hears_of_a_dead_engine() -> None:
    async def read(stream: Stream) -> None:
        with pytest.raises(EngineFailed):
            [chunk async for chunk in stream]

    with engines.running(dying()) as engine:
        asyncio.run(asyncio.wait_for(read(engine.generate(request())), 10))


def test_closing_a_dead_engine_does_not_wait() -> None:
    engine = engines.start(dying())
    assert fails(engine.generate(request()))
    closing = threading.Thread(target=engine.close, args=(30.0,))
    closing.start()
    closing.join(5)

    assert not closing.is_alive()


def test_a_prompt_that_cannot_be_tokenised_fails_alone() -> None:
    class Broken(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            if text == "bad":
                raise UnicodeError("no")
            return super().encode(text)

    with engines.running(engines.Parts(tokenizer=Broken())) as engine:
        bad, good = engine.generate(request("bad")), engine.generate(request())

        with pytest.raises(EngineFailed, match="tokenised: UnicodeError"):
            list(bad)
        assert ids_of(good) == expected()


def test_a_token_that_cannot_be_written_fails_its_answer_alone() -> None:
    class Broken(ByteTokenizer):
        def token_bytes(self, token: int) -> bytes:
            if token == 200:
                raise KeyError(token)
            return super().token_bytes(token)

    with engines.running(engines.Parts(tokenizer=Broken())) as engine:
        good = engine.generate(request(logit_bias={97: 100.0}))
        bad = engine.generate(request(logit_bias={200: 100.0}))

        with pytest.raises(EngineFailed, match="written down: KeyError"):
            list(bad)
        assert ids_of(good) == (97,) * 60
        assert eventually(lambda: engine.loop.stats.slots_in_use == 0)


def test_telemetry_that_fails_keeps_no_answer_back() -> None:
    class Broken(engines.Records):
        def request_finished(self, record: RequestRecord) -> None:
            raise OSError("disk full")

    with engines.running(engines.Parts(records=Broken())) as engine:
        for _ in range(3):
            assert list(engine.generate(request()))[-1].finish_reason is (
                FinishReason.LENGTH
            )
        assert engine.is_alive()
