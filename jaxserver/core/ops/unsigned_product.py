"""Products of unsigned bytes with signed ones.

Of few rows they are sums in a loop: the compiler's own code for it reads weights as
fast as memory gives them, while a library puts all of them into another order first.
With AMX it is faster all the same.

Of more rows they are a library's. Some processors multiply the two at once, and so more
of them at a time than signed bytes with signed ones (AVX512-VNNI, AMX-INT8). XLA's CPU
library has kernels for the pair, but `jax.lax.dot_general` converts both sides first.
All sums here are integers: any form comes to the same ones.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir
from jaxtyping import Array, Int8, Int32, UInt8

SIGN = 0x80
"""The bit by which a byte differs from that byte minus 128."""
_LOOPED = {1, 2}
"""Numbers of rows that are summed up in a loop, in this process: up to both bytes of a
token, which is what a decode step of one row has."""
CONTRACT_LAST = (((1,), (1,)), ((), ()))


@sequential_vmap  # type: ignore[untyped-decorator]  # JAX says no types
def unsigned_product(
    x: UInt8[Array, "rows in"],
    values: Int8[Array, "out in"],
    sums: Int32[Array, " out"],
) -> tuple[Int32[Array, "some out"], ...]:
    """`x @ values.T`, exactly, in as many arrays as it is made in.

    Args:
        x: The rows.
        values: What they are multiplied with.
        sums: Of each output's values.
    """
    if x.shape[0] in _LOOPED:
        return _in_a_loop(x, values)
    return (_unsigned_product.bind(x, values, sums),)


def multiply_both_on_cpu(*, few_too: bool) -> None:
    """What is traced from now on multiplies the two kinds of bytes as they are.

    That holds for this process, which computes on a CPU. Where its library has no
    kernel for them, it is many times slower.

    Args:
        few_too: The library multiplies few rows faster than a loop does.
    """
    mlir.register_lowering(_unsigned_product, _lower_both, platform="cpu")
    if few_too:
        _LOOPED.clear()


def _in_a_loop(
    x: UInt8[Array, "rows in"], values: Int8[Array, "out in"]
) -> tuple[Int32[Array, "1 out"], ...]:
    """All rows at once: one array alone would be added up in steps, kept in between."""
    rows, wide = x.astype(jnp.int32), values.astype(jnp.int32)
    terms = tuple(row[None, :] * wide for row in rows)
    added = jax.lax.reduce(terms, (jnp.int32(0),) * len(terms), _add_all, (1,))
    return tuple(row[None, :] for row in added)


def _add_all(some: Sequence[Array], others: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(map(jnp.add, some, others))


def _by_signed_bytes(
    x: UInt8[Array, "rows in"],
    values: Int8[Array, "out in"],
    sums: Int32[Array, " out"],
) -> Int32[Array, "rows out"]:
    less = jax.lax.bitcast_convert_type(x ^ jnp.uint8(SIGN), jnp.int8)
    product = jax.lax.dot_general(
        less, values, CONTRACT_LAST, preferred_element_type=jnp.int32
    )
    return product + SIGN * sums[None, :]


def _lower_both(
    context: mlir.LoweringRuleContext, x: Any, values: Any, _sums: Any
) -> list[Any]:
    (out,) = context.avals_out
    contract_last: Any = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=[],
        rhs_batching_dimensions=[],
        lhs_contracting_dimensions=[1],
        rhs_contracting_dimensions=[1],
    )
    kind = ir.RankedTensorType.get(out.shape, ir.IntegerType.get_signless(32))
    return [stablehlo.dot_general(kind, x, values, contract_last)]


def _shape(x: Any, values: Any, _sums: Any) -> jax.core.ShapedArray:
    return jax.core.ShapedArray((x.shape[0], values.shape[0]), jnp.dtype(jnp.int32))


_unsigned_product = Primitive("unsigned_product")
_unsigned_product.def_abstract_eval(_shape)
_unsigned_product.def_impl(lambda *given: jax.jit(_unsigned_product.bind)(*given))
mlir.register_lowering(
    _unsigned_product, mlir.lower_fun(_by_signed_bytes, multiple_results=False)
)
