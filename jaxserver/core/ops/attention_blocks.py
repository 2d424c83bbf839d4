"""Attention in a form whose bits do not depend on company (CPU)."""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxserver.core.ops.paged import BLOCK, LayerCache, PageTable, read_block
from jaxserver.core.ops.sums import sum_last

MIN_QUERIES = 4
"""With fewer queries of a head, products take another path (CPU)."""
VALUE_WIDTH = 64
"""Heads are padded to a multiple of it, for the same reason."""
ROWS = 4
"""Rows that are looked at together: one alone is too little work at a time.

Fewer take another path up to `MIN_QUERIES` positions of all query heads (CPU).
"""
TIME = 68
"""Most new positions of a row that are looked at together.

The earlier ones of a long chunk see fewer blocks than the later ones; with fewer of
them at a time, products would take longer.
"""
NEVER = -1e30
"""Score of a position that is not seen: a masked block then adds exactly nothing."""


def attend_blocks(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
    together: int | None = ROWS,
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Causal softmax attention, block by block (Milakov and Gimelshein 2018).

    Each query sees the positions up to its own. A few rows, and a part of their new
    positions, go together, through as many blocks from the first on as the longest of
    them needs: what a row costs does not depend on rows far from it, and its bits
    depend on none.

    Args:
        queries: Of the new tokens, whose keys and values are in the cache already.
        cache: In the order of `BY_BLOCK`.
        table: Pages of each row, or None.
        positions: Of the queries, one after the other.
        ends: How many positions each row has to look at.
        together: How many rows go together; None for all, wherever they lie: a device
            may have few of them, which are padded as few are.
    """
    rows, time, _, groups, _ = queries.shape
    is_enough = together is not None and together <= rows
    least = MIN_QUERIES * (1 if is_enough else groups)
    few = (min(together or rows, rows), -(-time // -(-time // TIME)))
    firsts = [
        _firsts(length, some) for length, some in zip((rows, time), few, strict=True)
    ]
    each = list(itertools.product(*firsts))

    def in_groups(leaf: Array) -> Array:
        return jnp.stack([leaf[r : r + few[0], t : t + few[1]] for r, t in each])

    def of_rows(leaf: Array) -> Array:
        return jnp.stack([leaf[r : r + few[0]] for r, _ in each])

    def attend_group(group: tuple[Array, Array, Array, Array, PageTable]) -> Array:
        queries, positions, ends, first, table = group
        is_new = positions[:, 0] < ends
        seen = jnp.minimum(ends, jnp.where(is_new, positions[:, -1] + 1, 1))
        most = (jnp.max(seen) + BLOCK - 1) // BLOCK
        return _attend_rows(queries, cache, (first, table), positions, (most, least))

    by_group = jax.lax.map(
        attend_group,
        (
            in_groups(queries),
            in_groups(positions),
            of_rows(ends),
            jnp.array([first for first, _ in each], jnp.int32),
            None if table is None else of_rows(table),
        ),
    )
    parts = by_group.reshape(len(firsts[0]), len(firsts[1]), *by_group.shape[1:])
    return _joined(jax.vmap(_joined, in_axes=(0, None, None))(parts, 1, time), 0, rows)


def _firsts(length: int, some: int) -> list[int]:
    """Where each part of an axis begins; the last may have some that went before."""
    return [min(at, length - some) for at in range(0, length, some)]


def _joined(
    parts: Shaped[Array, "parts ..."], axis: int, length: int
) -> Shaped[Array, "..."]:
    """The axis of that length whose parts begin at `_firsts`."""
    *before, last = parts
    some = last.shape[axis]
    new = jax.lax.slice_in_dim(last, (len(before) + 1) * some - length, some, axis=axis)
    return jnp.concatenate([*before, new], axis=axis)


def _attend_rows(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    where: tuple[Int[Array, ""], PageTable],
    positions: Int[Array, "rows time"],
    size: tuple[Int[Array, ""], int],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Attention of some rows, through the same number of blocks each.

    Args:
        queries: As for `attend_blocks`.
        cache: As for `attend_blocks`.
        where: See `paged.read_block`.
        positions: As for `attend_blocks`.
        size: The number of blocks, and the least number of queries of a head.
    """
    rows, time, kv_heads, groups, head_dim = queries.shape
    num_blocks, least = size
    spare = max(0, least - groups * time)
    wide = -(-head_dim // VALUE_WIDTH) * VALUE_WIDTH
    seen_up_to = jnp.pad(jnp.tile(positions, (1, groups)), ((0, 0), (0, spare)))
    seen_up_to = seen_up_to[:, None, :, None]
    by_head = queries.transpose(0, 2, 3, 1, 4) * jnp.float32(head_dim**-0.5)
    by_head = by_head.reshape(rows, kv_heads, groups * time, head_dim)
    by_head = jnp.pad(by_head, ((0, 0), (0, 0), (0, spare), (0, 0)))

    def add_block(
        nth: Int[Array, ""], carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        best, mass, out = carry
        block = read_block(cache, where, rows, (nth, BLOCK))
        block_keys, block_values = (leaf.astype(jnp.float32) for leaf in block)
        scores = jnp.einsum("skqd,skdc->skqc", by_head, block_keys)
        at = nth * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)[None, None, None, :]
        scores = jnp.where(at <= seen_up_to, scores, NEVER)
        new_best = jnp.maximum(best, jnp.max(scores, axis=-1))
        kept = jnp.exp(best - new_best)
        weights = jax.lax.optimization_barrier(jnp.exp(scores - new_best[..., None]))
        padded = jnp.pad(block_values, ((0, 0),) * 3 + ((0, wide - head_dim),))
        added = jnp.einsum("skqc,skcd->skqd", weights, padded)
        new_mass = mass * kept + sum_last(weights)
        return new_best, new_mass, out * kept[..., None] + added

    shape = by_head.shape[:3]
    nothing = (
        jnp.full(shape, NEVER, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, wide), jnp.float32),
    )
    _, mass, out = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
    heads: Array = out[..., :head_dim] / mass[..., None]
    by_group = heads[:, :, : groups * time].reshape(rows, kv_heads, groups, time, -1)
    return by_group.transpose(0, 3, 1, 2, 4)
