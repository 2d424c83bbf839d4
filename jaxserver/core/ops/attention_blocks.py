"""Attention in a form whose bits do not depend on company (CPU)."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxserver.core.ops.apart import apart
from jaxserver.core.ops.paged import (
    BLOCK,
    LayerCache,
    Pages,
    PageTable,
    read_block,
    read_line,
)
from jaxserver.core.ops.sums import sum_last

MIN_QUERIES = 4
"""With fewer queries of a head, products take another path (CPU)."""
VALUE_WIDTH = 64
"""Heads are padded to a multiple of it, for the same reason."""
ROWS = 4
"""Rows that are looked at together elsewhere: one alone is too little work at a time.

Fewer take another path up to `MIN_QUERIES` positions of all query heads (CPU).
"""
MANY = 16
"""Rows from which on the products of fewer than `MIN_QUERIES` queries are written out.

A library's products of so few are short pieces of work, before each of which keys or
values are put into another order; written out, it is one piece each. They take longer
to compile than they are worth with fewer rows.
"""
MANY_TOGETHER = 8
"""Rows that are looked at together where products are written out.

Shorter pieces of work are done before another core has woken up.
"""
TIME = 68
"""Most new positions of a row that are looked at together.

The earlier ones of a long chunk see fewer blocks than the later ones; with fewer of
them at a time, products would take longer.
"""
NEVER = -1e30
"""Score of a position that is not seen: a masked block then adds exactly nothing."""


class Company(NamedTuple):
    """How many rows are looked at together.

    Attributes:
        together: How many, where products are not written out; None for all, wherever
            they lie: a device may have few of them, which are padded as few are.
        many: How many there are at least where products are; None if they never are.
    """

    together: int | None = ROWS
    many: int | None = None


IN_GROUPS = Company()


class _Products(NamedTuple):
    """Those with one block of the keys, and of the values, of some rows.

    Attributes:
        with_keys: Of a block's number and queries `[rows kv_heads queries head_dim]`:
            scores `[rows kv_heads queries block]`.
        with_values: Of a block's number and weights `[rows kv_heads queries block]`:
            sums `[rows kv_heads queries head_dim]`.
    """

    with_keys: Callable[[Int[Array, ""], Array], Array]
    with_values: Callable[[Int[Array, ""], Array], Array]


class _Form(NamedTuple):
    """How rows are looked at.

    Attributes:
        together: How many at a time.
        least: The least number of queries of a head.
        products: Those of some rows; see `paged.read_block` for where these are.
    """

    together: int
    least: int
    products: Callable[[tuple[Int[Array, ""], PageTable]], _Products]


def attend_blocks(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
    company: Company = IN_GROUPS,
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
        company: How many rows are looked at together.
    """
    rows, time = positions.shape
    form = _form(queries.shape, cache, company, is_paged=table is not None)
    few = (form.together, -(-time // -(-time // TIME)))
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
        products = form.products((first, table))
        return _attend_rows(queries, products, positions, (most, form.least))

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


def _form(
    shape: tuple[int, ...], cache: LayerCache, company: Company, *, is_paged: bool
) -> _Form:
    """The one for queries of that shape."""
    rows, time, _, groups, _ = shape
    together, many = company
    is_enough = together is not None and together <= rows
    is_few = groups * time < MIN_QUERIES and is_enough and not is_paged
    if is_few and many is not None and rows >= many:
        products = functools.partial(_written_out, cache, MANY_TOGETHER)
        return _Form(MANY_TOGETHER, 1, products)
    some = min(together or rows, rows)
    least = MIN_QUERIES * (1 if is_enough else groups)
    return _Form(some, least, functools.partial(_by_library, cache, some))


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


def _by_library(
    cache: LayerCache, rows: int, where: tuple[Int[Array, ""], PageTable]
) -> _Products:
    """As the compiler makes products; see `paged.read_block`."""

    def read(nth: Int[Array, ""]) -> list[Array]:
        block = read_block(cache, where, rows, (nth, BLOCK))
        return [leaf.astype(jnp.float32) for leaf in block]

    def with_keys(nth: Int[Array, ""], queries: Array) -> Array:
        return jnp.einsum("skqd,skdc->skqc", queries, read(nth)[0])

    def with_values(nth: Int[Array, ""], weights: Array) -> Array:
        values = read(nth)[1]
        head_dim = values.shape[-1]
        spare = -head_dim % VALUE_WIDTH
        padded = jnp.pad(values, ((0, 0),) * 3 + ((0, spare),))
        return jnp.einsum("skqc,skcd->skqd", weights, padded)[..., :head_dim]

    return _Products(with_keys, with_values)


def _written_out(
    cache: LayerCache, rows: int, where: tuple[Int[Array, ""], PageTable]
) -> _Products:
    """Sums in the order of `_by_library`, of rows that are pages.

    They add one product after the other, none of which is rounded first, where the
    processor is one of which that is known; see `Compute.adds_products`.
    """
    first, _ = where

    def with_pages(pages: Pages, nth: Int[Array, ""], x: Array) -> Array:
        read = functools.partial(read_line, pages, cache.layer, (first, nth))

        def term(line: int) -> Array:
            one = read((rows, line))[:, :, None, :].astype(jnp.float32)
            return x[..., line, None] * one

        total = term(0)
        for line in range(1, x.shape[-1]):
            # Of two products that are added, LLVM does not round the one before `+`.
            total = term(line) + total
        return total

    def with_keys(nth: Int[Array, ""], queries: Array) -> Array:
        run = functools.partial(with_pages, cache.keys, nth)
        # It has two uses, for each of which the compiler would make it again.
        return apart(run, queries, nth)

    return _Products(with_keys, functools.partial(with_pages, cache.values))


def _attend_rows(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    products: _Products,
    positions: Int[Array, "rows time"],
    size: tuple[Int[Array, ""], int],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """Attention of some rows, through the same number of blocks each.

    Args:
        queries: As for `attend_blocks`.
        products: With the blocks of these rows.
        positions: As for `attend_blocks`.
        size: The number of blocks, and the least number of queries of a head.
    """
    rows, time, kv_heads, groups, head_dim = queries.shape
    num_blocks, least = size
    spare = max(0, least - groups * time)
    seen_up_to = jnp.pad(jnp.tile(positions, (1, groups)), ((0, 0), (0, spare)))
    seen_up_to = seen_up_to[:, None, :, None]
    by_head = queries.transpose(0, 2, 3, 1, 4) * jnp.float32(head_dim**-0.5)
    by_head = by_head.reshape(rows, kv_heads, groups * time, head_dim)
    by_head = jnp.pad(by_head, ((0, 0), (0, 0), (0, spare), (0, 0)))

    def add_block(
        nth: Int[Array, ""], carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        best, mass, out = carry
        scores = products.with_keys(nth, by_head)
        at = nth * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)[None, None, None, :]
        scores = jnp.where(at <= seen_up_to, scores, NEVER)
        new_best = jnp.maximum(best, jnp.max(scores, axis=-1))
        kept = jnp.exp(best - new_best)
        weights = jax.lax.optimization_barrier(jnp.exp(scores - new_best[..., None]))
        added = products.with_values(nth, weights)
        new_mass = mass * kept + sum_last(weights)
        return new_best, new_mass, out * kept[..., None] + added

    shape = by_head.shape[:3]
    nothing = (
        jnp.full(shape, NEVER, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(by_head.shape, jnp.float32),
    )
    _, mass, out = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
    heads: Array = out / mass[..., None]
    by_group = heads[:, :, : groups * time].reshape(rows, kv_heads, groups, time, -1)
    return by_group.transpose(0, 3, 1, 2, 4)
