"""What a request may do to its logits before one of them is chosen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core.sampling_arrays import History, SamplingArrays


def adjust(
    logits: Float[Array, " vocab"], sampling: SamplingArrays, history: History
) -> Float[Array, " vocab"]:
    """Adds the bias, then applies the penalties, where a row has any."""
    vocab = logits.shape[0]
    is_penalised = (
        (sampling.repetition_penalty != 1)
        | (sampling.presence_penalty != 0)
        | (sampling.frequency_penalty != 0)
    )
    biased: Array = jax.lax.cond(
        jnp.any(sampling.bias_ids < vocab),
        lambda: logits.at[sampling.bias_ids].add(sampling.bias, mode="drop"),
        lambda: logits,
    )
    penalised: Array = jax.lax.cond(
        is_penalised, lambda: penalise(biased, sampling, history), lambda: biased
    )
    return penalised


def penalise(
    logits: Float[Array, " vocab"], sampling: SamplingArrays, history: History
) -> Float[Array, " vocab"]:
    """The repetition penalty (Keskar et al. 2019), then presence and frequency."""
    at = jnp.arange(history.tokens.shape[0], dtype=jnp.int32)
    is_held = at < history.length
    is_answer = is_held & (at >= history.prompt_length)
    is_seen = count(history.tokens, is_held, logits.shape[0]) > 0
    penalty = sampling.repetition_penalty
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(is_seen, lowered, logits)
    times = count(history.tokens, is_answer, logits.shape[0]).astype(jnp.float32)
    presence = jnp.where(times > 0, sampling.presence_penalty, 0.0)
    return logits - presence - sampling.frequency_penalty * times


def count(
    tokens: Int[Array, " max_len"], counted: Bool[Array, " max_len"], vocab: int
) -> Int[Array, " vocab"]:
    """How often each token of the vocabulary is among those counted."""
    ids = jnp.where(counted, tokens, vocab)
    return jnp.zeros(vocab, jnp.int32).at[ids].add(1, mode="drop")
