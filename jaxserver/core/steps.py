"""The first of the engine's two steps, prefill, and what both share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core import processors
from jaxserver.core.decode_state import DecodeState, RowArrays
from jaxserver.core.processors import Processing
from jaxserver.core.rules import token_mask
from jaxserver.core.sampling import Choice, choose_rows, no_choice, report
from jaxserver.core.sampling_arrays import History
from jaxserver.ports.model import Cache, ModelFns, Params, TokenBatch

RUNNING, STOP, LENGTH, UNSOUND = range(4)
"""Why a row ended: not at all, an end token, its limit, NaN in its logits."""
SCORED_TOGETHER = 16
"""Positions of a row whose logits are there at a time: few, for they take much room."""


class PrefillChunk(NamedTuple):
    """Consecutive tokens of some prompts, padded to one length.

    Attributes:
        slots: Where each row goes; one past the last for a row that is only padding.
        pages: Those of each row, in order.
        length: Tokens that count.
        is_last: The chunk ends the prompt: the first token of the answer is chosen.
        rows: What the requests bring.
        targets: The token after each, whose log-probability is wanted; below 0 where
            it is not, and None where that cannot be.
    """

    slots: Int[Array, " rows"]
    pages: Int[Array, "rows pages"]
    tokens: Int[Array, "rows time"]
    start: Int[Array, " rows"]
    length: Int[Array, " rows"]
    is_last: Bool[Array, " rows"]
    rows: RowArrays
    targets: Int[Array, "rows time"] | None = None

    @property
    def beginning(self) -> "Beginning":
        """What is left to do when it has been run."""
        return Beginning(self.slots, self.is_last, self.rows)


class Beginning(NamedTuple):
    """Rows whose answers may begin; see `PrefillChunk`."""

    slots: Int[Array, " rows"]
    is_last: Bool[Array, " rows"]
    rows: RowArrays


class Adoption(NamedTuple):
    """What a row holds before it is run for the first time.

    Attributes:
        tokens: Those that its pages hold; the rest is padding.
        source: The page of which a part is copied.
        target: The row's page that it is copied to.
        length: How many tokens are copied.
    """

    slot: Int[Array, ""]
    tokens: Int[Array, " max_len"]
    source: Int[Array, ""]
    target: Int[Array, ""]
    length: Int[Array, ""]


class Scores(NamedTuple):
    """Log-probabilities of the tokens after those of a chunk."""

    logprobs: Float[Array, "rows time"]
    top_ids: Int[Array, "rows time top"]
    top_logprobs: Float[Array, "rows time top"]


class Prefilled(NamedTuple):
    """What a chunk has brought.

    Attributes:
        logits: After its last token.
        held: How many tokens each row holds now.
        scores: Of a prompt's own tokens; None where the chunk has no targets.
    """

    logits: Float[Array, "rows vocab"]
    held: Int[Array, " rows"]
    scores: Scores | None = None


class Outcome(NamedTuple):
    """What a step gives back to the host.

    Attributes:
        tokens: The tokens chosen, in order; only the first `counts` are meant.
        counts: How many tokens each row chose.
        ends: RUNNING, STOP, LENGTH or UNSOUND.
        sound: The logits read last were numbers.
        steps: How many steps were run.
        drafted: How many tokens of drafts each row ran; 0 for a prefill.
        accepted: How many of those were chosen.
        scores: Of a prompt's own tokens; None after a step that has no targets.
    """

    tokens: Int[Array, "rows block"]
    counts: Int[Array, " rows"]
    ends: Int[Array, " rows"]
    sound: Bool[Array, " rows"]
    steps: Int[Array, ""]
    drafted: Int[Array, " rows"]
    accepted: Int[Array, " rows"]
    logprobs: Float[Array, "rows block"]
    top_ids: Int[Array, "rows block top"]
    top_logprobs: Float[Array, "rows block top"]
    scores: Scores | None = None


def adopt(fns: ModelFns, state: DecodeState, adoption: Adoption) -> DecodeState:
    """Puts into a row what was made of the same tokens before."""
    copies = (adoption.source, adoption.target, adoption.length)
    cache = fns.copy_pages(state.cache, *(x[None] for x in copies))
    tokens = state.tokens.at[adoption.slot].set(adoption.tokens)
    return state._replace(cache=cache, tokens=tokens)


def take_page(state: DecodeState, page: Int[Array, ""]) -> Cache:
    """What a page of the cache holds."""
    return jax.tree.map(lambda leaf: leaf[page], state.cache)


def put_page(state: DecodeState, page: Int[Array, ""], held: Cache) -> DecodeState:
    """Lets a page hold something else."""
    cache = jax.tree.map(lambda old, new: old.at[page].set(new), state.cache, held)
    return state._replace(cache=cache)


def prefill(
    fns: ModelFns, params: Params, state: DecodeState, chunk: PrefillChunk
) -> tuple[DecodeState, Prefilled]:
    """Runs one chunk of some prompts; `begin` has to follow."""
    max_len = state.tokens.shape[1]
    rows = chunk.tokens.shape[0]
    chex.assert_shape((chunk.slots, chunk.start, chunk.length), (rows,))
    cache = state.cache
    if fns.encode is not None:
        cache = fns.encode(params, cache, chunk.slots, chunk.tokens, chunk.length)
        chunk = _decoder_prompt(fns, chunk)
    logits, cache, scores = _run_chunk(fns, params, cache, chunk)
    time = chunk.tokens.shape[1]
    steps = jnp.arange(time, dtype=jnp.int32)[None, :]
    at = jnp.where(steps < chunk.length[:, None], chunk.start[:, None] + steps, max_len)
    tokens = state.tokens.at[chunk.slots[:, None], at].set(chunk.tokens, mode="drop")
    prefilled = Prefilled(logits, chunk.start + chunk.length, scores)
    return state._replace(cache=cache, tokens=tokens), prefilled


def begin(
    fns: ModelFns, state: DecodeState, beginning: Beginning, prefilled: Prefilled
) -> tuple[DecodeState, Outcome]:
    """Chooses the first token of an answer where a prompt has ended.

    It is the same after chunks of all lengths, and so is compiled once for them.
    """
    (slots, is_last, rows), (logits, held, _) = beginning, prefilled
    max_len = state.tokens.shape[1]
    mine = state.tokens.at[slots].get(mode="clip")
    history = History(mine, rows.prompt_length, held)
    is_chosen = is_last & (held < rows.limit)
    begun = processors.begin(dict(fns.processors), rows.processors, history, is_chosen)
    asked_steps = Processing(dict(fns.processors), rows.processors, begun)
    choice = choose_next(fns, logits, (history, is_chosen, rows), asked_steps)
    ends = jnp.where(
        is_chosen,
        ends_of(choice, held + 1, rows),
        jnp.where(is_last, jnp.int32(LENGTH), jnp.int32(RUNNING)),
    )
    at = jnp.where(is_chosen, held, max_len)
    tokens = state.tokens.at[slots, at].set(choice.token, mode="drop")
    put = functools.partial(_put_rows, slots)
    new_state = DecodeState(
        cache=state.cache,
        tokens=tokens,
        lengths=put(state.lengths, held + is_chosen.astype(jnp.int32)),
        active=put(state.active, is_chosen & (ends == RUNNING)),
        rows=jax.tree.map(put, state.rows, rows),
        processor_states=jax.tree.map(
            put,
            state.processor_states,
            processors.update(asked_steps, choice.token, is_chosen),
        ),
    )
    counts = (is_chosen & (ends != UNSOUND)).astype(jnp.int32)
    block = jax.tree.map(lambda x: x[:, None], choice)
    outcome = Outcome(
        tokens=block.token,
        counts=counts,
        ends=ends,
        sound=jnp.isfinite(jnp.max(logits, axis=-1)),
        steps=jnp.int32(1),
        drafted=jnp.zeros_like(counts),
        accepted=jnp.zeros_like(counts),
        logprobs=block.logprob,
        top_ids=block.top_ids,
        top_logprobs=block.top_logprobs,
    )
    return new_state, outcome


def choose_next(
    fns: ModelFns,
    logits: Float[Array, "rows vocab"],
    given: tuple[History, Bool[Array, " rows"], RowArrays],
    asked: Processing,
) -> Choice:
    """The next token of the rows that are wanted, as the model's rules allow."""
    history, wanted, rows = given
    mask = token_mask(fns.rules, history, rows, fns.vocab_size)
    return choose_rows(logits, rows.sampling, history, wanted, mask, asked)


