"""Products of tokens, in two bytes, with weights in int8; their sums are exact.

In 16 bits a weight is read and multiplied as any other instead; see `linear`.

The compiler joins a multiplication to an addition behind it where both meet in one
loop, and rounds them once instead of twice (CPU; a barrier does not keep them apart).
Where they meet depends on the number of tokens. So whatever is multiplied here and may
then be added to is multiplied exactly: steps are powers of two.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32, UInt8

from jaxserver.core.ops.one_of import OneOf, as_matrix, with_one
from jaxserver.core.ops.quantize import PARTS, Int8Weight
from jaxserver.core.ops.unsigned_product import unsigned_product

BYTE_BITS = 8
MIDDLE = 2**7
"""Added to high bytes, which are signed."""
LONGEST = 2**16
"""An output has fewer inputs than this, so that its sum is an int32."""
MAGNITUDE, EXPONENT, ONE_UP = 0x7FFFFFFF, 0x7F800000, 0x00800000
"""Bits of a float32 without its sign, those of its power of two, the next power."""
BEYOND_LARGEST = 0x0001FFFF
"""Added to a number's bits: makes the next power of two of those beyond 127 / 64."""
LANES = 16
"""Of numbers up to which a reduction is left to the compiler."""
ROUNDING = 1.5 * 2**15 + MIDDLE
"""A sum with it is rounded to parts of 256: 24 bits, the last 16 of which are `MIDDLE`
and what was added."""
LEAST_STEP = 3 * ONE_UP
"""Bits of 2**-124: one over it is a normal number too."""


def int8_product(
    x: Float[Array, "tokens in"],
    weight: Int8Weight[Array],
    kernel: str | None = None,
    *,
    is_cut: bool = False,
) -> Float[Array, "tokens out"]:
    """`x @ weight.T`, over all dimensions of the output at once.

    A token that is not finite is NaN everywhere.

    Args:
        x: Tokens.
        weight: `[*out *in]`.
        kernel: What multiplies on a CPU to the same bits, as it is registered with
            `jax.ffi`; None leaves it to the compiler.
        is_cut: See `split_bytes`.
    """
    chex.assert_axis_dimension_lt(x, 1, LONGEST)
    sums, scale = weight.sums.reshape(-1), weight.scale.reshape(-1)
    values = as_matrix(weight.values, x.shape[1])
    if kernel is None:
        return _by_unsigned_product(split_bytes(x, is_cut=is_cut), values, sums, scale)
    shape = jax.ShapeDtypeStruct((x.shape[0], scale.size), jnp.float32)
    multiply = jax.ffi.ffi_call(kernel, shape, vmap_method="sequential")

    def product(values: Int8[Array, "out in"]) -> Float[Array, "tokens out"]:
        multiplied: Array = multiply(x, values, sums, scale)
        return multiplied

    y: Array = with_one(values, product)
    return y


def _by_unsigned_product(
    split: tuple[UInt8[Array, "bytes in"], Float[Array, "tokens 1"]],
    values: Int8[Array, "out in"] | OneOf,
    sums: Int32[Array, " out"],
    scale: Float[Array, " out"],
) -> Float[Array, "tokens out"]:
    """Both bytes are rows of one product."""
    both, step = split

    def product(values: Int8[Array, "out in"]) -> tuple[Int32[Array, "some out"], ...]:
        products: tuple[Array, ...] = unsigned_product(both, values, sums)
        return products

    high, low = jnp.split(jnp.concatenate(with_one(values, product)), 2)
    high = (high - MIDDLE * sums[None, :]).astype(jnp.float32)
    low = low.astype(jnp.float32)
    y: Array = (high + low / PARTS) * scale[None, :] * step
    return y


def split_bytes(
    x: Float[Array, "tokens in"], *, is_cut: bool = False
) -> tuple[UInt8[Array, "bytes in"], Float[Array, "tokens 1"]]:
    """Tokens as `step * (high - 128 + low / 256)`: all high bytes, then all low ones.

    A token's step is the smallest power of two of which it has at most 127, or NaN
    where the token is not finite. It is found in the bits, whose order as integers is
    that of the numbers, with what is not finite above all others.

    Args:
        x: Tokens.
        is_cut: Parts of them lie on several devices, which halves would move about.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & MAGNITUDE
    largest = jnp.max(bits, axis=1, keepdims=True) if is_cut else _largest(bits)
    power = ((largest + BEYOND_LARGEST) & EXPONENT) - 6 * ONE_UP
    step = jax.lax.bitcast_convert_type(jnp.maximum(power, LEAST_STEP), jnp.float32)
    rounded = jax.lax.bitcast_convert_type(x / step + ROUNDING, jnp.int32)
    both = jnp.concatenate([rounded >> BYTE_BITS, rounded])
    return both.astype(jnp.uint8), jnp.where(largest < EXPONENT, step, jnp.nan)


def _largest(x: Int32[Array, "tokens in"]) -> Int32[Array, "tokens 1"]:
    """Of each token, by halves: a reduction alone would keep what it reduces (CPU)."""
    while x.shape[1] > LANES and x.shape[1] % 2 == 0:
        x = jnp.maximum(*jnp.split(x, 2, axis=1))
    return jnp.max(x, axis=1, keepdims=True)
