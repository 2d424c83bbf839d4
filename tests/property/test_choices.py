"""A row's choice: its adjustments, its random number, its report, and nobody else's."""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.core import sampling
from jaxserver.core.logits import adjust
from jaxserver.core.sampling import Choice
from jaxserver.core.sampling_arrays import History, SamplingArrays, sampling_row
from jaxserver.ports.types import MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams
from tests.property.plain_sampling import adjusted, best_first, keep, log_softmax
from tests.rows import jitted
from tests.strategies import SEEDS, HostArray, logits, logits_of, sampling_params

pytestmark = pytest.mark.usefixtures("strict_jax")

VOCAB, MAX_LEN = 200, 24
LENGTHS = st.tuples(st.integers(1, 11), st.integers(0, 11))
"""Tokens of the prompt, and of the answer."""
ALL_SEEDS = st.integers(0, MAX_SEED)


def history_of(seed: int, lengths: tuple[int, int]) -> Any:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, MAX_LEN, np.int32)
    prompt, answer = lengths
    return history_with(tokens, prompt, prompt + answer)


def history_with(tokens: Any, prompt_length: int, length: int) -> Any:
    lengths: Any = np.int32(prompt_length), np.int32(length)
    return History(tokens, *lengths)


def halves(history: Any) -> tuple[HostArray, HostArray]:
    prompt, length = int(history.prompt_length), int(history.length)
    return history.tokens[:prompt], history.tokens[prompt:length]


def choose(x: HostArray, wishes: SamplingArrays, history: Any) -> Choice:
    """One row alone, as host arrays."""
    together = choose_together([(x, wishes, history)])
    choice: Choice = jax.tree.map(lambda leaf: leaf[0], together)
    return choice


def choose_together(
    rows: Sequence[tuple[HostArray, SamplingArrays, Any]],
    wanted: Sequence[bool] | None = None,
) -> Choice:
    xs, wishes, histories = (
        jax.tree.map(lambda *leaves: np.stack(leaves), *column)
        for column in zip(*rows, strict=True)
    )
    flags = np.array(wanted or [True] * len(rows))
    found = jitted(sampling.choose_rows)(xs, wishes, histories, flags)
    choice: Choice = jax.tree.map(np.asarray, found)
    return choice


@given(
    x=logits(VOCAB),
    params=sampling_params(VOCAB),
    seed=SEEDS,
    lengths=LENGTHS,
)
def test_bias_and_penalties_are_the_plain_ones(
    x: HostArray, params: SamplingParams, seed: int, lengths: tuple[int, int]
) -> None:
    history = history_of(seed, lengths)
    found = jitted(adjust)(x, sampling_row(params, 0), history)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = adjusted(x, params, *halves(history)).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_bias_is_added_before_the_penalties() -> None:
    x = np.full(VOCAB, -3.0, np.float32)
    history = history_of(0, (3, 4))
    token = int(history.tokens[4])
    params = SamplingParams(
        logit_bias={token: 5.0}, repetition_penalty=2.0, presence_penalty=0.25
    )
    found = jitted(adjust)(x, sampling_row(params, 0), history)
    assert float(found[token]) == (-3 + 5) / 2 - 0.25


def test_the_prompt_counts_for_repetition_alone() -> None:
    x = np.full(VOCAB, 3.0, np.float32)
    history = history_with(np.array([7, 7, 9, 9, 9, 0], np.int32), 2, 5)
    params = SamplingParams(
        repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25
    )
    found = jitted(adjust)(x, sampling_row(params, 0), history)
    assert [float(found[token]) for token in (7, 9, 0)] == [2.0, 2 - 0.5 - 0.75, 3.0]


@pytest.mark.parametrize(
    "wishes",
    [
        {"greedy": True, "temperature": 2.0},
        {"temperature": 0.0},
        {"temperature": None},
        {"temperature": 1e-40},
        {"temperature": 5.0, "top_k": 1},
    ],
)
@given(x=logits(VOCAB), seed=ALL_SEEDS, bias=st.integers(0, VOCAB - 1))
def test_greedy_is_the_best_and_the_lowest_id_on_ties(
    wishes: dict[str, Any], x: HostArray, seed: int, bias: int
) -> None:
    params = SamplingParams(**wishes, logit_bias={bias: 1.5})
    choice = choose(x, sampling_row(params, seed), history_of(0, (1, 0)))
    raised = x.copy()
    raised[bias] += np.float32(1.5)
    assert choice.token == raised.argmax()


@given(
    x=logits(VOCAB),
    params=sampling_params(VOCAB),
    seed=ALL_SEEDS,
    lengths=LENGTHS,
)
def test_what_is_chosen_is_always_among_what_is_kept(
    x: HostArray, params: SamplingParams, seed: int, lengths: tuple[int, int]
) -> None:
    history = history_of(0, lengths)
    choice = choose(x, sampling_row(params, seed), history)
    if params.greedy or params.temperature == 0 or params.top_k == 1:
        return
    changed = np.asarray(jitted(adjust)(x, sampling_row(params, seed), history))
    assert int(choice.token) in keep(changed, params, 1e-5)


