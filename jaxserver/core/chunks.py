"""How prompts are cut into chunks, and how long a prefill of one takes."""

import functools
from collections.abc import Mapping
from typing import TypeAlias

ChunkSeconds: TypeAlias = Mapping[int, Mapping[int, float]]
"""By padded length and, of each, by depth: what comes before, in longest chunks."""
KEPT = 0.998
"""Of a time that another chunk, shorter and as deep, has come after."""


def first_piece(count: int, lengths: tuple[int, ...], call_tokens: int) -> int:
    """How many of some tokens to run first, for all of them to cost the least.

    Either all, padded, or as many as one of the lengths has, and then the rest.

    Args:
        count: How many there are, at most the longest length.
        lengths: To which the tokens of a call are padded, shortest first.
        call_tokens: What a call costs besides its tokens, in tokens.
    """
    return _cheapest(count, lengths, call_tokens)[1]


def prefill_cost(count: int, lengths: tuple[int, ...], call_tokens: int) -> int:
    """What prefills of some tokens cost, in tokens, cut as `first_piece` says.

    Args:
        count: How many there are; as many as the longest length has go together first.
        lengths: As there.
        call_tokens: As there.
    """
    whole, rest = divmod(count, lengths[-1])
    cost = whole * (lengths[-1] + call_tokens)
    return cost + _cheapest(rest, lengths, call_tokens)[0] if rest else cost


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
    """How long a chunk takes, by the deepest of its length up to there; 0 if unknown.

    Of all that were timed at least as deep as that one, none says less: a chunk takes
    no longer than a longer one, nor than shorter ones in its place.
    """
    own = max((d for d in known.get(length, {}) if d <= depth), default=0)
    bounds = (
        seconds * max(1.0, length / other)
        for other, by_depth in known.items()
        for at, seconds in by_depth.items()
        if at >= own
    )
    return min(bounds, default=0.0)


def with_chunk_time(
    known: ChunkSeconds, depth: int, length: int, seconds: float
) -> ChunkSeconds:
    """What is known after one more of them.

    A shorter one takes at least its part of that time. A longer one, which may have
    been passed over for a time that was an accident, is believed a little less.
    """
    mean = moving_mean(known.get(length, {}).get(depth, 0.0), seconds)

    def after(other: int, by_depth: Mapping[int, float]) -> Mapping[int, float]:
        before = by_depth.get(depth)
        if before is None:
            return by_depth
        part = mean * other / length
        return {
            **by_depth,
            depth: max(before, part) if other < length else before * KEPT,
        }

    others = {other: after(other, by_depth) for other, by_depth in known.items()}
    return {**others, length: {**known.get(length, {}), depth: mean}}


def moving_mean(before: float, now: float) -> float:
    """Of times; 0 before the first."""
    return 0.5 * (before + now) if before else now
