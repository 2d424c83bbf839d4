"""What has to be computed where it is written, and not where the compiler puts it."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

Made = TypeVar("Made")


def apart(
    run: Callable[[Shaped[Array, "..."]], Made],
    x: Shaped[Array, "..."],
    after: Float[Array, ""] | Int[Array, ""],
) -> Made:
    """`run(x)` as a piece of work of its own, once, after `after` is known.

    The compiler drops barriers before it orders the work and puts it together (CPU),
    but it keeps a branch whose condition it cannot see through; this one is always
    taken. Elsewhere it is run like anything else.
    """

    def in_a_branch(x: Shaped[Array, "..."]) -> Made:
        shapes = jax.eval_shape(run, x)
        bits = jax.lax.bitcast_convert_type(after, jnp.int32)
        is_known = jnp.bitwise_and(bits, jnp.int32(0x7FFFFFFF)) >= 0

        def nothing(_: Shaped[Array, "..."]) -> Made:
            made: Made = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return made

        value: Made = jax.lax.cond(is_known, run, nothing, x)
        return value

    made: Made = jax.lax.platform_dependent(x, cpu=in_a_branch, default=run)
    return made
