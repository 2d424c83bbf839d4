"""Reading and writing a cache that lies in pages.

Without a page table row i is page i, and nothing is gathered.
"""

from typing import Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxserver.core.ops.apart import apart

PageTable = Int[Array, "rows pages_per_row"] | None
Pages: TypeAlias = Shaped[Array, "pages *rest"]
"""Keys or values, in the order of a layout."""
Dimension: TypeAlias = Literal[
    "pages", "layers", "page_size", "blocks", "block", "kv_heads", "head_dim"
]
"""A page's tokens are one dimension, or two: its blocks, and the tokens of each."""
BLOCK = 128
"""Cached positions looked at together; a whole row's page is a multiple of it."""
FEW = 8
"""New tokens of a row that are written one by one in less time than as blocks (CPU)."""


class Layout(NamedTuple):
    """In which order the dimensions of the cache lie; pages are always first.

    Without `layers` each layer has arrays of its own.
    """

    keys: tuple[Dimension, ...]
    values: tuple[Dimension, ...]


BY_BLOCK = Layout(
    keys=("pages", "layers", "blocks", "kv_heads", "head_dim", "block"),
    values=("pages", "layers", "blocks", "kv_heads", "block", "head_dim"),
)
"""In which decode attention is fastest on a CPU, and layers are run in a loop.

A block lies in one piece with those of other heads, as memory is read fastest.
"""
BY_TOKEN = Layout(
    keys=("pages", "page_size", "kv_heads", "head_dim"),
    values=("pages", "page_size", "kv_heads", "head_dim"),
)
"""In which a token is written, and a whole row read, as it lies."""


class LayerCache(NamedTuple):
    """The cache as one layer sees it.

    Attributes:
        keys: In the order of a layout.
        values: Likewise.
        layer: Which one it is, where all layers lie in the same arrays; else 0.
    """

    keys: Pages
    values: Pages
    layer: Int[Array, ""] | int = 0


def write(
    cache: LayerCache,
    new: tuple[
        Float[Array, "rows time kv_heads head_dim"],
        Float[Array, "rows time kv_heads head_dim"],
    ],
    places: tuple[Int[Array, "rows time"], Int[Array, "rows time"]],
    *,
    layout: Layout = BY_BLOCK,
    in_runs: bool = False,
) -> LayerCache:
    """Puts new keys and values at their `(page, offset)`; those outside are dropped.

    A value that is no number is kept as 0 under a key that is NaN: whoever attends to
    it fails as before, but once its page belongs to another row it weighs nothing, not
    0 times NaN. A finite number beyond the cache's type is its largest one.

    Args:
        cache: Where they are put.
        new: Of the new tokens.
        places: See the function of that name.
        layout: Of keys and values.
        in_runs: A row's tokens lie one after the other on one page, on one device, and
            one key alone lies scattered.
    """
    (keys, values, layer), (new_keys, new_values) = cache, new
    is_sound = jnp.all(jnp.isfinite(new_values), axis=-1, keepdims=True)
    new_keys = jnp.where(is_sound & jnp.isfinite(new_keys), new_keys, jnp.nan)
    new_values = jnp.where(is_sound, new_values, 0.0)
    kept_keys, kept_values = _as(keys, new_keys), _as(values, new_values)
    if in_runs and new_keys.shape[1] > FEW:
        keys = _write_runs(cache, kept_keys, places)
    else:
        at = _at(layout.keys, keys, places, layer)
        keys = keys.at[at].set(kept_keys, mode="drop")
    at = _at(layout.values, values, places, layer)
    values = values.at[at].set(kept_values, mode="drop")
    return LayerCache(keys, values, layer)


def _at(
    order: tuple[Dimension, ...],
    pages: Pages,
    places: tuple[Int[Array, "rows time"], Int[Array, "rows time"]],
    layer: Int[Array, ""] | int,
) -> tuple[Array | slice | int, ...]:
    """The index of all heads of a layer at some places."""
    page, offset = places
    block = pages.shape[order.index("block")] if "block" in order else 1
    index: dict[Dimension, Array | int] = {
        "pages": page,
        "layers": layer,
        "page_size": offset,
        "blocks": offset // block,
        "block": offset % block,
    }
    return tuple(index.get(dimension, slice(None)) for dimension in order)


