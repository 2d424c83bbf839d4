"""Which tokens a model's own settings allow next, as transformers has it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxserver.core.decode_state import RowArrays
from jaxserver.core.sampling_arrays import History
from jaxserver.ports.model import AnswerRules


def token_mask(
    rules: AnswerRules, history: History, rows: RowArrays, vocab: int
) -> Bool[Array, "rows vocab"] | None:
    """True where a token may follow; None where a model has no rules.

    Args:
        rules: The model's.
        history: What each row holds.
        rows: What each request brought.
        vocab: How many tokens there are.
    """
    if rules == AnswerRules():
        return None
    ids = jnp.arange(vocab, dtype=jnp.int32)[None, :]
    length = history.length[:, None]
    mask = ~_is_one_of(rules.suppressed, vocab) & jnp.ones_like(length, jnp.bool_)
    if rules.suppressed_first:
        is_first = length == _begin(rules, history.prompt_length)[:, None]
        mask &= ~(is_first & _is_one_of(rules.suppressed_first, vocab))
    if rules.min_len:
        ends = jnp.any(ids[:, :, None] == rows.end_ids[:, None, :], axis=-1)
        mask &= ~(ends & (length <= rules.min_len))
    if rules.no_repeat_ngram:
        mask &= ~_repeats(rules.no_repeat_ngram, history, vocab)
    if rules.first is not None:
        mask = jnp.where(length == 1, ids == rules.first, mask)
    if rules.last is not None:
        mask = jnp.where(length == rows.limit[:, None] - 1, ids == rules.last, mask)
    return mask


def _begin(rules: AnswerRules, prompt_length: Int[Array, " rows"]) -> Array:
    """Where an answer begins, a token that is prescribed not counted."""
    if rules.first is None:
        return prompt_length
    return jnp.where(prompt_length == 1, 2, prompt_length)


def _is_one_of(tokens: tuple[int, ...], vocab: int) -> Bool[Array, "1 vocab"]:
    return jnp.asarray(np.isin(np.arange(vocab), tokens)[None, :])


def _repeats(size: int, history: History, vocab: int) -> Bool[Array, "rows vocab"]:
    """Tokens that would complete a run of `size` tokens which a row holds already."""

    def of_row(tokens: Array, length: Array) -> Array:
        max_len = tokens.shape[0]
        starts = jnp.arange(max_len, dtype=jnp.int32)
        follows = starts + size - 1
        is_same = follows < length
        for nth in range(size - 1):
            last = tokens[jnp.maximum(length - size + 1 + nth, 0)]
            is_same &= tokens[jnp.minimum(starts + nth, max_len - 1)] == last
        completes = tokens[jnp.minimum(follows, max_len - 1)]
        completes = jnp.where(is_same, completes, vocab)
        nothing = jnp.zeros(vocab, jnp.bool_)
        return nothing.at[completes].set(True, mode="drop")

    found: Array = jax.vmap(of_row)(history.tokens, history.length)
    return found
