"""Guesses at a row's next tokens, which cost nothing where rows are padded anyway.

A guess is run beside the row's last token. The tokens are chosen one after the other
from the logits as if there had been none; those after the first that was guessed wrong
are thrown away. So a guess changes what an answer costs, and never the answer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxserver.core.sampling_arrays import History

LONGEST_MATCH = 4
"""A longer run of equal tokens is no better a reason to go on as there."""


class Draft(NamedTuple):
    """What a row's next tokens may be; only the first `length` are meant."""

    tokens: Int[Array, "*rows drafts"]
    length: Int[Array, "*rows"]


def look_up(history: History, count: int) -> Draft:
    """Goes on as after the last place where the row's newest tokens stood before.

    Prompt lookup (Saxena 2023): among the earlier positions, that up to which the most
    tokens, at most `LONGEST_MATCH`, are those at the end of the row; of equals the
    latest. What follows there up to the end of the row is repeated, if it is short.

    Args:
        history: Of some rows.
        count: How many tokens to guess.
    """
    return jax.vmap(lambda row: _look_up_row(row, count))(history)


def _look_up_row(history: History, count: int) -> Draft:
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
    is_found = matched[best] > 0
    period = jnp.maximum(last - best, 1)
    ahead = jnp.arange(count, dtype=jnp.int32) % period
    following = tokens.at[best + 1 + ahead].get(mode="clip")
    return Draft(following, jnp.where(is_found, count, 0).astype(jnp.int32))
