"""Everything a step reads and returns: the cache and what is known of every slot."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxserver.core import processors
from jaxserver.core.processors import States, Wishes
from jaxserver.core.sampling_arrays import UNUSED_ID, SamplingArrays
from jaxserver.ports.model import Cache, ModelFns
from jaxserver.ports.types import MAX_END_IDS, MAX_LOGIT_BIAS

MAX_ALL_END_IDS = 2 * MAX_END_IDS
"""End tokens of the model and of a request together."""


class RowArrays(NamedTuple):
    """What a request brings to its slot and keeps until it leaves.

    Attributes:
        limit: The row is finished when it holds this many tokens.
        end_ids: Tokens that end the answer; unused entries are no token.
        processors: Which logits processors it wants.
    """

    prompt_length: Int[Array, "*rows"]
    limit: Int[Array, "*rows"]
    end_ids: Int[Array, "*rows ends"]
    sampling: SamplingArrays
    processors: Wishes


class DecodeState(NamedTuple):
    """The state of all slots.

    Attributes:
        cache: Keys and values; those of an active row's last token are still missing.
        tokens: The tokens of each row, prompt and answer.
        lengths: How many of them there are.
        active: The row wants a next token.
        rows: What each request brought.
        processor_states: How far each row's logits processors have come.
    """

    cache: Cache
    tokens: Int[Array, "slots max_len"]
    lengths: Int[Array, " slots"]
    active: Bool[Array, " slots"]
    rows: RowArrays
    processor_states: States


def init_state(fns: ModelFns, slots: int, num_pages: int) -> DecodeState:
    """Empty slots, with all the memory they will ever need."""
    zeros = jnp.zeros(slots, jnp.int32)
    floats = jnp.zeros(slots, jnp.float32)
    nothing = jnp.zeros(slots, jnp.bool_)
    sampling = SamplingArrays(
        greedy=~nothing,
        temperature=floats,
        top_k=zeros,
        top_p=floats,
        min_p=floats,
        repetition_penalty=floats + 1,
        presence_penalty=floats,
        frequency_penalty=floats,
        seed=jnp.zeros((slots, 2), jnp.uint32),
        choice=zeros,
        logprobs=nothing,
        bias_ids=jnp.full((slots, MAX_LOGIT_BIAS), UNUSED_ID, jnp.int32),
        bias=jnp.zeros((slots, MAX_LOGIT_BIAS), jnp.float32),
    )
    wishes, states = processors.empty(dict(fns.processors), slots)
    rows = RowArrays(
        prompt_length=zeros,
        limit=zeros,
        end_ids=jnp.full((slots, MAX_ALL_END_IDS), -1, jnp.int32),
        sampling=sampling,
        processors=wishes,
    )
    return DecodeState(
        cache=fns.init_cache(num_pages),
        tokens=jnp.zeros((slots, fns.max_len), jnp.int32),
        lengths=zeros,
        active=nothing,
        rows=rows,
        processor_states=states,
    )
