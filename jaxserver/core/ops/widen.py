"""Weights that are kept in fewer bits than they are computed in, widened one by one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxserver.core.ops.apart import apart


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