@given(
    x=logits(VOCAB),
    params=sampling_params(VOCAB),
    seed=ALL_SEEDS,
    lengths=LENGTHS,
    company=st.lists(sampling_params(VOCAB), min_size=7, max_size=7),
    place=st.integers(0, 7),
    others=SEEDS,
)
def test_a_rows_choice_is_the_same_in_any_row_and_company(
    x: HostArray,
    params: SamplingParams,
    seed: int,
    lengths: tuple[int, int],
    company: list[SamplingParams],
    place: int,
    others: int,
) -> None:
    row = (x, sampling_row(params, seed), history_of(seed % 2**32, lengths))
    rows = [
        (
            logits_of("normal", VOCAB, others + i),
            sampling_row(wishes, others + i),
            history_of(others + i, (1 + i, 2)),
        )
        for i, wishes in enumerate(company)
    ]
    rows.insert(place, row)
    together = choose_together(rows)
    alone = choose(*row)
    mine: Any = jax.tree.map(lambda leaf: leaf[place], together)
    chex.assert_trees_all_equal(mine, alone)
    four: Any = choose_together([row] * 4)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[3], four), alone)


def test_wishes_of_further_rows_count_for_nothing() -> None:
    xs = np.stack([logits_of("normal", VOCAB, nth) for nth in range(2)])
    params = (SamplingParams(temperature=1.0), SamplingParams(greedy=True))
    rows = [sampling_row(params[nth % 2], nth) for nth in range(4)]
    wishes = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    held = [history_of(nth, (2, 2)) for nth in range(2)]
    histories = jax.tree.map(lambda *leaves: np.stack(leaves), *held)
    wanted, choose_rows = np.ones(2, np.bool_), jitted(sampling.choose_rows)
    some = jax.tree.map(lambda leaf: leaf[:2], wishes)
    found, expected = (choose_rows(xs, w, histories, wanted) for w in (wishes, some))
    chex.assert_trees_all_equal(found, expected)


def test_a_row_that_is_not_wanted_costs_and_says_nothing() -> None:
    x, history = logits_of("normal", VOCAB, 0), history_of(0, (2, 2))
    wishes = sampling_row(SamplingParams(temperature=1.0, logprobs=3), 5)
    broken = np.full(VOCAB, np.nan, np.float32)
    rows = [(broken, wishes, history), (x, wishes, history)]
    choice = choose_together(rows, wanted=[False, True])
    nothing: Any = sampling.no_choice(VOCAB)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[0], choice), nothing)
    assert choice.logprob[1] != 0


def number(seed: int, position: int, choice: int = 0) -> float:
    wishes = sampling_row(SamplingParams(), seed, choice)
    return float(jitted(sampling.uniform)(wishes, np.int32(position)))


@given(seed=SEEDS, choice=st.integers(0, 99), position=st.integers(0, 2**31 - 1))
def test_the_number_is_jaxs_own_for_the_seed_the_choice_and_the_position(
    seed: int, choice: int, position: int
) -> None:
    key = jax.random.key(np.uint32(seed), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, choice), position)
    expected = float(jax.random.uniform(key, (), jnp.float32))
    assert number(seed, position, choice) == expected


def test_seeds_of_more_than_32_bits_are_seeds_of_their_own() -> None:
    seeds = [3, 2**32 + 3, 2**33 + 3, 2**63 + 3, MAX_SEED, MAX_SEED - 2**32]
    assert len({number(seed, 10) for seed in seeds}) == len(seeds)


def test_choices_and_positions_have_numbers_of_their_own() -> None:
    numbers = {number(1, at, choice) for at in range(8) for choice in range(8)}
    assert len(numbers) == 64


@given(x=logits(VOCAB), params=sampling_params(VOCAB), lengths=LENGTHS)
def test_logprobs_are_those_of_the_models_own_logits(
    x: HostArray, params: SamplingParams, lengths: tuple[int, int]
) -> None:
    choice = choose(x, sampling_row(params, 9), history_of(1, lengths))
    if params.logprobs is None:
        assert not np.any([choice.logprob, *choice.top_ids, *choice.top_logprobs])
        return
    with np.errstate(over="ignore"):
        expected = log_softmax(x).astype(np.float32)
    best = best_first(x)[:MAX_TOP_LOGPROBS]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(choice.logprob, expected[choice.token])
    np.testing.assert_array_equal(choice.top_ids, best)
    close(choice.top_logprobs, expected[best])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@given(at=st.integers(0, VOCAB - 1), params=sampling_params(VOCAB))
def test_logits_that_are_no_numbers_are_told(
    broken: float, at: int, params: SamplingParams
) -> None:
    x, history = logits_of("normal", VOCAB, 1), history_of(0, (1, 1))
    assert choose(x, sampling_row(params, 0), history).is_sound
    x[at] = broken
    assert not choose(x, sampling_row(params, 0), history).is_sound
    everywhere = np.full(VOCAB, broken, np.float32)
    assert not choose(everywhere, sampling_row(params, 0), history).is_sound
