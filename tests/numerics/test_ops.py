"""Each piece of the transformer against the same in plain numpy, in float64."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.adapters.engine.processor import multiplies_bytes
from jaxserver.core.config import ModelConfig, RopeScaling
from jaxserver.core.ops.attention_blocks import (
    MANY,
    ROWS,
    TIME,
    Company,
    attend_blocks,
)
from jaxserver.core.ops.linear import linear, pad_tokens
from jaxserver.core.ops.mlp import MlpParams, gated_mlp
from jaxserver.core.ops.norms import rms_norm
from jaxserver.core.ops.paged import BLOCK, LayerCache
from jaxserver.core.ops.rope import RopeTable, rope_table, rotate
from tests.numerics.transforms import Transform, both_ways
from tests.rows import HostArray
from tests.tiny import TINY_LLAMA

pytestmark = [
    pytest.mark.usefixtures("strict_jax"),
    both_ways,
]
RNG = np.random.default_rng(3)
TOLERANCE = 1e-5


def normal(*shape: int, scale: float = 1.0) -> HostArray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def assert_close(found: Any, expected: HostArray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 9])
def test_rms_norm_divides_by_the_root_of_the_mean_square(
    transform: Transform, tokens: int
) -> None:
    x, weight, eps = normal(tokens, 32, scale=0.1), normal(32), 1e-2
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight
    found = transform(functools.partial(rms_norm, eps=eps))(x, weight)
    assert_close(found, expected)


@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_is_a_product_and_a_bias(transform: Transform, has_bias: bool) -> None:
    x, weight = normal(5, 32), normal(2, 3, 4, 32, scale=0.3)
    bias = normal(2, 3, 4) if has_bias else None
    expected = np.einsum("ti,abci->tabc", x.astype(np.float64), weight)
    found = transform(linear)(x, weight, bias)
    assert_close(found, expected + (0 if bias is None else bias))


def test_linear_refuses_fewer_tokens_than_keep_their_bits(transform: Transform) -> None:
    with pytest.raises(AssertionError, match="greater than or equal to '4'"):
        transform(linear)(normal(3, 8), normal(4, 8), None)


@pytest.mark.parametrize(("tokens", "padded"), [(1, 4), (4, 4), (6, 6)])
def test_padding_appends_zeros(transform: Transform, tokens: int, padded: int) -> None:
    x = normal(tokens, 2, 3)
    found = np.asarray(transform(pad_tokens)(x))
    assert found.shape == (padded, 2, 3)
    np.testing.assert_array_equal(found[:tokens], x)
    assert not found[tokens:].any()


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_mlp_gates_with_silu(transform: Transform, has_bias: bool) -> None:
    x, gate_up, down = normal(4, 16), normal(2, 24, 16), normal(16, 24, scale=0.1)
    gate_up_bias, down_bias = normal(2, 24), normal(16)
    params = MlpParams(
        gate_up=gate_up,
        down=down,
        gate_up_bias=gate_up_bias if has_bias else None,
        down_bias=down_bias if has_bias else None,
    )
    both = np.einsum("te,hfe->htf", x.astype(np.float64), gate_up)
    gate, up = both + (gate_up_bias[:, None] if has_bias else 0)
    expected = (gate / (1 + np.exp(-gate)) * up) @ down.T.astype(np.float64)
    assert_close(transform(gated_mlp)(x, params), expected + has_bias * down_bias)


SCALINGS = {
    "none": None,
    "linear": RopeScaling(kind="linear", factor=4.0),
    "llama3": RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_len=64,
    ),
    "factors": RopeScaling(kind="factors", factors=(1.0, 1.5, 3.0, 9.0)),
}


def rotating(scaling: RopeScaling | None) -> ModelConfig:
    """A configuration with four pairs a head, slow and fast ones."""
    return dataclasses.replace(
        TINY_LLAMA, head_dim=8, rope_theta=50.0, rope_scaling=scaling
    )


def frequency(pair: int, config: ModelConfig) -> float:
    """Angle per position of one pair, by the sentences of Llama 3.1's description."""
    plain = float(config.rope_theta ** (-2 * pair / config.head_dim))
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "factors":
        return plain / scaling.factors[pair]
    wavelength = 2 * np.pi / plain
    if wavelength < scaling.original_max_len / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_max_len / scaling.low_freq_factor:
        return plain / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_len / wavelength - low) / (high - low)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotation_turns_each_pair_by_its_angle(
    transform: Transform, scaling: str
) -> None:
    config = rotating(SCALINGS[scaling])
    x = normal(2, 3, 2, 3, 8)
    positions = np.array([[0, 1, 127], [5, 64, 99]], np.int32)
    expected = np.zeros(x.shape)
    for pair in range(4):
        turn = np.exp(1j * positions * frequency(pair, config))[:, :, None, None]
        turned = (x[..., pair] + 1j * x[..., pair + 4].astype(np.complex128)) * turn
        expected[..., pair], expected[..., pair + 4] = turned.real, turned.imag
    table = rope_table(config, 128)

    def turn_all(x: jax.Array, positions: jax.Array) -> jax.Array:
        return rotate(x, table, positions)

    assert_close(transform(turn_all)(x, positions), expected)


