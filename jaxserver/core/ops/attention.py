"""Attention of new tokens over everything their rows hold, as the device likes it."""

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxserver.core.compute import Compute
from jaxserver.core.ops.attention_blocks import MANY, ROWS, Company, attend_blocks
from jaxserver.core.ops.paged import (
    BY_BLOCK,
    BY_TOKEN,
    LayerCache,
    Layout,
    Pages,
    PageTable,
)
from jaxserver.core.sharding import num_devices, partition_spec

KERNEL_DTYPE = jnp.float16
"""Of the cache that a CPU's kernel reads."""
FEW_QUERIES = 8
"""Tokens of a row up to which its queries are a decode step: it, or a draft's check."""
KERNEL_LIMIT = 2**31
"""A kernel finds its way in an array of fewer numbers than that: indices are int32."""
NARROWEST_HEAD = 16
"""Of those that a tensor core multiplies; a kernel takes those of a power of 2."""
WIDEST_HEAD = 128
"""Of those that cuDNN attends with on every device that it is for."""


@runtime_checkable
class Attend(Protocol):
    def __call__(
        self,
        queries: Float[Array, "rows time kv_heads groups head_dim"],
        cache: LayerCache,
        table: PageTable,
        positions: Int[Array, "rows time"],
        ends: Int[Array, " rows"],
    ) -> Float[Array, "rows time kv_heads groups head_dim"]:
        """Causal softmax attention: each query sees the positions up to its own.

        Args:
            queries: Of the new tokens, whose keys and values are in the cache already.
            cache: In the order of the form's layout.
            table: Pages of each row, or None.
            positions: Of the queries, one after the other.
            ends: How many positions each row has to look at.
        """
        ...


class Attention(NamedTuple):
    """One form of it, and the layout that it reads."""

    layout: Layout
    attend: Attend


def attention(compute: Compute, head_dim: int, mesh: Mesh | None) -> Attention:
    """The form for some devices: the only place that chooses one.

    On a CPU it is the one whose bits are kept. Elsewhere a row is read as a whole; the
    decode steps of a GPU read of it what there is, by a kernel.
    """
    is_one = mesh is None or mesh.size == 1
    if compute.platform == "cpu":
        kernel = compute.kernel("attention")
        is_split = mesh is not None and num_devices("batch", mesh) > 1
        many = MANY if compute.adds_products and is_one else None
        company = Company(None if is_split else ROWS, many)
        in_groups = functools.partial(_attend_groups, company)
        attend = functools.partial(_attend_by, kernel) if kernel else in_groups
        return Attention(BY_BLOCK, attend)
    is_gpu = compute.platform == "cuda"
    has_cudnn = is_gpu and is_one and not compute.is_interpreted
    fits_cudnn = head_dim % 8 == 0 and head_dim <= WIDEST_HEAD
    is_fused = has_cudnn and fits_cudnn and compute.dtype != "float32"
    attend_all = functools.partial(attend_whole, is_fused=is_fused)
    if not is_gpu or head_dim < NARROWEST_HEAD or head_dim.bit_count() > 1:
        return Attention(BY_TOKEN, attend_all)

    from jaxserver.core.ops.attention_kernel import (  # noqa: PLC0415  # for a GPU only
        attend_pages,
    )

    attend_few = functools.partial(attend_pages, is_interpreted=compute.is_interpreted)
    return Attention(BY_TOKEN, _by_count(attend_few, attend_all, mesh))


def _by_count(attend_few: Attend, attend_all: Attend, mesh: Mesh | None) -> Attend:
    """The one form where a row has few queries and its device all that it reads."""

    def attend(
        queries: Float[Array, "rows time kv_heads groups head_dim"],
        cache: LayerCache,
        table: PageTable,
        positions: Int[Array, "rows time"],
        ends: Int[Array, " rows"],
    ) -> Float[Array, "rows time kv_heads groups head_dim"]:
        rows, time = positions.shape
        is_decode = time <= FEW_QUERIES and cache.keys.size < KERNEL_LIMIT
        is_own_page = table is None and rows == cache.keys.shape[0]
        is_apart = is_own_page or mesh is None or num_devices("batch", mesh) == 1
        form = attend_on_each if is_decode and is_apart else attend_all
        return form(queries, cache, table, positions, ends)

    attend_on_each = attend_few if mesh is None else _on_each_device(attend_few, mesh)
    return attend