def _run_chunk(
    fns: ModelFns, params: Params, cache: Cache, chunk: PrefillChunk
) -> tuple[Float[Array, "rows vocab"], Cache, Scores | None]:
    """Runs a chunk; the logits after its last token, and scores where wanted."""
    last = jnp.maximum(chunk.length - 1, 0)[:, None]
    batch = TokenBatch(chunk.tokens, chunk.start, chunk.length, chunk.pages, last)
    hidden, cache = fns.run(params, cache, batch)
    read = functools.partial(fns.read, params, hidden)
    if chunk.targets is None:
        return read(last)[:, 0], cache, None
    time = jnp.arange(chunk.tokens.shape[1], dtype=jnp.int32)[None, :]
    wanted = (time < chunk.length[:, None]) & (chunk.targets >= 0)
    logits, scores = _score(read, last, chunk.targets, wanted, fns.vocab_size)
    return logits, cache, scores


def _score(
    read: Callable[[Int[Array, "rows reads"]], Float[Array, "rows reads vocab"]],
    last: Int[Array, "rows 1"],
    targets: Int[Array, "rows time"],
    wanted: Bool[Array, "rows time"],
    vocab: int,
) -> tuple[Float[Array, "rows vocab"], Scores]:
    """Reads the last positions, and then all of them where somebody wants a score.

    One loop does both: what reads is compiled once. A position that nobody wants costs
    only its part of the reading.
    """
    rows, time = targets.shape
    some = min(SCORED_TOGETHER, time)
    none = no_choice(vocab)
    unscored = (none.logprob, none.top_ids, none.top_logprobs)
    spare = ((0, 0), (some, -time % some))
    targets, wanted = jnp.pad(targets, spare), jnp.pad(wanted, spare)
    width = targets.shape[1]

    def score(position: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        logits, target, is_wanted = position
        scored: tuple[Array, Array, Array] = jax.lax.cond(
            is_wanted, lambda: report(logits, target), lambda: unscored
        )
        return scored

    def look(nth: Array, carry: tuple[Array, Scores]) -> tuple[Array, Scores]:
        """At the last positions, where it is the first look; else at the next ones."""
        ended, scores = carry
        at = (nth - 1) * some + jnp.arange(some, dtype=jnp.int32)[None, :]
        logits = read(jnp.where(nth == 0, last, at))
        mine = (
            jax.lax.dynamic_slice_in_dim(leaf, nth * some, some, axis=1)
            for leaf in (targets, wanted)
        )
        flat = (leaf.reshape(rows * some, *leaf.shape[2:]) for leaf in (logits, *mine))
        piece = jax.lax.map(score, tuple(flat))

        def put(all_of: Array, new: Array) -> Array:
            new = new.reshape(rows, some, *new.shape[1:])
            put: Array = jax.lax.dynamic_update_slice_in_dim(all_of, new, nth * some, 1)
            return put

        return jnp.where(nth == 0, logits[:, 0], ended), Scores(
            *map(put, scores, piece)
        )

    empty = Scores(*(jnp.zeros((rows, width, *x.shape), x.dtype) for x in unscored))
    looks = jnp.where(jnp.any(wanted), width // some, 1)
    first = (jnp.zeros((rows, vocab), jnp.float32), empty)
    logits, scores = jax.lax.fori_loop(0, looks, look, first)
    return logits, Scores(*(x[:, some : some + time] for x in scores))


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


def ends_of(
    choice: Choice, length: Int[Array, " rows"], rows: RowArrays
) -> Int[Array, " rows"]:
    stops = jnp.any(choice.token[:, None] == rows.end_ids, axis=1)
    is_full = length >= rows.limit
    ends = jnp.where(stops, STOP, jnp.where(is_full, LENGTH, RUNNING))
    return jnp.where(choice.is_sound, ends, UNSOUND).astype(jnp.int32)
