"""The second of the engine's two steps: a block of tokens for every row."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core import processors
from jaxserver.core.decode_state import DecodeState, RowArrays
from jaxserver.core.processors import Processing
from jaxserver.core.sampling import Choice
from jaxserver.core.sampling_arrays import History
from jaxserver.core.speculative import with_guesses
from jaxserver.core.steps import RUNNING, UNSOUND, Outcome, choose_next, ends_of
from jaxserver.ports.model import Cache, ModelFns, Params, TokenBatch
from jaxserver.ports.types import MAX_TOP_LOGPROBS


class Block(NamedTuple):
    """A block of decode steps.

    Attributes:
        keep: Slots whose request is still wanted; the others become inactive.
        num_tokens: How many tokens each row chooses at most; traced, so that one
            executable serves every length of block.
        pages: Those of each slot, in order; None where slot i has page i.
    """

    keep: Bool[Array, " slots"]
    num_tokens: Int[Array, ""]
    pages: Int[Array, "slots pages"] | None


class BlockSizes(NamedTuple):
    """What a decode step is compiled for.

    Attributes:
        rows: How many slots, from the first on.
        longest: How many tokens a row chooses at most.
        drafts: How many guessed tokens are run beside each row's last one.
        least_match: How many tokens have to stand where those at the end of the row
            stood before, so that what follows there is guessed. If more than one has
            to, guesses cost something: a step without any runs one token of a row.
    """

    rows: int
    longest: int
    drafts: int = 0
    least_match: int = 1


class _Progress(NamedTuple):
    """What a decode block carries from step to step, for its rows only."""

    state: DecodeState
    outcome: Outcome


class _Run(NamedTuple):
    """Tokens that one step has run, and what came of them.

    Attributes:
        batch: Of each row its last one, then guesses.
        logits: After each of them.
    """

    batch: TokenBatch
    logits: Float[Array, "rows time vocab"]


class _Walk(NamedTuple):
    """How far the tokens that a step has run are looked at.

    Attributes:
        nth: Which of them is next.
        wanted: Rows that want the token after it.
    """

    nth: Int[Array, ""]
    wanted: Bool[Array, " rows"]
    progress: _Progress


def decode(
    fns: ModelFns,
    sizes: BlockSizes,
    params: Params,
    state: DecodeState,
    block: Block,
) -> tuple[DecodeState, Outcome]:
    """Runs decode steps until every row has its tokens or has ended.

    Args:
        fns: The model.
        sizes: What it is compiled for.
        params: Its weights.
        state: The slots.
        block: What is asked for.
    """
    rows = sizes.rows
    state = state._replace(active=state.active & block.keep)
    mine = jax.tree.map(lambda x: x[:rows], state.rows)
    # Each row's is looked up where it is chosen by: to cut these would be 13 copies.
    mine = mine._replace(sampling=state.rows.sampling)
    table = None if block.pages is None else block.pages[:rows]
    most = jnp.minimum(block.num_tokens, sizes.longest)

    def goes_on(progress: _Progress) -> Bool[Array, ""]:
        return jnp.any(_wanting(progress, most))

    def step(progress: _Progress) -> _Progress:
        run, cache = _run(fns, params, (mine, table), (most, sizes), progress)
        chosen = _choose(fns, mine, run, (most, progress))
        return chosen._replace(state=chosen.state._replace(cache=cache))

    first = _Progress(state, _nothing(sizes, fns.vocab_size))
    done: _Progress = jax.lax.while_loop(goes_on, step, first)
    return done.state, done.outcome


def _nothing(sizes: BlockSizes, vocab: int) -> Outcome:
    rows, longest = sizes.rows, sizes.longest
    top = min(MAX_TOP_LOGPROBS, vocab)
    zeros = jnp.zeros(rows, jnp.int32)
    return Outcome(
        tokens=jnp.zeros((rows, longest), jnp.int32),
        counts=zeros,
        ends=zeros,
        sound=jnp.ones(rows, jnp.bool_),
        steps=jnp.int32(0),
        drafted=zeros,
        accepted=zeros,
        logprobs=jnp.zeros((rows, longest), jnp.float32),
        top_ids=jnp.zeros((rows, longest, top), jnp.int32),
        top_logprobs=jnp.zeros((rows, longest, top), jnp.float32),
    )


def _wanting(progress: _Progress, most: Int[Array, ""]) -> Bool[Array, " rows"]:
    counts = progress.outcome.counts
    return progress.state.active[: counts.shape[0]] & (counts < most)


def _run(
    fns: ModelFns,
    params: Params,
    given: tuple[RowArrays, Int[Array, "rows pages"] | None],
    size: tuple[Int[Array, ""], BlockSizes],
    progress: _Progress,
) -> tuple[_Run, Cache]:
    """Runs each row's last token, and guesses after it where they are worth it."""
    (mine, table), (most, sizes), (state, outcome) = given, size, progress
    rows, max_len = sizes.rows, state.tokens.shape[1]
    lengths, cache = state.lengths[:rows], state.cache
    held = jnp.maximum(lengths - 1, 0)
    slots = jnp.arange(rows, dtype=jnp.int32)
    tokens = state.tokens[slots, jnp.minimum(held, max_len - 1)][:, None]
    wanted = _wanting(progress, most).astype(jnp.int32)
    batch = TokenBatch(tokens, held, wanted, table, jnp.zeros((rows, 1), jnp.int32))
    if sizes.drafts:
        history = History(state.tokens[:rows], mine.prompt_length, lengths)
        room = jnp.minimum(most - outcome.counts, mine.limit - lengths)
        useful = wanted * jnp.clip(room - 1, 0, sizes.drafts)
        last, guesses = (batch, history, useful), (sizes.drafts, sizes.least_match)
        batch, cache = with_guesses(fns, params, cache, last, guesses)
    if sizes.drafts and sizes.least_match > 1 and fns.guess is None:
        return _extend_shortly(fns, params, cache, batch)
    logits, cache = fns.extend(params, cache, batch)
    return _Run(batch, logits), cache