def _on_each_device(form: Attend, mesh: Mesh) -> Attend:
    """With the rows and heads that it has: the compiler cuts no kernel."""

    def attend(
        queries: Float[Array, "rows time kv_heads groups head_dim"],
        cache: LayerCache,
        table: PageTable,
        positions: Int[Array, "rows time"],
        ends: Int[Array, " rows"],
    ) -> Float[Array, "rows time kv_heads groups head_dim"]:
        heads = partition_spec(
            ("batch", None, "kv_heads", None, None), queries.shape, mesh
        )
        pages = partition_spec(
            ("pages", None, "kv_heads", None), cache.keys.shape, mesh
        )
        rows = partition_spec(("batch",), ends.shape, mesh)
        nothing = partition_spec((), (), mesh)
        parts: Any = (pages, pages, nothing)
        found: Array = jax.shard_map(
            form,
            mesh=mesh,
            in_specs=(heads, LayerCache(*parts), nothing, rows, rows),
            out_specs=heads,
            check_vma=False,
        )(queries, cache, table, positions, ends)
        return found

    return attend


def _attend_groups(
    company: Company,
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """No group of rows goes across the devices that rows lie on.

    With a page table there are groups all the same: what they read is brought together.
    """
    if table is not None:
        company = company._replace(together=ROWS)
    return attend_blocks(queries, cache, table, positions, ends, company)


def _attend_by(
    kernel: str,
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """A query's bits are others than in groups, and are as much its own."""
    *arrays, layer = (*cache[:2], jnp.asarray(cache.layer, jnp.int32))
    chex.assert_type(arrays, KERNEL_DTYPE)
    shape = jax.ShapeDtypeStruct(queries.shape, jnp.float32)
    attend = jax.ffi.ffi_call(kernel, shape, vmap_method="sequential")
    pages = () if table is None else (table,)
    found: Array = attend(queries, *arrays, layer, positions, ends, *pages)
    return found


def attend_whole(
    queries: Float[Array, "rows time kv_heads groups head_dim"],
    cache: LayerCache,
    table: PageTable,
    positions: Int[Array, "rows time"],
    ends: Int[Array, " rows"],
    *,
    is_fused: bool = False,
) -> Float[Array, "rows time kv_heads groups head_dim"]:
    """By JAX's own function, of all that the pages of a row have room for.

    Args:
        queries: As for `Attend`.
        cache: In the order of `BY_TOKEN`.
        table: As for `Attend`.
        positions: As for `Attend`.
        ends: As for `Attend`.
        is_fused: By cuDNN's kernel.
    """
    rows, time, kv_heads, groups, head_dim = queries.shape

    def whole(pages: Pages) -> Float[Array, "rows context kv_heads head_dim"]:
        mine = pages[:rows] if table is None else pages.at[table].get(mode="clip")
        return mine.reshape(rows, -1, kv_heads, head_dim).astype(queries.dtype)

    keys, values = whole(cache.keys), whole(cache.values)
    at = jnp.arange(keys.shape[1], dtype=jnp.int32)
    # Keys past a row's end may be no numbers: cuDNN adds a mask to what comes of them,
    # and leaves out only what is beyond a length.
    found: Array = jax.nn.dot_product_attention(
        queries.reshape(rows, time, kv_heads * groups, head_dim),
        keys,
        values,
        mask=at[None, None, None, :] <= positions[:, None, :, None],
        key_value_seq_lengths=ends,
        implementation="cudnn" if is_fused else "xla",
    )
    return found.reshape(queries.shape)
