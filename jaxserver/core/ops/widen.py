"""Weights that are kept in fewer bits than they are computed in, widened one by one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def widen(
    read: Callable[[Shaped[Array, "..."]], Float[Array, "..."]],
    kept: Shaped[Array, "..."],
    after: Float[Array, ""] | Int[Array, ""],
) -> Float[Array, "..."]:
    """`read(kept)`, begun no earlier than `after` is known.

    The compiler would widen all weights of a model before its first product, and before
    a loop of decode steps, and so hold the model a second time and twice as large. It
    drops barriers before it orders the work (CPU), but it keeps a branch whose
    condition it cannot see through; this one is always taken. In 16 bits a product
    widens as it reads (GPU), so a barrier does, which keeps that inside of a loop.

    Args:
        read: What is wanted of the weight, in the type to compute in.
        kept: The weight.
        after: Any number that the work before this brings.
    """
    wide = jax.eval_shape(read, kept)
    if wide.dtype != jnp.float32:
        return read(jax.lax.optimization_barrier((kept, after))[0])
    bits = jax.lax.bitcast_convert_type(after, jnp.int32)
    is_known = jnp.bitwise_and(bits, jnp.int32(0x7FFFFFFF)) >= 0
    value: Array = jax.lax.cond(
        is_known, read, lambda _: jnp.zeros(wide.shape, wide.dtype), kept
    )
    return value