def _extend_shortly(
    fns: ModelFns, params: Params, cache: Cache, batch: TokenBatch
) -> tuple[_Run, Cache]:
    """Runs one token of each row where none has a guess, and all where one has.

    Each is a loop that is run once or not at all: a branch would copy the cache.
    """
    has_guess = jnp.any(batch.length > 1)
    tokens, logits_at = batch.tokens[:, :1], batch.logits_at[:, :1]
    short = batch._replace(tokens=tokens, logits_at=logits_at)
    logits = jnp.zeros((*batch.tokens.shape, fns.vocab_size), jnp.float32)

    def run(some: TokenBatch, carry: tuple[Array, Cache, Array]) -> tuple[Any, ...]:
        _, cache, logits = carry
        found, cache = fns.extend(params, cache, some)
        reads = found.shape[1]
        return jnp.bool_(False), cache, logits.at[:, :reads].set(found)

    for some, is_it in ((short, ~has_guess), (batch, has_guess)):
        once = functools.partial(run, some)
        carry = (is_it, cache, logits)
        _, cache, logits = jax.lax.while_loop(lambda carry: carry[0], once, carry)
    return _Run(batch, logits), cache


def _choose(
    fns: ModelFns, mine: RowArrays, run: _Run, given: tuple[Int[Array, ""], _Progress]
) -> _Progress:
    """Chooses tokens in order, in each row up to the first that was not guessed.

    The cache is not looked at, and given back as nothing: it stays out of the loop.
    """
    most, progress = given
    progress = progress._replace(state=progress.state._replace(cache=()))
    tokens, guesses = run.batch.tokens, jnp.maximum(run.batch.length - 1, 0)
    time = tokens.shape[1]

    def goes_on(walk: _Walk) -> Bool[Array, ""]:
        return jnp.any(walk.wanted)

    def choose(walk: _Walk) -> _Walk:
        nth, wanted, before = walk
        logits = jax.lax.dynamic_index_in_dim(run.logits, nth, 1, keepdims=False)
        after, choice = _choose_one(fns, mine, logits, (wanted, before))
        following = jnp.minimum(nth + 1, time - 1)
        guess = jax.lax.dynamic_index_in_dim(tokens, following, 1, keepdims=False)
        is_right = wanted & (nth < guesses) & (choice.token == guess)
        accepted = after.outcome.accepted + is_right.astype(jnp.int32)
        after = after._replace(outcome=after.outcome._replace(accepted=accepted))
        return _Walk(nth + 1, is_right & _wanting(after, most), after)

    first = _Walk(jnp.int32(0), run.batch.length > 0, progress)
    done = jax.lax.while_loop(goes_on, choose, first) if time > 1 else choose(first)
    outcome = done.progress.outcome
    counted = outcome._replace(
        steps=outcome.steps + 1, drafted=outcome.drafted + guesses
    )
    return done.progress._replace(outcome=counted)


def _choose_one(
    fns: ModelFns,
    mine: RowArrays,
    logits: Float[Array, "rows vocab"],
    given: tuple[Bool[Array, " rows"], _Progress],
) -> tuple[_Progress, Choice]:
    """Chooses the next token of the rows that are wanted."""
    wanted, (state, outcome) = given
    rows, max_len = outcome.counts.shape[0], state.tokens.shape[1]
    slots = jnp.arange(rows, dtype=jnp.int32)
    lengths = state.lengths[:rows]
    history = History(state.tokens[:rows], mine.prompt_length, lengths)
    states = jax.tree.map(lambda x: x[:rows], state.processor_states)
    asked = Processing(dict(fns.processors), mine.processors, states)
    choice = choose_next(fns, logits, (history, wanted, mine), asked)
    ends = jnp.where(wanted, ends_of(choice, lengths + 1, mine), RUNNING)
    is_chosen = wanted & (ends != UNSOUND)
    at = jnp.where(is_chosen, lengths, max_len)
    new_state = DecodeState(
        cache=state.cache,
        tokens=state.tokens.at[slots, at].set(choice.token, mode="drop"),
        lengths=state.lengths.at[:rows].add(is_chosen.astype(jnp.int32)),
        active=state.active.at[:rows].set(state.active[:rows] & (ends == RUNNING)),
        rows=state.rows,
        processor_states=jax.tree.map(
            lambda old, new: old.at[:rows].set(new),
            state.processor_states,
            processors.update(asked, choice.token, is_chosen),
        ),
    )
    return _Progress(new_state, _record(outcome, choice, is_chosen, ends)), choice


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

    return outcome._replace(
        tokens=put(outcome.tokens, choice.token),
        counts=outcome.counts + is_chosen.astype(jnp.int32),
        ends=jnp.maximum(outcome.ends, ends),
        sound=outcome.sound & (ends != UNSOUND),
        logprobs=put(outcome.logprobs, choice.logprob),
        top_ids=put(outcome.top_ids, choice.top_ids),
        top_logprobs=put(outcome.top_logprobs, choice.top_logprobs),
    )
