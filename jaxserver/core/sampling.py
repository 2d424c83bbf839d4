"""Choosing one row's next token from its logits.

Everything here is about one row. `choose_rows` maps it over the rows of a batch in
such a way that a row's bits, and its cost, are its own: a branch that one row takes
changes nothing for another. The vocabulary is never sorted, and one number is drawn a
token.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxserver.core import processors
from jaxserver.core.logits import adjust
from jaxserver.core.ops.likeliest import BLOCK
from jaxserver.core.processors import Processing
from jaxserver.core.sampling_arrays import History, SamplingArrays
from jaxserver.ports.types import MAX_TOP_LOGPROBS

CANDIDATES = 64
"""The likeliest tokens, among which nearly every draw can be decided."""


class Choice(NamedTuple):
    """What was chosen; log-probabilities are 0 where they were not asked for.

    Attributes:
        is_sound: The best of the logits is a number, so there is no NaN among them.
        top_ids: The likeliest tokens, best first.
    """

    token: Int[Array, "*rows"]
    is_sound: Bool[Array, "*rows"]
    logprob: Float[Array, "*rows"]
    top_ids: Int[Array, "*rows top"]
    top_logprobs: Float[Array, "*rows top"]


def choose_rows(
    logits: Float[Array, "rows vocab"],
    sampling: SamplingArrays,
    history: History,
    wanted: Bool[Array, " rows"],
    mask: Bool[Array, "rows vocab"] | None = None,
    processing: Processing | None = None,
) -> Choice:
    """`choose` for every row that is wanted, one after the other, each at its cost.

    There may be wishes of more rows than there are logits: the first ones count.
    """
    nothing = no_choice(logits.shape[1])
    known, *given = processing or Processing({}, {}, {})
    rows = (logits, sampling, history, wanted, mask, given)

    def choose_row(nth: Int[Array, ""]) -> Choice:
        index = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        mine = jax.tree.map(lambda leaf: index(leaf, nth), rows)
        one, wishes, held, is_wanted, allowed, processed = mine
        step = Processing(known, *processed)
        chosen: Choice = jax.lax.cond(
            is_wanted, lambda: choose(one, wishes, held, allowed, step), lambda: nothing
        )
        return chosen

    choices: Choice = jax.lax.map(
        choose_row, jnp.arange(logits.shape[0], dtype=jnp.int32)
    )
    return choices


def no_choice(vocab: int) -> Choice:
    """What stands in the place of a row that is not wanted."""
    top = min(MAX_TOP_LOGPROBS, vocab)
    return Choice(
        token=jnp.int32(0),
        is_sound=jnp.bool_(True),
        logprob=jnp.float32(0),
        top_ids=jnp.zeros(top, jnp.int32),
        top_logprobs=jnp.zeros(top, jnp.float32),
    )


def choose(
    logits: Float[Array, " vocab"],
    sampling: SamplingArrays,
    history: History,
    mask: Bool[Array, " vocab"] | None = None,
    processing: Processing | None = None,
) -> Choice:
    """Chooses the token at position `history.length`, of those that the mask allows.

    The draw depends on the seed, the choice and the position alone.
    """
    adjusted = adjust(logits, sampling, history)
    if processing is not None:
        adjusted = processors.apply(processing, adjusted)
    if mask is not None:
        adjusted = jnp.where(mask, adjusted, -jnp.inf)
    token = jax.lax.cond(
        sampling.greedy | (sampling.temperature == 0) | (sampling.top_k == 1),
        lambda: index_of_best(adjusted),
        lambda: draw(adjusted, sampling, uniform(sampling, history.length)),
    )
    nothing = no_choice(logits.shape[0])
    logprob, top_ids, top_logprobs = jax.lax.cond(
        sampling.logprobs,
        lambda: report(logits, token),
        lambda: (nothing.logprob, nothing.top_ids, nothing.top_logprobs),
    )
    is_sound = jnp.isfinite(jnp.max(adjusted))
    return Choice(token, is_sound, logprob, top_ids, top_logprobs)


def uniform(sampling: SamplingArrays, position: Int[Array, ""]) -> Float[Array, ""]:
    """The one random number of a token, in [0, 1).

    It is `jax.random.uniform` of `fold_in(fold_in(key(seed), choice), position)`,
    Threefry-2x32 (Salmon et al. 2011) in its form that can be partitioned. That folds
    in once more, a zero: a loop over the three is compiled in a third of the time.
    """

    def fold_in(key: Array, data: Int[Array, ""]) -> tuple[Array, None]:
        return jax.random.fold_in(key, data), None

    key = jax.random.wrap_key_data(sampling.seed, impl="threefry2x32")
    folded = jnp.stack([sampling.choice, position, jnp.zeros_like(position)])
    high, low = jax.random.key_data(jax.lax.scan(fold_in, key, folded)[0])
    number: Array = ((high ^ low) >> 9).astype(jnp.float32) * jnp.float32(2**-23)
    return number


def draw(
    logits: Float[Array, " vocab"], sampling: SamplingArrays, number: Float[Array, ""]
) -> Int[Array, ""]:
    """Draws among the tokens that top-k, top-p and min-p keep.

    Where all of them are surely among the `CANDIDATES` likeliest, only those are looked
    at; a flatter distribution is searched whole. Of the likeliest, best first, a first
    few are kept. Drawn is the one at which the running sum passes `number` of theirs.
    A token without weight is never the answer, however sums are rounded.
    """
    vocab = logits.shape[0]
    scaled = (logits - jnp.max(logits)) / sampling.temperature
    values, ids = likeliest(scaled, min(CANDIDATES, vocab))
    top_k = jnp.where(sampling.top_k == 0, vocab, jnp.minimum(sampling.top_k, vocab))
    weights, nth = jnp.exp(values), jnp.arange(values.shape[0], dtype=jnp.int32)
    running = jnp.cumsum(weights)
    total = jax.lax.cond(
        top_k <= values.shape[0],
        lambda: running[top_k - 1],
        lambda: jnp.sum(jnp.exp(scaled)),
    )
    in_top_k = nth < top_k
    in_top_p = (running - weights < sampling.top_p * total) | (sampling.top_p >= 1)
    least = values[last_true(in_top_k & in_top_p)]
    kept = in_top_k & (values >= least) & (weights >= sampling.min_p)
    all_are_here = (top_k <= values.shape[0]) | ((top_k == vocab) & ~kept[-1])
    passes = running > number * running[last_true(kept)]
    token: Array = jax.lax.cond(
        all_are_here,
        lambda: ids[first_true(passes & kept & (weights > 0))],
        lambda: draw_among_all(scaled, sampling, top_k, number),
    )
    return token


def likeliest(
    x: Float[Array, " vocab"], count: int
) -> tuple[Float[Array, " likeliest"], Int[Array, " likeliest"]]:
    """The largest entries and where they are, best first, lowest index on ties.

    The barriers keep the compiler from merging what reads a part of the result into the
    selection, which would turn it into a sort of the whole vocabulary (CPU). One over
    both at once would abort the process when it compiles for several devices.
    """
    values, ids = jax.lax.top_k(x, count)
    return jax.lax.optimization_barrier(values), jax.lax.optimization_barrier(ids)


def draw_among_all(
    scaled: Float[Array, " vocab"],
    sampling: SamplingArrays,
    top_k: Int[Array, ""],
    number: Float[Array, ""],
) -> Int[Array, ""]:
    """The same draw over the whole vocabulary, by bisection instead of a sort.

    Among equal ones, and for the draw itself, lower indices come first. A token without
    weight is never the answer, however sums are rounded.
    """
    weights, order = jnp.exp(scaled), ordered_bits(scaled)
    lower_first = jnp.arange(scaled.shape[0], dtype=jnp.uint32)[::-1]
    ones, most = jnp.ones_like(scaled), top_k.astype(jnp.float32)
    bits = scaled.shape[0].bit_length()
    threshold = largest_reaching(order, ones, most)
    above = order > threshold
    ties = jnp.where(order == threshold, ones, 0.0)
    left = most - jnp.sum(jnp.where(above, ones, 0.0))
    is_early = lower_first >= largest_reaching(lower_first, ties, left, bits)
    in_top_k = above | ((ties > 0) & is_early) | (top_k >= scaled.shape[0])
    weights = jnp.where(in_top_k, weights, 0.0)
    threshold = largest_reaching(order, weights, sampling.top_p * jnp.sum(weights))
    in_top_p = (order >= threshold) | (sampling.top_p >= 1)
    weights = jnp.where(in_top_p & (weights >= sampling.min_p), weights, 0.0)
    enough = number * jnp.sum(weights)
    drawn = largest_reaching(lower_first, weights, enough, bits)
    at = jnp.int32(scaled.shape[0] - 1) - drawn.astype(jnp.int32)
    return jnp.where(weights[at] > 0, at, index_of_best(weights))


def ordered_bits(x: Float[Array, " vocab"]) -> UInt32[Array, " vocab"]:
    """Integers in the order of the floats, so that they can be bisected exactly."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    is_negative = bits >> 31 == 1
    return jnp.where(is_negative, ~bits, bits | jnp.uint32(1 << 31))


