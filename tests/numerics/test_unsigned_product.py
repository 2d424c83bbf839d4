"""Products of unsigned with signed bytes, against numpy's in 64 bits."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxserver.core.ops import unsigned_product as module
from jaxserver.core.ops.unsigned_product import unsigned_product
from tests.rows import HostArray
from tests.strategies import SEEDS

pytestmark = pytest.mark.usefixtures("strict_jax")
both = Primitive("both")
"""The product as a processor with the instruction is given it, whatever this has."""
both.def_abstract_eval(module._shape)
mlir.register_lowering(both, module._lower_both)
FORMS = tuple(map(jax.jit, (module._by_signed_bytes, both.bind)))
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 40))


def operands(shape: tuple[int, int, int], seed: int) -> tuple[HostArray, ...]:
    (rows, inputs, outputs), rng = shape, np.random.default_rng(seed)
    x = rng.integers(0, 256, (rows, inputs)).astype(np.uint8)
    values = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    return x, values, values.sum(1, dtype=np.int32)


def exact(x: HostArray, values: HostArray) -> HostArray:
    product: HostArray = x.astype(np.int64) @ values.T.astype(np.int64)
    return product


@given(shape=SHAPES, seed=SEEDS)
@example(shape=(1, 1, 1), seed=0)
@example(shape=(8, 65_535, 2), seed=0)
@example(shape=(256, 576, 192), seed=0)
@example(shape=(960, 576, 16), seed=0)
def test_all_forms_are_exact(shape: tuple[int, int, int], seed: int) -> None:
    given = operands(shape, seed)
    for form in FORMS:
        np.testing.assert_array_equal(np.asarray(form(*given)), exact(*given[:2]))


def test_the_largest_sums_are_exact() -> None:
    for extreme in (-128, 127):
        x = np.full((4, 65_535), 255, np.uint8)
        values = np.full((3, 65_535), extreme, np.int8)
        given = (x, values, values.sum(1, dtype=np.int32))
        for form in FORMS:
            np.testing.assert_array_equal(np.asarray(form(*given)), exact(x, values))


def test_it_runs_outside_of_a_compiled_function_and_under_vmap() -> None:
    x, values, sums = operands((4, 30, 5), 0)
    expected = exact(x, values)
    found = unsigned_product(x, values, sums)
    np.testing.assert_array_equal(found, expected)
    over: Any = jax.vmap(unsigned_product, in_axes=(0, None, None))
    found = over(np.stack([x, x[::-1]]), values, sums)
    np.testing.assert_array_equal(found, np.stack([expected, expected[::-1]]))


def test_where_a_processor_can_it_is_given_both_kinds_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[Any, Any, str]] = []
    monkeypatch.setattr(
        mlir,
        "register_lowering",
        lambda primitive, rule, platform: heard.append((primitive, rule, platform)),
    )
    module.multiply_both_on_cpu()
    assert heard == [(module._unsigned_product, module._lower_both, "cpu")]
    mixed = "tensor<4x30xui8>, tensor<5x30xi8>) -> tensor<4x5xi32>"
    assert mixed in jax.jit(both.bind).lower(*operands((4, 30, 5), 0)).as_text()
