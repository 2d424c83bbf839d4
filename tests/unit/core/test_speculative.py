"""What is guessed, against the same rule in plain Python."""

from typing import Any

import jax
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserver.core.sampling_arrays import History
from jaxserver.core.speculative import LONGEST_MATCH, look_up

MAX_LEN, COUNT = 24, 5
LOOK_UP = jax.jit(look_up, static_argnums=(1, 2))
ROWS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=MAX_LEN), min_size=3, max_size=3
)


def history_of(rows: list[list[int]]) -> History:
    """What lies behind a row's end is no part of it."""
    arrays: dict[str, Any] = dict(
        tokens=np.stack([np.pad(row, (0, MAX_LEN - len(row))) for row in rows]),
        prompt_length=np.ones(len(rows), np.int32),
        length=np.array([len(row) for row in rows], np.int32),
    )
    arrays["tokens"] = arrays["tokens"].astype(np.int32)
    return History(**arrays)


def expected(row: list[int], least_match: int) -> list[int]:
    """By trying every earlier place, the latest first."""

    def matched(end: int) -> int:
        count = 0
        while (
            count < min(LONGEST_MATCH, end) and row[end - 1 - count] == row[-1 - count]
        ):
            count += 1
        return count

    ends = range(len(row) - 1, 0, -1)
    best = max(ends, key=matched, default=0)
    if not best or matched(best) < least_match:
        return []
    following = row[best:]
    return [following[i % len(following)] for i in range(COUNT)]


@given(rows=ROWS, least_match=st.integers(1, LONGEST_MATCH))
@example(rows=[[0], [1, 1], [0, 1, 2]], least_match=1)
@example(rows=[[0, 1, 2, 2, 0, 1], [1, 2, 0, 2, 2], [0] * MAX_LEN], least_match=2)
def test_the_tokens_after_the_longest_and_latest_match_are_guessed(
    rows: list[list[int]], least_match: int
) -> None:
    draft = LOOK_UP(history_of(rows), COUNT, least_match)
    for nth, row in enumerate(rows):
        guessed = np.asarray(draft.tokens[nth, : int(draft.length[nth])]).tolist()
        assert guessed == expected(row, least_match)


def test_a_longer_match_goes_before_a_later_one() -> None:
    row = [0, 1, 2, 0, 2, 1, 0, 0, 1]
    draft = LOOK_UP(history_of([row]), COUNT, 1)
    assert np.asarray(draft.tokens[0]).tolist() == [2, 0, 2, 1, 0]


def test_a_cycle_is_guessed_to_go_on() -> None:
    draft = LOOK_UP(history_of([[2, 0, 1, 0, 1]]), COUNT, 1)
    assert np.asarray(draft.tokens[0]).tolist() == [0, 1, 0, 1, 0]
