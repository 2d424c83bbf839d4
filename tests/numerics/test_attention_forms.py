"""Every form of attention for accelerators against plain numpy, in float64.

There is none here: JAX's own function runs as it is, the kernel is interpreted, and is
compiled as far as it can be without a GPU.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core.compute import Compute
from jaxserver.core.ops.attention import attend_whole, attention
from jaxserver.core.ops.attention_kernel import SPAN, attend_pages
from jaxserver.core.ops.paged import BY_BLOCK, BY_TOKEN, LayerCache
from jaxserver.core.sharding import make_mesh
from tests.numerics.test_ops import cut_up, naive_attention
from tests.rows import HostArray

pytestmark = pytest.mark.usefixtures("strict_jax")
RNG = np.random.default_rng(9)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Of sums of numbers about 1, which 16 bits tell to 2**-8 and to 2**-11."""

Form = Callable[..., jax.Array]
interpreted = functools.partial(attend_pages, is_interpreted=True)


class Size(NamedTuple):
    rows: int
    time: int
    kv_heads: int
    groups: int
    head_dim: int
    context: int
    page_size: int | None


SIZES = [
    Size(1, 1, 1, 1, 16, 128, None),
    Size(3, 1, 2, 3, 16, 640, 16),
    Size(3, 4, 2, 1, 32, 256, None),
    Size(2, 4, 1, 8, 64, 1280, 128),
    Size(4, 2, 3, 4, 16, 2 * SPAN, None),
]


class Given(NamedTuple):
    """What attention takes, by head in float32 and by token in some type."""

    queries: HostArray
    cache: LayerCache
    table: HostArray | None
    positions: HostArray
    ends: HostArray
    expected: HostArray

    def run(self, form: Form) -> HostArray:
        where = (self.table, self.positions, self.ends)
        # JAX's own function promotes types.
        promotion = "standard" if form is attend_whole else "strict"
        with jax.numpy_dtype_promotion(promotion):
            found = jax.jit(form)(self.queries, self.cache, *where)
        assert found.dtype == self.queries.dtype
        return np.asarray(found, np.float64)


def given(size: Size, dtype: str = "float32", seed: int = 0) -> Given:
    """Rows as long as may be, as short, and in between."""
    rng = np.random.default_rng(seed)

    def rounded(*shape: int) -> HostArray:
        """Numbers that the type has."""
        numbers = rng.standard_normal(shape, np.float32)
        return np.asarray(jnp.asarray(numbers, dtype), np.float32)

    rows, time, kv_heads, groups, head_dim, context, page_size = size
    queries = rounded(rows, time, kv_heads, groups, head_dim)
    keys = rounded(rows, kv_heads, head_dim, context)
    values = rounded(rows, kv_heads, context, head_dim)
    start = np.linspace(context - time, 0, rows).astype(np.int32)[:, None]
    positions = start + np.arange(time, dtype=np.int32)
    expected = naive_attention(queries, keys, values, positions)
    table = None
    if page_size is not None:
        keys, values, table = cut_up(keys, values, page_size)
    by_token = keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)
    kept: Any = [jnp.asarray(leaf, dtype) for leaf in (queries, *by_token)]
    cache = LayerCache(kept[1], kept[2])
    return Given(kept[0], cache, table, positions, positions[:, -1] + 1, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_softmax_over_what_came_before(size: Size, dtype: str) -> None:
    this, tolerance = given(size, dtype), TOLERANCE[dtype]
    found = this.run(interpreted)
    np.testing.assert_allclose(found, this.expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [*SIZES, Size(2, 32, 2, 2, 24, 256, 16)])
def test_whole_rows_are_softmax_over_what_came_before(size: Size, dtype: str) -> None:
    this, tolerance = given(size, dtype), TOLERANCE[dtype]
    found = this.run(attend_whole)
    np.testing.assert_allclose(found, this.expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", [interpreted, attend_whole])
@pytest.mark.parametrize("broken", [np.nan, 1e30])
def test_what_lies_past_a_rows_end_does_not_matter(form: Form, broken: float) -> None:
    """Keys may be no numbers where nothing is; values never are, see `paged.write`."""
    this = given(SIZES[1])
    expected = this.run(form)
    keys: Any = np.array(this.cache.keys)
    assert this.table is not None
    for row, end in enumerate(this.ends):
        for at in range(int(end), SIZES[1].context):
            place = this.table[row, at // 16], at % 16
            keys[place] = broken
    found = this._replace(cache=this.cache._replace(keys=keys)).run(form)
    np.testing.assert_array_equal(found, expected)


def test_a_row_has_the_same_bits_in_any_company_and_page() -> None:
    one, other, rows = given(SIZES[1]), given(SIZES[1], seed=1), SIZES[1].rows
    alone = one.run(interpreted)
    assert one.table is not None
    shifted = one._replace(table=one.table + np.int32(len(other.cache[0])))

    def joined(*leaves: HostArray) -> HostArray:
        return np.concatenate(leaves)

    arrays = [(this[:1], this.cache[:2], this[2:]) for this in (other, shifted)]
    queries, cache, rest = jax.tree.map(joined, *arrays)
    both: Given = Given._make([*queries, LayerCache(*cache), *rest])
    np.testing.assert_array_equal(both.run(interpreted)[rows:], alone)


def test_a_row_that_holds_nothing_is_zeros() -> None:
    this = given(SIZES[2])
    found = this._replace(ends=np.zeros(SIZES[2].rows, np.int32)).run(interpreted)
    assert not found.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_one_that_triton_takes(size: Size, dtype: str) -> None:
    queries, cache, table, positions, ends, _ = given(size, dtype)
    traced = jax.jit(attend_pages).trace(queries, cache, table, positions, ends)
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_form_is_chosen_by_platform_shape_and_mesh() -> None:
    def form(platform: str, head_dim: int = 64, mesh: Any = None) -> Any:
        compute = Compute(platform=platform, is_interpreted=True)
        return attention(compute, head_dim, mesh)

    def has_kernel(form: Any, time: int) -> bool:
        size = Size(1, time, 1, 1, 64, 256, None)
        queries, cache, table, positions, ends, _ = given(size)
        run = functools.partial(form.attend, table=table)
        traced = jax.make_jaxpr(run)(
            queries=queries, cache=cache, positions=positions, ends=ends
        )
        return "pallas_call" in str(traced)

    mesh = make_mesh((1, 2, 1), ("dp", "fsdp", "mp"), jax.devices()[:2])
    assert form("cpu").layout is BY_BLOCK
    for other in (form("cuda"), form("tpu"), form("cuda", 96), form("cuda", mesh=mesh)):
        assert other.layout is BY_TOKEN
    assert [has_kernel(form("cuda"), time) for time in (1, 8, 9)] == [True, True, False]
    assert has_kernel(form("cuda", mesh=mesh), 1)
    for other in (form("tpu"), form("gpu"), form("cuda", 96), form("cuda", 8)):
        assert not has_kernel(other, 1)