def test_every_scaling_changes_some_frequency_and_llama3_not_all(
    transform: Transform,
) -> None:
    def sines(scaling: RopeScaling | None) -> HostArray:
        table: RopeTable = rope_table(rotating(scaling), 4)
        assert table.cos.dtype == table.sin.dtype == np.float32
        return np.asarray(transform(lambda: jnp.asarray(table.sin))())

    changed = {
        name: np.any(sines(scaling) != sines(None), axis=0)
        for name, scaling in SCALINGS.items()
    }
    assert not changed["none"].any()
    assert changed["linear"].all()
    assert changed["llama3"].any()
    assert not changed["llama3"].all()
    assert changed["factors"].tolist() == [False, True, True, True]


def naive_attention(
    queries: HostArray, keys: HostArray, values: HostArray, positions: HostArray
) -> HostArray:
    """Softmax over all keys up to each query's own position, in float64."""
    out = np.zeros(queries.shape)
    for row, time, head, group in np.ndindex(queries.shape[:4]):
        seen = positions[row, time] + 1
        query = queries[row, time, head, group].astype(np.float64)
        scores = query @ keys[row, head, :, :seen] / np.sqrt(query.shape[0])
        weights = np.exp(scores - scores.max())
        out[row, time, head, group] = weights @ values[row, head, :seen] / weights.sum()
    return out


