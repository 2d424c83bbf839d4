"""Our kernels beside what the compiler makes, and beside plain numpy."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserver.adapters.engine import kernels
from jaxserver.adapters.engine.kernels import COMPILERS, register_kernels
from jaxserver.core.compute import Compute
from jaxserver.core.ops import attention, int8_product
from jaxserver.core.ops.quantize import Int8Weight, quantize
from tests.numerics.test_ops import among_layers, cut_up, naive_attention
from tests.rows import HostArray, jitted
from tests.strategies import SEEDS

CAN_COMPILE = any(map(shutil.which, COMPILERS)) and bool(
    kernels.CPU_INFO.exists()
    and re.search(r"\bavx512_vnni\b", kernels.CPU_INFO.read_text())
)
needs_compiler = pytest.mark.skipif(
    not CAN_COMPILE, reason="a C++ compiler and a processor with AVX512-VNNI are needed"
)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 200), st.integers(1, 40))
KINDS = ("normal", "outlier", "zeros", "huge", "denormal", "broken")
MODEL = """
import sys
from pathlib import Path

import numpy as np

from jaxserver.adapters.engine.kernels import register_kernels
from jaxserver.core.compute import Compute
from tests.rows import run, run_in_pieces
from tests.tiny import tiny_model

compute = Compute()
if sys.argv[2:]:
    compute = Compute(kernels=register_kernels(Path(sys.argv[2])))
paged, model = (
    tiny_model(kept="int8", page_size=size, compute=compute) for size in (16, None)
)
tokens = np.random.default_rng(0).integers(0, model.fns.vocab_size, 200)
tokens = tokens.astype(np.int32)
whole = run_in_pieces(model, tokens, [], 256)
for cuts in ([1], [7, 8, 130], [128], list(range(190, 200))):
    np.testing.assert_array_equal(run_in_pieces(model, tokens, cuts, 256), whole)
