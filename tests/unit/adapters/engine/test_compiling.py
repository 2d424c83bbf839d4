import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, cast

import jax.numpy as jnp
import pytest
from jax.stages import Compiled

from jaxserver.adapters.engine.compiling import COMPILES, CompiledSteps
from jaxserver.core.executables import Steps
from jaxserver.ports.types import GenerationRequest, SamplingParams
from tests import engines

EXECUTABLE = cast(Compiled, object())


class Builds:
    """Steps whose compilation only takes note, and time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.done: list[tuple[str, int]] = []
        self.fail: Callable[[], Exception] | None = None
        self._seconds = seconds

    def steps(self) -> Steps:
        return Steps(
            init=self._build("init", 0),
            adopt=self._build("adopt", 0),
            begin=self._build("begin", 0),
            prefill={time: self._build("prefill", time) for time in (24, 128)},
            take={},
            put={},
            decode={rows: self._build("decode", rows) for rows in (4, 8)},
            inputs=lambda kind, size: (),
            share=lambda num_bytes: EXECUTABLE,
            processors={},
            token_axes=None,
        )

    def _build(self, kind: str, size: int) -> Callable[[], Compiled]:
        def build() -> Compiled:
            if self.fail is not None:
                raise self.fail()
            time.sleep(self._seconds)
            self.done.append((kind, size))
            return EXECUTABLE

        return build


def test_everything_is_compiled_once_and_reported() -> None:
    builds, heard = Builds(), list[tuple[Any, ...]]()
    compiled = CompiledSteps(builds.steps())
    compiled.compile_all(lambda *progress: heard.append(progress))
    compiled.compile_all(lambda *progress: heard.append(progress))

    assert len(builds.done) == len(set(builds.done)) == 7
    assert heard == [("compile", count, 7) for count in range(1, 8)]


def test_what_is_asked_for_early_is_not_compiled_again() -> None:
    builds = Builds()
    compiled = CompiledSteps(builds.steps())
    compiled.get("decode", 4)
    compiled.compile_all(lambda stage, done, total: None)

    assert sorted(builds.done) == sorted(set(builds.done))


def test_two_threads_that_want_the_same_compile_it_once() -> None:
    builds = Builds(seconds=0.02)
    compiled = CompiledSteps(builds.steps())
    together = threading.Barrier(4)

    def get(nth: int) -> Compiled:
        together.wait()
        return compiled.get("decode", 4)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(get, range(4))) == {EXECUTABLE}
    assert builds.done == [("decode", 4)]


def test_a_failed_compilation_is_told_and_may_be_tried_again() -> None:
    builds = Builds()
    builds.fail = lambda: MemoryError("too large")
    compiled = CompiledSteps(builds.steps())
    with pytest.raises(MemoryError, match="too large"):
        compiled.compile_all(lambda stage, done, total: None)
    builds.fail = None

    assert compiled.get("init", 0) is EXECUTABLE


def test_what_is_begun_is_compiled_meanwhile_and_waited_for() -> None:
    builds = Builds(seconds=0.02)
    compiled = CompiledSteps(builds.steps())
    compiled.begin(lambda stage, done, total: None)
    assert len(builds.done) < 7
    assert compiled.get("decode", 8) is EXECUTABLE
    compiled.finish()

    assert len(builds.done) == len(set(builds.done)) == 7


def test_a_failure_meanwhile_is_told_at_the_end() -> None:
    builds = Builds()
    builds.fail = lambda: MemoryError("too large")
    compiled = CompiledSteps(builds.steps())
    compiled.begin(lambda stage, done, total: None)
    with pytest.raises(MemoryError, match="too large"):
        compiled.finish()


def test_what_is_not_wanted_any_more_is_not_begun() -> None:
    builds = Builds(seconds=0.05)
    steps = builds.steps()
    many = {rows: builds._build("decode", rows) for rows in range(200)}
    compiled = CompiledSteps(steps._replace(decode=many))
    compiled.begin(lambda stage, done, total: None)
    compiled.cancel()
    with pytest.raises(CancelledError):
        compiled.finish()

    assert len(builds.done) < 200


def test_an_eager_operation_of_a_new_shape_is_counted() -> None:
    shape = (1, 3, 7, 11)
    before = COMPILES.count
    jnp.zeros(shape) + 1  # compiled for its shape

    assert COMPILES.count > before
    again = COMPILES.count
    jnp.zeros(shape) + 1  # compiled already
    assert COMPILES.count == again


REQUESTS = [
    GenerationRequest(
        prompt=(7,) * length,
        streaming=nth % 2 == 0,
        sampling=SamplingParams(
            temperature=(0.0, 0.5, 2.0)[nth % 3],
            top_k=(0, 1, 50, 100)[nth % 4],
            top_p=(1.0, 0.9)[nth % 2],
            min_p=(0.0, 0.25)[nth % 2],
            repetition_penalty=(1.0, 1.5)[nth % 2],
            frequency_penalty=(0.0, 0.5, -0.5)[nth % 3],
            logit_bias={nth: 1.0} if nth % 3 else {},
            stop=("a", "bc")[: nth % 3],
            stop_token_ids=(nth,) if nth % 2 else (),
            logprobs=(None, 0, 20)[nth % 3],
            max_new_tokens=1 + 3 * nth,
        ),
    )
    for nth, length in enumerate([1, 2, 23, 24, 25, 135, 136, 137, 256, 300] * 4)
]


def test_no_mix_of_requests_compiles_anything() -> None:
    with engines.running(engines.Parts(sizes=engines.WIDE)) as engine:
        before = COMPILES.count
        streams = [engine.generate(request) for request in REQUESTS]
        for stream in streams[::7]:
            stream.cancel()
        ends = [list(stream)[-1] for stream in streams]

        assert len(ends) == 40
        assert COMPILES.count == before


def test_an_engine_that_was_not_compiled_before_compiles_what_it_needs() -> None:
    shared, asked = engines.compiled(engines.NARROW), list[tuple[str, int]]()

    def build(kind: str, size: int) -> Callable[[], Compiled]:
        def note() -> Compiled:
            asked.append((kind, size))
            return shared.get(kind, size)

        return note

    lazy = CompiledSteps(
        Steps(
            init=build("init", 0),
            adopt=build("adopt", 0),
            begin=build("begin", 0),
            prefill={24: build("prefill", 24)},
            take={},
            put={},
            decode={1: build("decode", 1)},
            inputs=shared.steps.inputs,
            share=shared.steps.share,
            processors={},
            token_axes=None,
        )
    )
    request = dataclasses.replace(REQUESTS[3], sampling=SamplingParams(seed=1))
    with engines.running() as eager:
        expected = list(eager.generate(request))[-1]
    with engines.running(engines.Parts(executables=lazy)) as engine:
        assert asked == [("init", 0)]
        answers = [list(engine.generate(request))[-1] for _ in range(2)]

    first = [("init", 0), ("prefill", 24), ("begin", 0), ("decode", 1)]
    assert asked == [*first, ("adopt", 0)]
    assert [answer.usage for answer in answers] == [expected.usage] * 2
