"""Sums whose order is written out.

The order of a reduction is the compiler's choice, and the choice depends on the size of
the whole array (CPU), so that a row's bits would depend on how many rows are beside it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sum_last(x: Float[Array, "*rows terms"]) -> Float[Array, "*rows"]:
    """Sum over the last axis, first half to second half until one is left.

    The barrier keeps what made the terms from being fused into some of the additions.
    """
    terms = x.shape[-1]
    spare = (1 << (terms - 1).bit_length()) - terms
    x = jax.lax.optimization_barrier(x)
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, spare),))
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]
