"""Writing to pages and reading them back, against plain loops over numpy arrays."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxserver.core.ops import paged
from tests.numerics.test_ops import among_layers
from tests.numerics.transforms import Transform, both_ways
from tests.rows import HostArray

pytestmark = [
    pytest.mark.usefixtures("strict_jax"),
    both_ways,
]
RNG = np.random.default_rng(5)
PAGE_SIZE, NUM_PAGES, HEADS, HEAD_DIM = 4, 7, 2, 3
TABLE = np.array([[6, 0, 3], [1, 4, 2]], np.int32)


def normal(*shape: int) -> HostArray:
    return RNG.standard_normal(shape).astype(np.float32)


def pages() -> tuple[HostArray, HostArray]:
    keys = normal(NUM_PAGES, HEADS, HEAD_DIM, PAGE_SIZE)
    return keys, normal(NUM_PAGES, HEADS, PAGE_SIZE, HEAD_DIM)


def put(
    transform: Transform,
    keys: HostArray,
    values: HostArray,
    *rest: Any,
    block: int = PAGE_SIZE,
    **how: Any,
) -> tuple[HostArray, HostArray]:
    """Writes to one of several layers, and sees that the others stay as they are."""

    def write(*given: Any) -> Any:
        return paged.write(*given, **how)

    cache = among_layers(keys, values, block)
    found = transform(write)(cache, *rest)
    for before, after in zip(cache[:2], found[:2], strict=True):
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        np.testing.assert_array_equal(after[:, 2], before[:, 2])
    return out_of_blocks(found.keys[:, 1], found.values[:, 1])


def out_of_blocks(keys: Any, values: Any) -> tuple[HostArray, HostArray]:
    whole_keys = np.asarray(keys).transpose(0, 2, 3, 1, 4)
    whole_values = np.asarray(values).transpose(0, 2, 1, 3, 4)
    return (
        whole_keys.reshape(*whole_keys.shape[:3], -1),
        whole_values.reshape(*whole_values.shape[:2], -1, whole_values.shape[-1]),
    )


def places(transform: Transform, *arguments: Any) -> tuple[HostArray, HostArray]:
    def find(positions: jax.Array, counts: jax.Array, table: Any) -> Any:
        return paged.places(positions, counts, table, PAGE_SIZE, NUM_PAGES)

    page, offset = transform(find)(*arguments)
    return np.asarray(page), np.asarray(offset)


def test_a_position_lies_on_its_rows_page(transform: Transform) -> None:
    positions = np.array([[0, 3, 4, 11], [2, 5, 8, 9]], np.int32)
    page, offset = places(transform, positions, np.array([4, 4], np.int32), TABLE)
    assert page.tolist() == [[6, 6, 0, 3], [1, 4, 2, 2]]
    assert offset.tolist() == [[0, 3, 0, 3], [2, 1, 0, 1]]


def test_without_a_table_row_i_is_page_i(transform: Transform) -> None:
    positions = np.array([[0, 3], [1, 2]], np.int32)
    page, offset = places(transform, positions, np.array([2, 2], np.int32), None)
    assert page.tolist() == [[0, 0], [1, 1]]
    assert offset.tolist() == [[0, 3], [1, 2]]


def test_padding_and_positions_past_the_row_have_no_place(transform: Transform) -> None:
    positions = np.array([[10, 11, 12], [4, 5, 6]], np.int32)
    counts = np.array([3, 1], np.int32)
    page, _ = places(transform, positions, counts, TABLE)
    assert page.tolist() == [[3, 3, NUM_PAGES], [4, NUM_PAGES, NUM_PAGES]]
    page, _ = places(transform, np.array([[3, 4]], np.int32), counts[:1], None)
    assert page.tolist() == [[0, NUM_PAGES]]


@pytest.mark.parametrize("block", [1, 2, 4])
def test_writing_changes_the_places_that_are_meant_and_no_other(
    transform: Transform, block: int
) -> None:
    keys, values = pages()
    new = normal(2, 3, HEADS, HEAD_DIM), normal(2, 3, HEADS, HEAD_DIM)
    page = np.array([[6, 0, NUM_PAGES], [1, NUM_PAGES, 2]], np.int32)
    offset = np.array([[3, 0, 1], [2, 0, 1]], np.int32)
    expected_keys, expected_values = keys.copy(), values.copy()
    for row, time in np.ndindex(page.shape):
        at, here = page[row, time], offset[row, time]
        if at < NUM_PAGES:
            expected_keys[at, :, :, here] = new[0][row, time]
            expected_values[at, :, here] = new[1][row, time]
    found = put(transform, keys, values, new, (page, offset), block=block)
    found_keys, found_values = found
    np.testing.assert_array_equal(found_keys, expected_keys)
    np.testing.assert_array_equal(found_values, expected_values)


def test_in_another_layout_the_same_is_written(transform: Transform) -> None:
    keys, values = pages()
    new = normal(2, 3, HEADS, HEAD_DIM), normal(2, 3, HEADS, HEAD_DIM)
    positions = np.array([[3, 4, 5], [0, 1, 2]], np.int32)
    where = places(transform, positions, np.array([3, 2], np.int32), TABLE)
    expected = put(transform, keys, values, new, where)

    def write(*given: Any) -> Any:
        return paged.write(*given, layout=paged.BY_TOKEN)

    by_token: Any = keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)
    found = transform(write)(paged.LayerCache(*by_token), new, where)
    np.testing.assert_array_equal(found[0], expected[0].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found[1], expected[1].transpose(0, 2, 1, 3))


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("counts", [(3, 3), (1, 2), (2, 0), (0, 3)])
def test_runs_of_rows_on_one_page_are_written_as_tokens_are(
    transform: Transform,
    monkeypatch: pytest.MonkeyPatch,
    start: int,
    counts: tuple[int, int],
    block: int,
) -> None:
    monkeypatch.setattr(paged, "FEW", 1)
    keys, values = pages()
    new = normal(2, 3, HEADS, HEAD_DIM), normal(2, 3, HEADS, HEAD_DIM)
    positions = np.array([[0, 1, 2], [start, start + 1, start + 2]], np.int32)
    table = np.array([[6], [1]], np.int32)
    where = places(transform, positions, np.array(counts, np.int32), table)
    expected = put(transform, keys, values, new, where)

    found = put(transform, keys, values, new, where, block=block, in_runs=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_what_is_beyond_the_caches_type_is_its_largest_number(
    transform: Transform,
) -> None:
    keys, values = (leaf.astype(np.float16) for leaf in pages())
    new = normal(1, 2, HEADS, HEAD_DIM), normal(1, 2, HEADS, HEAD_DIM)
    new[0][0, 1, 0, 1], new[1][0, 1, 1, 2] = 1e6, -1e6
    new[0][0, 1, 1, 0] = np.inf
    where = np.array([[5, 5]], np.int32), np.array([[0, 1]], np.int32)
    found_keys, found_values = put(transform, keys, values, new, where)
    assert (found_keys[5, 0, 1, 1], found_values[5, 1, 1, 2]) == (65504, -65504)
    assert np.isnan(found_keys[5, 1, 0, 1])
    np.testing.assert_array_equal(
        found_keys[5, :, :, 0], new[0][0, 0].astype(np.float16)
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_kept_as_nothing_under_a_key_that_is_none(
    transform: Transform, broken: float
) -> None:
    keys, values = pages()
    new_keys, new_values = normal(1, 2, HEADS, HEAD_DIM), normal(1, 2, HEADS, HEAD_DIM)
    new_values[0, 1, 0, 2] = broken
    where = np.array([[5, 5]], np.int32), np.array([[0, 1]], np.int32)
    found = put(transform, keys, values, (new_keys, new_values), where)
    assert np.isnan(found[0][5, 0, :, 1]).all()
    assert not found[1][5, 0, 1].any()
    np.testing.assert_array_equal(found[0][5, 1, :, 1], new_keys[0, 1, 1])
    np.testing.assert_array_equal(found[1][5, 1, 1], new_values[0, 1, 1])
    np.testing.assert_array_equal(found[1][5, :, 0], new_values[0, 0])


@pytest.mark.parametrize("block", [2, 4, 8])
def test_a_block_is_read_from_the_pages_of_its_row(
    transform: Transform, block: int
) -> None:
    keys, values = pages()

    def read(cache: paged.LayerCache, table: Any, nth: jax.Array) -> Any:
        return paged.read_block(cache, (nth, table), 2, (nth, block))

    given = (among_layers(keys, values, min(block, PAGE_SIZE)), TABLE, np.int32(1))
    found_keys, found_values = transform(read)(*given)
    for row in range(2):
        for at in range(block):
            page, offset = divmod(block + at, PAGE_SIZE)
            held = TABLE[row, min(page, 2)]
            np.testing.assert_array_equal(
                found_keys[row, :, :, at], keys[held, :, :, offset]
            )
            np.testing.assert_array_equal(
                found_values[row, :, at], values[held, :, offset]
            )


@pytest.mark.parametrize("first", [0, 2])
def test_without_a_table_a_block_is_cut_out_of_the_rows(
    transform: Transform, first: int
) -> None:
    keys, values = pages()

    def read(cache: paged.LayerCache, row: jax.Array, nth: jax.Array) -> Any:
        return paged.read_block(cache, (row, None), 3, (nth, 2))

    given = (among_layers(keys, values, 2), np.int32(first), np.int32(1))
    found_keys, found_values = transform(read)(*given)
    np.testing.assert_array_equal(found_keys, keys[first : first + 3, :, :, 2:])
    np.testing.assert_array_equal(found_values, values[first : first + 3, :, 2:])
