"""Which tokens can be drawn, against plain sorting; and how often they are."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.core import sampling
from jaxserver.core.sampling_arrays import SamplingArrays, sampling_row
from jaxserver.ports.types import SamplingParams
from tests.property.plain_sampling import best_first, keep, scaled
from tests.strategies import HostArray, draws, logits, logits_of

pytestmark = pytest.mark.usefixtures("strict_jax")

VOCABS = [40, 200]
"""Fewer tokens than `CANDIDATES`, and more."""
LAST = float(np.nextafter(np.float32(1), np.float32(0)))
NUMBERS = np.append((np.arange(254) + 0.5) / 254, [0.0, LAST]).astype(np.float32)
MARGIN = 1e-5
"""How far rounding may move a bound."""

Path = Callable[[HostArray, SamplingParams, HostArray], HostArray]


@functools.cache
def _jitted(function: Callable[..., Any], *axes: int | None) -> Any:
    return jax.jit(jax.vmap(function, in_axes=axes))


def as_served(logits: HostArray, params: SamplingParams, numbers: HostArray) -> Any:
    """Among the candidates where they suffice, else among all."""
    run = _jitted(sampling.draw, None, None, 0)
    return np.asarray(run(logits, sampling_row(params, 0), numbers))


def among_all(logits: HostArray, params: SamplingParams, numbers: HostArray) -> Any:
    """The exact search, whether it is needed or not."""
    run = _jitted(_draw_among_all, None, None, 0)
    return np.asarray(run(logits, sampling_row(params, 0), numbers))


def _draw_among_all(
    logits: jax.Array, wishes: SamplingArrays, number: jax.Array
) -> jax.Array:
    below = (logits - jnp.max(logits)) / wishes.temperature
    vocab = logits.shape[0]
    top_k = jnp.where(wishes.top_k == 0, vocab, jnp.minimum(wishes.top_k, vocab))
    return sampling.draw_among_all(below, wishes, top_k, number)


both_paths = pytest.mark.parametrize("path", [as_served, among_all])
both_vocabs = pytest.mark.parametrize("vocab", VOCABS)


@both_paths
@both_vocabs
@given(data=st.data())
def test_no_token_is_drawn_that_the_steps_drop(
    path: Path, vocab: int, data: st.DataObject
) -> None:
    x, params = data.draw(logits(vocab)), data.draw(draws(vocab))
    drawn = {*path(x, params, NUMBERS).tolist()}
    assert drawn <= keep(x, params, MARGIN).keys()


@both_paths
@both_vocabs
@given(data=st.data())
def test_every_token_that_the_steps_keep_is_drawn_for_its_share_of_the_numbers(
    path: Path, vocab: int, data: st.DataObject
) -> None:
    x, params = data.draw(logits(vocab)), data.draw(draws(vocab))
    sure, possible = keep(x, params, -MARGIN), keep(x, params, MARGIN)
    if sure.keys() != possible.keys():
        return
    is_sorted = path is as_served and is_decided_among_candidates(x, params)
    order = (
        best_first(scaled(x, params.temperature or 1.0)) if is_sorted else range(vocab)
    )
    tokens = np.array([token for token in order if token in sure])
    probs = np.array([sure[token] for token in tokens.tolist()])
    middle = np.cumsum(probs) - probs / 2
    likely = np.flatnonzero(probs > 1e-4)[: len(NUMBERS)]
    numbers = NUMBERS.copy()
    numbers[: len(likely)] = middle[likely]
    found = path(x, params, numbers)[: len(likely)]
    np.testing.assert_array_equal(found, tokens[likely])


def is_decided_among_candidates(x: HostArray, params: SamplingParams) -> bool:
    """Whether the likeliest `CANDIDATES` surely hold all that is kept."""
    vocab, few = len(x), sampling.CANDIDATES
    top_k = min(params.top_k or vocab, vocab)
    if top_k <= few or vocab <= few:
        return True
    last_candidate = best_first(scaled(x, params.temperature or 1.0))[few - 1]
    return top_k == vocab and int(last_candidate) not in keep(x, params)


def drawn(x: list[float], **wishes: Any) -> set[int]:
    """All that can be drawn, by both paths."""
    params = SamplingParams(**{"temperature": 1.0, **wishes})
    padded = np.full(40, -np.inf, np.float32)
    padded[: len(x)] = x
    served, searched = (
        {*path(padded, params, NUMBERS).tolist()} for path in (as_served, among_all)
    )
    assert served == searched
    return served


def test_top_p_keeps_every_token_that_ties_with_the_last() -> None:
    assert drawn([1, 1, 1, 0], top_p=0.25) == {0, 1, 2}
    assert drawn([0, 2, 1, 1], top_p=0.6) == {1, 2, 3}


def test_top_k_keeps_exactly_k_the_lowest_ids_on_ties() -> None:
    assert drawn([0, 1, 1, 1], top_k=2) == {1, 2}
    assert drawn([1, 1, 1, 1, 1], top_k=3) == {0, 1, 2}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    assert drawn(np.log([0.5, 0.25, 0.2, 0.05]).tolist(), min_p=0.3) == {0, 1, 2}
    assert drawn([3, 3, 2], min_p=1.0) == {0, 1}


def test_top_p_counts_in_what_top_k_left() -> None:
    probs = np.log([0.4, 0.3, 0.2, 0.1]).tolist()
    assert drawn(probs, top_p=0.5) == {0, 1}
    assert drawn(probs, top_p=0.5, top_k=2) == {0}


def test_the_temperature_comes_before_the_cuts() -> None:
    probs = np.log([0.6, 0.3, 0.1]).tolist()
    assert drawn(probs, top_p=0.55) == {0}
    assert drawn(probs, top_p=0.55, temperature=10.0) == {0, 1}
    assert drawn(probs, min_p=0.4) == {0, 1}
    assert drawn(probs, min_p=0.4, temperature=0.5) == {0}


@pytest.mark.parametrize("top_p", [0.0, 1e-30])
def test_a_top_p_of_nothing_keeps_the_best_even_in_a_crowd(top_p: float) -> None:
    crowd = np.where(np.arange(200) < 90, -5, 7).astype(np.float32)
    params = SamplingParams(temperature=1.0, top_p=top_p)
    assert {*as_served(crowd, params, NUMBERS).tolist()} <= {*range(90, 200)}


@pytest.mark.parametrize("kind", ["flat", "tiny"])
def test_a_flat_distribution_is_drawn_from_all_over(kind: str) -> None:
    x = logits_of(kind, 200, 0)
    numbers = (np.arange(256, dtype=np.float32) + 0.5) / 256
    found = as_served(x, SamplingParams(temperature=1.0, top_p=0.99), numbers)
    assert len({*found.tolist()}) > 150


CRITICAL = 40.52
"""Exceeded once in a million times by a chi-square variable of 7 degrees of freedom."""


@both_paths
def test_tokens_are_drawn_as_often_as_their_probabilities_say(path: Path) -> None:
    params = SamplingParams(temperature=0.75, top_k=8, min_p=0.01)
    x = np.full(40, -np.inf, np.float32)
    x[::5] = np.linspace(-1.5, 1, 8)
    rows = 256
    positions = np.arange(rows, dtype=np.int32)
    counts: dict[int, int] = dict.fromkeys(range(40), 0)
    for seed in range(32):
        uniform = _jitted(sampling.uniform, None, 0)
        numbers = np.asarray(uniform(sampling_row(params, seed), positions))
        for token in path(x, params, numbers).tolist():
            counts[token] += 1
    expected = {token: p * 32 * rows for token, p in keep(x, params).items()}
    assert len(expected) == 8
    distance = sum((counts[t] - want) ** 2 / want for t, want in expected.items())
    assert sum(counts[token] for token in expected) == 32 * rows
    assert distance < CRITICAL