rows, at = [tokens[:8], tokens[50:60], tokens[:31]], [0, 0, 0]
together, cache = run(model, model.fns.init_cache(3), rows, at, 32)
np.testing.assert_array_equal(together[2, :31], whole[:31])
np.testing.assert_array_equal(together[0, :8], whole[:8])
table = np.array([[5, 1, 7, 0], [2, 6, 3, 4]], np.int32)
cache = paged.fns.init_cache(8)
pieces, cache = run(paged, cache, [tokens[:32], tokens[:20]], [0, 0], 32, table)
np.testing.assert_array_equal(pieces[0], whole[:32])
pieces, cache = run(paged, cache, [tokens[32:45], tokens[20:21]], [32, 20], 16, table)
np.testing.assert_array_equal(pieces[0, :13], whole[32:45])
np.testing.assert_array_equal(pieces[1, :1], whole[20:21])
assert np.ptp(whole) > 1
np.save(sys.argv[1], whole)
"""


class Kernels(NamedTuple):
    product: Callable[..., Any]
    attend: Callable[..., Any]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    compute = Compute(kernels=register_kernels(tmp_path_factory.mktemp("kernels")))
    attend = attention.attention(compute, 64, None).attend

    def product(
        x: jax.Array, values: jax.Array, sums: jax.Array, scale: jax.Array
    ) -> jax.Array:
        weight = Int8Weight(values=values, sums=sums, scale=scale)
        kernel = compute.kernel("int8_product")
        return int8_product.int8_product(x, weight, kernel)

    def attend_over(
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        positions: jax.Array,
        ends: jax.Array,
        table: jax.Array | None = None,
    ) -> jax.Array:
        return attend(queries, among_layers(keys, values), table, positions, ends)

    return Kernels(product, attend_over)


def operands(
    kind: str, shape: tuple[int, int, int], seed: int
) -> tuple[HostArray, ...]:
    (tokens, inputs, outputs), rng = shape, np.random.default_rng(seed)
    normal = rng.standard_normal((tokens, inputs))
    x = {
        "normal": normal,
        "outlier": np.where(rng.random(normal.shape) < 0.02, 1e4, 1) * normal,
        "zeros": np.zeros(normal.shape),
        "huge": np.clip(normal, -3, 3) * 1e38,
        "denormal": normal * 10.0 ** rng.integers(-42, -35, normal.shape),
        "broken": np.where(rng.random(normal.shape) < 0.1 / inputs, np.nan, normal),
    }[kind]
    weight = rng.standard_normal((outputs, inputs)) * 10.0 ** rng.integers(-9, 3)
    made = quantize(weight.astype(np.float32), 1)
    return x.astype(np.float32), made.values, made.sums, made.scale


def a_row_each(rows: int, time: int, head_dim: int) -> tuple[HostArray, ...]:
    """Queries, keys and values that float16 has, and positions in several blocks."""
    rng, context = np.random.default_rng(rows), 384

    def numbers(*shape: int) -> HostArray:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float32)

    queries = numbers(rows, time, 2, 3, head_dim)
    keys, values = (
        numbers(rows, 2, head_dim, context),
        numbers(rows, 2, context, head_dim),
    )
    start = np.arange(3, 250, 240 // rows, dtype=np.int32)[::-1][:rows, None]
    return queries, keys, values, start + np.arange(time, dtype=np.int32)


@needs_compiler
@given(kind=st.sampled_from(KINDS), shape=SHAPES, seed=SEEDS)
@example(kind="normal", shape=(4, 576, 960), seed=0)
@example(kind="outlier", shape=(33, 1536, 577), seed=1)
@example(kind="broken", shape=(16, 64, 5000), seed=2)
@example(kind="normal", shape=(128, 576, 96), seed=3)
@example(kind="huge", shape=(3, 65_535, 2), seed=4)
@example(kind="normal", shape=(1, 1537, 577), seed=5)
@example(kind="huge", shape=(1, 65_535, 2), seed=6)
def test_the_product_has_the_bits_of_the_compilers_own(
    native: Kernels, kind: str, shape: tuple[int, int, int], seed: int
) -> None:
    given = operands(kind, shape, seed)

    def by_the_compiler(x: jax.Array, *parts: jax.Array) -> jax.Array:
        values, sums, scale = parts
        weight = Int8Weight(values=values, sums=sums, scale=scale)
        return int8_product.int8_product(x, weight)

    expected = np.asarray(jitted(by_the_compiler)(*given))
    found = np.asarray(jitted(native.product)(*given))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@needs_compiler
@pytest.mark.parametrize("page_size", [None, 16, 128])
@pytest.mark.parametrize("head_dim", [4, 64, 80, 128])
@pytest.mark.parametrize(("rows", "time"), [(1, 1), (2, 6), (9, 1), (1, 128)])
def test_attention_is_softmax_over_what_came_before(
    native: Kernels, rows: int, time: int, head_dim: int, page_size: int | None
) -> None:
    queries, keys, values, positions = a_row_each(rows, time, head_dim)
    expected = naive_attention(queries, keys, values, positions)
    table: list[HostArray] = []
    if page_size is not None:
        keys, values, pages = cut_up(keys, values, page_size)
        table = [pages]
    cache = (keys.astype(np.float16), values.astype(np.float16))
    ends = positions.max(1) + 1
    found = jitted(native.attend)(queries, *cache, positions, ends, *table)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@needs_compiler
def test_a_query_attends_alone_as_it_does_in_company(native: Kernels) -> None:
    queries, keys, values, positions = a_row_each(9, 6, 64)
    cache, attend = (keys.astype(np.float16), values.astype(np.float16)), native.attend
    whole = np.asarray(jitted(attend)(queries, *cache, positions, positions.max(1) + 1))
    for row, nth in [(0, 0), (3, 5), (8, 2)]:
        alone = tuple(leaf[row : row + 1] for leaf in cache)
        at = positions[row : row + 1, nth : nth + 1]
        query = queries[row : row + 1, nth : nth + 1]
        found = np.asarray(jitted(attend)(query, *alone, at, at[0] + 1))
        np.testing.assert_array_equal(found[0, 0], whole[row, nth])


@needs_compiler
def test_a_key_that_is_no_number_spoils_the_queries_that_see_it(
    native: Kernels,
) -> None:
    queries, keys, values, positions = a_row_each(2, 6, 64)
    keys, values = keys.astype(np.float16), values.astype(np.float16)
    attend: Any = jitted(native.attend)
    ends = positions.max(1) + 1
    before = np.asarray(attend(queries, keys, values, positions, ends))
    keys[0, :, :, positions[0, 3]] = np.nan
    keys[1, :, :, ends[1] :] = np.nan
    found = np.asarray(attend(queries, keys, values, positions, ends))
    assert np.isnan(found[0, 3:]).all()
    np.testing.assert_array_equal(found[0, :3], before[0, :3])
    np.testing.assert_array_equal(found[1], before[1])


@needs_compiler
def test_several_threads_may_run_them_at_once(native: Kernels) -> None:
    shapes = [(4, 576, 960), (16, 576, 576), (40, 300, 900), (1, 64, 7)]
    work: list[tuple[Any, tuple[HostArray, ...]]] = [
        (jitted(native.product), operands("normal", shape, seed))
        for seed, shape in enumerate(shapes)
    ]
    for rows in (2, 9):
        queries, keys, values, positions = a_row_each(rows, 6, 64)
        cache = (keys.astype(np.float16), values.astype(np.float16))
        given = (queries, *cache, positions, positions.max(1) + 1)
        work.append((jitted(native.attend), given))
    expected = [np.asarray(run(*given)) for run, given in work]

    def again(nth: int) -> tuple[int, HostArray]:
        run, given = work[nth % len(work)]
        return nth % len(work), np.asarray(run(*given))

    with ThreadPoolExecutor(4) as pool:
        for nth, found in pool.map(again, range(600)):
            np.testing.assert_array_equal(found, expected[nth])


@needs_compiler
def test_a_model_keeps_its_bits_with_them_and_is_nearly_as_without(
    tmp_path: Path,
) -> None:
    def logits(*arguments: str) -> HostArray:
        file = tmp_path / f"{len(arguments)}.npy"
        command = [sys.executable, "-c", MODEL, str(file), *arguments]
        subprocess.run(command, check=True)
        found: HostArray = np.load(file)
        return found

    plain, found = logits(), logits(str(tmp_path / "kernels"))
    assert (found != plain).any()
    np.testing.assert_allclose(found, plain, atol=np.ptp(plain) / 1000)
