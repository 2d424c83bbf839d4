"""Weights in fp8, against numpy's products in 64 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.core.ops.fp8 import FP8, LARGEST, Fp8Weight, quantize_to_fp8
from jaxserver.core.ops.linear import linear, read_rows
from jaxserver.core.ops.quantize import quantize
from tests.numerics.test_quantize import Size, kinds, numbers, sizes
from tests.rows import HostArray, assert_rows_keep_their_bits
from tests.strategies import SEEDS

pytestmark = pytest.mark.usefixtures("strict_jax")
FINEST = 2.0**-10
"""Half of the least number that fp8 has."""


def on_device(weight: Fp8Weight[HostArray]) -> Fp8Weight[jax.Array]:
    placed: Fp8Weight[jax.Array] = jax.tree.map(jnp.asarray, weight)
    return placed


def told(weight: Fp8Weight[HostArray]) -> HostArray:
    inner = tuple(range(weight.scale.ndim, weight.values.ndim))
    scale: HostArray = np.expand_dims(weight.scale.astype(np.float64), inner)
    return weight.values.astype(np.float64) * scale


@given(size=sizes, kind=kinds, seed=SEEDS)
def test_a_weight_is_told_to_a_16th_of_itself_or_a_bit_of_the_largest(
    size: Size, kind: str, seed: int
) -> None:
    weight = numbers(kind, (size.outputs, 3, size.inputs), seed)
    made = quantize_to_fp8(weight, 2)
    assert (made.values.dtype, made.scale.dtype) == (FP8, np.float32)
    assert (made.values.shape, made.scale.shape) == (weight.shape, weight.shape[:2])
    assert (np.abs(made.values.astype(np.float32)) <= LARGEST).all()
    assert np.isin(np.frexp(made.scale)[0], [0, 0.5]).all()
    largest = np.abs(weight.astype(np.float64)).max(axis=2, keepdims=True)
    least = LARGEST * float(np.finfo(np.float32).tiny)
    finest = FINEST * made.scale[..., None] + least * (largest < least)
    error = np.abs(told(made) - weight)
    assert (error <= np.maximum(np.abs(weight) / 16, finest)).all()


@given(seed=SEEDS, has_bias=st.booleans())
def test_a_linear_map_in_fp8_is_that_of_what_its_weight_tells(
    seed: int, has_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    made = quantize_to_fp8(numbers("normal", (6, 5, 2, 24), seed), 2)
    x, bias = numbers("normal", (5, 2, 24), seed + 1), rng.standard_normal((6, 5))
    expected = np.einsum("tij,abij->tab", x.astype(np.float64), told(made))
    given_bias = jnp.asarray(bias, jnp.float32) if has_bias else None
    found = linear(jnp.asarray(x), on_device(made), given_bias)
    expected = expected + (bias if has_bias else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_output_whose_weights_are_not_finite_is_nan(broken: float) -> None:
    weight = numbers("normal", (3, 40), 0)
    weight[1, 7] = broken
    made = on_device(quantize_to_fp8(weight, 1))
    x = jnp.asarray(numbers("normal", (4, 40), 1))
    for found in (linear(x, made).T, read_rows(made, jnp.arange(3))):
        assert not np.isfinite(np.asarray(found)[1]).any()
        assert np.isfinite(np.asarray(found)[::2]).all()


def test_a_row_has_the_same_bits_among_any_number_of_others() -> None:
    x = jnp.asarray(numbers("outlier", (256, 192), 0))
    weight = on_device(quantize_to_fp8(numbers("normal", (192, 192), 1), 1))
    rows = on_device(quantize_to_fp8(numbers("normal", (256, 192), 4), 1))

    assert_rows_keep_their_bits(x, weight, rows)


@pytest.mark.parametrize("kept", ["bfloat16", "int8", FP8])
def test_in_16_bits_a_weight_is_multiplied_as_it_is_and_summed_in_float32(
    kept: str,
) -> None:
    """Both factors have few bits, so that their products are exact."""
    weight = numbers("normal", (24, 40), 2)
    made: Any = jnp.asarray(weight, jnp.bfloat16)
    expected = np.asarray(made, np.float64)
    if kept != "bfloat16":
        make: Any = {"int8": quantize, FP8: quantize_to_fp8}[kept]
        made = jax.tree.map(jnp.asarray, make(weight, 1))
        expected = told(jax.tree.map(np.asarray, made))
    x = jnp.asarray(numbers("normal", (5, 40), 3), jnp.bfloat16)
    found = linear(x, made)
    assert found.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ expected.T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
