"""What has to be computed where it is written, and not where the compiler puts it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


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
