import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core.kv_cache import KVCache, copy_pages, init_cache, whole_row_page
from jaxserver.core.transformer import transformer_fns
from tests.tiny import TINY_LLAMA

pytestmark = pytest.mark.usefixtures("strict_jax")


@pytest.mark.parametrize(("max_len", "size"), [(1, 128), (128, 128), (200, 256)])
def test_a_whole_row_is_a_multiple_of_a_block(max_len: int, size: int) -> None:
    assert whole_row_page(max_len) == size
    assert transformer_fns(TINY_LLAMA, max_len).page_size == size


def test_a_new_cache_is_zeros() -> None:
    cache = init_cache(TINY_LLAMA, num_pages=3, page_size=16)
    leaves = jax.tree.leaves(cache)
    assert not any(np.asarray(leaf).any() for leaf in leaves)
    assert {key.shape for key in cache.keys} == {(3, 2, 8, 16)}
    assert {value.shape for value in cache.values} == {(3, 2, 16, 8)}


def test_a_copy_to_no_page_is_dropped() -> None:
    keys = jnp.arange(2 * 1 * 1 * 4, dtype=jnp.float32).reshape(2, 1, 1, 4)
    cache = KVCache(keys=(keys,), values=(keys.reshape(2, 1, 4, 1),))
    source, target, length = (jnp.array(x, jnp.int32) for x in ([0, 1], [1, 2], [2, 4]))
    found = jax.jit(copy_pages)(cache, source, target, length)
    assert found.keys[0][1, 0, 0].tolist() == [0, 1, 6, 7]
    assert found.keys[0][0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("page_size", [48, 130])
def test_pages_that_do_not_fit_the_block_are_refused(page_size: int) -> None:
    with pytest.raises(AssertionError, match="divisible"):
        transformer_fns(TINY_LLAMA, 256, page_size)
