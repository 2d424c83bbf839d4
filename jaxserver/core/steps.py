"""The two steps of the engine, prefill and decode, as pure functions."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core.decode_state import DecodeState, RowArrays
from jaxserver.core.rules import token_mask
from jaxserver.core.sampling import Choice, choose_rows
from jaxserver.core.sampling_arrays import History
from jaxserver.ports.model import ModelFns, Params, TokenBatch
from jaxserver.ports.types import MAX_TOP_LOGPROBS

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
