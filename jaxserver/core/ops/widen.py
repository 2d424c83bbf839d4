"""What has to be computed where it is written, and not where the compiler puts it."""

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
    a loop of decode steps, and so hold the model a second time and twice as large. In
    16 bits a product widens as it reads (GPU), so a barrier does, which keeps that
    inside of a loop.

    Args:
        read: What is wanted of the weight, in the type to compute in.
        kept: The weight.
        after: Any number that the work before this brings.
    """
    wide = jax.eval_shape(read, kept)
    if wide.dtype != jnp.float32:
        return read(jax.lax.optimization_barrier((kept, after))[0])
    return apart(read, kept, after)


def apart(
    run: Callable[[Shaped[Array, "..."]], Float[Array, "..."]],
    x: Shaped[Array, "..."],
    after: Float[Array, ""] | Int[Array, ""],
) -> Float[Array, "..."]:
    """`run(x)` as a piece of work of its own, once, after `after` is known.

    The compiler drops barriers before it orders the work and puts it together (CPU),
    but it keeps a branch whose condition it cannot see through; this one is always
    taken.
    """
    found = jax.eval_shape(run, x)
    bits = jax.lax.bitcast_convert_type(after, jnp.int32)
    is_known = jnp.bitwise_and(bits, jnp.int32(0x7FFFFFFF)) >= 0
    value: Array = jax.lax.cond(
        is_known, run, lambda _: jnp.zeros(found.shape, found.dtype), x
    )
    return value
