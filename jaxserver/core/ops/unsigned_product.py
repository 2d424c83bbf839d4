"""Products of unsigned bytes with signed ones.

Some processors multiply the two at once, and so more of them at a time than signed
bytes with signed ones (AVX512-VNNI, AMX-INT8). XLA's CPU library has kernels for the
pair, but `jax.lax.dot_general` converts both sides first. All sums here are integers:
any form comes to the same ones.
"""

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
CONTRACT_LAST = (((1,), (1,)), ((), ()))


@sequential_vmap  # type: ignore[untyped-decorator]  # JAX says no types
def unsigned_product(
    x: UInt8[Array, "rows in"],
    values: Int8[Array, "out in"],
    sums: Int32[Array, " out"],
) -> Int32[Array, "rows out"]:
    """`x @ values.T`, exactly; either side may be the weights.

    Args:
        x: Those without a sign.
        values: Those with one.
        sums: Of each row of `values`.
    """
    product: Array = _unsigned_product.bind(x, values, sums)
    return product


def multiply_both_on_cpu() -> None:
    """What is traced from now on multiplies the two kinds of bytes as they are.

    That holds for this process, which computes on a CPU. Where its library has no
    kernel for them, it is many times slower.
    """
    mlir.register_lowering(_unsigned_product, _lower_both, platform="cpu")


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
