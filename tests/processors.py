"""Logits processors as users write them, for tests."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxserver.core.processors import check
from jaxserver.ports.processors import LogitsProcessor, ProcessorParams
from tests.fakes import ByteTokenizer

VOCAB = ByteTokenizer.vocab_size


def no_token_twice() -> LogitsProcessor:
    """An answer never repeats a token."""

    def hear(seen: Array, token: Array) -> Array:
        return seen.at[token].set(True)

    return LogitsProcessor(
        init=lambda params: jnp.zeros(VOCAB, jnp.bool_),
        update=hear,
        apply=lambda seen, logits: jnp.where(seen, -jnp.inf, logits),
    )


def drift() -> LogitsProcessor:
    """A token becomes likelier with each that is chosen, in floats and in order."""

    def begin(params: ProcessorParams) -> dict[str, Array]:
        return {**params, "by": jnp.float32(0)}

    def hear(state: dict[str, Array], token: Array) -> dict[str, Array]:
        more = state["step"] / (1 + token.astype(jnp.float32))
        return {**state, "by": 0.9 * state["by"] + more}

    def change(state: dict[str, Array], logits: Array) -> Array:
        return logits.at[state["token"]].add(state["by"])

    return LogitsProcessor(
        init=begin, update=hear, apply=change, params={"token": 65, "step": 20.0}
    )


PROCESSORS = {"no_token_twice": no_token_twice(), "drift": drift()}
check(PROCESSORS, VOCAB)