def _write_runs(
    cache: LayerCache,
    new: Float[Array, "rows time kv_heads head_dim"],
    places: tuple[Int[Array, "rows time"], Int[Array, "rows time"]],
) -> Pages:
    """Keys row after row, by way of the blocks that a run of new tokens may touch."""
    (keys, _, layer), (page, offset) = cache, places
    num_pages, _, blocks, kv_heads, head_dim, block = keys.shape
    rows, time = page.shape
    count = min(blocks, (time + block - 2) // block + 1)
    size = (count, kv_heads, head_dim, block)
    counts = jnp.sum(page < num_pages, axis=1, dtype=jnp.int32)
    spare = ((0, 0), (0, 0), (0, 0), (count * block, count * block))
    # Turned apart: with what follows it would be looked up number by number.
    turned = apart(lambda new: new.transpose(0, 2, 3, 1), new, offset[0, 0])
    shifted = jnp.pad(turned, spare)
    zero = jnp.zeros((), jnp.int32)
    window = jnp.arange(count * block, dtype=jnp.int32)

    def write_row(row: Array, keys: Array) -> Array:
        first = jnp.minimum(offset[row, 0] // block, blocks - count)
        late = offset[row, 0] - first * block
        begin, all_of = count * block - late, (1, kv_heads, head_dim, count * block)
        run = jax.lax.dynamic_slice(shifted, (row, zero, zero, begin), all_of)
        run = run.reshape(kv_heads, head_dim, count, block).transpose(2, 0, 1, 3)
        place = (page[row, 0], layer, first, zero, zero, zero)
        old = jax.lax.dynamic_slice(keys, place, (1, 1, *size))
        is_new = (window >= late) & (window < late + counts[row])
        mixed = jnp.where(is_new.reshape(count, 1, 1, block), run, old)
        return jax.lax.dynamic_update_slice(keys, mixed, place)

    written: Array = jax.lax.fori_loop(0, rows, write_row, keys)
    return written


def _as(cache: Array, new: Array) -> Array:
    if cache.dtype == new.dtype:
        return new
    largest = float(jnp.finfo(cache.dtype).max)
    return jnp.clip(new, -largest, largest).astype(cache.dtype)


def places(
    positions: Int[Array, "rows time"],
    counts: Int[Array, " rows"],
    table: PageTable,
    page_size: int,
    num_pages: int,
) -> tuple[Int[Array, "rows time"], Int[Array, "rows time"]]:
    """Page and offset of each position; a page of `num_pages` where none is right."""
    rows, time = positions.shape
    pages_per_row = 1 if table is None else table.shape[1]
    nth = positions // page_size
    counted = jnp.arange(time, dtype=jnp.int32)[None, :] < counts[:, None]
    is_inside = counted & (nth < pages_per_row)
    if table is None:
        page = jnp.broadcast_to(
            jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, time)
        )
    else:
        page = jnp.take_along_axis(table, nth, axis=1, mode="clip")
    return jnp.where(is_inside, page, num_pages), positions % page_size


def read_block(
    cache: LayerCache,
    where: tuple[Int[Array, ""], PageTable],
    rows: int,
    span: tuple[Int[Array, ""], int],
) -> tuple[
    Float[Array, "rows kv_heads head_dim block"],
    Float[Array, "rows kv_heads block head_dim"],
]:
    """The keys and values of one block of positions, of some rows.

    Args:
        cache: In the order of `BY_BLOCK`.
        where: The first row's page where row i is page i, and else the pages of each.
        rows: How many rows there are.
        span: Which block it is, and how many positions a block has.
    """
    (keys, values, layer), (first, table), (nth, block) = cache, where, span
    blocks, kv_heads, head_dim, width = keys.shape[2:]
    zero, page_size = jnp.zeros((), jnp.int32), blocks * width
    if table is None:
        chex.assert_equal(width, block)
        place, size = (first, layer, nth, zero, zero, zero), (rows, 1, 1, kv_heads)
        return (
            jax.lax.dynamic_slice(keys, place, (*size, head_dim, width))[:, 0, 0],
            jax.lax.dynamic_slice(values, place, (*size, width, head_dim))[:, 0, 0],
        )
    chex.assert_is_divisible(block, width)
    starts = nth * block + width * jnp.arange(block // width, dtype=jnp.int32)
    pages = table.at[:, starts // page_size].get(mode="clip")

    def read_part(page: Int[Array, ""], at: Int[Array, ""]) -> tuple[Array, Array]:
        place, size = (page, layer, at, zero, zero, zero), (1, 1, 1, kv_heads)
        return (
            jax.lax.dynamic_slice(keys, place, (*size, head_dim, width))[0, 0, 0],
            jax.lax.dynamic_slice(values, place, (*size, width, head_dim))[0, 0, 0],
        )

    read_row = jax.vmap(read_part)
    key_parts, value_parts = jax.vmap(read_row, in_axes=(0, None))(
        pages, starts % page_size // width
    )
    return (
        jnp.moveaxis(key_parts, 1, 3).reshape(rows, kv_heads, head_dim, block),
        jnp.moveaxis(value_parts, 1, 2).reshape(rows, kv_heads, block, head_dim),
    )


def read_line(
    pages: Pages,
    layer: Int[Array, ""] | int,
    where: tuple[Int[Array, ""], Int[Array, ""]],
    size: tuple[int, int],
) -> Float[Array, "rows kv_heads width"]:
    """One line of a block, of some rows that are pages.

    Of keys it is one number of each position, of values all numbers of one position.

    Args:
        pages: In the order of `BY_BLOCK`.
        layer: See `LayerCache`.
        where: The first row's page, and which block it is.
        size: How many rows there are, and which line it is.
    """
    (first, nth), (rows, line) = where, size
    kv_heads, _, width = pages.shape[3:]
    zero, at = jnp.zeros((), jnp.int32), jnp.full((), line, jnp.int32)
    lines = jax.lax.dynamic_slice(
        pages, (first, layer, nth, zero, at, zero), (rows, 1, 1, kv_heads, 1, width)
    )
    return lines[:, 0, 0, :, 0]
