"""The two compiled steps of the engine, prefill and decode, and their closed list.

The only module that compiles, donates and places.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core.config import EngineConfig
from jaxserver.core.decode_state import DecodeState, RowArrays, init_state
from jaxserver.core.rules import token_mask
from jaxserver.core.sampling import Choice, choose_rows
from jaxserver.core.sampling_arrays import History
from jaxserver.core.sharding import (
    constrain,
    gathered,
    named_sharding,
    one_row_a_device,
    replicated,
)
from jaxserver.ports.model import Axes, Cache, ModelFns, Params, TokenBatch
from jaxserver.ports.types import MAX_TOP_LOGPROBS

Kind = Literal["init", "prefill", "decode"]
"""Of an executable."""
RUNNING, STOP, LENGTH, UNSOUND = range(4)
"""Why a row ended: not at all, an end token, its limit, NaN in its logits."""


class PrefillChunk(NamedTuple):
    """Consecutive tokens of some prompts, padded to one length.

    Attributes:
        slots: Where each row goes; one past the last for a row that is only padding.
        length: Tokens that count.
        is_last: The chunk ends the prompt: the first token of the answer is chosen.
        rows: What the requests bring.
    """

    slots: Int[Array, " rows"]
    tokens: Int[Array, "rows time"]
    start: Int[Array, " rows"]
    length: Int[Array, " rows"]
    is_last: Bool[Array, " rows"]
    rows: RowArrays


class Outcome(NamedTuple):
    """What a step gives back to the host.

    Attributes:
        tokens: The tokens chosen, in order; only the first `counts` are meant.
        counts: How many tokens each row chose.
        ends: RUNNING, STOP, LENGTH or UNSOUND.
        steps: How many steps were run.
    """

    tokens: Int[Array, "rows block"]
    counts: Int[Array, " rows"]
    ends: Int[Array, " rows"]
    steps: Int[Array, ""]
    logprobs: Float[Array, "rows block"]
    top_ids: Int[Array, "rows block top"]
    top_logprobs: Float[Array, "rows block top"]


def prefill(
    fns: ModelFns, params: Params, state: DecodeState, chunk: PrefillChunk
) -> tuple[DecodeState, Outcome]:
    """Runs one chunk of some prompts, and chooses the first token where one ends."""
    num_slots, max_len = state.tokens.shape
    rows = chunk.tokens.shape[0]
    chex.assert_shape((chunk.slots, chunk.start, chunk.length), (rows,))
    cache = state.cache
    if fns.encode is not None:
        cache = fns.encode(params, cache, chunk.slots, chunk.tokens, chunk.length)
        chunk = _decoder_prompt(fns, chunk)
    logits, cache = fns.extend(
        params,
        cache,
        TokenBatch(
            tokens=chunk.tokens,
            start=chunk.start,
            length=chunk.length,
            page_table=jnp.minimum(chunk.slots, num_slots - 1)[:, None],
            logits_at=jnp.maximum(chunk.length - 1, 0)[:, None],
        ),
    )
    time = chunk.tokens.shape[1]
    steps = jnp.arange(time, dtype=jnp.int32)[None, :]
    at = jnp.where(steps < chunk.length[:, None], chunk.start[:, None] + steps, max_len)
    tokens = state.tokens.at[chunk.slots[:, None], at].set(chunk.tokens, mode="drop")
    held = chunk.start + chunk.length
    mine = tokens.at[chunk.slots].get(mode="clip")
    history = History(mine, chunk.rows.prompt_length, held)
    mask = token_mask(fns.rules, history, chunk.rows, fns.vocab_size)
    wishes = chunk.rows.sampling
    choice = choose_rows(logits[:, 0], wishes, history, chunk.is_last, mask)
    ends = jnp.where(
        chunk.is_last, _ends(choice, held + 1, chunk.rows), jnp.int32(RUNNING)
    )
    at = jnp.where(chunk.is_last, held, max_len)
    tokens = tokens.at[chunk.slots, at].set(choice.token, mode="drop")
    put = functools.partial(_put_rows, chunk.slots)
    new_state = DecodeState(
        cache=cache,
        tokens=tokens,
        lengths=put(state.lengths, held + chunk.is_last.astype(jnp.int32)),
        active=put(state.active, chunk.is_last & (ends == RUNNING)),
        rows=jax.tree.map(put, state.rows, chunk.rows),
    )
    counts = (chunk.is_last & (ends != UNSOUND)).astype(jnp.int32)
    block = jax.tree.map(lambda x: x[:, None], choice)
    return new_state, _outcome(block, counts, ends, jnp.int32(1))


def _decoder_prompt(fns: ModelFns, chunk: PrefillChunk) -> PrefillChunk:
    """The same rows with what the decoder reads in place of the encoder's input."""
    rows, count = chunk.tokens.shape[0], len(fns.decoder_prompt)
    prompt = jnp.asarray(fns.decoder_prompt, jnp.int32)
    is_row = chunk.length > 0
    return chunk._replace(
        tokens=jnp.broadcast_to(prompt, (rows, count)),
        length=jnp.where(is_row, count, 0).astype(jnp.int32),
    )


