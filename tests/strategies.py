"""What Hypothesis draws: logits of every kind, and what a request may ask for."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from jaxserver.ports.types import SamplingParams

HostArray = np.ndarray[Any, np.dtype[Any]]

KINDS = ("normal", "flat", "ties", "peaked", "huge", "tiny", "masked", "one")
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.sampled_from([0.0, 0.0078125, 0.25, 0.5, 0.875, 0.9990234375, 1.0])


def logits_of(kind: str, vocab: int, seed: int) -> HostArray:
    """Finite somewhere, and otherwise as unkind as float32 allows."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(vocab)
    logits = {
        "normal": normal * 3,
        "flat": np.full(vocab, normal[0]),
        "ties": rng.integers(-2, 3, vocab),
        "peaked": np.where(np.arange(vocab) == seed % vocab, 40.0, normal),
        "huge": np.clip(normal, -3, 3) * 1e38,
        "tiny": normal * 1e-30,
        "masked": np.where(normal > 0.5, normal, -np.inf),
        "one": np.full(vocab, -np.inf),
    }[kind].astype(np.float32)
    if not np.isfinite(logits).any():
        logits[seed % vocab] = -1.0
    return logits


@st.composite
def logits(draw: st.DrawFn, vocab: int) -> HostArray:
    return logits_of(draw(st.sampled_from(KINDS)), vocab, draw(SEEDS))


@st.composite
def draws(draw: st.DrawFn, vocab: int) -> SamplingParams:
    """Wishes for which a token is really drawn."""
    some = st.integers(2, vocab + 3)
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0078125, 0.5, 1.0, 1.75, 100.0])),
        top_k=draw(st.just(0) | some),
        top_p=draw(FRACTIONS | st.floats(0, 1, width=32)),
        min_p=draw(st.just(0.0) | FRACTIONS | st.floats(0, 1, width=32)),
    )


@st.composite
def sampling_params(draw: st.DrawFn, vocab: int) -> SamplingParams:
    """Any wishes for a choice among `vocab` tokens."""
    ids, bias = st.integers(0, vocab + 2), st.floats(-100, 100, width=32)
    penalties = st.sampled_from([-2.0, 0.0, 0.5])
    return SamplingParams(
        greedy=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 0.25, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 3, vocab // 2, vocab])),
        top_p=draw(FRACTIONS),
        min_p=draw(st.sampled_from([0.0, 0.125])),
        repetition_penalty=draw(st.sampled_from([0.5, 1.0, 1.25])),
        presence_penalty=draw(penalties),
        frequency_penalty=draw(penalties),
        logit_bias=draw(st.dictionaries(ids, bias, max_size=3)),
        logprobs=draw(st.sampled_from([None, 0, 5])),
    )
