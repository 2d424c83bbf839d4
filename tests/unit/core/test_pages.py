import pytest

from jaxserver.core.pages import PagePool


def test_free_pages_are_told_lowest_first_and_below_a_bound() -> None:
    pool = PagePool.empty(4).take([1])
    assert pool.free(4) == [0, 2, 3]
    assert pool.free(3) == [0, 2]


def test_a_shared_page_is_free_after_its_last_release() -> None:
    pool = PagePool.empty(2).take([0]).share([0]).release([0])
    assert pool.free(2) == [1]
    assert pool.release([0]).free(2) == [0, 1]


def test_taking_changes_no_pool_but_the_new_one() -> None:
    pool = PagePool.empty(1)
    pool.take([0])
    assert pool.free(1) == [0]


def test_a_page_that_is_held_is_not_given_out() -> None:
    pool = PagePool.empty(2).take([0])
    with pytest.raises(ValueError, match="page 0 is not free"):
        pool.take([1, 0])
    with pytest.raises(ValueError, match="page 1 is not free"):
        pool.take([1, 1])


def test_a_free_page_can_be_neither_shared_nor_released() -> None:
    pool = PagePool.empty(2).take([0])
    with pytest.raises(ValueError, match="page 1 has too few references"):
        pool.share([1])
    with pytest.raises(ValueError, match="page 0 has too few references"):
        pool.release([0, 0])