def _put_rows(slots: Int[Array, " rows"], old: Array, new: Array) -> Array:
    return old.at[slots].set(new, mode="drop")


def _ends(
    choice: Choice, length: Int[Array, " rows"], rows: RowArrays
) -> Int[Array, " rows"]:
    stops = jnp.any(choice.token[:, None] == rows.end_ids, axis=1)
    is_full = length >= rows.limit
    ends = jnp.where(stops, STOP, jnp.where(is_full, LENGTH, RUNNING))
    return jnp.where(choice.is_sound, ends, UNSOUND).astype(jnp.int32)


def _outcome(block: Choice, counts: Array, ends: Array, steps: Array) -> Outcome:
    return Outcome(
        tokens=block.token,
        counts=counts,
        ends=ends,
        steps=steps,
        logprobs=block.logprob,
        top_ids=block.top_ids,
        top_logprobs=block.top_logprobs,
    )


class _Progress(NamedTuple):
    """What a decode block carries from step to step, for its rows only."""

    state: DecodeState
    outcome: Outcome


def decode(
    fns: ModelFns,
    sizes: tuple[int, int],
    params: Params,
    state: DecodeState,
    keep: Bool[Array, " slots"],
    num_steps: Int[Array, ""],
) -> tuple[DecodeState, Outcome]:
    """Runs up to `num_steps` decode steps, fewer when every row has ended.

    Args:
        fns: The model.
        sizes: How many slots, from the first on, and how many tokens at most.
        params: Its weights.
        state: The slots.
        keep: Slots whose request is still wanted; the others become inactive.
        num_steps: Traced, so that one executable serves every length of block.
    """
    rows, block = sizes
    state = state._replace(active=state.active & keep)
    mine = jax.tree.map(lambda x: x[:rows], state.rows)
    top = min(MAX_TOP_LOGPROBS, fns.vocab_size)
    nothing = Outcome(
        tokens=jnp.zeros((rows, block), jnp.int32),
        counts=jnp.zeros(rows, jnp.int32),
        ends=jnp.zeros(rows, jnp.int32),
        steps=jnp.int32(0),
        logprobs=jnp.zeros((rows, block), jnp.float32),
        top_ids=jnp.zeros((rows, block, top), jnp.int32),
        top_logprobs=jnp.zeros((rows, block, top), jnp.float32),
    )

    def goes_on(progress: _Progress) -> Bool[Array, ""]:
        is_wanted = progress.outcome.steps < jnp.minimum(num_steps, block)
        return is_wanted & jnp.any(progress.state.active[:rows])

    def step(progress: _Progress) -> _Progress:
        return _decode_step(fns, params, mine, progress)

    done: _Progress = jax.lax.while_loop(goes_on, step, _Progress(state, nothing))
    return done.state, done.outcome


def _decode_step(
    fns: ModelFns, params: Params, mine: RowArrays, progress: _Progress
) -> _Progress:
    state, outcome = progress
    rows = outcome.counts.shape[0]
    max_len = state.tokens.shape[1]
    slots = jnp.arange(rows, dtype=jnp.int32)
    active, lengths = state.active[:rows], state.lengths[:rows]
    held = jnp.maximum(lengths - 1, 0)
    tokens = state.tokens[slots, jnp.minimum(held, max_len - 1)]
    logits, cache = fns.extend(
        params,
        state.cache,
        TokenBatch(
            tokens=tokens[:, None],
            start=held,
            length=active.astype(jnp.int32),
            page_table=None,
            logits_at=jnp.zeros((rows, 1), jnp.int32),
        ),
    )
    history = History(state.tokens[:rows], mine.prompt_length, lengths)
    mask = token_mask(fns.rules, history, mine, fns.vocab_size)
    choice = choose_rows(logits[:, 0], mine.sampling, history, active, mask)
    ends = jnp.where(active, _ends(choice, lengths + 1, mine), RUNNING)
    is_chosen = active & (ends != UNSOUND)
    at = jnp.where(is_chosen, lengths, max_len)
    new_state = DecodeState(
        cache=cache,
        tokens=state.tokens.at[slots, at].set(choice.token, mode="drop"),
        lengths=state.lengths.at[:rows].add(is_chosen.astype(jnp.int32)),
        active=state.active.at[:rows].set(active & (ends == RUNNING)),
        rows=state.rows,
    )
    return _Progress(new_state, _record(outcome, choice, is_chosen, ends))


def _record(
    outcome: Outcome,
    choice: Choice,
    is_chosen: Bool[Array, " rows"],
    ends: Int[Array, " rows"],
) -> Outcome:
    block = outcome.tokens.shape[1]
    rows = jnp.arange(outcome.counts.shape[0], dtype=jnp.int32)
    at = jnp.where(is_chosen, outcome.counts, block)

    def put(old: Array, new: Array) -> Array:
        return old.at[rows, at].set(new, mode="drop")

    return Outcome(
        tokens=put(outcome.tokens, choice.token),
        counts=outcome.counts + is_chosen.astype(jnp.int32),
        ends=jnp.maximum(outcome.ends, ends),
        steps=outcome.steps + 1,
        logprobs=put(outcome.logprobs, choice.logprob),
        top_ids=put(outcome.top_ids, choice.top_ids),
        top_logprobs=put(outcome.top_logprobs, choice.top_logprobs),
    )


