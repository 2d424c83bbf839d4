"""The keys and values that every layer keeps of the tokens it has run."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxserver.core.config import ModelConfig
from jaxserver.core.ops.fp8 import QUANTIZED
from jaxserver.core.ops.paged import BLOCK, BY_BLOCK, Dimension, Layout, Pages
from jaxserver.ports.model import Axes, LogicalAxis, TokenAxes

OF_TOKENS: tuple[Dimension, ...] = ("page_size", "blocks", "block")
"""What counts a page's tokens, from the outside in."""


class KVCache(NamedTuple):
    """One array of keys and one of values, or of each as many as there are layers.

    The order of their dimensions is that of a layout.
    """

    keys: tuple[Pages, ...]
    values: tuple[Pages, ...]


def kv_axes(layout: Layout) -> Axes:
    """Of keys and of values: what is cut lies alike in both."""
    cut: dict[str, LogicalAxis] = {"pages": "pages", "kv_heads": "kv_heads"}
    return tuple(cut.get(dimension) for dimension in layout.keys)


def num_arrays(num_layers: int, layout: Layout) -> int:
    """Of keys, and of values."""
    return 1 if "layers" in layout.keys else num_layers


def token_axes(num_layers: int, layout: Layout) -> TokenAxes:
    """Which dimensions of a page count its tokens, of each array."""
    count = num_arrays(num_layers, layout)
    keys, values = (_axes_of_tokens(order[1:]) for order in layout)
    return ((keys,) * count) + ((values,) * count)


def _axes_of_tokens(order: tuple[Dimension, ...]) -> tuple[int, ...]:
    return tuple(nth for nth, name in enumerate(order) if name in OF_TOKENS)


def cache_dtype(kept: str, computed: str = "float32") -> str:
    """What keys and values are kept in.

    Args:
        kept: What weights are kept in.
        computed: What is computed in: in 16 bits the cache is in the same.
    """
    if computed != "float32":
        return computed
    return "float16" if kept in QUANTIZED else "float32"


def whole_row_page(max_len: int) -> int:
    """Size of a page that holds a whole row: `max_len` up to a multiple of a block."""
    return -(-max_len // BLOCK) * BLOCK


def init_cache(
    config: ModelConfig,
    num_pages: int,
    page_size: int,
    dtype: str = "float32",
    layout: Layout = BY_BLOCK,
) -> KVCache:
    """A cache of zeros."""
    block = min(BLOCK, page_size)
    chex.assert_is_divisible(page_size, block)
    sizes = {
        "pages": num_pages,
        "layers": config.num_layers,
        "page_size": page_size,
        "blocks": page_size // block,
        "block": block,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }
    keys, values = (tuple(sizes[name] for name in order) for order in layout)
    arrays = range(num_arrays(config.num_layers, layout))
    return KVCache(
        keys=tuple(jnp.zeros(keys, dtype) for _ in arrays),
        values=tuple(jnp.zeros(values, dtype) for _ in arrays),
    )


def copy_pages(
    cache: KVCache,
    source: Int[Array, " copies"],
    target: Int[Array, " copies"],
    length: Int[Array, " copies"],
    layout: Layout = BY_BLOCK,
) -> KVCache:
    """Copies the first `length` tokens of each source page over its target page.

    Block by block, so that the work is proportional to the tokens copied. A target that
    is no page gets nothing.
    """
    key_axes, value_axes = map(_axes_of_tokens, layout)
    size = math.prod(cache.keys[0].shape[axis] for axis in key_axes)

    def copy_page(which: Array, cache: KVCache) -> KVCache:
        pair = (source[which], target[which])
        count = jnp.where(target[which] < cache.keys[0].shape[0], length[which], 0)

        def copy_block(nth: Array, cache: KVCache) -> KVCache:
            return KVCache(
                keys=tuple(
                    _copy_block(x, key_axes, pair, (nth, count)) for x in cache.keys
                ),
                values=tuple(
                    _copy_block(x, value_axes, pair, (nth, count)) for x in cache.values
                ),
            )

        block = min(BLOCK, size)
        num_blocks = (count + block - 1) // block
        copied: KVCache = jax.lax.fori_loop(0, num_blocks, copy_block, cache)
        return copied

    copied: KVCache = jax.lax.fori_loop(0, source.shape[0], copy_page, cache)
    return copied


def _copy_block(
    pages: Array,
    token_axes: tuple[int, ...],
    pair: tuple[Int[Array, ""], Int[Array, ""]],
    part: tuple[Int[Array, ""], Int[Array, ""]],
) -> Array:
    """Copies the nth block, and of it what is before the given number of tokens."""
    (source, target), (nth, count) = pair, part
    *outer, inner = token_axes
    block, zero = min(BLOCK, pages.shape[inner]), jnp.zeros((), jnp.int32)
    shape, at = [1, *pages.shape[1:]], [zero] * pages.ndim
    shape[inner], at[inner] = block, zero if outer else nth * block
    for axis in outer:
        shape[axis], at[axis] = 1, nth

    def place(page: Array) -> list[Array]:
        return [page, *at[1:]]

    new = jax.lax.dynamic_slice(pages, place(source), shape)
    old = jax.lax.dynamic_slice(pages, place(target), shape)
    position = nth * block + jax.lax.broadcasted_iota(jnp.int32, shape, inner)
    mixed = jnp.where(position < count, new, old)
    return jax.lax.dynamic_update_slice(pages, mixed, place(target))
