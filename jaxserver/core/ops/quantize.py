"""Weights in int8, and activations in two bytes, whose products are exact.

In 16 bits a weight is read and multiplied as any other instead; see `linear`.

The compiler joins a multiplication to an addition behind it where both meet in one
loop, and rounds them once instead of twice (CPU; a barrier does not keep them apart).
Where they meet depends on the number of tokens. So whatever is multiplied here and may
then be added to is multiplied exactly: steps are powers of two, and scales are so short
that a scale times an int8 is a float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from jaxserver.core.ops.unsigned_product import unsigned_product

Leaf = TypeVar("Leaf")

LARGEST = 127
"""The largest number that a weight is rounded to, and the most steps of a token."""
BYTE_BITS = 8
PARTS = 2**BYTE_BITS
"""Of a step; the low byte counts them."""
MIDDLE = 2**7
"""Added to high bytes, which are signed."""
LONGEST = 2**16
"""An output has fewer inputs than this, so that its sum is an int32."""
MAGNITUDE, EXPONENT, ONE_UP = 0x7FFFFFFF, 0x7F800000, 0x00800000
"""Bits of a float32 without its sign, those of its power of two, the next power."""
BEYOND_LARGEST = 0x0001FFFF
"""Added to a number's bits: makes the next power of two of those beyond 127 / 64."""
LEAST_STEP = 3 * ONE_UP
"""Bits of 2**-124: one over it is a normal number too."""
SCALE_BITS = 0xFFFFF000
"""Bits of a float32 that a scale has: 12; 7 of a value make 19."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Int8Weight(Generic[Leaf]):
    """A weight `[*out *in]` as `values * scale`, or `(values + rest / 256) * scale`.

    Attributes:
        values: int8 `[*out *in]`, from -127 to 127.
        scale: float32 `[*out]`, one for each output.
        sums: int32 `[*out]`, of each output's values.
        rest: int8 `[*out *in]`, what rounding has left; None where it is not kept.
    """

    values: Leaf
    scale: Leaf
    sums: Leaf
    rest: Leaf | None = None


def quantize(
    weight: Float[np.ndarray, "*out_and_in"], num_out: int, *, keeps_rest: bool = False
) -> Int8Weight[np.ndarray[Any, Any]]:
    """Rounds a weight, on the host; its first `num_out` dimensions are its output.

    An output whose weights are not all finite gets a scale that is not finite either.

    Args:
        weight: `[*out *in]`.
        num_out: How many dimensions are its output.
        keeps_rest: Whether what rounding leaves is kept, in as many bytes again.
    """
    inner = tuple(range(num_out, weight.ndim))
    values, scale = scaled(weight, inner, lambda most: _scale(most / LARGEST))
    whole = np.rint(values).astype(np.int8)
    rest = None
    if keeps_rest:
        values -= whole
        values *= PARTS
        rest = np.rint(values, out=values).clip(max=LARGEST).astype(np.int8)
    sums = whole.sum(inner, dtype=np.int32)
    return Int8Weight(values=whole, scale=scale, sums=sums, rest=rest)


def scaled(
    weight: Float[np.ndarray, "*out_and_in"],
    inner: tuple[int, ...],
    scale_of: Callable[[Float[np.ndarray, "*out"]], Float[np.ndarray, "*out"]],
) -> tuple[Float[np.ndarray, "*out_and_in"], Float[np.ndarray, "*out"]]:
    """A weight by its scales, and these; it is 0 where the scale is, or is no number.

    Args:
        weight: On the host.
        inner: The dimensions that are its input.
        scale_of: Makes each output's scale of the largest size of its weights.
    """
    weight = weight.astype(np.float32, copy=False)
    scale = scale_of(np.maximum(weight.max(inner), -weight.min(inner)))
    is_scaled = np.isfinite(scale) & (scale > 0)
    per_weight, where = (np.expand_dims(x, inner) for x in (scale, is_scaled))
    values = np.zeros(weight.shape, np.float32)
    np.divide(weight, per_weight, out=values, where=where)
    return values, scale


def _scale(scale: Float[np.ndarray, "*out"]) -> Float[np.ndarray, "*out"]:
    """The next larger one that has few bits; 0 where it is no normal number."""
    is_normal = scale >= np.finfo(np.float32).tiny
    bits = scale.view(np.uint32) + np.uint32(~SCALE_BITS & 0xFFFFFFFF)
    short = (bits & np.uint32(SCALE_BITS)).view(np.float32)
    return np.where(np.isfinite(scale), np.where(is_normal, short, 0), scale)


def int8_product(
    x: Float[Array, "tokens in"], weight: Int8Weight[Array]
) -> Float[Array, "tokens out"]:
    """`x @ weight.T`, over all dimensions of the output at once.

    Both bytes are rows of one product, whose sums are integers and so exact in any
    order. A token that is not finite is NaN everywhere.
    """
    chex.assert_axis_dimension_lt(x, 1, LONGEST)
    both, step = split_bytes(x)
    flat, sums = weight.values.reshape(-1, x.shape[1]), weight.sums.reshape(-1)
    products: Int32[Array, "bytes out"] = unsigned_product(both, flat, sums)
    high, low = jnp.split(products, 2)
    high = (high - MIDDLE * sums[None, :]).astype(jnp.float32)
    low = low.astype(jnp.float32)
    y: Array = (high + low / PARTS) * weight.scale.reshape(1, -1) * step
    return y


def split_bytes(
    x: Float[Array, "tokens in"],
) -> tuple[UInt8[Array, "bytes in"], Float[Array, "tokens 1"]]:
    """Tokens as `step * (high - 128 + low / 256)`: all high bytes, then all low ones.

    A token's step is the smallest power of two of which it has at most 127, or NaN
    where the token is not finite. It is found in the bits, whose order as integers is
    that of the numbers, with what is not finite above all others.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & MAGNITUDE
    largest = jnp.max(bits, axis=1, keepdims=True)
    power = ((largest + BEYOND_LARGEST) & EXPONENT) - 6 * ONE_UP
    step = jax.lax.bitcast_convert_type(jnp.maximum(power, LEAST_STEP), jnp.float32)
    parts = jnp.round(x / step * PARTS).astype(jnp.int32) + MIDDLE * PARTS
    both = jnp.concatenate([parts >> BYTE_BITS, parts & (PARTS - 1)])
    return both.astype(jnp.uint8), jnp.where(largest < EXPONENT, step, jnp.nan)
