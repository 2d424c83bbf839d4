"""How prompts are cut, and what is known of the time that a chunk takes."""

from collections.abc import Callable, Sequence

import pytest

from jaxserver.core.chunks import (
    ChunkSeconds,
    chunk_seconds,
    first_piece,
    prefill_cost,
    with_chunk_time,
)
from jaxserver.core.config import EngineConfig

ENGINE = EngineConfig(slots=5, max_len=1024)


@pytest.mark.parametrize("count", range(1, 137))
def test_no_other_way_to_run_some_tokens_costs_less(count: int) -> None:
    lengths = ENGINE.prefill_lengths
    short, _ = lengths

    def cost(pieces: Sequence[int]) -> int:
        padded = (min(n for n in lengths if n >= piece) for piece in pieces)
        return sum(length + ENGINE.call_tokens for length in padded)

    pieces, left = [], count
    while left:
        pieces.append(first_piece(left, lengths, ENGINE.call_tokens))
        left -= pieces[-1]
    whole = [[*[short] * i, count - i * short] for i in range(count // short + 1)]
    others = [[piece for piece in way if piece] for way in [[count], *whole]]
    assert sum(pieces) == count
    assert cost(pieces) == min(cost(way) for way in others)

    def told(count: int) -> int:
        return prefill_cost(count, lengths, ENGINE.call_tokens)

    assert told(count) == cost(pieces)
    assert told(2 * lengths[-1] + count) == cost([*[lengths[-1]] * 2, *pieces])
    assert told(0) == 0


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        ({}, 0.0),
        ({128: {0: 0.3}}, 0.3),
        ({128: {0: 0.3, 2: 0.4}}, 0.4),
        ({128: {0: 0.3, 2: 0.5, 4: 0.4}}, 0.4),
        ({128: {1: 0.15}, 16: {3: 0.04}}, 0.15),
        ({128: {1: 0.4}, 16: {3: 0.04}}, 0.32),
        ({128: {1: 0.4}, 16: {0: 0.04}}, 0.4),
        ({32: {5: 0.05}}, 0.2),
        ({256: {3: 0.7}}, 0.7),
    ],
)
def test_a_chunk_is_told_from_what_was_timed_at_least_as_deep(
    known: ChunkSeconds, seconds: float
) -> None:
    """Of 128 tokens after three longest chunks."""
    assert chunk_seconds(known, 3, 128) == pytest.approx(seconds)


def test_times_are_smoothed_at_their_own_depth() -> None:
    known: ChunkSeconds = {}
    for depth, length, seconds in [(0, 128, 6.0), (2, 128, 8.0), (2, 128, 4.0)]:
        known = with_chunk_time(known, depth, length, seconds)
    assert known == {128: {0: 6.0, 2: 6.0}}


def test_one_chunk_tells_something_of_the_others_as_deep() -> None:
    known: ChunkSeconds = {16: {0: 0.01}, 32: {0: 1.0, 1: 0.1}, 128: {0: 4.0, 1: 4.0}}
    known = with_chunk_time(known, 0, 32, 3.0)
    assert known[16] == {0: 1.0}
    assert known[32] == {0: 2.0, 1: 0.1}
    assert 3.9 < known[128][0] < known[128][1] == 4.0


def true_seconds(depth: int, length: int) -> float:
    return (length + 24) / 1000 * (1 + 0.1 * depth)


def run(
    known: ChunkSeconds,
    num_chunks: int,
    slower: Callable[[int], float],
    depths: int = 1,
) -> tuple[ChunkSeconds, list[tuple[int, float]]]:
    """What is chosen for a long prompt time and again, and how long it takes."""
    found = []
    for nth in range(num_chunks):
        depth = nth % depths
        fitting = [n for n in (24, 128) if chunk_seconds(known, depth, n) <= 0.2]
        length = max(fitting, default=24)
        seconds = true_seconds(depth, length) * slower(nth)
        known = with_chunk_time(known, depth, length, seconds)
        found.append((length, seconds))
    return known, found


def quiet(_: int) -> float:
    return 1.0


@pytest.mark.parametrize("noisy", [range(1), range(20, 40), range(50, 51)])
def test_the_longest_chunk_comes_back_after_an_accident(noisy: range) -> None:
    _, found = run({}, 1200, lambda nth: 3.0 if nth in noisy else 1.0)
    lengths = [length for length, _ in found]
    assert 24 in lengths
    assert set(lengths[-20:]) == {128}


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    """Though none but the longest chunks say so."""
    known, _ = run(with_chunk_time({}, 0, 24, true_seconds(0, 24)), 20, quiet)
    _, found = run(known, 400, lambda _: 1.8)
    assert sum(seconds > 0.2 for _, seconds in found) <= 4


def test_a_chunk_that_takes_too_long_is_seldom_tried_again() -> None:
    _, found = run({}, 4000, quiet, depths=8)
    late = [seconds for _, seconds in found[100:]]
    assert sum(seconds > 0.2 for seconds in late) <= len(late) * 0.02
    assert max(late) < 0.3