class Steps(NamedTuple):
    """How to compile each executable there is; the list is closed.

    Attributes:
        init: Makes the empty state: `() -> state`.
        prefill: By padded length: `(params, state, chunk) -> (state, outcome)`.
        decode: By number of slots: `(params, state, keep, num_steps) -> (state,
            outcome)`. Both consume the state that they are given.
        inputs: By kind and size, the shapes of what one takes besides weights and
            state.
        share: By a number of bytes: `(uint8 [devices bytes]) -> uint8 [bytes]`, the
            first device's row on every device.
    """

    init: Callable[[], Compiled]
    prefill: Mapping[int, Callable[[], Compiled]]
    decode: Mapping[int, Callable[[], Compiled]]
    inputs: Callable[[Kind, int], tuple[Any, ...]]
    share: Callable[[int], Compiled]


def build_steps(
    fns: ModelFns,
    params: Params,
    engine: EngineConfig,
    mesh: Mesh,
) -> Steps:
    """Says how to compile the steps of a configuration, without doing it.

    Args:
        fns: The model.
        params: Its weights, or their shapes with shardings.
        engine: The sizes.
        mesh: Where the state lies: rows over the batch axes.
    """
    fns = on_devices(fns, params, mesh)
    shapes = jax.eval_shape(functools.partial(init_state, fns, engine.slots))
    state = jax.tree.map(lambda leaf: _on_mesh(leaf, ("batch",), mesh), shapes)
    cache = jax.tree.map(
        lambda leaf: _on_mesh(leaf, fns.cache_axes(leaf.shape), mesh), shapes.cache
    )
    state = state._replace(cache=cache)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    outs = (placed, replicated(mesh))
    weights = jax.tree.map(_abstract, params)

    def compile_init() -> Compiled:
        make = functools.partial(init_state, fns, engine.slots)
        return jax.jit(make, out_shardings=placed).lower().compile()

    def compile_prefill(time: int) -> Compiled:
        run = functools.partial(prefill, fns)
        step = jax.jit(run, donate_argnums=1, out_shardings=outs)
        return step.lower(weights, state, *inputs("prefill", time)).compile()

    def compile_decode(rows: int) -> Compiled:
        run = functools.partial(decode, fns, (rows, engine.max_stream_tokens))
        step = jax.jit(run, donate_argnums=1, out_shardings=outs)
        return step.lower(weights, state, *inputs("decode", rows)).compile()

    def inputs(kind: Kind, size: int) -> tuple[Any, ...]:
        everywhere = replicated(mesh)
        if kind == "prefill":
            rows = engine.prefill_rows
            return (_chunk_shape(shapes.rows, (rows, size), everywhere),)
        keep = jax.ShapeDtypeStruct((engine.slots,), jnp.bool_, sharding=everywhere)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        return (keep, count) if kind == "decode" else ()

    def compile_share(num_bytes: int) -> Compiled:
        shape = (mesh.size, num_bytes)
        rows = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=one_row_a_device(mesh))
        first = jax.jit(lambda rows: rows[0], out_shardings=replicated(mesh))
        return first.lower(rows).compile()

    return Steps(
        init=compile_init,
        prefill={
            time: functools.partial(compile_prefill, time)
            for time in engine.prefill_lengths
        },
        decode={
            rows: functools.partial(compile_decode, rows)
            for rows in engine.decode_ladder
        },
        inputs=inputs,
        share=compile_share,
    )


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

    def extend(
        params: Params, cache: Cache, batch: TokenBatch
    ) -> tuple[Float[Array, "rows reads vocab"], Cache]:
        logits, cache = fns.extend(put(params), cache, batch)
        return constrain(logits, (None, None, None), mesh), cache

    def encode(
        params: Params, cache: Cache, rows: Array, tokens: Array, length: Array
    ) -> Cache:
        return encode_there(put(params), cache, rows, tokens, length)

    return fns._replace(extend=extend, encode=encode if encode_there else None)


def _on_mesh(
    leaf: jax.ShapeDtypeStruct, first_axes: Axes, mesh: Mesh
) -> jax.ShapeDtypeStruct:
    rest = len(leaf.shape) - len(first_axes)
    sharding = named_sharding((*first_axes, *(None,) * rest), leaf.shape, mesh)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _abstract(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _chunk_shape(
    rows: RowArrays, size: tuple[int, int], sharding: NamedSharding
) -> PrefillChunk:
    num_rows, time = size

    def shape(kind: jnp.dtype | type, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_rows, *rest), kind, sharding=sharding)

    shapes: dict[str, Any] = dict(
        slots=shape(jnp.int32),
        tokens=shape(jnp.int32, time),
        start=shape(jnp.int32),
        length=shape(jnp.int32),
        is_last=shape(jnp.bool_),
        rows=jax.tree.map(lambda leaf: shape(leaf.dtype, *leaf.shape[1:]), rows),
    )
    return PrefillChunk(**shapes)
