"""The steps of sampling in plain numpy, with sorts and in float64."""

from typing import Any

import numpy as np

from jaxserver.ports.types import SamplingParams

HostArray = np.ndarray[Any, np.dtype[Any]]
TINY = float(np.finfo(np.float32).tiny)


def scaled(logits: HostArray, temperature: float) -> HostArray:
    """By the temperature in float32, so that ties are the same ties."""
    with np.errstate(over="ignore", under="ignore"):
        below = (logits - logits.max()) / np.float32(temperature)
    return np.where(np.abs(below) < TINY, np.float32(0), below)


def best_first(x: HostArray) -> HostArray:
    """Indices, largest entry first, lowest index first on ties."""
    return np.argsort(-x, kind="stable")


def keep(
    logits: HostArray, params: SamplingParams, margin: float = 0.0
) -> dict[int, float]:
    """What top-k, top-p and min-p leave, each token with its probability.

    A margin above 0 lets in what rounding may let in, one below 0 only what is sure.
    """
    x = scaled(logits, params.temperature or 1.0).astype(np.float64)
    order = best_first(x)[: params.top_k or None]
    weights = np.exp(x[order])
    probs = weights / weights.sum()
    top_p = 1.0 if params.top_p is None else params.top_p
    if top_p < 1:
        mass_before = np.cumsum(probs) - probs
        last = max(np.sum(mass_before < top_p + margin) - 1, 0)
        kept = x[order] >= x[order][last]
        order, probs = order[kept], probs[kept]
    likely = probs >= params.min_p * probs[0] * (1 - margin)
    order, probs = order[likely], probs[likely]
    return dict(zip(order.tolist(), (probs / probs.sum()).tolist(), strict=True))


def adjusted(
    logits: HostArray,
    params: SamplingParams,
    prompt: HostArray,
    answer: HostArray,
) -> HostArray:
    """Bias first, then the penalties, in float64."""
    found = logits.astype(np.float64)
    for token, bias in params.logit_bias.items():
        if token < len(found):
            found[token] += np.float32(bias)
    for token in {*prompt.tolist(), *answer.tolist()}:
        penalty = np.float32(params.repetition_penalty)
        found[token] *= 1 / penalty if found[token] > 0 else penalty
    for token, times in zip(*np.unique(answer, return_counts=True), strict=True):
        found[token] -= params.presence_penalty + params.frequency_penalty * times
    return found


def log_softmax(logits: HostArray) -> HostArray:
    wide = logits.astype(np.float64)
    below = wide - wide.max()
    result: HostArray = below - np.log(np.exp(below).sum())
    return result
