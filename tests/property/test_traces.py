"""Whatever else is asked for, whenever it comes, and however little room there is.

Random traces of requests over a pool of pages that is too small for them, so that pages
are evicted and requests preempted all the time. Each answer is compared with that of
the same request served alone by an engine that has not served anything yet.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.ports.types import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from tests import engines
from tests.processors import PROCESSORS
from tests.property.visits import Answer, Visit, alone, assert_as_alone, in_company
from tests.tiny import TINY_BYTES, TinyModel, tiny_model

# The hook that checks types draws random numbers, on the engine's thread meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

MAX_LEN, PAGE = 128, 16
PROFILE = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
TRACES = hypothesis.settings(
    max_examples=max(200, PROFILE.max_examples),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


class Crowded(NamedTuple):
    """Sizes, and the model that goes with them."""

    sizes: EngineConfig
    kept: str


SIZES = EngineConfig(
    slots=5, max_len=MAX_LEN, max_stream_tokens=8, tokens_per_page=PAGE, pages=11
)
CROWDED = {
    "float32": Crowded(dataclasses.replace(SIZES, prefill_rows=3, pages=9), "float32"),
    "int8": Crowded(SIZES, "int8"),
}


@functools.cache
def model(kept: str) -> TinyModel:
    tiny = tiny_model(TINY_BYTES, MAX_LEN, page_size=PAGE, kept=kept)
    return tiny._replace(fns=tiny.fns._replace(processors=tuple(PROCESSORS.items())))


@functools.cache
def parts(name: str) -> engines.Parts:
    crowded = CROWDED[name]
    tiny = model(crowded.kept)
    steps = build_steps(tiny.fns, tiny.params, crowded.sizes, tiny.mesh)
    return engines.Parts(
        sizes=crowded.sizes, executables=CompiledSteps(steps), params=tiny.params
    )


BEGINNINGS = [
    b"",
    b"You are a helpful assistant. ",
    b"You are a helpful assistant. Answer in one sentence, please: ",
    b"You are a harmful assistant. ",
    b"0123456789abcdef",
]
PROMPTS = st.builds(
    lambda beginning, rest: tuple((beginning + bytes(rest)) or b"x"),
    st.sampled_from(BEGINNINGS),
    st.lists(st.integers(0, 255), max_size=40),
)


PROCESSING: st.SearchStrategy[dict[str, dict[str, float]]] = st.sampled_from(
    [{}, {}, {"no_token_twice": {}}, {"drift": {"token": 97, "step": 6.5}}]
)


@st.composite
def wishes(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        greedy=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.5])),
        top_k=draw(st.sampled_from([0, 3, 50])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.5])),
        presence_penalty=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
        max_new_tokens=draw(st.integers(1, 48)),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([0, 2])),
        logits_processors=draw(PROCESSING),
    )


REQUESTS = st.builds(
    GenerationRequest,
    prompt=PROMPTS,
    sampling=wishes(),
    streaming=st.booleans(),
    score_prompt=st.sampled_from([False, False, False, True]),
    choice=st.sampled_from([0, 0, 1]),
    priority=st.sampled_from([0, 0, 0, -1, 5]),
)
VISITS = st.builds(
    Visit,
    request=REQUESTS,
    delay_seconds=st.sampled_from([0.0, 0.0, 0.0, 0.002, 0.01, 0.03]),
    patience=st.sampled_from([None, None, None, None, 0, 1, 3]),
)


def served_alone(name: str, request: GenerationRequest) -> Answer:
    """By an engine that has served nothing."""
    with engines.running(parts(name)) as engine:
        return alone(engine, request)


class House:
    """One engine a configuration, which goes on from trace to trace."""

    def __init__(self) -> None:
        self.engines = {name: engines.start(parts(name)) for name in CROWDED}
        self.num_answers = 0
        self.most_cached = dict.fromkeys(CROWDED, 0)

    def count(self, what: str) -> int:
        """Of all engines together."""
        return sum(getattr(e.loop.stats, what) for e in self.engines.values())


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    built = House()
    yield built
    for engine in built.engines.values():
        engine.close(0.0)


@TRACES
@given(
    name=st.sampled_from(sorted(CROWDED)),
    visitors=st.lists(VISITS, min_size=2, max_size=7),
)
def test_every_answer_of_a_trace_is_bitwise_the_answer_alone(
    house: House, name: str, visitors: list[Visit]
) -> None:
    answers = in_company(house.engines[name], visitors)

    for visitor, answer in zip(visitors, answers, strict=True):
        assert_as_alone(answer, served_alone(name, visitor.request))
        is_whole = answer.finish_reason is not FinishReason.CANCELLED
        house.num_answers += is_whole
    cached = house.engines[name].loop.stats.pages_cached
    house.most_cached[name] = max(house.most_cached[name], cached)


def test_those_traces_evicted_preempted_and_shared(house: House) -> None:
    """Comes last: without these the property above would show nothing."""
    assert house.num_answers > 200
    assert house.count("preemptions") > 20
    assert house.count("prefix_hits") > 100
    assert house.count("failed_dispatches") == 0
    for name, engine in house.engines.items():
        stats = engine.loop.stats
        assert (stats.pages_used, stats.slots_in_use) == (0, 0)
        assert house.most_cached[name] > stats.pages_total // 2
