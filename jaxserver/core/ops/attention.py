"""Attention of new tokens over everything their rows hold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserver.core.ops.paged import PageTable, read_block
from jaxserver.core.ops.sums import sum_last

BLOCK = 128
"""Cached positions looked at together; the cache's rows are multiples of it."""
MIN_QUERIES = 4
"""With fewer query positions a row's products take another path (CPU)."""
VALUE_WIDTH = 64
"""Heads are padded to a multiple of it, for the same reason."""
ROWS = 4
"""Rows that are looked at together: one alone is too little work at a time."""
NEVER = -1e30
"""Score of a position that is not seen: a masked block then adds exactly nothing."""


def attend(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: tuple[
        Float[Array, "pages kv_heads head_dim page_size"],
        Float[Array, "pages kv_heads page_size head_dim"],
    ],
    table: PageTable,
    positions: Int[Array, "rows time"],
    num_blocks: Int[Array, " rows"],
    together: int = ROWS,
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Causal softmax attention, block by block (Milakov and Gimelshein 2018).

    Each query sees the positions up to its own. A few rows go together, through as many
    blocks from the first on as the longest of them needs: what a row costs does not
    depend on rows far from it, and its bits depend on none.

    Args:
        queries: Of the new tokens, whose keys and values are in the cache already.
        cache: Keys and values.
        table: Pages of each row, or None.
        positions: Of the queries.
        num_blocks: How many blocks each row has to look at.
        together: How many rows go together.
    """
    rows = queries.shape[0]
    together = min(together, rows)
    # The last rows may go with some that have gone before, and are done again.
    starts = [min(at, rows - together) for at in range(0, rows, together)]
    new = rows - (len(starts) - 1) * together

    def in_groups(leaf: Array) -> Array:
        return jnp.stack([leaf[at : at + together] for at in starts])

    def attend_group(group: tuple[Array, Array, Array, Array, PageTable]) -> Array:
        queries, positions, num_blocks, first, table = group
        most = jnp.max(num_blocks)
        return _attend_rows(queries, cache, (first, table), positions, most)

    by_group = jax.lax.map(
        attend_group,
        (
            *(in_groups(leaf) for leaf in (queries, positions, num_blocks)),
            jnp.array(starts, jnp.int32),
            None if table is None else in_groups(table),
        ),
    )
    before = by_group[:-1].reshape(rows - new, *queries.shape[1:])
    return jnp.concatenate([before, by_group[-1, together - new :]])


def _attend_rows(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: tuple[
        Float[Array, "pages kv_heads head_dim page_size"],
        Float[Array, "pages kv_heads page_size head_dim"],
    ],
    where: tuple[Int[Array, ""], PageTable],
    positions: Int[Array, "rows time"],
    num_blocks: Int[Array, ""],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Attention of some rows, through the same number of blocks each."""
    rows, time_in, kv_heads, groups, head_dim = queries.shape
    time = max(time_in, MIN_QUERIES)
    spare = time - time_in
    queries = jnp.pad(queries, ((0, 0), (0, spare), (0, 0), (0, 0), (0, 0)))
    positions = jnp.pad(positions, ((0, 0), (0, spare)), mode="edge")
    wide = -(-head_dim // VALUE_WIDTH) * VALUE_WIDTH
    seen_up_to = jnp.tile(positions, (1, groups))[:, None, :, None]
    by_head = queries.transpose(0, 2, 3, 1, 4) * jnp.float32(head_dim**-0.5)
    by_head = by_head.reshape(rows, kv_heads, groups * time, head_dim)

    def add_block(
        nth: Int[Array, ""], carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        best, mass, out = carry
        block_keys, block_values = read_block(*cache, where, rows, (nth, BLOCK))
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

    shape = (rows, kv_heads, groups * time)
    nothing = (
        jnp.full(shape, NEVER, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, wide), jnp.float32),
    )
    _, mass, out = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
    heads: Array = out[..., :head_dim] / mass[..., None]
    by_group = heads.reshape(rows, kv_heads, groups, time, head_dim)
    return by_group.transpose(0, 3, 1, 2, 4)[:, :time_in]
