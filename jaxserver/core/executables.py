"""The closed list of what is compiled: the steps, for each size that they have.

The only module that compiles, donates and places.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled
from jaxtyping import Array, Float, Int

from jaxserver.core.config import EngineConfig
from jaxserver.core.decode import Block, BlockSizes, decode
from jaxserver.core.decode_state import DecodeState, RowArrays, init_state
from jaxserver.core.sharding import (
    constrain,
    gathered,
    named_sharding,
    one_row_a_device,
    replicated,
)
from jaxserver.core.steps import (
    Adoption,
    PrefillChunk,
    Prefilled,
    adopt,
    begin,
    prefill,
    put_page,
    take_page,
)
from jaxserver.ports.model import (
    Axes,
    Cache,
    Hidden,
    ModelFns,
    Params,
    TokenAxes,
    TokenBatch,
)
from jaxserver.ports.processors import Processors

Kind = Literal["init", "adopt", "prefill", "begin", "decode", "take", "put"]
"""Of an executable."""
_WITH_WEIGHTS = frozenset({"prefill", "decode"})


class Steps(NamedTuple):
    """How to compile each executable there is; the list is closed.

    Attributes:
        init: Makes the empty state: `() -> state`.
        adopt: Puts what is there already into a row: `(state, adoption) -> state`.
        prefill: By padded length: `(params, state, chunk) -> (state, prefilled)`.
            Of the longest also with log-probabilities of a prompt's own tokens.
        begin: Follows it: `(state, beginning, prefilled) -> (state, outcome)`.
        decode: By number of slots: `(params, state, block) -> (state, outcome)`. All
            of these consume the state that they are given.
        take: Reads a page: `(state, page) -> leaves`.
        put: Writes one: `(state, page, leaves) -> state`, consuming the state.
        inputs: By kind and size, the shapes of what one takes besides weights and
            state.
        share: By a number of bytes: `(uint8 [devices bytes]) -> uint8 [bytes]`, the
            first device's row on every device.
        processors: Those that rows may want.
        token_axes: See `ModelFns`.
    """

    init: Callable[[], Compiled]
    adopt: Callable[[], Compiled]
    prefill: Mapping[int, Callable[[], Compiled]]
    begin: Callable[[], Compiled]
    decode: Mapping[int, Callable[[], Compiled]]
    take: Mapping[int, Callable[[], Compiled]]
    put: Mapping[int, Callable[[], Compiled]]
    inputs: Callable[[Kind, int], tuple[Any, ...]]
    share: Callable[[int], Compiled]
    processors: Processors
    token_axes: TokenAxes | None


def build_steps(
    fns: ModelFns,
    params: Params,
    engine: EngineConfig,
    mesh: Mesh,
    options: dict[str, str | bool] | None = None,
) -> Steps:
    """Says how to compile the steps of a configuration, without doing it.

    Args:
        fns: The model.
        params: Its weights, or their shapes with shardings.
        engine: The sizes.
        mesh: Where the state lies: rows over the batch axes.
        options: Of XLA's.
    """
    fns = on_devices(fns, params, mesh)
    make = functools.partial(init_state, fns, engine.slots, engine.num_pages)
    shapes = jax.eval_shape(make)
    state = _state_on_mesh(fns, shapes, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    outs = (placed, replicated(mesh))
    weights = jax.tree.map(abstract, params)

    sizes = (shapes, engine, fns.vocab_size)
    inputs = functools.partial(_inputs, sizes, replicated(mesh))

    def compile_init() -> Compiled:
        return jax.jit(make, out_shardings=placed).lower().compile()

    def build(run: Callable[..., Any], outs: Any, kind: Kind, size: int) -> Compiled:
        given = (weights, state) if kind in _WITH_WEIGHTS else (state,)
        consumed = () if kind == "take" else len(given) - 1
        step = jax.jit(run, donate_argnums=consumed, out_shardings=outs)
        return step.lower(*given, *inputs(kind, size)).compile(options)

    late = functools.partial
    first, whole = late(prefill, fns), replicated(mesh)
    moves = (0,) if fns.token_axes else ()
    return Steps(
        init=compile_init,
        adopt=late(build, late(adopt, fns), placed, "adopt", 0),
        prefill={
            time: late(build, first, outs, "prefill", time)
            for time in engine.prefill_lengths
        },
        begin=late(build, late(begin, fns), outs, "begin", 0),
        decode={
            rows: late(build, _decode_at(fns, engine, rows), outs, "decode", rows)
            for rows in engine.decode_ladder
        },
        take={size: late(build, take_page, whole, "take", size) for size in moves},
        put={size: late(build, put_page, placed, "put", size) for size in moves},
        inputs=inputs,
        share=late(_compile_share, mesh),
        processors=dict(fns.processors),
        token_axes=fns.token_axes,
    )


def _decode_at(fns: ModelFns, engine: EngineConfig, rows: int) -> Callable[..., Any]:
    longest, drafts = engine.max_stream_tokens, engine.drafts(rows)
    sizes = BlockSizes(rows, longest, drafts, engine.least_match)
    return functools.partial(decode, fns, sizes)


def _state_on_mesh(fns: ModelFns, shapes: Any, mesh: Mesh) -> Any:
    state = jax.tree.map(lambda leaf: _on_mesh(leaf, ("batch",), mesh), shapes)
    cache = jax.tree.map(
        lambda leaf: _on_mesh(leaf, fns.cache_axes(leaf.shape), mesh), shapes.cache
    )
    return state._replace(cache=cache)


def on_devices(fns: ModelFns, params: Params, mesh: Mesh) -> ModelFns:
    """Says where things lie around a model.

    A token is chosen row by row, and each row looks at all of its logits. Weights are
    put together from where they lie as `gathered` says, but for our own model, which
    says itself where its products lie.
    """
    encode_there: Any = fns.encode

    def put(weights: Params) -> Params:
        if fns.chunk is None:
            return weights
        places = jax.tree.map(lambda leaf: gathered(leaf.sharding), params)
        return jax.lax.with_sharding_constraint(weights, places)

    def run(params: Params, cache: Cache, batch: TokenBatch) -> tuple[Hidden, Cache]:
        return fns.run(put(params), cache, batch)

    def read(
        params: Params, hidden: Hidden, at: Int[Array, "rows reads"]
    ) -> Float[Array, "rows reads vocab"]:
        logits = fns.read(put(params), hidden, at)
        return constrain(logits, (None, None, None), mesh)

    def encode(
        params: Params, cache: Cache, rows: Array, tokens: Array, length: Array
    ) -> Cache:
        return encode_there(put(params), cache, rows, tokens, length)

    encoding = encode if encode_there else None
    return fns._replace(run=run, read=read, encode=encoding)


def _inputs(
    sizes: tuple[DecodeState, EngineConfig, int],
    everywhere: NamedSharding,
    kind: Kind,
    size: int,
) -> tuple[Any, ...]:
    shapes, engine, vocab = sizes
    shape: Any = functools.partial(jax.ShapeDtypeStruct, sharding=everywhere)
    if kind == "prefill":
        chunk = _chunk_shape(shapes.rows, engine, size, everywhere)
        is_scored = size == engine.score_length
        return (chunk._replace(targets=chunk.tokens if is_scored else None),)
    number = shape((), jnp.int32)
    if kind == "take":
        return (number,)
    if kind == "put":
        page = jax.tree.map(lambda x: shape(x.shape[1:], x.dtype), shapes.cache)
        return (number, page)
    if kind == "adopt":
        tokens = shape((engine.max_len,), jnp.int32)
        return (Adoption(number, tokens, number, number, number),)
    if kind == "begin":
        chunk = _chunk_shape(shapes.rows, engine, 1, everywhere)
        logits = shape((engine.prefill_rows, vocab), jnp.float32)
        return (chunk.beginning, Prefilled(logits, chunk.length))
    if kind == "init":
        return ()
    pages = shape((engine.slots, engine.pages_per_row), jnp.int32)
    return (
        Block(
            keep=shape((engine.slots,), jnp.bool_),
            num_tokens=shape((), jnp.int32),
            pages=None if engine.has_whole_rows else pages,
        ),
    )


def _compile_share(mesh: Mesh, num_bytes: int) -> Compiled:
    sharding, shape = one_row_a_device(mesh), (mesh.size, num_bytes)
    rows = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
    first = jax.jit(lambda rows: rows[0], out_shardings=replicated(mesh))
    return first.lower(rows).compile()


def _on_mesh(
    leaf: jax.ShapeDtypeStruct, first_axes: Axes, mesh: Mesh
) -> jax.ShapeDtypeStruct:
    rest = len(leaf.shape) - len(first_axes)
    sharding = named_sharding((*first_axes, *(None,) * rest), leaf.shape, mesh)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def abstract(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Its shape, type and sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _chunk_shape(
    rows: RowArrays, engine: EngineConfig, time: int, sharding: NamedSharding
) -> PrefillChunk:
    def shape(kind: jnp.dtype | type, *rest: int) -> jax.ShapeDtypeStruct:
        num_rows = engine.prefill_rows
        return jax.ShapeDtypeStruct((num_rows, *rest), kind, sharding=sharding)

    shapes: dict[str, Any] = dict(
        slots=shape(jnp.int32),
        pages=shape(jnp.int32, engine.pages_per_row),
        tokens=shape(jnp.int32, time),
        start=shape(jnp.int32),
        length=shape(jnp.int32),
        is_last=shape(jnp.bool_),
        rows=jax.tree.map(lambda leaf: shape(leaf.dtype, *leaf.shape[1:]), rows),
    )
    return PrefillChunk(**shapes)
