"""An answer is a function of its request: not of its company, slot, queue or blocks."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.core.executables import build_steps
from jaxserver.ports.types import (
    MAX_SEED,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from tests import engines
from tests.fakes import ByteTokenizer
from tests.property.visits import Answer, Visit, alone, assert_as_alone, in_company
from tests.tiny import TINY_BYTES, tiny_model

# The hook that checks types draws random numbers, on the engine's thread meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

VOCAB = ByteTokenizer.vocab_size
BOUNDARIES = [1, 31, 32, 33, 63, 135, 136, 137, 255, 271, 272, 273, 382, 383]
PROFILE = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
SLOW = hypothesis.settings(
    max_examples=max(5, PROFILE.max_examples // 8),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
"""An example serves up to 48 requests."""


def token_ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, length).tolist())


LENGTHS = st.one_of(st.integers(1, 60), st.sampled_from(BOUNDARIES))
PROMPTS = st.one_of(
    st.builds(token_ids, LENGTHS, st.integers(0, 2**32 - 1)),
    st.text(max_size=40),
)
IDS = st.integers(0, VOCAB - 1)
FLOATS = st.floats(0.0, 1.0, width=32)
STOPS = st.text("aeinst {", min_size=1, max_size=2)
LIMITS = st.sampled_from([*range(1, 25), None, None, None])
"""Seldom none: up to 383 tokens each would take most of the time."""


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    bias = draw(st.dictionaries(IDS, st.floats(-8, 8, width=16), max_size=4))
    if draw(st.booleans()):  # letters that stop strings are made of
        bias |= dict.fromkeys(b"aeinst {", 6.0)
    return SamplingParams(
        greedy=draw(st.booleans()),
        temperature=draw(st.sampled_from([None, 0.0, 0.25, 1.0, 2.5])),
        top_k=draw(st.sampled_from([None, 0, 1, 3, 63, 64, 65, 1000])),
        top_p=draw(st.none() | FLOATS),
        min_p=draw(st.just(0.0) | FLOATS),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.25, 4.0])),
        presence_penalty=draw(st.sampled_from([0.0, -1.5, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.5, 1.0])),
        logit_bias=bias,
        seed=draw(st.integers(0, MAX_SEED)),
        max_new_tokens=draw(LIMITS),
        stop=tuple(draw(st.lists(STOPS, max_size=3))),
        stop_token_ids=tuple(draw(st.lists(IDS, max_size=3))),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 0, 1, 20])),
    )


REQUESTS = st.builds(
    GenerationRequest,
    prompt=PROMPTS,
    sampling=sampling_params(),
    streaming=st.booleans(),
)
VISITS = st.builds(
    Visit,
    request=REQUESTS,
    delay_seconds=st.sampled_from([0.0, 0.0, 0.001, 0.005, 0.02]),
    patience=st.none() | st.none() | st.integers(0, 4),
)


class House(NamedTuple):
    """The same model behind engines of other sizes."""

    wide: TextEngine
    narrow: TextEngine
    single: TextEngine


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    sizes = (engines.WIDE, engines.PAIR, engines.SINGLE)
    with contextlib.ExitStack() as stack:
        parts = [engines.Parts(sizes=size) for size in sizes]
        yield House(*[stack.enter_context(engines.running(part)) for part in parts])


@SLOW
@given(visitors=st.lists(VISITS, min_size=1, max_size=16))
def test_an_answer_in_company_is_bitwise_the_answer_alone(
    house: House, visitors: list[Visit]
) -> None:
    answers = in_company(house.wide, visitors)

    for visitor, answer in zip(visitors, answers, strict=True):
        assert_as_alone(answer, alone(house.wide, visitor.request))


@SLOW
@given(visitors=st.lists(VISITS, min_size=1, max_size=12))
def test_a_queue_for_few_slots_changes_no_bit_of_an_answer(
    house: House, visitors: list[Visit]
) -> None:
    answers = in_company(house.narrow, visitors)

    for visitor, answer in zip(visitors, answers, strict=True):
        assert_as_alone(answer, alone(house.wide, visitor.request))


def test_in_int8_too_an_answer_in_company_is_the_answer_alone() -> None:
    few = dataclasses.replace(engines.NARROW, prefill_rows=1)
    sizes = dataclasses.replace(few, lanes=2)
    tiny = tiny_model(TINY_BYTES, engines.MAX_LEN, kept="int8")
    lazy = CompiledSteps(build_steps(tiny.fns, tiny.params, sizes, tiny.mesh))
    parts = engines.Parts(sizes=sizes, executables=lazy, params=tiny.params)
    wishes = [
        dataclasses.replace(FREE, max_new_tokens=20, logprobs=20, seed=seed)
        for seed in range(12)
    ]
    requests = [
        GenerationRequest(prompt=token_ids(3 + seed, seed), sampling=wish)
        for seed, wish in enumerate(wishes)
    ]
    visitors = [Visit(request=r, delay_seconds=0.0, patience=None) for r in requests]
    with engines.running(parts) as engine:
        expected = [alone(engine, request) for request in requests]

        assert in_company(engine, visitors) == expected
        assert in_company(engine, visitors[::-1]) == expected[::-1]


def test_answers_without_a_limit_fill_the_sequence_in_company_as_alone(
    house: House,
) -> None:
    wishes = [
        dataclasses.replace(FREE, max_new_tokens=None, seed=seed) for seed in range(6)
    ]
    requests = [
        GenerationRequest(prompt=token_ids(length, length), sampling=wish)
        for length, wish in zip((1, 33, 136, 137, 300, 383), wishes, strict=True)
    ]
    visitors = [Visit(request=r, delay_seconds=0.0, patience=None) for r in requests]
    expected = [alone(house.wide, request) for request in requests]

    assert {answer.finish_reason for answer in expected} == {FinishReason.LENGTH}
    for answer in expected:
        assert answer.usage.prompt_tokens + len(answer.token_ids) == engines.MAX_LEN
    assert in_company(house.wide, visitors) == expected
    assert in_company(house.narrow, visitors) == expected
    assert [alone(house.single, request) for request in requests] == expected


@SLOW
@given(request=REQUESTS)
def test_the_number_of_slots_and_the_length_of_blocks_change_no_bit(
    house: House, request: GenerationRequest
) -> None:
    expected = alone(house.wide, request)

    assert alone(house.narrow, request) == expected
    assert alone(house.single, request) == expected


@SLOW
@given(request=REQUESTS)
def test_counts_text_and_log_probabilities_belong_to_the_tokens(
    house: House, request: GenerationRequest
) -> None:
    answer = alone(house.wide, request)

    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert answer.seed == request.sampling.seed
    assert (answer.logprobs is None) == (request.sampling.logprobs is None)
    if answer.logprobs is not None:
        assert tuple(e.token_id for e in answer.logprobs) == answer.token_ids
    whole = ByteTokenizer().decode(answer.token_ids)
    stops = request.sampling.stop
    assert not any(stop in answer.text for stop in stops)
    assert whole.startswith(answer.text)
    if not any(stop in whole for stop in stops):
        assert answer.text == whole


@SLOW
@given(request=REQUESTS)
def test_an_answer_says_truly_why_it_ended(
    house: House, request: GenerationRequest
) -> None:
    answer = alone(house.wide, request)

    sampling = request.sampling
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (257,))}
    whole = ByteTokenizer().decode(answer.token_ids)
    stops = answer.token_ids[-1] in ends or any(s in whole for s in sampling.stop)
    assert (answer.finish_reason is FinishReason.STOP) == stops
    assert not ends & set(answer.token_ids[:-1])
    if not stops:
        room = engines.MAX_LEN - answer.usage.prompt_tokens
        wanted = sampling.max_new_tokens or room
        assert answer.usage.completion_tokens == min(room, wanted)


@SLOW
@given(request=REQUESTS)
def test_the_seed_that_is_reported_repeats_the_answer(
    house: House, request: GenerationRequest
) -> None:
    unseeded = dataclasses.replace(request.sampling, seed=None)
    first = alone(house.wide, dataclasses.replace(request, sampling=unseeded))
    seeded = dataclasses.replace(request.sampling, seed=first.seed)

    assert first.seed is not None
    again = alone(house.narrow, dataclasses.replace(request, sampling=seeded))
    assert again == first


FREE = SamplingParams(
    temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=60, ignore_eos=True, seed=1
)


def free_answer(house: House, **changes: object) -> Answer:
    sampling = dataclasses.replace(FREE, **changes)  # type: ignore[arg-type]  # fields
    return alone(house.wide, GenerationRequest(prompt="abc", sampling=sampling))


@given(seeds=st.sets(st.integers(0, MAX_SEED), min_size=2, max_size=2))
def test_other_seeds_give_other_answers(house: House, seeds: set[int]) -> None:
    answers = {free_answer(house, seed=seed).token_ids for seed in seeds}

    assert len(answers) == 2


def test_each_word_of_a_seed_counts(house: House) -> None:
    seeds = [9, 9 + 2**32, 9 + 2**63, MAX_SEED]

    assert len({free_answer(house, seed=seed).token_ids for seed in seeds}) == 4


@given(token=IDS)
def test_a_large_bias_decides_every_token(house: House, token: int) -> None:
    answer = free_answer(house, logit_bias={token: 100.0}, max_new_tokens=8)

    assert answer.token_ids == (token,) * 8


def test_a_large_penalty_on_presence_repeats_no_token(house: House) -> None:
    answer = free_answer(house, presence_penalty=100.0)

    assert len(set(answer.token_ids)) == 60
    assert len(set(free_answer(house).token_ids)) < 60


def test_a_large_penalty_on_frequency_repeats_no_token(house: House) -> None:
    answer = free_answer(house, frequency_penalty=100.0)

    assert len(set(answer.token_ids)) == 60


def test_a_penalty_on_repetition_counts_the_prompt_too(house: House) -> None:
    greedy = free_answer(house, greedy=True).token_ids
    prompt = (*b"abc", *greedy)
    likely = SamplingParams(greedy=True, max_new_tokens=20, ignore_eos=True)
    penalised = dataclasses.replace(likely, repetition_penalty=50.0)

    free = alone(house.wide, GenerationRequest(prompt=prompt, sampling=likely))
    fresh = alone(house.wide, GenerationRequest(prompt=prompt, sampling=penalised))

    assert set(free.token_ids) & set(prompt)
    assert not set(fresh.token_ids) & set(prompt)
