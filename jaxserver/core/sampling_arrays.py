"""The wishes of many requests as arrays, and the tokens they hold."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxserver.ports.types import MAX_LOGIT_BIAS, SamplingParams

UNUSED_ID = np.iinfo(np.int32).max
"""Stands where a list of token ids has room left."""


class SamplingArrays(NamedTuple):
    """`SamplingParams` as arrays, one row each, so one trace serves any mix.

    Attributes:
        greedy: Take the likeliest, lowest id on ties.
        top_k: 0 keeps all.
        seed: The high and the low word of the request's seed.
        choice: Which of several answers to one prompt this is.
        logprobs: Report log-probabilities.
        bias_ids: Tokens with a bias; entries past the vocabulary are unused.
    """

    greedy: Bool[Array, "*rows"]
    temperature: Float[Array, "*rows"]
    top_k: Int[Array, "*rows"]
    top_p: Float[Array, "*rows"]
    min_p: Float[Array, "*rows"]
    repetition_penalty: Float[Array, "*rows"]
    presence_penalty: Float[Array, "*rows"]
    frequency_penalty: Float[Array, "*rows"]
    seed: UInt32[Array, "*rows 2"]
    choice: Int[Array, "*rows"]
    logprobs: Bool[Array, "*rows"]
    bias_ids: Int[Array, "*rows biases"]
    bias: Float[Array, "*rows biases"]


class History(NamedTuple):
    """The tokens of a row: `prompt_length` of the prompt, then those of the answer."""

    tokens: Int[Array, "*rows max_len"]
    prompt_length: Int[Array, "*rows"]
    length: Int[Array, "*rows"]


def sampling_row(params: SamplingParams, seed: int, choice: int = 0) -> SamplingArrays:
    """One request's wishes, as host arrays without a row axis.

    Args:
        params: What it asks for; None is 0 for the temperature, and off elsewhere.
        seed: The seed to draw with, from 0 to 2**64 - 1.
        choice: Which of several answers to the same prompt this is.
    """
    bias_ids = np.full(MAX_LOGIT_BIAS, UNUSED_ID, np.int32)
    bias = np.zeros(MAX_LOGIT_BIAS, np.float32)
    if params.logit_bias:
        bias_ids[: len(params.logit_bias)] = list(params.logit_bias)
        bias[: len(params.logit_bias)] = list(params.logit_bias.values())
    wishes: dict[str, Any] = dict(
        greedy=np.bool_(params.greedy),
        temperature=np.float32(params.temperature or 0),
        top_k=np.int32(params.top_k or 0),
        top_p=np.float32(1 if params.top_p is None else params.top_p),
        min_p=np.float32(params.min_p),
        repetition_penalty=np.float32(params.repetition_penalty),
        presence_penalty=np.float32(params.presence_penalty),
        frequency_penalty=np.float32(params.frequency_penalty),
        seed=np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        choice=np.int32(choice),
        logprobs=np.bool_(params.logprobs is not None),
        bias_ids=bias_ids,
        bias=bias,
    )
    return SamplingArrays(**wishes)
