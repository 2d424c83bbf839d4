"""Guessed tokens in a decode step: what they save, and that they change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.sharding import make_mesh
from jaxserver.core.speculative import LONGEST_MATCH
from jaxserver.core.steps import LENGTH, RUNNING, STOP
from jaxserver.ports.types import SamplingParams
from tests.counting_model import answer_of, counting_model
from tests.stepping import Part, Stepper, Wish, drawn

MAX_LEN, BLOCK = 64, 12
ENGINE = EngineConfig(slots=4, max_len=MAX_LEN, max_stream_tokens=BLOCK)
ALONE, ALL = ENGINE.decode_ladder
TIMES = ENGINE.prefill_lengths
PROMPT = (1, 2, 3)
ANSWER = answer_of([1, 2, 3], 40)
"""6, 12, 8, and then 0 for ever: guessed as soon as it was there twice."""


@functools.cache
def compiled(engine: EngineConfig = ENGINE) -> Stepper:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        mesh = make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])
        place = jax.sharding.NamedSharding(mesh, jax.P())
        params = jax.device_put(jnp.float32(10), place)
        steps = build_steps(counting_model(MAX_LEN), params, engine, mesh)
        return Stepper(steps, params, engine)


@pytest.fixture
def stepper() -> Stepper:
    shared = compiled()
    shared.clear()
    return shared


def test_only_a_step_of_few_rows_guesses() -> None:
    drafts = [ENGINE.drafts(rows) for rows in (1, 2, 3, 4, 8, 256)]
    assert drafts == [3, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(slots=4, max_len=MAX_LEN, speculates=False),
        EngineConfig(slots=4, max_len=MAX_LEN, chunk=32),
        EngineConfig(slots=4, max_len=MAX_LEN, max_stream_tokens=1),
    ],
)
def test_nothing_is_guessed_where_it_is_of_no_use(engine: EngineConfig) -> None:
    assert engine.drafts(1) == 0


def test_guesses_that_are_right_save_steps(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    outcome = stepper.decode(ALONE, BLOCK)
    assert drawn(outcome, 0) == ANSWER[1 : 1 + BLOCK]
    assert outcome.accepted[0] == BLOCK - outcome.steps >= BLOCK // 2
    assert outcome.accepted[0] <= outcome.drafted[0] <= 3 * outcome.steps


def test_guesses_that_are_wrong_leave_no_trace(stepper: Stepper) -> None:
    misleading = (2, 5, 3, 4, 4)  # 2 comes next, and then 4, not 5 as before
    wish = Wish(prompt=misleading, sampling=SamplingParams(greedy=True, logprobs=2))
    outcomes = []
    for rows in (ALONE, ALL):
        stepper.clear()
        stepper.prefill(Part(wish=wish, slot=0))
        outcomes.append(stepper.decode(rows, 2))
    assert drawn(outcomes[0], 0) == answer_of([*misleading], 3)[1:]
    assert outcomes[0].drafted[0] > outcomes[0].accepted[0] == 0
    assert outcomes[1].drafted[0] == 0
    for name in ("tokens", "counts", "ends", "logprobs", "top_ids", "top_logprobs"):
        one, other = (np.asarray(getattr(outcome, name))[0] for outcome in outcomes)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_tokens", range(1, BLOCK + 1))
def test_a_block_chooses_no_token_too_many(stepper: Stepper, num_tokens: int) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    found: list[int] = []
    while len(found) < BLOCK:
        outcome = stepper.decode(ALONE, num_tokens)
        assert outcome.counts[0] == num_tokens
        found += drawn(outcome, 0)
    assert found == ANSWER[1 : 1 + len(found)]


def test_an_end_token_among_guesses_ends_the_row(stepper: Stepper) -> None:
    prompt = (1, 2, 7, 7)  # 1 comes next, and then 2, as before
    stepper.prefill(Part(wish=Wish(prompt=prompt, end_ids=(2,)), slot=0))
    outcome = stepper.decode(ALONE, BLOCK)
    assert (drawn(outcome, 0), int(outcome.ends[0])) == ([2], STOP)
    assert outcome.accepted[0] == 1


@pytest.mark.parametrize("limit", range(8, 14))
def test_no_guess_goes_beyond_the_rows_limit(stepper: Stepper, limit: int) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT, limit=limit), slot=0))
    outcome = stepper.decode(ALONE, BLOCK)
    assert drawn(outcome, 0) == ANSWER[1 : limit - len(PROMPT)]
    assert outcome.ends[0] == LENGTH


def test_the_last_place_of_a_row_is_not_overrun(stepper: Stepper) -> None:
    prompt = (0,) * (MAX_LEN - 4)
    part, longest = Part(wish=Wish(prompt=prompt, limit=MAX_LEN), slot=0), TIMES[-1]
    stepper.prefill(part, time=longest)
    outcome = stepper.decode(ALONE, BLOCK)
    assert (drawn(outcome, 0), int(outcome.ends[0])) == ([0, 0, 0], LENGTH)


def test_a_row_goes_on_after_a_block_that_guessed(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    first, second = stepper.decode(ALONE, 7), stepper.decode(ALL, 7)
    assert drawn(first, 0) + drawn(second, 0) == ANSWER[1:15]
    assert (int(first.ends[0]), int(second.ends[0])) == (RUNNING, RUNNING)


def test_where_guesses_cost_something_only_likely_ones_are_run() -> None:
    choosy = compiled(dataclasses.replace(ENGINE, least_match=LONGEST_MATCH))
    choosy.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    outcome = choosy.decode(ALONE, BLOCK)
    assert drawn(outcome, 0) == ANSWER[1 : 1 + BLOCK]
    until_likely = ANSWER.index(0) + LONGEST_MATCH
    assert int(outcome.drafted[0]) == int(outcome.accepted[0]) == ENGINE.drafts(ALONE)
    assert int(outcome.steps) == until_likely + 2  # one guesses, and one has no room


def test_a_guess_of_one_row_leaves_another_as_it_is() -> None:
    """Of two rows that run together, only one ends as it has ended before."""
    choosy = dataclasses.replace(ENGINE, slots=2, free_tokens=8, least_match=3)
    stepper = compiled(choosy)
    likely, new = (0, 0, 0, 0), (7, 1)
    for slot, prompt in enumerate([likely, new]):
        stepper.prefill(Part(wish=Wish(prompt=prompt), slot=slot))
    outcome = stepper.decode(2, 4)
    for slot, prompt in enumerate([likely, new]):
        assert drawn(outcome, slot) == answer_of([*prompt], 5)[1:]
    assert outcome.drafted[0] == outcome.accepted[0] == 3
    assert outcome.drafted[1] == 0
