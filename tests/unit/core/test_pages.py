import pytest

from jaxserver.core.pages import PagePool


def test_the_lowest_free_page_is_taken_first() -> None:
    pool = PagePool.empty(3)
    first, pool = pool.take()
    second, pool = pool.take()
    assert (first, second, pool.num_free) == (0, 1, 1)
    third, _ = pool.release(0).take()
    assert third == 0


def test_a_shared_page_is_free_after_its_last_release() -> None:
    page, pool = PagePool.empty(2).take()
    pool = pool.share(page).release(page)
    assert pool.num_free == 1
    assert pool.release(page).num_free == 2


def test_taking_changes_no_pool_but_the_new_one() -> None:
    pool = PagePool.empty(1)
    pool.take()
    assert pool.num_free == 1


def test_an_empty_pool_gives_nothing() -> None:
    _, pool = PagePool.empty(1).take()
    with pytest.raises(ValueError, match="not in tuple"):
        pool.take()


def test_a_free_page_can_be_neither_shared_nor_released() -> None:
    pool = PagePool.empty(2)
    with pytest.raises(ValueError, match="page 1 is free and cannot be shared"):
        pool.share(1)
    with pytest.raises(ValueError, match="page 1 is free already"):
        pool.release(1)
