import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core.kv_cache import (
    KVCache,
    copy_pages,
    init_cache,
    kv_axes,
    token_axes,
    whole_row_page,
)
from jaxserver.core.ops.paged import BY_BLOCK, BY_TOKEN, Layout
from jaxserver.core.transformer import transformer_fns
from tests.tiny import TINY_LLAMA

pytestmark = pytest.mark.usefixtures("strict_jax")


@pytest.mark.parametrize(
    ("max_len", "size"), [(1, 128), (128, 128), (200, 256), (1920, 1920), (1921, 2048)]
)
def test_a_whole_row_is_a_multiple_of_a_block(max_len: int, size: int) -> None:
    assert whole_row_page(max_len) == size
    assert transformer_fns(TINY_LLAMA, max_len).page_size == size


def test_a_page_for_more_than_a_row_is_a_whole_row() -> None:
    assert transformer_fns(TINY_LLAMA, 64, page_size=64).page_size == 128


@pytest.mark.parametrize(
    ("page_size", "blocks", "block"), [(16, 1, 16), (128, 1, 128), (384, 3, 128)]
)
def test_a_new_cache_is_zeros(page_size: int, blocks: int, block: int) -> None:
    cache = init_cache(TINY_LLAMA, num_pages=3, page_size=page_size)
    leaves = jax.tree.leaves(cache)
    assert not any(np.asarray(leaf).any() for leaf in leaves)
    assert {key.shape for key in cache.keys} == {(3, 2, blocks, 2, 8, block)}
    assert {value.shape for value in cache.values} == {(3, 2, blocks, 2, block, 8)}


def test_a_copy_to_no_page_is_dropped() -> None:
    keys = jnp.arange(2 * 1 * 1 * 4, dtype=jnp.float32).reshape(2, 1, 1, 1, 1, 4)
    cache = KVCache(keys=(keys,), values=(keys.reshape(2, 1, 1, 1, 4, 1),))
    source, target, length = (jnp.array(x, jnp.int32) for x in ([0, 1], [1, 2], [2, 4]))
    found = jax.jit(copy_pages)(cache, source, target, length)
    assert found.keys[0][1, 0, 0, 0, 0].tolist() == [0, 1, 6, 7]
    assert found.keys[0][0, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]


def by_token(cache: KVCache) -> KVCache:
    """The same in the other layout, in which each layer has arrays of its own."""
    (keys,), (values,) = cache
    return KVCache(
        keys=tuple(_merged(keys.transpose(1, 0, 2, 5, 3, 4))),
        values=tuple(_merged(values.transpose(1, 0, 2, 4, 3, 5))),
    )


def _merged(x: jax.Array) -> jax.Array:
    """Blocks, and the tokens of each, as one dimension."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


@pytest.mark.parametrize("page_size", [16, 256])
def test_in_another_layout_the_same_is_kept_and_copied(page_size: int) -> None:
    rng = np.random.default_rng(0)
    cache: Any = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)),
        init_cache(TINY_LLAMA, num_pages=3, page_size=page_size),
    )
    other = init_cache(TINY_LLAMA, num_pages=3, page_size=page_size, layout=BY_TOKEN)
    chex.assert_trees_all_equal_shapes_and_dtypes(by_token(cache), other)
    pages = jnp.array([0, 2], jnp.int32), jnp.array([1, 0], jnp.int32)
    length = jnp.array([page_size - 11, page_size], jnp.int32)
    expected = by_token(copy_pages(cache, *pages, length))
    found = copy_pages(by_token(cache), *pages, length, layout=BY_TOKEN)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("layout", [BY_BLOCK, BY_TOKEN])
def test_a_layout_says_what_its_dimensions_are(layout: Layout) -> None:
    axes, page_size = kv_axes(layout), 256
    tokens = token_axes(TINY_LLAMA.num_layers, layout)
    cache = init_cache(TINY_LLAMA, num_pages=5, page_size=page_size, layout=layout)
    for leaf, token_axis in zip(jax.tree.leaves(cache), tokens, strict=True):
        assert len(axes) == leaf.ndim
        assert leaf.shape[axes.index("pages")] == 5
        assert leaf.shape[axes.index("kv_heads")] == TINY_LLAMA.num_kv_heads
        assert math.prod(leaf.shape[1:][axis] for axis in token_axis) == page_size


@pytest.mark.parametrize("page_size", [48, 130])
def test_pages_that_do_not_fit_the_block_are_refused(page_size: int) -> None:
    with pytest.raises(AssertionError, match="divisible"):
        transformer_fns(TINY_LLAMA, 256, page_size)
