"""Products in int8, against numpy's in 64 bits."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserver.core.ops.fp8 import QUANTIZED
from jaxserver.core.ops.int8_product import FEW, in_parts, int8_product
from jaxserver.core.ops.linear import Products, linear, read_rows
from jaxserver.core.ops.one_of import OneOf
from jaxserver.core.ops.quantize import LARGEST, Int8Weight, quantize
from tests.rows import (
    HostArray,
    assert_rows_keep_their_bits,
    jitted,
    run,
    run_in_pieces,
)
from tests.strategies import SEEDS
from tests.tiny import TINY_LLAMA, tiny_model

pytestmark = pytest.mark.usefixtures("strict_jax")


class Size(NamedTuple):
    tokens: int
    inputs: int
    outputs: int


SIZES = [Size(4, 1, 1), Size(5, 40, 7), Size(16, 576, 96), Size(64, 33, 130)]
ALONE = [Size(1, n, 5) for n in (1, 2, 3, 513, 1025, 1536, 1537)]
KINDS = [
    *("normal", "outlier", "zeros", "some zeros", "huge", "tiny", "denormal", "powers"),
    *("equal", "edge"),
]
sizes, kinds = st.sampled_from(SIZES + ALONE), st.sampled_from(KINDS)


def numbers(kind: str, shape: tuple[int, ...], seed: int) -> HostArray:
    """Finite numbers of every kind that float32 has."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(shape)
    values: HostArray = {
        "normal": normal,
        "outlier": np.where(rng.random(shape) < 0.02, 1e4, 1) * normal,
        "zeros": np.zeros(shape),
        "some zeros": np.where(rng.random(shape) < 0.7, 0.0, normal),
        "huge": np.clip(normal, -3, 3) * 1e38,
        "tiny": normal * 1e-30,
        "denormal": normal * 1e-39,
        "powers": np.sign(normal) * np.exp2(rng.integers(-30, 30, shape)),
        "equal": np.full(shape, -0.75),
        "limit": np.full(shape, -127.0),
        "low byte": np.full(shape, 126.5),
        "edge": rng.choice([-127.0, 127.0, 126.99999, 127.00001, 63.5], shape),
    }[kind]
    return values.astype(np.float32)


def on_device(weight: Int8Weight[HostArray]) -> Int8Weight[jax.Array]:
    placed: Int8Weight[jax.Array] = jax.tree.map(jnp.asarray, weight)
    return placed


@given(size=sizes, x_kind=kinds, weight_kind=kinds, seed=SEEDS)
@example(size=SIZES[2], x_kind="outlier", weight_kind="normal", seed=0)
@example(size=ALONE[-1], x_kind="outlier", weight_kind="normal", seed=0)
@example(size=Size(2, 65_535, 2), x_kind="equal", weight_kind="equal", seed=0)
@example(size=Size(2, 65_535, 2), x_kind="low byte", weight_kind="limit", seed=0)
@example(size=Size(17, 65_535, 2), x_kind="low byte", weight_kind="limit", seed=0)
@example(size=Size(1, 65_535, 2), x_kind="limit", weight_kind="equal", seed=0)
def test_the_sums_of_a_product_are_exact(
    size: Size, x_kind: str, weight_kind: str, seed: int
) -> None:
    x = numbers(x_kind, (size.tokens, size.inputs), seed)
    weight = quantize(numbers(weight_kind, (size.outputs, size.inputs), seed + 1), 1)
    found = np.asarray(jitted(int8_product)(x, on_device(weight)))
    np.testing.assert_array_equal(found, of_exact_sums(x, weight))


def of_exact_sums(x: HostArray, weight: Int8Weight[HostArray]) -> HostArray:
    """What comes of the sums, which are integers, if they are exact."""
    parts, step = (np.asarray(part) for part in jitted(in_parts)(x))
    sums = parts.astype(np.int64) @ weight.values.astype(np.int64).T
    whole, rest = ((sums >> 8).astype(np.float32), (sums & 255).astype(np.float32))
    with np.errstate(over="ignore"):
        expected = (whole + rest / np.float32(256)) * weight.scale * step
    small = np.abs(expected) < np.finfo(np.float32).tiny
    flushed: HostArray = np.where(small, 0, expected)
    return flushed


