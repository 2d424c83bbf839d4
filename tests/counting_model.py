"""A model whose next token is the sum of the row's tokens: computable by hand."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserver.ports.model import Cache, Hidden, ModelFns, Params, TokenBatch

VOCAB = 16
POISON = VOCAB - 1
"""A row that holds it has logits that are no numbers."""


def counting_model(max_len: int) -> ModelFns:
    """The cache holds the tokens themselves; a page is a whole row."""

    def init_cache(num_pages: int) -> Int[Array, "pages max_len"]:
        return jnp.zeros((num_pages, max_len), jnp.int32)

    def run(params: Params, cache: Cache, batch: TokenBatch) -> tuple[Hidden, Cache]:
        rows, time = batch.tokens.shape
        if batch.page_table is None:
            pages = jnp.arange(rows, dtype=jnp.int32)
        else:
            pages = batch.page_table[:, 0]
        steps = jnp.arange(time, dtype=jnp.int32)[None, :]
        at = jnp.where(
            steps < batch.length[:, None], batch.start[:, None] + steps, max_len
        )
        cache = cache.at[pages[:, None], at].set(batch.tokens, mode="drop")
        reads = batch.start[:, None] + steps
        places = jnp.arange(max_len, dtype=jnp.int32)[None, None, :]
        held = jnp.where(places <= reads[:, :, None], cache[pages][:, None, :], 0)
        following = jnp.sum(held, axis=-1) % VOCAB
        is_poisoned = jnp.any(held == POISON, axis=-1)[:, :, None]
        logits = jax.nn.one_hot(following, VOCAB, dtype=jnp.float32) * params
        return jnp.where(is_poisoned, jnp.nan, logits), cache

    def read(
        params: Params, hidden: Hidden, at: Int[Array, "rows reads"]
    ) -> Float[Array, "rows reads vocab"]:
        logits: Array = jnp.take_along_axis(hidden, at[:, :, None], 1)
        return logits

    def copy_pages(
        cache: Cache,
        source: Int[Array, " copies"],
        target: Int[Array, " copies"],
        length: Int[Array, " copies"],
    ) -> Cache:
        is_copied = jnp.arange(max_len, dtype=jnp.int32)[None, :] < length[:, None]
        mixed = jnp.where(is_copied, cache[source], cache[target])
        return cache.at[target].set(mixed, mode="drop")

    return ModelFns(
        init_cache=init_cache,
        run=run,
        read=read,
        copy_pages=copy_pages,
        cache_axes=lambda shape: ("pages", None),
        page_size=max_len,
        max_len=max_len,
        vocab_size=VOCAB,
    )


def answer_of(prompt: list[int], count: int) -> list[int]:
    """The greedy answer to a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % VOCAB)
    return tokens[len(prompt) :]
