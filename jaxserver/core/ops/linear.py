"""Linear maps whose weights lie `[out, in]` and are contracted on their last axis.

That is the one orientation in which a row's bits do not depend on how many rows are
multiplied beside it, from `MIN_CALL_TOKENS` to `MAX_CALL_TOKENS` of them.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxserver.core.config import MIN_CALL_TOKENS
from jaxserver.core.ops.widen import widen
from jaxserver.core.sharding import constrain
from jaxserver.ports.model import Axes


def linear(
    x: Float[Array, "tokens in"],
    weight: Float[Array, "*out in"],
    bias: Float[Array, "*out"] | None = None,
) -> Float[Array, "tokens *out"]:
    """`x @ weight.T + bias`, for however many axes the output has."""
    chex.assert_axis_dimension_gteq(x, 0, MIN_CALL_TOKENS)
    out = weight.shape[:-1]
    flat = weight.reshape(math.prod(out), weight.shape[-1])
    if flat.dtype != x.dtype:
        flat = widen(lambda kept: kept.astype(x.dtype), flat, x[0, 0])
    y = jax.lax.dot_general(x, flat, (((1,), (1,)), ((), ())))
    if bias is not None:
        y = y + bias.reshape(1, -1).astype(x.dtype)
    return y.reshape(x.shape[0], *out)


def linear_on(
    mesh: Mesh | None,
    axes: Axes,
    x: Float[Array, "tokens in"],
    weight: Float[Array, "*out in"],
    bias: Float[Array, "*out"] | None = None,
) -> Float[Array, "tokens *out"]:
    """`linear` as one product on every mesh, whatever lies before and behind it.

    Each device multiplies its part of the weight with all tokens, and partial sums are
    added up: a token's bits do not depend on how many there are.

    Args:
        mesh: Where the weight lies.
        axes: Of the weight.
        x: Tokens, which are put where they are needed.
        weight: `[*out in]`.
        bias: Of the shape of the output.
    """
    x = constrain(x, (None, axes[-1]), mesh)
    return constrain(linear(x, weight, bias), (None, *axes[:-1]), mesh)


def pad_tokens(
    x: Float[Array, "tokens *rest"], least: int = MIN_CALL_TOKENS
) -> Float[Array, "padded *rest"]:
    """Zero rows appended until there are at least `least`."""
    spare = max(0, least - x.shape[0])
    return jnp.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1)))