def largest_reaching(
    order: UInt32[Array, " vocab"],
    weights: Float[Array, " vocab"],
    enough: Float[Array, ""],
    bits: int = 32,
) -> UInt32[Array, ""]:
    """The largest bound such that what is at or above it weighs `enough`, and not 0.

    Args:
        order: Integers below `2**bits`.
        weights: Of each.
        enough: What is to be reached; 0 is the bound where nothing does.
        bits: Of the bound, which are found one by one, from the highest on.
    """

    def set_next(nth: Int[Array, ""], bound: UInt32[Array, ""]) -> UInt32[Array, ""]:
        higher = bound | (jnp.uint32(1 << (bits - 1)) >> nth.astype(jnp.uint32))
        mass = jnp.sum(jnp.where(order >= higher, weights, 0.0))
        return jnp.where((mass >= enough) & (mass > 0), higher, bound)

    bound: Array = jax.lax.fori_loop(0, bits, set_next, jnp.uint32(0))
    return bound


def first_true(x: Bool[Array, " entries"]) -> Int[Array, ""]:
    """The lowest index that is true; 0 where none is."""
    return jax.lax.argmax(x, 0, jnp.int32)


def last_true(x: Bool[Array, " entries"]) -> Int[Array, ""]:
    """The highest index that is true; 0, taken for true, where no other is."""
    first = jnp.arange(x.shape[0]) == 0
    return x.shape[0] - 1 - first_true((x | first)[::-1])


def index_of_best(x: Float[Array, " vocab"]) -> Int[Array, ""]:
    """The lowest index of the largest entry; that of a block of them is found first.

    An index is found beside a value one by one, a value alone many at a time (CPU).
    """
    spare = -x.shape[0] % BLOCK
    blocks = jnp.pad(x, (0, spare), constant_values=-jnp.inf).reshape(-1, BLOCK)
    nth = jax.lax.argmax(jnp.max(blocks, axis=1), 0, jnp.int32)
    return nth * BLOCK + jax.lax.argmax(blocks[nth], 0, jnp.int32)


def report(
    logits: Float[Array, " vocab"], token: Int[Array, ""]
) -> tuple[Float[Array, ""], Int[Array, " top"], Float[Array, " top"]]:
    """The chosen token's log-probability and the likeliest tokens with theirs."""
    top, ids = likeliest(logits, min(MAX_TOP_LOGPROBS, logits.shape[0]))
    mass = jnp.log(jnp.sum(jnp.exp(logits - top[0])))
    return logits[token] - top[0] - mass, ids, top - top[0] - mass