@pytest.mark.parametrize("page_size", [None, 16, 128, 256])
@pytest.mark.parametrize(("rows", "time"), [(2, 1), (2, 6), (9, 1), (4, 2)])
def test_attention_is_softmax_over_what_came_before(
    transform: Transform, rows: int, time: int, page_size: int | None
) -> None:
    """Nine rows are two groups, and one that goes with three of the second."""
    context = 2 * BLOCK
    queries = normal(rows, time, 2, 3, 8)
    keys, values = normal(rows, 2, 8, context), normal(rows, 2, context, 8)
    start = np.arange(3, 200, 190 // rows, dtype=np.int32)[::-1][:rows, None]
    positions = start + np.arange(time, dtype=np.int32)
    expected = naive_attention(queries, keys, values, positions)
    table = None
    if page_size is not None:
        keys, values, table = cut_up(keys, values, page_size)
    ends = positions.max(1) + 1
    assert len(set((positions.max(1) // BLOCK).tolist())) == 2
    cache = among_layers(keys, values)
    found = transform(attend_blocks)(queries, cache, table, positions, ends)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("dtype", "time", "groups", "head_dim"),
    [("float16", 1, 3, 64), ("float32", 1, 1, 8), ("float16", 3, 1, 80)],
)
def test_a_row_among_many_has_the_bits_that_it_has_among_few(
    transform: Transform, dtype: str, time: int, groups: int, head_dim: int
) -> None:
    """What is written out for many rows is what a library does for few."""
    rows, context = MANY + 1, 3 * BLOCK
    queries = normal(rows, time, 2, groups, head_dim)
    keys = normal(rows, 2, head_dim, context).astype(dtype)
    values = normal(rows, 2, context, head_dim).astype(dtype)
    start = np.linspace(0, context - time, rows, dtype=np.int32)[:, None]
    positions = start + np.arange(time, dtype=np.int32)

    attend_many = functools.partial(attend_blocks, company=Company(many=MANY))

    def given(some: slice) -> tuple[Any, ...]:
        cache = among_layers(keys[some], values[some])
        ends = positions[some].max(1) + 1
        return queries[some], cache, None, positions[some], ends

    def attend(some: slice) -> HostArray:
        return np.asarray(transform(attend_many)(*given(some)))

    found = attend(slice(rows))
    assert_close(found, naive_attention(queries, keys, values, positions))
    assert "dot_general" not in str(jax.make_jaxpr(attend_many)(*given(slice(rows))))
    # Of other processors it is not known, and nothing is written out there.
    is_known = multiplies_bytes()
    for first in (0, ROWS, 2 * ROWS, rows - ROWS) if is_known else ():
        few = slice(first, first + ROWS)
        assert "dot_general" in str(jax.make_jaxpr(attend_many)(*given(few)))
        np.testing.assert_array_equal(found[few], attend(few))


@pytest.mark.parametrize("page_size", [None, 16, 256])
@pytest.mark.parametrize("time", [TIME + 1, 2 * TIME, 3 * TIME - 5])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_long_chunk_is_looked_at_in_parts_to_the_same_bits(
    transform: Transform, rows: int, time: int, page_size: int | None
) -> None:
    """Rows have as many new tokens as there is room for, a few, or none."""
    context = 4 * BLOCK
    queries = normal(rows, time, 2, 3, 8)
    keys, values = normal(rows, 2, 8, context), normal(rows, 2, context, 8)
    start = np.array([90, 0, 200, 7, 301], np.int32)[:rows, None]
    count = np.array([time, time - 3, 2, 0, TIME], np.int32)[:rows]
    positions = start + np.arange(time, dtype=np.int32)
    expected = naive_attention(queries, keys, values, positions)
    table = None
    if page_size is not None:
        keys, values, table = cut_up(keys, values, page_size)
    ends, cache = start[:, 0] + count, among_layers(keys, values)

    def attend(cut: slice) -> HostArray:
        given = (queries[:, cut], cache, table, positions[:, cut], ends)
        return np.asarray(transform(attend_blocks)(*given))

    cuts = (0, 40, min(40 + TIME, time), min(41 + TIME, time), time)
    pieces = [slice(*cut) for cut in itertools.pairwise(sorted(cuts)) if cut[0] < time]
    found = attend(slice(time))
    piecewise = np.concatenate([attend(cut) for cut in pieces], axis=1)
    for row, some in enumerate(count):
        assert_close(found[row, :some], expected[row, :some])
        np.testing.assert_array_equal(found[row, :some], piecewise[row, :some])
    assert np.isfinite(found[count > 0]).all()


def in_blocks(keys: Any, values: Any, block: int = BLOCK) -> tuple[Any, Any]:
    """Keys `[pages heads head_dim page_size]` as they are kept, and values likewise."""
    pages, heads, head_dim, size = keys.shape
    block = min(block, size)
    keys = keys.reshape(pages, heads, head_dim, -1, block)
    values = values.reshape(pages, heads, -1, block, head_dim)
    return keys.transpose(0, 3, 1, 2, 4), values.transpose(0, 2, 1, 3, 4)


def among_layers(keys: Any, values: Any, block: int = BLOCK) -> LayerCache:
    """The same cache as that of a layer between two that are not to be seen."""
    kept = in_blocks(keys, values, block)
    hidden = [jnp.full_like(leaf, jnp.nan) for leaf in kept]
    around_keys, around_values = (
        jnp.stack([nothing, leaf, nothing], axis=1)
        for nothing, leaf in zip(hidden, kept, strict=True)
    )
    return LayerCache(around_keys, around_values, jnp.int32(1))


def cut_up(
    keys: HostArray, values: HostArray, page_size: int
) -> tuple[HostArray, HostArray, HostArray]:
    """The same cache in small pages that lie about in any order."""
    rows, heads, head_dim, context = keys.shape
    per_row = context // page_size
    table = RNG.permutation(rows * per_row).reshape(rows, per_row).astype(np.int32)
    paged_keys = np.zeros((rows * per_row, heads, head_dim, page_size), np.float32)
    paged_values = np.zeros((rows * per_row, heads, page_size, head_dim), np.float32)
    for row, nth in np.ndindex(table.shape):
        span = slice(nth * page_size, (nth + 1) * page_size)
        paged_keys[table[row, nth]] = keys[row, :, :, span]
        paged_values[table[row, nth]] = values[row, :, span]
    return paged_keys, paged_values, table
