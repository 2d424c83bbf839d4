import dataclasses

import pytest

from jaxserver.core.config import MAX_CALL_TOKENS, MIN_CALL_TOKENS, EngineConfig
from jaxserver.ports.errors import InvalidConfig
from tests.tiny import TINY_LLAMA


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [(1, (24, 136)), (2, (24, 128)), (9, (24, 28)), (17, (15,)), (64, (4,))],
)
def test_prefill_lengths_fit_the_most_tokens_of_a_call(
    rows: int, lengths: tuple[int, ...]
) -> None:
    engine = EngineConfig(slots=4, max_len=64, prefill_rows=rows)
    assert engine.prefill_lengths == lengths
    assert MIN_CALL_TOKENS <= rows * lengths[-1] <= MAX_CALL_TOKENS


@pytest.mark.parametrize(
    ("slots", "ladder"),
    [
        (1, (1,)),
        (4, (1, 4)),
        (5, (1, 4, 5)),
        (16, (1, 4, 8, 16)),
        (100, (1, 4, 8, 16, 32, 64, 100)),
    ],
)
def test_the_decode_ladder_ends_with_all_slots(
    slots: int, ladder: tuple[int, ...]
) -> None:
    assert EngineConfig(slots=slots, max_len=64).decode_ladder == ladder


def test_a_decode_step_runs_all_slots_where_a_mesh_splits_them() -> None:
    assert EngineConfig(slots=16, max_len=64, row_parts=2).decode_ladder == (16,)


def test_slots_that_a_mesh_does_not_divide_are_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidConfig, match="slots") as caught:
        EngineConfig(slots=6, max_len=64, row_parts=4)
    assert caught.value.got == "6 on a mesh whose dp times fsdp is 4"
    assert caught.value.allowed == "a multiple of 4"


def test_more_slots_than_a_call_has_tokens_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="slots: got 257, allowed is at most 256"):
        EngineConfig(slots=257, max_len=64)


def test_more_prefill_rows_than_keep_their_bits_are_refused() -> None:
    with pytest.raises(
        InvalidConfig, match="batch_size: got 65, allowed is at most 64"
    ):
        EngineConfig(slots=4, max_len=64, prefill_rows=65)


def test_groups_are_the_query_heads_of_a_key_value_head() -> None:
    assert dataclasses.replace(TINY_LLAMA, num_heads=6, num_kv_heads=2).groups == 3


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_prefill_takes_some_time(seconds: float) -> None:
    expected = f"prefill_seconds: got {seconds}, allowed is more than 0"
    with pytest.raises(InvalidConfig, match=expected):
        EngineConfig(slots=1, max_len=64, prefill_seconds=seconds)
