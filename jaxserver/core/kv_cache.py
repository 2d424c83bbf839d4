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


def whole_row_page(max_len: int) -> int:
    """Size of a page that holds a whole row: `max_len` up to a multiple of a block."""
    return -(-max_len // BLOCK) * BLOCK


def init_cache(config: ModelConfig, num_pages: int, page_size: int) -> KVCache:
    """A cache of zeros in float32."""
    heads, dim = config.num_kv_heads, config.head_dim
    keys = (num_pages, heads, dim, page_size)
    values = (num_pages, heads, page_size, dim)
    layers = range(config.num_layers)
    return KVCache(
        keys=tuple(jnp.zeros(keys, jnp.float32) for _ in layers),
        values=tuple(jnp.zeros(values, jnp.float32) for _ in layers),
    )


def copy_pages(
    cache: KVCache,
    source: Int[Array, " copies"],
    target: Int[Array, " copies"],
    length: Int[Array, " copies"],
) -> KVCache:
    """Copies the first `length` tokens of each source page over its target page."""

    def copy(pages: Array, token_axis: int) -> Array:
        at = jax.lax.broadcasted_iota(jnp.int32, pages.shape[1:], token_axis - 1)
        is_copied = at[None] < length[:, None, None, None]
        mixed = jnp.where(is_copied, pages[source], pages[target])
        return pages.at[target].set(mixed, mode="drop")

    return KVCache(
        keys=tuple(copy(keys, 3) for keys in cache.keys),
        values=tuple(copy(values, 2) for values in cache.values),
    )
