"""Logits of the likeliest tokens, against numpy's in 64 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserver.core.ops.likeliest import REFINED, largest, refine_likeliest
from jaxserver.core.ops.linear import linear
from jaxserver.core.ops.quantize import Int8Weight, quantize
from tests.rows import HostArray, jitted
from tests.strategies import SEEDS

pytestmark = pytest.mark.usefixtures("strict_jax")
LARGEST = jax.jit(largest, static_argnums=1)


def logits_of(x: jax.Array, head: Int8Weight[jax.Array]) -> jax.Array:
    return refine_likeliest(linear(x, head), x, head)


def a_head(
    vocab: int, embed: int, seed: int, *, keeps_rest: bool = True
) -> tuple[HostArray, Int8Weight[jax.Array]]:
    weight = np.random.default_rng(seed).standard_normal((vocab, embed), np.float32)
    made = quantize(weight, 1, keeps_rest=keeps_rest)
    return weight, jax.tree.map(jnp.asarray, made)


def tokens(num: int, embed: int, seed: int) -> HostArray:
    return np.random.default_rng(seed).standard_normal((num, embed), np.float32)


@given(
    vocab=st.sampled_from([3, 8, 9, 300, 2000]), embed=st.integers(1, 70), seed=SEEDS
)
@example(vocab=300, embed=64, seed=0)
def test_the_likeliest_are_float32s_and_the_others_are_as_they_were(
    vocab: int, embed: int, seed: int
) -> None:
    weight, head = a_head(vocab, embed, seed)
    x = tokens(5, embed, seed + 1)
    coarse, found = (np.asarray(jitted(f)(x, head)) for f in (linear, logits_of))
    ids = np.argsort(-coarse, axis=1, kind="stable")[:, :REFINED]
    is_likeliest = np.zeros(coarse.shape, np.bool_)
    np.put_along_axis(is_likeliest, ids, values=True, axis=1)
    np.testing.assert_array_equal(found[~is_likeliest], coarse[~is_likeliest])
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    # A weight is told to a 65,000th of its row's largest, a token to a 32,000th.
    sizes = np.abs(x).sum(1)[:, None] * np.abs(weight).max(1)[None]
    sizes += np.abs(x).max(1)[:, None] * np.abs(weight).sum(1)[None]
    error = sizes / 30_000 + 1e-5
    assert (np.abs(found - exact) <= error)[is_likeliest].all()


@given(
    entries=st.sampled_from([1, 7, 128, 1024, 1025, 3000]),
    seed=SEEDS,
    scale=st.sampled_from([0.5, 1e3]),
)
@example(entries=3000, seed=0, scale=0.0)
def test_the_largest_are_found_among_any_number_of_equals(
    entries: int, seed: int, scale: float
) -> None:
    x = np.random.default_rng(seed).standard_normal((3, entries)) * scale
    x = x.round().astype(np.float32)
    ids = np.asarray(LARGEST(x, 8))
    found = np.take_along_axis(x, ids, axis=1)
    np.testing.assert_array_equal(found, -np.sort(-x, axis=1)[:, :8])
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_two_tokens_that_one_byte_takes_for_each_other_are_told_apart() -> None:
    weight = np.zeros((40, 64), np.float32)
    weight[:, 0] = 1
    weight[[7, 30], 1] = [0.5001, 0.5002]
    head = jax.tree.map(jnp.asarray, quantize(weight, 1, keeps_rest=True))
    x = np.zeros((4, 64), np.float32)
    x[:, 1] = 1
    coarse, found = (np.asarray(jitted(f)(x, head)) for f in (linear, logits_of))
    assert (coarse[:, 7] == coarse[:, 30]).all()
    assert (found.argmax(axis=1) == 30).all()


def test_a_head_whose_rest_was_not_kept_gives_its_logits_as_they_are() -> None:
    _, head = a_head(50, 32, 0, keeps_rest=False)
    x = tokens(4, 32, 1)
    coarse, found = (np.asarray(jitted(f)(x, head)) for f in (linear, logits_of))
    np.testing.assert_array_equal(found, coarse)


def test_a_token_that_is_no_number_is_none_everywhere_and_alone() -> None:
    _, head = a_head(50, 32, 0)
    x = tokens(4, 32, 1)
    broken = x.copy()
    broken[2, 5] = np.nan
    whole, found = (np.asarray(jitted(logits_of)(each, head)) for each in (x, broken))
    assert np.isnan(found[2]).all()
    others = [0, 1, 3]
    np.testing.assert_array_equal(found[others], whole[others])


def test_a_token_keeps_its_bits_in_any_company() -> None:
    _, head = a_head(300, 576, 3)
    x = tokens(64, 576, 4)
    whole = np.asarray(jitted(logits_of)(x, head))
    for count in (4, 5, 8, 13, 32):
        found = np.asarray(jitted(logits_of)(x[:count], head))
        np.testing.assert_array_equal(found, whole[:count])
