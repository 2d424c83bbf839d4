"""Weights in int8 and activations in two int8 halves, whose products are exact."""

import dataclasses
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Int32

Leaf = TypeVar("Leaf")

LARGEST = 127
"""The largest number that a half or a weight is rounded to."""
LOW_SHARE = 2.0**-8
"""Of the low half in a step; a power of two, so that to multiply by it is exact."""
SMALLEST = 2.0**-118
"""A token that is nowhere larger is 0: its step and one over it are normal numbers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Int8Weight(Generic[Leaf]):
    """A weight `[*out *in]` as `values * scale`.

    Attributes:
        values: int8 `[*out *in]`, from -127 to 127.
        scale: float32 `[*out]`, one for each output.
    """

    values: Leaf
    scale: Leaf


def quantize(
    weight: Float[np.ndarray, "*out_and_in"], num_out: int
) -> Int8Weight[np.ndarray[Any, Any]]:
    """Rounds a weight, on the host; its first `num_out` dimensions are its output.

    An output whose weights are not all finite gets a scale that is not finite either.
    """
    inner = tuple(range(num_out, weight.ndim))
    largest = np.maximum(weight.max(inner), -weight.min(inner)).astype(np.float32)
    scale = largest / np.float32(LARGEST)
    scale[scale < np.finfo(np.float32).tiny] = 0
    is_scaled = np.isfinite(scale) & (scale > 0)
    per_weight, where = (np.expand_dims(x, inner) for x in (scale, is_scaled))
    values = np.zeros(weight.shape, np.float32)
    np.divide(weight, per_weight, out=values, where=where)
    np.rint(values, out=values)
    return Int8Weight(values=values.astype(np.int8), scale=scale)


def read_rows(
    table: Int8Weight[Array], tokens: Int[Array, " tokens"]
) -> Float[Array, "tokens embed"]:
    """Some rows of a table, in float32."""
    values = table.values.at[tokens].get(mode="clip").astype(jnp.float32)
    scale = table.scale.at[tokens].get(mode="clip")
    return _apart(values * scale[:, None])


def int8_product(
    x: Float[Array, "tokens in"], weight: Int8Weight[Array]
) -> Float[Array, "tokens out"]:
    """`x @ weight.T`, over all dimensions of the output at once.

    Both halves are rows of one product, whose sums are integers and so exact in any
    order. A token that holds a number that is none is not a number anywhere.
    """
    halves, step = split_halves(x)
    flat = weight.values.reshape(-1, x.shape[1])
    sums: Int32[Array, "halves out"] = jax.lax.dot_general(
        halves, flat, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    high, low = jnp.split(sums.astype(jnp.float32), 2)
    y = (high + low * LOW_SHARE) * weight.scale.reshape(1, -1) * step[:, None]
    return _apart(y)


def split_halves(
    x: Float[Array, "tokens in"],
) -> tuple[Int8[Array, "halves in"], Float[Array, " tokens"]]:
    """Every token as `step * (high + low / 256)`: all high halves, then all low ones.

    The step is NaN where the token is not finite.
    """
    x = _apart(x)
    is_finite: Bool[Array, " tokens"] = jnp.all(jnp.isfinite(x), axis=1)
    largest = jnp.max(jnp.abs(x), axis=1)
    is_split = is_finite & (largest > SMALLEST)
    per_step = LARGEST / jnp.where(is_split, largest, 1.0)
    steps = _apart(jnp.where(is_split[:, None], x * per_step[:, None], 0.0))
    high = jnp.round(steps)
    low = jnp.minimum(jnp.round((steps - high) / LOW_SHARE), LARGEST)
    step = largest * jnp.float32(1 / LARGEST)
    step = jnp.where(is_split, step, jnp.where(is_finite, 0.0, jnp.nan))
    return jnp.concatenate([high, low]).astype(jnp.int8), step


def _apart(x: Array) -> Array:
    """The same, not to be computed again in the middle of what comes after.

    A multiplication that the compiler joins to an addition is rounded otherwise.
    """
    kept: Array = jax.lax.optimization_barrier(x)
    return kept
