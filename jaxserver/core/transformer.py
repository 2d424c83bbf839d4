"""A decoder of the llama family as the pure functions of `ModelFns`."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxserver.core.config import MIN_CALL_TOKENS, ModelConfig
from jaxserver.core.kv_cache import (
    KV_AXES,
    KVCache,
    copy_pages,
    init_cache,
    token_axes,
    whole_row_page,
)
from jaxserver.core.ops import paged
from jaxserver.core.ops.attention import BLOCK, ROWS, attend
from jaxserver.core.ops.linear import Weight, linear_on, pad_tokens
from jaxserver.core.ops.mlp import gated_mlp
from jaxserver.core.ops.norms import rms_norm
from jaxserver.core.ops.quantize import Int8Weight, read_rows
from jaxserver.core.ops.rope import RopeTable, rope_table, rotate
from jaxserver.core.ops.widen import widen
from jaxserver.core.params import LayerParams, Weights
from jaxserver.core.sharding import constrain, num_devices
from jaxserver.ports.model import Axes, LogicalAxis, ModelFns, TokenBatch

LayerCache = tuple[
    Float[Array, "pages kv_heads head_dim page_size"],
    Float[Array, "pages kv_heads page_size head_dim"],
]


def transformer_fns(
    config: ModelConfig,
    max_len: int,
    page_size: int | None = None,
    mesh: Mesh | None = None,
    cache_dtype: str = "float32",
) -> ModelFns:
    """Builds the functions of one model; a page is a whole row unless told otherwise.

    Args:
        config: The model.
        max_len: Longest sequence to serve.
        page_size: Tokens of a page, a multiple or a divisor of the attention's block.
        mesh: Where the weights and the cache lie; None leaves all to the compiler.
        cache_dtype: What keys and values are kept in.
    """
    page_size = page_size or whole_row_page(max_len)
    chex.assert_is_divisible(max(page_size, BLOCK), min(page_size, BLOCK))
    chex.assert_is_divisible(config.num_heads, config.num_kv_heads)
    return ModelFns(
        init_cache=functools.partial(_init_cache, config, page_size, cache_dtype),
        extend=functools.partial(extend, config, rope_table(config, max_len), mesh),
        copy_pages=copy_pages,
        cache_axes=lambda shape: KV_AXES,
        token_axes=token_axes(config.num_layers),
        page_size=page_size,
        max_len=max_len,
        vocab_size=config.vocab_size,
    )


def _init_cache(
    config: ModelConfig, page_size: int, dtype: str, num_pages: int
) -> KVCache:
    return init_cache(config, num_pages, page_size, dtype)


def extend(
    config: ModelConfig,
    table: RopeTable,
    mesh: Mesh | None,
    params: Weights,
    cache: KVCache,
    batch: TokenBatch,
) -> tuple[Float[Array, "rows reads vocab"], KVCache]:
    """Runs some tokens of some rows; see `ports.model.Extend`.

    On a mesh every device sees all tokens, so that a token's bits do not depend on how
    many there are; the weights are split, and attention is with the cache.
    """
    rows, time = batch.tokens.shape
    chex.assert_equal(len(params.layers), config.num_layers)
    steps = jnp.arange(time, dtype=jnp.int32)[None, :]
    positions = batch.start[:, None] + steps
    whole = functools.partial(constrain, axes=(None, None), mesh=mesh)
    x = whole(pad_tokens(embed(params.embedding, batch.tokens.reshape(-1))))
    all_keys, all_values = [], []
    # Layers are alike: traced and lowered once, which takes most of a start otherwise.
    run_layer = jax.jit(functools.partial(_layer, config, table, mesh))
    for index, layer in enumerate(params.layers):
        layer_cache = (cache.keys[index], cache.values[index])
        with jax.named_scope(f"layer_{index}"):
            x, (keys, values) = run_layer(layer, (x, layer_cache), (batch, positions))
        all_keys.append(keys)
        all_values.append(values)
    by_row = x[: rows * time].reshape(rows, time, -1)
    read = jnp.take_along_axis(by_row, batch.logits_at[:, :, None], 1, mode="clip")
    reads = batch.logits_at.shape[1]
    wanted = pad_tokens(read.reshape(rows * reads, -1), MIN_CALL_TOKENS)
    head = params.embedding if params.head is None else params.head
    normed = whole(rms_norm(wanted, params.norm, config.norm_eps))
    logits = linear_on(mesh, ("vocab", "embed"), normed, head)
    by_read = logits[: rows * reads].reshape(rows, reads, -1)
    return by_read, KVCache(tuple(all_keys), tuple(all_values))


def embed(table: Weight, tokens: Int[Array, " tokens"]) -> Float[Array, "tokens embed"]:
    """The table's rows of some tokens, in float32."""
    if isinstance(table, Int8Weight):
        return read_rows(table, tokens)

    def read(table: Float[Array, "vocab embed"]) -> Float[Array, "tokens embed"]:
        return table.at[tokens].get(mode="clip").astype(jnp.float32)

    return read(table) if table.dtype == jnp.float32 else widen(read, table, tokens[0])


def _layer(
    config: ModelConfig,
    table: RopeTable,
    mesh: Mesh | None,
    params: LayerParams[Array, Weight],
    state: tuple[Float[Array, "tokens embed"], LayerCache],
    where: tuple[TokenBatch, Int[Array, "rows time"]],
) -> tuple[Float[Array, "tokens embed"], LayerCache]:
    (x, cache), (batch, positions) = state, where
    rows, time = positions.shape
    whole = functools.partial(constrain, axes=(None, None), mesh=mesh)
    normed = whole(rms_norm(x, params.attention_norm, config.norm_eps))
    into: Axes = ("kv_heads", None, None, "embed")
    qkv = linear_on(mesh, into, normed, params.qkv, params.qkv_bias)[: rows * time]
    qkv = qkv.reshape(rows, time, *qkv.shape[1:])
    # Rows that are pages of the same number run where their pages are.
    rows_axis: LogicalAxis | None = "batch" if batch.page_table is None else None
    qkv = constrain(qkv, (rows_axis, None, "kv_heads", None, None), mesh)
    turned = rotate(qkv[:, :, :, :-1], table, positions)
    queries, keys, values = turned[:, :, :, :-1], turned[:, :, :, -1], qkv[:, :, :, -1]
    page_size, num_pages = cache[0].shape[3], cache[0].shape[0]
    places = paged.places(
        positions, batch.length, batch.page_table, page_size, num_pages
    )
    # Neither runs of keys nor groups of rows go across the devices that rows lie on.
    is_split = mesh is not None and num_devices("batch", mesh) > 1
    is_whole = batch.page_table is None or batch.page_table.shape[1] == 1
    in_runs = is_whole and not is_split
    cache = paged.write(*cache, (keys, values), places, in_runs=in_runs)
    ends = jnp.where(batch.length > 0, batch.start + batch.length, 0)
    num_blocks = (ends + BLOCK - 1) // BLOCK
    together = None if is_split and rows_axis else ROWS
    attended = attend(queries, cache, batch.page_table, positions, num_blocks, together)
    attended = constrain(attended, (None, None, "kv_heads", None, None), mesh)
    flat = pad_tokens(attended.reshape(rows * time, *attended.shape[2:]))
    onto: Axes = ("embed", "kv_heads", None, None)
    back = linear_on(mesh, onto, flat, params.out, params.out_bias)
    x = whole(x + back)
    normed = whole(rms_norm(x, params.mlp_norm, config.norm_eps))
    return whole(x + gated_mlp(normed, params.mlp, mesh)), cache
