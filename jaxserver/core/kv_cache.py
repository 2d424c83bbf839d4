"""The keys and values that every layer keeps of the tokens it has run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserver.core.config import ModelConfig
from jaxserver.core.ops.attention import BLOCK
from jaxserver.ports.model import Axes


class KVCache(NamedTuple):
    """One array of keys and one of values per layer; see `ops.paged` for the layout."""

    keys: tuple[Float[Array, "pages kv_heads head_dim page_size"], ...]
    values: tuple[Float[Array, "pages kv_heads page_size head_dim"], ...]


KV_AXES: Axes = ("pages", "kv_heads", None, None)
"""Of keys and of values: what is cut lies first in both layouts."""


def token_axes(num_layers: int) -> KVCache:
    """Which dimension of a page counts its tokens, in the place of each array."""
    keys, values = (2,) * num_layers, (1,) * num_layers
    return KVCache(keys, values)  # type: ignore[arg-type]  # numbers in arrays' places


def cache_dtype(kept: str) -> str:
    """What keys and values are kept in, beside weights that are kept in a type."""
    return "float16" if kept == "int8" else "float32"


def whole_row_page(max_len: int) -> int:
    """Size of a page that holds a whole row: `max_len` up to a multiple of a block."""
    return -(-max_len // BLOCK) * BLOCK


def init_cache(
    config: ModelConfig, num_pages: int, page_size: int, dtype: str = "float32"
) -> KVCache:
    """A cache of zeros."""
    heads, dim = config.num_kv_heads, config.head_dim
    keys = (num_pages, heads, dim, page_size)
    values = (num_pages, heads, page_size, dim)
    layers = range(config.num_layers)
    return KVCache(
        keys=tuple(jnp.zeros(keys, dtype) for _ in layers),
        values=tuple(jnp.zeros(values, dtype) for _ in layers),
    )


def copy_pages(
    cache: KVCache,
    source: Int[Array, " copies"],
    target: Int[Array, " copies"],
    length: Int[Array, " copies"],
) -> KVCache:
    """Copies the first `length` tokens of each source page over its target page.

    Block by block, so that the work is proportional to the tokens copied. A target that
    is no page gets nothing.
    """

    def copy_page(which: Array, cache: KVCache) -> KVCache:
        pair = (source[which], target[which])
        count = jnp.where(target[which] < cache.keys[0].shape[0], length[which], 0)

        def copy_block(nth: Array, cache: KVCache) -> KVCache:
            return KVCache(
                keys=tuple(_copy_block(x, 3, pair, (nth, count)) for x in cache.keys),
                values=tuple(
                    _copy_block(x, 2, pair, (nth, count)) for x in cache.values
                ),
            )

        block = min(BLOCK, cache.keys[0].shape[3])
        num_blocks = (count + block - 1) // block
        copied: KVCache = jax.lax.fori_loop(0, num_blocks, copy_block, cache)
        return copied

    copied: KVCache = jax.lax.fori_loop(0, source.shape[0], copy_page, cache)
    return copied


def _copy_block(
    pages: Array,
    token_axis: int,
    pair: tuple[Int[Array, ""], Int[Array, ""]],
    part: tuple[Int[Array, ""], Int[Array, ""]],
) -> Array:
    """Copies the nth block, and of it what is before the given number of tokens."""
    (source, target), (nth, count) = pair, part
    block = min(BLOCK, pages.shape[token_axis])
    shape = [1, *pages.shape[1:]]
    shape[token_axis] = block

    def place(page: Array) -> list[Array]:
        at = [jnp.zeros((), jnp.int32)] * pages.ndim
        at[0], at[token_axis] = page, nth * block
        return at

    new = jax.lax.dynamic_slice(pages, place(source), shape)
    old = jax.lax.dynamic_slice(pages, place(target), shape)
    at = nth * block + jax.lax.broadcasted_iota(jnp.int32, shape, token_axis)
    mixed = jnp.where(at < count, new, old)
    return jax.lax.dynamic_update_slice(pages, mixed, place(target))
