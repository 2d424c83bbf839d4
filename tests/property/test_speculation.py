"""Whoever guesses, and however well, an answer is bitwise what it is without."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.speculative import Pair, with_draft_model
from jaxserver.core.steps import Outcome
from jaxserver.ports.types import MAX_SEED, SamplingParams
from tests.stepping import Part, Stepper, Wish
from tests.tiny import tiny_model

MAX_LEN = 128
PLAIN = EngineConfig(slots=1, max_len=MAX_LEN, max_stream_tokens=8, speculates=False)
GUESSING = EngineConfig(slots=1, max_len=MAX_LEN, max_stream_tokens=8)
CHOOSY = dataclasses.replace(GUESSING, least_match=3)
SAMPLINGS = [
    SamplingParams(greedy=True, logprobs=20),
    SamplingParams(temperature=0.25, top_k=3, logprobs=20),
    SamplingParams(temperature=1.0, repetition_penalty=1.25, logprobs=0),
    SamplingParams(greedy=True, frequency_penalty=0.5, presence_penalty=0.5),
]


@functools.cache
def stepper_of(kept: str, draft_seed: int | None, engine: EngineConfig) -> Stepper:
    fns, params, mesh = tiny_model(max_len=MAX_LEN, kept=kept)
    pair = params
    if draft_seed is not None:
        draft = tiny_model(max_len=MAX_LEN, kept=kept, seed=draft_seed)
        fns, pair = with_draft_model(fns, draft.fns), Pair(params, draft.params)
    return Stepper(build_steps(fns, pair, engine, mesh), pair, engine)


class Answer(NamedTuple):
    tokens: list[float]
    said: list[list[float]]
    drafted: int
    accepted: int


def answered(stepper: Stepper, wish: Wish, blocks: list[int]) -> Answer:
    stepper.clear()
    longest = stepper.engine.prefill_lengths[-1]
    outcomes = [stepper.prefill(Part(wish=wish, slot=0), time=longest)]
    outcomes += [stepper.decode(1, num_tokens) for num_tokens in blocks]

    def counted(name: str) -> int:
        return sum(int(np.sum(getattr(outcome, name))) for outcome in outcomes)

    return Answer(
        [token for outcome in outcomes for token in _first(outcome, "tokens")],
        [_first(outcome, "logprobs") for outcome in outcomes],
        counted("drafted"),
        counted("accepted"),
    )


def _first(outcome: Outcome, name: str) -> list[float]:
    values: list[float] = getattr(outcome, name)[0, : outcome.counts[0]].tolist()
    return values


@pytest.mark.parametrize(
    ("draft_seed", "engine"),
    [(None, GUESSING), (None, CHOOSY), (0, GUESSING), (1, GUESSING)],
    ids=["ngram", "a long ngram", "a draft like the model", "another"],
)
@given(
    kept=st.sampled_from(["float32", "int8"]),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=100),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, MAX_SEED),
    limit=st.integers(2, MAX_LEN),
    blocks=st.lists(st.integers(1, 8), min_size=4, max_size=4),
)
def test_guesses_change_no_bit_of_an_answer(
    draft_seed: int | None,
    engine: EngineConfig,
    kept: str,
    prompt: list[int],
    sampling: SamplingParams,
    seed: int,
    limit: int,
    blocks: list[int],
) -> None:
    limit = min(MAX_LEN, len(prompt) + limit)
    wish = Wish(prompt=tuple(prompt), limit=limit, sampling=sampling, seed=seed)
    plain = answered(stepper_of(kept, None, PLAIN), wish, blocks)
    guessed = answered(stepper_of(kept, draft_seed, engine), wish, blocks)
    assert guessed.tokens == plain.tokens
    assert guessed.said == plain.said
    assert plain.drafted == 0
    assert guessed.accepted <= guessed.drafted


def test_a_draft_that_is_the_model_guesses_all_of_a_greedy_answer() -> None:
    stepper = stepper_of("float32", 0, GUESSING)
    found = answered(stepper, Wish(prompt=(1, 2, 3), limit=MAX_LEN), [8, 8])
    assert found.drafted == found.accepted == 12
