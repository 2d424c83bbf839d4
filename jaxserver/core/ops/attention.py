"""Attention of new tokens over everything their rows hold, as the device likes it."""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxserver.core.compute import Compute
from jaxserver.core.ops.attention_blocks import ROWS, attend_blocks
from jaxserver.core.ops.paged import BY_HEAD, BY_TOKEN, Layout, Pages, PageTable
from jaxserver.core.sharding import num_devices

FEW_QUERIES = 8
"""Tokens of a row up to which its queries are a decode step: it, or a draft's check."""
KERNEL_LIMIT = 2**31
"""A kernel finds its way in an array of fewer numbers than that: indices are int32."""
WIDEST_HEAD = 128
"""Of those that cuDNN attends with on every device that it is for."""


class Attend(Protocol):
    def __call__(
        self,
        queries: Float[Array, "rows time kv_heads groups head_dim"],
        cache: tuple[Pages, Pages],
        table: PageTable,
        positions: Int[Array, "rows time"],
        ends: Int[Array, " rows"],
    ) -> Float[Array, "rows time kv_heads groups head_dim"]:
        """Causal softmax attention: each query sees the positions up to its own.

        Args:
            queries: Of the new tokens, whose keys and values are in the cache already.
            cache: Keys and values, in the order of the form's layout.
            table: Pages of each row, or None.
            positions: Of the queries.
            ends: How many positions each row has to look at.
        """
        ...


class Attention(NamedTuple):
    """One form of it, and the layout that it reads."""

    layout: Layout
    attend: Attend


def attention(compute: Compute, head_dim: int, mesh: Mesh | None) -> Attention:
    """The form for some devices: the only place that chooses one.

    On a CPU it is the one whose bits are kept. Elsewhere a row is read as a whole; a
    GPU's decode steps read of it what there is, by a kernel that is one device's.
    """
    if compute.platform == "cpu":
        return Attention(BY_HEAD, functools.partial(_attend_groups, mesh))
    is_one_gpu = compute.platform == "gpu" and (mesh is None or mesh.size == 1)
    has_cudnn = is_one_gpu and compute.dtype != "float32" and not compute.is_interpreted
    fits_cudnn = head_dim % 8 == 0 and head_dim <= WIDEST_HEAD
    attend_all = functools.partial(attend_whole, is_fused=has_cudnn and fits_cudnn)
    if not is_one_gpu or head_dim.bit_count() > 1:
        return Attention(BY_TOKEN, attend_all)

    from jaxserver.core.ops.attention_kernel import (  # noqa: PLC0415  # for a GPU only
        attend_pages,
    )

    attend_few = functools.partial(attend_pages, is_interpreted=compute.is_interpreted)

    def attend(
        queries: Float[Array, "rows time kv_heads groups head_dim"],
        cache: tuple[Pages, Pages],
        table: PageTable,
        positions: Int[Array, "rows time"],
        ends: Int[Array, " rows"],
    ) -> Float[Array, "rows time kv_heads groups head_dim"]:
        is_decode = queries.shape[1] <= FEW_QUERIES and cache[0].size < KERNEL_LIMIT
        form = attend_few if is_decode else attend_all
        return form(queries, cache, table, positions, ends)

    return Attention(BY_TOKEN, attend)


def _attend_groups(
    mesh: Mesh | None,
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: tuple[Pages, Pages],
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """No group of rows goes across the devices that rows lie on."""
    is_split = mesh is not None and num_devices("batch", mesh) > 1
    together = None if is_split and table is None else ROWS
    return attend_blocks(queries, cache, table, positions, ends, together)


def attend_whole(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: tuple[Pages, Pages],
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
    *,
    is_fused: bool = False,
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """By JAX's own function, of all that the pages of a row have room for.

    Args:
        queries: As for `Attend`.
        cache: `[pages page_size kv_heads head_dim]`, of both.
        table: As for `Attend`.
        positions: As for `Attend`.
        ends: As for `Attend`.
        is_fused: By cuDNN's kernel.
    """
    rows, time, kv_heads, groups, head_dim = queries.shape

    def whole(pages: Pages) -> Float[Array, "rows context kv_heads head_dim"]:
        mine = pages[:rows] if table is None else pages.at[table].get(mode="clip")
        return mine.reshape(rows, -1, kv_heads, head_dim).astype(queries.dtype)

    keys, values = (whole(pages) for pages in cache)
    at = jnp.arange(keys.shape[1], dtype=jnp.int32)
    found: Array = jax.nn.dot_product_attention(
        queries.reshape(rows, time, kv_heads * groups, head_dim),
        keys,
        values,
        mask=at[None, None, None, :] <= positions[:, None, :, None],
        key_value_seq_lengths=ends,
        implementation="cudnn" if is_fused else "xla",
    )
    return found.reshape(queries.shape)
