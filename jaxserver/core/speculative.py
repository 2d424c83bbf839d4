"""Guesses at a row's next tokens, which cost little where rows are padded anyway.

A guess is run beside the row's last token. The tokens are chosen one after the other
from the logits as if there had been none; those after the first that was guessed wrong
are thrown away. So a guess changes what an answer costs, and never the answer.
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserver.core.sampling_arrays import History
from jaxserver.ports.model import Cache, Hidden, ModelFns, Params, TokenBatch

LONGEST_MATCH = 4
"""A longer run of equal tokens is no better a reason to go on as there."""


class Draft(NamedTuple):
    """What a row's next tokens may be; only the first `length` are meant."""

    tokens: Int[Array, "*rows drafts"]
    length: Int[Array, "*rows"]


def with_guesses(
    fns: ModelFns,
    params: Params,
    cache: Cache,
    given: tuple[TokenBatch, History, Int[Array, " rows"]],
    most: tuple[int, int],
) -> tuple[TokenBatch, Cache]:
    """Appends guesses to the last tokens of some rows, whose logits are all wanted.

    Args:
        fns: The model.
        params: Its weights.
        cache: Where a model that guesses may keep something.
        given: The last tokens, what the rows hold, and how many guesses each has use
            for.
        most: How many guesses a row may have, and the least that has to match.
    """
    (batch, history, useful), (count, least_match) = given, most
    if fns.guess is None:
        draft = look_up(history, count, least_match)
    else:
        tokens, cache = fns.guess(params, cache, batch._replace(length=useful), count)
        draft = Draft(tokens, jnp.full_like(useful, count))
    tokens = jnp.concatenate([batch.tokens, draft.tokens], axis=1)
    reads = jnp.arange(1 + count, dtype=jnp.int32)[None, :]
    longer = batch._replace(
        tokens=tokens,
        length=batch.length + jnp.minimum(draft.length, useful),
        logits_at=jnp.broadcast_to(reads, tokens.shape),
    )
    return longer, cache


def look_up(history: History, count: int, least_match: int = 1) -> Draft:
    """Goes on as after the last place where the row's newest tokens stood before.

    Prompt lookup (Saxena 2023): among the earlier positions, that up to which the most
    tokens, at most `LONGEST_MATCH`, are those at the end of the row; of equals the
    latest. What follows there up to the end of the row is repeated, if it is short.

    Args:
        history: Of some rows.
        count: How many tokens to guess.
        least_match: With fewer nothing is guessed; at most `LONGEST_MATCH`.
    """
    return jax.vmap(lambda row: _look_up_row(row, count, least_match))(history)


def _look_up_row(history: History, count: int, least_match: int) -> Draft:
    tokens, last = history.tokens, history.length - 1
    max_len = tokens.shape[0]
    at = jnp.arange(max_len, dtype=jnp.int32)
    matched = jnp.zeros(max_len, jnp.int32)
    is_alike = at < last
    for back in range(LONGEST_MATCH):
        newest = tokens[jnp.maximum(last - back, 0)]
        earlier = jnp.roll(tokens, back)
        is_alike &= (earlier == newest) & (at >= back)
        matched += is_alike.astype(jnp.int32)
    best = jnp.argmax(jnp.where(matched > 0, matched * max_len + at, 0)).astype(
        jnp.int32
    )
    is_found = matched[best] >= least_match
    period = jnp.maximum(last - best, 1)
    ahead = jnp.arange(count, dtype=jnp.int32) % period
    following = tokens.at[best + 1 + ahead].get(mode="clip")
    return Draft(following, jnp.where(is_found, count, 0).astype(jnp.int32))


Guessing: TypeAlias = tuple[Cache, Int[Array, " rows"]]
"""What a smaller model keeps, and the tokens that it runs next."""


class Pair(NamedTuple):
    """Weights, or caches, of a model and of the smaller one that guesses for it."""

    model: Any
    draft: Any


def with_draft_model(model: ModelFns, draft: ModelFns) -> ModelFns:
    """A model for which a smaller one guesses (Leviathan et al. 2023).

    Both run the same tokens and share pages, so that whoever finds a beginning of a
    prompt finds it in both; weights and cache are a `Pair`. A guess is the likeliest
    token.

    Args:
        model: Chooses every token.
        draft: Of the same vocabulary and the same pages.
    """

    def init_cache(num_pages: int) -> Cache:
        return Pair(model.init_cache(num_pages), draft.init_cache(num_pages))

    def run(params: Params, cache: Cache, batch: TokenBatch) -> tuple[Hidden, Cache]:
        hidden, kept = model.run(params.model, cache.model, batch)
        _, kept_beside = draft.run(params.draft, cache.draft, batch)
        return hidden, Pair(kept, kept_beside)

    def read(
        params: Params, hidden: Hidden, at: Int[Array, "rows reads"]
    ) -> Float[Array, "rows reads vocab"]:
        return model.read(params.model, hidden, at)

    def copy_pages(
        cache: Cache,
        source: Int[Array, " copies"],
        target: Int[Array, " copies"],
        length: Int[Array, " copies"],
    ) -> Cache:
        return Pair(
            model.copy_pages(cache.model, source, target, length),
            draft.copy_pages(cache.draft, source, target, length),
        )

    both = model.token_axes, draft.token_axes
    return model._replace(
        init_cache=init_cache,
        run=run,
        read=read,
        copy_pages=copy_pages,
        token_axes=both[0] and both[1] and (*both[0], *both[1]),
        guess=functools.partial(_guess_likeliest, draft),
    )


def _guess_likeliest(
    draft: ModelFns, params: Pair, cache: Pair, batch: TokenBatch, count: int
) -> tuple[Int[Array, "rows count"], Cache]:
    """The smaller model's likeliest tokens, each after those before it."""

    def guess_one(carry: Guessing, nth: Array) -> tuple[Guessing, Array]:
        kept, token = carry
        step = batch._replace(
            tokens=token[:, None],
            start=batch.start + nth,
            length=(nth < batch.length).astype(jnp.int32),
        )
        logits, kept = draft.extend(params.draft, kept, step)
        following = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
        return (kept, following), following

    first = (cache.draft, batch.tokens[:, 0])
    steps = jnp.arange(count, dtype=jnp.int32)
    (kept, _), guesses = jax.lax.scan(guess_one, first, steps)
    return guesses.T, cache._replace(draft=kept)
