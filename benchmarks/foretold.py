"""How well a text was foretold, and how that compares with another way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

HostArray = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Foretold:
    """Of each token that counts: its log-probability, and the likeliest there."""

    tokens: HostArray
    logprobs: HostArray
    best: HostArray


def joined(pieces: Sequence[Foretold]) -> Foretold:
    return Foretold(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.logprobs for piece in pieces]),
        np.concatenate([piece.best for piece in pieces]),
    )


def since(whole: Foretold, first: int) -> Foretold:
    return Foretold(whole.tokens[first:], whole.logprobs[first:], whole.best[first:])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a text is foretold, beside another way.

    Attributes:
        tokens: How many count.
        more: By how much of the other's its perplexity is higher.
        more_error: The standard error of `more`, from the differences between the
            log-probabilities that both give the same token.
        agreement: The share of tokens for which the likeliest is the other's.
        agreement_error: The standard error of `agreement`.
    """

    tokens: int
    perplexity: float
    more: float
    more_error: float
    agreement: float
    agreement_error: float


def quality(found: Foretold, other: Foretold) -> Quality:
    """Compares two ways of foretelling the same tokens."""
    if not np.array_equal(found.tokens, other.tokens):
        raise SystemExit("the tokens are not the same")
    logprobs = found.logprobs.astype(np.float64)
    ratios = other.logprobs.astype(np.float64) - logprobs
    same = (found.best == other.best).astype(np.float64)
    ratio = float(np.exp(ratios.mean()))
    return Quality(
        tokens=len(logprobs),
        perplexity=float(np.exp(-logprobs.mean())),
        more=ratio - 1,
        more_error=ratio * standard_error(ratios),
        agreement=float(same.mean()),
        agreement_error=standard_error(same),
    )


def standard_error(values: HostArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
