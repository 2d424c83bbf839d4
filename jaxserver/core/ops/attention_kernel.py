"""Attention of a decode step, as a kernel for GPUs that walks the page table."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from jaxserver.core.ops.paged import LayerCache, PageTable

Ref: TypeAlias = Any  # Of Pallas, which has no type for it.

SPAN = 512
"""Positions of a row that one program looks at, whatever rows there are."""
BLOCK = 64
"""Most of them that it looks at together, which are on one page."""
LEAST_QUERIES = 16
"""A tensor core multiplies no fewer rows."""
NEVER = -1e30
"""Score of a position that is not seen, as in `attention_blocks`."""


def attend_pages(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
    *,
    is_interpreted: bool = False,
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Flash decoding (Dao, Haziza, Massa and Sizov 2023) over pages.

    A program takes one span of one row's positions for all queries that share a
    key-value head, and reads of it only what the row holds; the spans' softmaxes are
    then put together. Spans begin where they do whatever is beside the row.

    Args:
        queries: As for `attention.Attend`; few a row, of a size that is a power of 2.
        cache: In the order of `BY_TOKEN`.
        table: As for `attention.Attend`.
        positions: As for `attention.Attend`.
        ends: As for `attention.Attend`.
        is_interpreted: It is run by JAX's interpreter, where there is no GPU.
    """
    rows, time, kv_heads, groups, head_dim = queries.shape
    if table is None:
        table = jnp.arange(rows, dtype=jnp.int32)[:, None]
    num_spans = pl.cdiv(table.shape[1] * cache.keys.shape[1], SPAN)
    num_queries = max(LEAST_QUERIES, pl.next_power_of_2(time * groups))
    spare = num_queries - time * groups
    by_head = queries.transpose(0, 2, 1, 3, 4).reshape(rows, kv_heads, -1, head_dim)
    by_head = jnp.pad(by_head, ((0, 0), (0, 0), (0, spare), (0, 0)))
    seen_up_to = jnp.pad(jnp.repeat(positions, groups, axis=1), ((0, 0), (0, spare)))

    sizes = (rows, kv_heads, num_spans, num_queries)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    a_head = pl.BlockSpec(
        (None, None, *by_head.shape[2:]), lambda s, k, n: (s, k, 0, 0)
    )
    a_row = pl.BlockSpec((None, num_queries), lambda s, k, n: (s, 0))
    a_span = pl.BlockSpec((None, None, None, num_queries), lambda *at: (*at, 0))
    a_sum = pl.BlockSpec(
        (None, None, None, num_queries, head_dim), lambda *at: (*at, 0, 0)
    )
    a_number = jax.ShapeDtypeStruct(sizes, jnp.float32)
    best, mass, out = pl.pallas_call(
        _attend_span,
        grid=sizes[:3],
        in_specs=[a_head, (a_row, anywhere, anywhere), (anywhere, anywhere)],
        out_specs=[a_span, a_span, a_sum],
        out_shape=[
            a_number,
            a_number,
            jax.ShapeDtypeStruct((*sizes, head_dim), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=is_interpreted,
    )(by_head, (seen_up_to, table, ends), (cache.keys, cache.values))
    whole = _joined(best, mass, out)
    by_group = whole[:, :, : time * groups].reshape(rows, kv_heads, time, groups, -1)
    return by_group.transpose(0, 2, 1, 3, 4).astype(queries.dtype)


def _joined(
    best: Float[Array, "rows kv_heads spans queries"],
    mass: Float[Array, "rows kv_heads spans queries"],
    out: Float[Array, "rows kv_heads spans queries head_dim"],
) -> Float[Array, "rows kv_heads queries head_dim"]:
    """One softmax of those of the spans."""
    share = jnp.exp(best - jnp.max(best, axis=2, keepdims=True))
    # Of a row that holds anything it is at least 1; others hold no number to divide.
    whole_mass = jnp.maximum(jnp.sum(mass * share, axis=2), 1.0)
    return jnp.sum(out * share[..., None], axis=2) / whole_mass[..., None]


def _attend_span(
    queries: Ref,
    where: tuple[Ref, Ref, Ref],
    cache: tuple[Ref, Ref],
    best_out: Ref,
    mass_out: Ref,
    sum_out: Ref,
) -> None:
    """One program: the largest score of each query, the mass over it, the sum."""
    (seen_up_to, table, ends), (keys, values) = where, cache
    row, head, span = (pl.program_id(axis) for axis in range(3))
    num_queries, head_dim = queries.shape
    page_size = keys.shape[1]
    block = min(BLOCK, page_size)
    mine, seen = queries[...], seen_up_to[...][:, None]
    held = jnp.clip(ends[row] - span * SPAN, 0, SPAN)

    def add_block(
        nth: Int[Array, ""], carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        best, mass, out = carry
        first = span * SPAN + nth * block
        page = table[row, first // page_size]
        there = pl.ds(first % page_size, block)
        scores = _dot(mine, keys[page, there, head, :], 1) * head_dim**-0.5
        at = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(at <= seen, scores, NEVER)
        new_best = jnp.maximum(best, jnp.max(scores, axis=1))
        kept = jnp.exp(best - new_best)
        weights = jnp.exp(scores - new_best[:, None])
        new_mass = mass * kept + jnp.sum(weights, axis=1)
        added = _dot(weights.astype(mine.dtype), values[page, there, head, :], 0)
        return new_best, new_mass, out * kept[:, None] + added

    nothing = (
        jnp.full(num_queries, NEVER, jnp.float32),
        jnp.zeros(num_queries, jnp.float32),
        jnp.zeros((num_queries, head_dim), jnp.float32),
    )
    num_blocks = (held + block - 1) // block
    found = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
    best_out[...], mass_out[...], sum_out[...] = found


def _dot(
    x: Float[Array, "queries in"], other: Float[Array, "_ _"], contract: int
) -> Float[Array, "queries out"]:
    product: Array = jax.lax.dot_general(
        x,
        other.astype(x.dtype),
        (((1,), (contract,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product
