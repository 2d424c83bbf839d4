"""A decoder of the llama family as the pure functions of `ModelFns`."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxserver.core.compute import ON_CPU, Compute
from jaxserver.core.config import ModelConfig
from jaxserver.core.kv_cache import (
    KVCache,
    copy_pages,
    init_cache,
    kv_axes,
    token_axes,
    whole_row_page,
)
from jaxserver.core.ops import paged
from jaxserver.core.ops.attention import Attention, attention
from jaxserver.core.ops.likeliest import refine_likeliest
from jaxserver.core.ops.linear import (
    Multiplied,
    Products,
    Weight,
    linear_on,
    pad_tokens,
    read_rows,
)
from jaxserver.core.ops.mlp import gated_mlp
from jaxserver.core.ops.norms import rms_norm
from jaxserver.core.ops.paged import BLOCK, LayerCache
from jaxserver.core.ops.rope import RopeTable, rope_table, rotate
from jaxserver.core.params import LayerParams, Weights, layer_at
from jaxserver.core.sharding import constrain, num_devices
from jaxserver.ports.model import Axes, LogicalAxis, ModelFns, Read, Run, TokenBatch


class Build(NamedTuple):
    """All that is decided of a model before it runs.

    Attributes:
        table: Its rotary factors.
        products: How they are made, and on which mesh the model lies.
        dtype: Of the residual stream, and so of both factors of every product.
        attention: The form of it, and the cache's layout.
        page_size: Tokens of a page of the cache.
    """

    config: ModelConfig
    table: RopeTable
    products: Products
    dtype: str
    attention: Attention
    page_size: int


def transformer_fns(
    config: ModelConfig,
    max_len: int,
    page_size: int | None = None,
    mesh: Mesh | None = None,
    cache_dtype: str = "float32",
    compute: Compute = ON_CPU,
) -> ModelFns:
    """Builds the functions of one model; a page is a whole row unless told otherwise.

    Args:
        config: The model.
        max_len: Longest sequence to serve.
        page_size: Tokens of a page, a multiple or a divisor of the attention's block.
        mesh: Where the weights and the cache lie; None leaves all to the compiler.
        cache_dtype: What keys and values are kept in.
        compute: On what, and in which numbers, it is computed.
    """
    form = attention(compute, config.head_dim, mesh)
    table, layout = rope_table(config, max_len), form.layout
    if page_size is None or page_size >= max_len:
        page_size = whole_row_page(max_len)
    chex.assert_is_divisible(max(page_size, BLOCK), min(page_size, BLOCK))
    chex.assert_is_divisible(config.num_heads, config.num_kv_heads)
    products = Products(mesh, compute.kernel("int8_product"))
    build = Build(config, table, products, compute.dtype, form, page_size)
    some_run: Run = functools.partial(run, build)
    some_read: Read = functools.partial(read, build)
    if compute.rounds_float32:
        exactly = jax.default_matmul_precision("highest")
        some_run, some_read = exactly(some_run), exactly(some_read)
    return ModelFns(
        init_cache=functools.partial(
            init_cache, config, page_size=page_size, dtype=cache_dtype, layout=layout
        ),
        run=some_run,
        read=some_read,
        copy_pages=functools.partial(copy_pages, layout=layout),
        cache_axes=lambda shape: kv_axes(layout),
        token_axes=token_axes(config.num_layers, layout),
        page_size=page_size,
        max_len=max_len,
        vocab_size=config.vocab_size,
    )


def run(
    build: Build, params: Weights, cache: KVCache, batch: TokenBatch
) -> tuple[Float[Array, "rows time embed"], KVCache]:
    """Runs some tokens of some rows; see `ports.model.Run`.

    On a mesh every device sees all tokens, so that a token's bits do not depend on how
    many there are; the weights are split, and attention is with the cache.
    """
    mesh, (rows, time) = build.products.mesh, batch.tokens.shape
    chex.assert_equal(len(params.layers), build.config.num_layers)
    build = build._replace(products=build.products._replace(tokens=rows * time))
    steps = jnp.arange(time, dtype=jnp.int32)[None, :]
    positions = batch.start[:, None] + steps
    whole = functools.partial(constrain, axes=(None, None), mesh=mesh)
    embedded = read_rows(params.embedding, batch.tokens.reshape(-1), build.dtype)
    x = whole(pad_tokens(embedded))
    is_looped = "layers" in build.attention.layout.keys
    run_layers = _run_in_loop if is_looped else _run_in_turn
    x, cache = run_layers(build, params.layers, (x, cache), (batch, positions))
    return x[: rows * time].reshape(rows, time, -1), cache


def read(
    build: Build,
    params: Weights,
    hidden: Float[Array, "rows time embed"],
    at: Int[Array, "rows reads"],
) -> Float[Array, "rows reads vocab"]:
    """Logits after some tokens; see `ports.model.Read`."""
    rows, reads = at.shape
    products = build.products._replace(tokens=rows * reads)
    wanted = jnp.take_along_axis(hidden, at[:, :, None], 1, mode="clip")
    wanted = pad_tokens(wanted.reshape(rows * reads, -1))
    head = params.embedding if params.head is None else params.head
    normed = rms_norm(wanted, params.norm, build.config.norm_eps)
    normed = constrain(normed, (None, None), build.products.mesh)
    logits = linear_on(products, ("vocab", "embed"), normed, head)
    logits, normed = logits[: rows * reads], normed[: rows * reads]
    return refine_likeliest(logits, normed, head).reshape(rows, reads, -1)


def _run_in_loop(
    build: Build,
    layers: Sequence[LayerParams[Array, Weight]],
    state: tuple[Float[Array, "tokens embed"], KVCache],
    where: tuple[TokenBatch, Int[Array, "rows time"]],
) -> tuple[Float[Array, "tokens embed"], KVCache]:
    """Compiled once for all layers. Elsewhere than on a CPU, choosing makes it wait."""
    x, cache = state

    def run(index: Array, state: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        x, keys, values = state
        layer_state = (x, LayerCache(keys, values, index))
        x, cache = _layer(build, layer_at(layers, index), layer_state, where)
        return x, cache.keys, cache.values

    first = (x, *cache.keys, *cache.values)
    x, keys, values = jax.lax.fori_loop(0, len(layers), run, first)
    return x, KVCache((keys,), (values,))


def _run_in_turn(
    build: Build,
    layers: Sequence[LayerParams[Array, Weight]],
    state: tuple[Float[Array, "tokens embed"], KVCache],
    where: tuple[TokenBatch, Int[Array, "rows time"]],
) -> tuple[Float[Array, "tokens embed"], KVCache]:
    """Traced and lowered once, which takes most of a start otherwise."""
    (x, cache), run = state, jax.jit(functools.partial(_layer, build))
    after = []
    for index, layer in enumerate(layers):
        mine = LayerCache(cache.keys[index], cache.values[index])
        with jax.named_scope(f"layer_{index}"):
            x, mine = run(layer, (x, mine), where)
        after.append(mine)
    keys, values = (tuple(mine[i] for mine in after) for i in range(2))
    return x, KVCache(keys, values)


def _layer(
    build: Build,
    params: LayerParams[Array, Multiplied],
    state: tuple[Float[Array, "tokens embed"], LayerCache],
    where: tuple[TokenBatch, Int[Array, "rows time"]],
) -> tuple[Float[Array, "tokens embed"], LayerCache]:
    """Products, and what is done to them, are float32; what goes on is of `dtype`."""
    (x, cache), products, eps = state, build.products, build.config.norm_eps
    whole = functools.partial(constrain, axes=(None, None), mesh=products.mesh)
    normed = whole(rms_norm(x, params.attention_norm, eps))
    attended, cache = _attention(build, params, (normed, cache), where)
    onto: Axes = ("embed", "kv_heads", None, None)
    back = linear_on(products, onto, attended, params.out, params.out_bias)
    x = whole(_added(x, back))
    normed = whole(rms_norm(x, params.mlp_norm, eps))
    return whole(_added(x, gated_mlp(normed, params.mlp, products))), cache


def _added(
    x: Float[Array, "tokens embed"], back: Float[Array, "tokens embed"]
) -> Float[Array, "tokens embed"]:
    return (x.astype(back.dtype) + back).astype(x.dtype)


def _attention(
    build: Build,
    params: LayerParams[Array, Multiplied],
    state: tuple[Float[Array, "tokens embed"], LayerCache],
    where: tuple[TokenBatch, Int[Array, "rows time"]],
) -> tuple[Float[Array, "tokens kv_heads groups head_dim"], LayerCache]:
    """Of normed tokens, whose keys and values are put into the cache."""
    (normed, cache), (batch, positions) = state, where
    mesh, table, form = build.products.mesh, batch.page_table, build.attention
    rows, time = positions.shape
    into: Axes = ("kv_heads", None, None, "embed")
    qkv = linear_on(build.products, into, normed, params.qkv, params.qkv_bias)
    qkv = qkv[: rows * time].reshape(rows, time, *qkv.shape[1:])
    # Rows that are pages of the same number run where their pages are.
    rows_axis: LogicalAxis | None = "batch" if table is None else None
    qkv = constrain(qkv, (rows_axis, None, "kv_heads", None, None), mesh)
    turned = rotate(qkv[:, :, :, :-1], build.table, positions)
    queries, keys, values = turned[:, :, :, :-1], turned[:, :, :, -1], qkv[:, :, :, -1]
    places = paged.places(
        positions, batch.length, table, build.page_size, cache.keys.shape[0]
    )
    # Runs of keys do not go across the devices that rows lie on.
    is_split = mesh is not None and num_devices("batch", mesh) > 1
    is_whole = table is None or table.shape[1] == 1
    is_scattered = form.layout is paged.BY_BLOCK
    cache = paged.write(
        cache,
        (keys, values),
        places,
        layout=form.layout,
        in_runs=is_scattered and is_whole and not is_split,
    )
    ends = jnp.where(batch.length > 0, batch.start + batch.length, 0)
    attended = form.attend(queries.astype(normed.dtype), cache, table, positions, ends)
    attended = constrain(attended, (None, None, "kv_heads", None, None), mesh)
    return pad_tokens(attended.reshape(rows * time, *attended.shape[2:])), cache