@pytest.mark.parametrize("outputs", [80, 77, 26, 25, 1])
def test_few_tokens_are_multiplied_with_a_large_weight_in_pieces(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with one of several, which is chosen while it runs."""
    most, inputs = 1000, 40
    monkeypatch.setattr("jaxserver.core.ops.int8_product.MOST_COPIED", most)
    x = numbers("outlier", (5, inputs), 0)
    given = [quantize(numbers("normal", (outputs, inputs), n), 1) for n in (1, 2)]
    first, second = map(on_device, given)

    def product(x: jax.Array, weight: Int8Weight[Any]) -> jax.Array:
        return int8_product(x, weight)

    def chosen(x: jax.Array, nth: jax.Array) -> jax.Array:
        one: Any = OneOf((first.values, second.values), nth)
        return int8_product(x, dataclasses.replace(second, values=one))

    expected = of_exact_sums(x, given[1])
    np.testing.assert_array_equal(jax.jit(product)(x, second), expected)
    np.testing.assert_array_equal(jax.jit(chosen)(x, jnp.int32(1)), expected)
    program = jax.jit(product).lower(x, second).as_text()
    copied = max(int(n) for n in re.findall(rf"tensor<(\d+)x{inputs}xui8>", program))
    assert copied * inputs <= most
    assert copied == outputs or outputs > most // inputs


@given(size=sizes, kind=kinds, seed=SEEDS)
def test_16_bits_tell_a_token_to_a_32000th_of_its_largest_number(
    size: Size, kind: str, seed: int
) -> None:
    x = numbers(kind, (size.tokens, size.inputs), seed)
    parts, step = (np.asarray(part) for part in jitted(in_parts)(x))
    assert parts.dtype == np.int16
    told = step * (parts / 256.0)
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny, 0, x)
    rounded = np.rint(flushed.astype(np.float64) / step * 256)
    np.testing.assert_array_equal(parts, rounded)
    largest = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(told - x) <= np.maximum(largest / 32_000, 2.0**-119)).all()
    assert (np.frexp(step)[0] == 0.5).all()
    assert (np.abs(parts / 256.0) <= LARGEST).all()


@given(size=sizes, kind=kinds, seed=SEEDS)
def test_a_weight_is_told_to_half_its_scale(size: Size, kind: str, seed: int) -> None:
    weight = numbers(kind, (size.outputs, 3, size.inputs), seed)
    made = quantize(weight, 2)
    values, scale = made.values, made.scale
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert (values.shape, scale.shape) == (weight.shape, weight.shape[:2])
    assert (np.abs(values.astype(int)) <= LARGEST).all()
    told = values.astype(np.float64) * scale[..., None].astype(np.float64)
    largest = np.abs(weight.astype(np.float64)).max(axis=2, keepdims=True)
    least = 128 * np.finfo(np.float32).tiny
    error = np.maximum(largest / LARGEST * 0.501, least * (largest < least))
    assert (np.abs(told - weight) <= error).all()
    np.testing.assert_array_equal(told, told.astype(np.float32))
    assert not told[np.broadcast_to(largest == 0, told.shape)].any()


@given(size=sizes, kind=kinds, seed=SEEDS)
@example(size=SIZES[2], kind="normal", seed=0)
def test_the_rest_of_a_weight_is_what_rounding_took_from_it(
    size: Size, kind: str, seed: int
) -> None:
    weight = numbers(kind, (size.outputs, size.inputs), seed)
    plain, made = quantize(weight, 1), quantize(weight, 1, keeps_rest=True)
    assert plain.rest is None
    assert made.rest is not None
    for name in ("values", "scale", "sums"):
        np.testing.assert_array_equal(getattr(made, name), getattr(plain, name))
    scale = made.scale[:, None].astype(np.float64)
    told = (made.values + made.rest / 256) * scale
    # A half of a step upwards would be 128 parts of it: 127 are said then.
    error = scale / 256 * np.where(made.rest == 127, 1.01, 0.51)
    assert (np.abs(told - weight) <= np.where(scale > 0, error, np.abs(weight))).all()


@given(
    seed=SEEDS,
    kind=kinds,
    broken=st.sampled_from([np.nan, np.inf, -np.inf]),
    tokens=st.sampled_from([FEW, FEW + 1]),
)
def test_a_token_that_is_not_finite_is_nan_and_its_neighbours_keep_their_bits(
    seed: int, kind: str, broken: float, tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = on_device(quantize(numbers("normal", (96, 576), seed), 1))
    x = numbers(kind, (tokens, 576), seed)
    sound = np.asarray(jitted(int8_product)(x, weight))
    row, column = rng.integers(tokens), rng.integers(576)
    x[row, column] = broken
    found = np.asarray(jitted(int8_product)(x, weight))
    assert np.isnan(found[row]).all()
    assert np.isnan(jitted(int8_product)(x[row : row + 1], weight)).all()
    np.testing.assert_array_equal(np.delete(found, row, 0), np.delete(sound, row, 0))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_output_whose_weights_are_not_finite_is_nan(broken: float) -> None:
    weight = numbers("normal", (3, 2, 40), 0)
    weight[1, 1, 7] = broken
    made = quantize(weight, 2)
    x = jnp.asarray(numbers("normal", (4, 40), 1))
    found = np.asarray(linear(x, on_device(made)))
    assert np.isnan(found[:, 1, 1]).all()
    assert np.isfinite(np.delete(found.reshape(4, 6), 3, 1)).all()
    table = on_device(jax.tree.map(lambda leaf: leaf[:, 1], made))
    rows = np.asarray(read_rows(table, jnp.arange(3)))
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[::2]).all()


@given(seed=SEEDS, has_bias=st.booleans())
def test_a_linear_map_in_int8_is_nearly_that_of_its_weight(
    seed: int, has_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = numbers("normal", (6, 5, 2, 24), seed), rng.standard_normal((6, 5))
    x = numbers("outlier", (5, 2, 24), seed + 1)
    made = quantize(weight, 2)
    told = made.values * made.scale[..., None, None].astype(np.float64)
    expected = np.einsum("tij,abij->tab", x.astype(np.float64), told)
    given_bias = jnp.asarray(bias, jnp.float32) if has_bias else None
    found = np.asarray(linear(jnp.asarray(x), on_device(made), given_bias))
    expected = expected + (bias if has_bias else 0)
    scale = np.abs(x).max(axis=(1, 2))[:, None, None] * np.abs(told).sum((2, 3))
    assert (np.abs(found - expected) <= scale / 32_000 + 1e-5).all()


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_tokens_that_are_not_there_are_left_out(tokens: int) -> None:
    weight = on_device(quantize(numbers("normal", (7, 5, 2, 24), 0), 2))
    x = jnp.asarray(numbers("outlier", (4, 2, 24), 1))
    whole = np.asarray(jax.jit(linear)(x, weight))
    some = jax.jit(lambda x: linear(x, weight, products=Products(tokens=tokens)))(x)
    np.testing.assert_array_equal(some[:tokens], whole[:tokens])
    assert not np.any(some[tokens:])
    assert np.all(np.any(whole[tokens:], axis=(1, 2)))


def test_a_row_has_the_same_bits_among_any_number_of_others() -> None:
    x, table = numbers("outlier", (256, 192), 0), numbers("normal", (256, 192), 4)
    weight = on_device(quantize(numbers("normal", (192, 192), 1), 1))
    rows = on_device(quantize(table, 1))

    assert_rows_keep_their_bits(x, weight, rows)


@pytest.mark.parametrize("kept", QUANTIZED)
def test_a_model_as_wide_as_the_default_one_keeps_its_bits(kept: str) -> None:
    config = dataclasses.replace(
        TINY_LLAMA,
        num_layers=1,
        embed=576,
        mlp=1536,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
    )
    model = tiny_model(config, kept=kept)
    tokens = np.random.default_rng(0).integers(0, 64, 200).astype(np.int32)
    whole = run_in_pieces(model, tokens, [], 256)
    assert np.ptp(whole) > 1
    cache: Any = model.fns.init_cache(1)
    for at in range(0, 192, 32):
        logits, cache = run(model, cache, [tokens[at : at + 32]], [at], 32)
        np.testing.assert_array_equal(logits[0], whole[at : at + 32])
    cache = jax.tree.map(lambda leaf: jnp.tile(leaf, (16, 1, 1, 1, 1, 1)), cache)
    for at in range(192, 196):
        logits, cache = run(model, cache, [tokens[at : at + 1]] * 16, [at] * 16, 1)
        np.testing.assert_array_equal(logits[:, 0], np.tile(whole[at], (16, 1)))


def test_an_output_with_so_many_inputs_that_its_sum_may_be_none_is_refused() -> None:
    weight = Int8Weight(
        values=jax.ShapeDtypeStruct((2, 2**16), jnp.int8),
        scale=jax.ShapeDtypeStruct((2,), jnp.float32),
        sums=jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    x = jax.ShapeDtypeStruct((4, 2**16), jnp.float32)
    with pytest.raises(AssertionError, match="less than '65536'"):
        jax.eval_shape(int8_product, x, weight)


@pytest.mark.parametrize("tokens", [1, 4, FEW + 1])
def test_an_output_of_the_most_inputs_is_exact(tokens: int) -> None:
    inputs = 2**16 - 1
    weight = on_device(quantize(np.full((2, inputs), -LARGEST, np.float32), 1))
    x = jnp.full((tokens, inputs), 127.0, jnp.float32).at[0].set(-127.0)
    found: Any = int8_product(x, weight)
    exact = np.float32(LARGEST * LARGEST * inputs)
    expected = [exact] + [-exact] * (tokens - 1)
    np.testing.assert_array_equal(found[:, 0], expected)
