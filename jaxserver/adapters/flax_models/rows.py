"""Caches of rows: a row is the cache of a batch of one, and a page is a whole row."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxserver.ports.model import Axes, Cache, TokenBatch

Row: TypeAlias = Any  # A pytree: what the model keeps of a batch of one.
CURSOR = "cache_index"


def with_cursor(row: Row, start: Int[Array, ""]) -> Row:
    """Points every layer's cursor at `start`."""

    def put(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.full_like(leaf, start) if _is_cursor(path) else leaf

    return jax.tree_util.tree_map_with_path(put, row)


def has_cursor(row: Row) -> bool:
    """Whether there is one to point."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(row)
    return any(_is_cursor(path) for path, _ in leaves)


def _is_cursor(path: tuple[Any, ...]) -> bool:
    return bool(path) and getattr(path[-1], "key", None) == CURSOR


def empty_rows(shapes: Row, num_pages: int) -> Cache:
    """Zeros for `num_pages` rows of these shapes."""
    return jax.tree.map(lambda x: jnp.zeros((num_pages, *x.shape), x.dtype), shapes)


def take_rows(cache: Cache, batch: TokenBatch) -> tuple[Cache, Array | None]:
    """The rows a batch runs in, and which pages they are; None for the first ones."""
    if batch.page_table is None:
        rows = batch.tokens.shape[0]
        return jax.tree.map(lambda leaf: leaf[:rows], cache), None
    pages = batch.page_table[:, 0]
    return jax.tree.map(lambda leaf: leaf.at[pages].get(mode="clip"), cache), pages


def put_rows(
    cache: Cache, rows: Cache, batch: TokenBatch, pages: Array | None
) -> Cache:
    """The cache with these rows in place; a row without tokens stays as it was."""
    count, time = batch.tokens.shape
    if pages is None and time == 1:  # it wrote behind what it held
        return jax.tree.map(lambda old, new: old.at[:count].set(new), cache, rows)

    places = jnp.arange(count, dtype=jnp.int32) if pages is None else pages

    def put(old: Array, new: Array) -> Array:
        at = jnp.where(batch.length > 0, places, old.shape[0])
        return old.at[at].set(new, mode="drop")

    return jax.tree.map(put, cache, rows)


def write_start(batch: TokenBatch) -> Int[Array, " rows"]:
    """Where each row writes: one without tokens, behind what it holds and reads."""
    return jnp.where(batch.length > 0, batch.start, batch.start + 1)


def copy_rows(
    cache: Cache,
    source: Int[Array, " copies"],
    target: Int[Array, " copies"],
    length: Int[Array, " copies"],
) -> Cache:
    """Copies whole rows; what lies behind `length` is not seen, but has to be numbers.

    What lies before it is, or nobody would ask for it.
    """

    def copy(leaf: Array) -> Array:
        rows = leaf[source]
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            rows = jnp.where(jnp.isfinite(rows), rows, 0)
        return leaf.at[target].set(rows, mode="drop")

    return jax.tree.map(copy, cache)


def row_axes(shape: tuple[int, ...]) -> Axes:
    """Of a leaf of the cache: rows first, and heads last but one where it has any."""
    rest = len(shape) - 1
    if rest != 4:
        return ("pages", *(None,) * rest)
    return ("pages", None, None, "kv_heads", None)
