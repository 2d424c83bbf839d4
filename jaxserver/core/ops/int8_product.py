"""Products of tokens, in 16 bits, with weights in int8; their sums are exact.

Tokens of another type than float32 are multiplied with them as with any other weight;
see `linear`.

The compiler joins a multiplication to an addition behind it where both meet in one
loop, and rounds them once instead of twice (CPU; a barrier does not keep them apart).
Where they meet depends on the number of tokens. So whatever is multiplied here and may
then be added to is multiplied exactly: steps are powers of two.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, Int16, Int32

from jaxserver.core.ops.apart import apart
from jaxserver.core.ops.one_of import OneOf, as_matrix, with_one
from jaxserver.core.ops.quantize import PARTS, Int8Weight
from jaxserver.core.ops.unsigned_product import unsigned_product

BYTE_BITS = 8
MIDDLE = 2**7
"""Added to signed bytes, it makes unsigned ones of them."""
LONGEST = 2**16
"""An output has fewer inputs than this, so that the sum of a byte's is an int32."""
MOST_SUMMED = 2**9
"""Of so many inputs, with all 16 bits, the sum is an int32."""
MAGNITUDE, EXPONENT, ONE_UP = 0x7FFFFFFF, 0x7F800000, 0x00800000
"""Bits of a float32 without its sign, those of its power of two, the next power."""
BEYOND_LARGEST = 0x0001FFFF
"""Added to a number's bits: makes the next power of two of those beyond 127 / 64."""
LANES = 16
"""Of numbers up to which a reduction is left to the compiler."""
ROUNDING = 1.5 * 2**15
"""A sum with it is rounded to parts of 256: 24 bits, the last 16 of which are what was
added."""
FEW = 16
"""Tokens up to which it is worth a copy of the weights that only they are put into
another order; with 32 both ways take as long."""
MOST_COPIED = 2**21
"""Bytes of a weight that are copied at a time, and stay in a cache."""
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
        is_cut: Parts of tokens, and of outputs' inputs, lie on several devices.
    """
    chex.assert_axis_dimension_lt(x, 1, LONGEST)
    sums, scale = weight.sums.reshape(-1), weight.scale.reshape(-1)
    values = as_matrix(weight.values, x.shape[1])
    if kernel is None:
        parts, step = in_parts(x, is_cut=is_cut)
        if x.shape[0] == 1 and not is_cut:
            products = _of_one(parts, values, step)
        elif x.shape[0] <= FEW and not is_cut:
            products = jax.lax.platform_dependent(
                parts, values, sums, cpu=_of_few, default=_of_several
            )
        else:
            products = _of_several(parts, values, sums)
        y: Array = products * scale[None, :] * step
        return y
    shape = jax.ShapeDtypeStruct((x.shape[0], scale.size), jnp.float32)
    multiply = jax.ffi.ffi_call(kernel, shape, vmap_method="sequential")

    def product(values: Int8[Array, "out in"]) -> Float[Array, "tokens out"]:
        multiplied: Array = multiply(x, values, sums, scale)
        return multiplied

    return with_one(values, product)


def _of_several(
    parts: Int16[Array, "tokens in"],
    values: Int8[Array, "out in"] | OneOf,
    sums: Int32[Array, " out"],
) -> Float[Array, "tokens out"]:
    """Both bytes are rows of one product, which a library makes."""
    both = jnp.concatenate([(parts >> BYTE_BITS) + MIDDLE, parts]).astype(jnp.uint8)

    def product(values: Int8[Array, "out in"]) -> Int32[Array, "bytes out"]:
        multiplied: Array = unsigned_product(both, values, sums)
        return multiplied

    high, low = jnp.split(with_one(values, product), 2)
    return _in_steps(high - MIDDLE * sums[None, :], low)


def _of_few(
    parts: Int16[Array, "tokens in"],
    values: Int8[Array, "out in"] | OneOf,
    _: Int32[Array, " out"],
) -> Float[Array, "tokens out"]:
    """Both bytes are columns of one product, as `_of_several` makes them rows.

    What is on the right the library puts into another order first, and takes what is on
    the left as it lies. There the weights are, made unsigned: in a copy, for which
    memory is read from end to end, and which is in a cache when it is multiplied.
    """
    low = parts.astype(jnp.int8)
    high = (parts - low.astype(jnp.int16)) >> BYTE_BITS
    both = jnp.concatenate([high.astype(jnp.int8), low])
    sums = jnp.sum(both, axis=1, dtype=jnp.int32)

    def piece(values: Int8[Array, "out in"]) -> Int32[Array, "out bytes"]:
        more = jax.lax.bitcast_convert_type(values ^ jnp.int8(-MIDDLE), jnp.uint8)
        multiplied: Array = unsigned_product(more, both, sums)
        return multiplied

    def product(values: Int8[Array, "out in"]) -> Int32[Array, "out bytes"]:
        outputs, inputs = values.shape
        pieces = -(-outputs // max(1, MOST_COPIED // inputs))
        if pieces == 1:
            return piece(values)
        size = -(-outputs // pieces)

        def put(nth: Int[Array, ""], made: Int32[Array, "out bytes"]) -> Array:
            # The last piece overlaps the one before it.
            at = jnp.minimum(nth * size, outputs - size)
            some = piece(jax.lax.dynamic_slice(values, (at, 0), (size, inputs)))
            return jax.lax.dynamic_update_slice(made, some, (at, 0))

        nothing = jnp.zeros((outputs, both.shape[0]), jnp.int32)
        made: Array = jax.lax.fori_loop(0, pieces, put, nothing)
        return made

    multiplied = with_one(values, product) - MIDDLE * sums[None, :]
    return _in_steps(*jnp.split(multiplied, 2, axis=1)).T


def _of_one(
    parts: Int16[Array, "1 in"],
    values: Int8[Array, "out in"] | OneOf,
    after: Float[Array, "1 1"],
) -> Float[Array, "1 out"]:
    """In a loop of the compiler's own, chunk by chunk of the inputs.

    It reads weights as fast as memory gives them, and a library a copy of them. LLVM
    multiplies 16 bits with 16 and adds up pairs at once (its `X86PartialReduction`)
    where a sum is an int32, and each weight is used once.
    """
    inputs = parts.shape[1]
    count = max(2, -(-inputs // MOST_SUMMED))  # A library adds up one array alone.
    length = -(-inputs // count)

    def product(values: Int8[Array, "out in"]) -> Sequence[Int32[Array, " out"]]:
        terms = []
        for begin in range(0, inputs, length):
            # The last chunk overlaps the one before it; zeros stand where it does.
            first = min(begin, inputs - length)
            some = parts[:, begin : first + length].astype(jnp.int32)
            some = jnp.pad(some, ((0, 0), (begin - first, 0)))
            terms.append(some * values[:, first : first + length].astype(jnp.int32))
        zeros = (jnp.int32(0),) * len(terms)
        added: tuple[Array, ...] = jax.lax.reduce(tuple(terms), zeros, _add_all, (1,))
        return added

    # In one piece with the parts, these would be made again for each output. What is
    # chosen among several is apart already.
    if isinstance(values, OneOf):
        sums = jnp.stack(with_one(values, product))
    else:
        sums = jnp.stack(apart(product, values, after[0, 0]))
    whole, rest = sums >> BYTE_BITS, sums & (PARTS - 1)
    return _in_steps(jnp.sum(whole, 0), jnp.sum(rest, 0))[None, :]


def _add_all(some: Sequence[Array], others: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(map(jnp.add, some, others))


def _in_steps(
    whole: Int32[Array, "*shape"], rest: Int32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`whole + rest / 256`, as a function of the exact sum alone."""
    whole = whole + (rest >> BYTE_BITS)
    rest = rest & (PARTS - 1)
    return whole.astype(jnp.float32) + rest.astype(jnp.float32) / PARTS


def in_parts(
    x: Float[Array, "tokens in"], *, is_cut: bool = False
) -> tuple[Int16[Array, "tokens in"], Float[Array, "tokens 1"]]:
    """Tokens as `step * parts / 256`.

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
    return rounded.astype(jnp.int16), jnp.where(largest < EXPONENT, step, jnp.nan)


def _largest(x: Int32[Array, "tokens in"]) -> Int32[Array, "tokens 1"]:
    """Of each token, by halves: a reduction alone would keep what it reduces (CPU)."""
    while x.shape[1] > LANES and x.shape[1] % 2 == 0:
        x = jnp.maximum(*jnp.split(x, 2, axis=1))
    return jnp.max(x, axis=1, keepdims=True)
