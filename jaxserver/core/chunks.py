"""How prompts are cut into chunks, and how long a prefill of one takes."""

import functools
from collections.abc import Mapping
from typing import TypeAlias

ChunkSeconds: TypeAlias = Mapping[int, Mapping[int, float]]
"""By padded length and, of each, by depth: what comes before, in longest chunks."""


def first_piece(count: int, lengths: tuple[int, ...], call_tokens: int) -> int:
    """How many of some tokens to run first, for all of them to cost the least.

    Either all, padded, or as many as one of the lengths has, and then the rest.

    Args:
        count: How many there are, at most the longest length.
        lengths: To which the tokens of a call are padded, shortest first.
        call_tokens: What a call costs besides its tokens, in tokens.
    """
    return _cheapest(count, lengths, call_tokens)[1]


@functools.cache
def _cheapest(
    count: int, lengths: tuple[int, ...], call_tokens: int
) -> tuple[int, int]:
    """What some tokens cost, in tokens, and how many of them go first."""
    padded = next(length for length in lengths if length >= count)
    ways = [(padded + call_tokens, count)]
    for length in lengths:
        if length < count:
            rest, _ = _cheapest(count - length, lengths, call_tokens)
            ways.append((length + call_tokens + rest, length))
    return min(ways, key=lambda way: (way[0], -way[1]))


def chunk_seconds(known: ChunkSeconds, depth: int, length: int) -> float:
    """How long one takes, by the deepest of its length up to there; 0 if unknown.

    It takes no longer than a longer one as deep, nor than shorter ones in its place.
    """
    deepest = {
        other: max((d for d in by_depth if d <= depth), default=-1)
        for other, by_depth in known.items()
    }
    own = max(0, deepest.get(length, 0))
    bounds = (
        known[other][at] * max(1.0, length / other)
        for other, at in deepest.items()
        if at >= own
    )
    return min(bounds, default=0.0)


def with_chunk_time(
    known: ChunkSeconds, depth: int, length: int, seconds: float
) -> ChunkSeconds:
    """What is known after one more of them."""
    by_depth = known.get(length, {})
    mean = moving_mean(by_depth.get(depth, 0.0), seconds)
    return {**known, length: {**by_depth, depth: mean}}


def moving_mean(before: float, now: float) -> float:
    """Of times; 0 before the first."""
    return 0.5 * (before + now) if before else now
