"""Weights in int8, with a scale for each output.

Scales are so short that a scale times an int8 is a float32; `int8_product` says why.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import numpy as np
from jaxtyping import Float

Leaf = TypeVar("Leaf")
Made = TypeVar("Made")
HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LARGEST = 127
"""The largest number that a weight is rounded to, and the most steps of a token."""
PARTS = 2**8
"""Of a step, which a second byte counts."""
SCALE_BITS = 0xFFFFF000
"""Bits of a float32 that a scale has: 12; 7 of a value make 19."""
BLOCK_NUMBERS = 2**17
"""Of a weight that are quantised together: half a MiB in float32."""


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


def in_blocks(
    make: Callable[[HostArray], Made], values: HostArray, num_out: int
) -> Made:
    """What is made of each output alone; so few together stay in a core's cache.

    Args:
        make: Of some outputs, which are one dimension.
        values: A weight.
        num_out: How many of its dimensions are its output.
    """
    outs, inner = values.shape[:num_out], values.shape[num_out:]
    flat = values.reshape(-1, *inner)
    together = max(1, BLOCK_NUMBERS // math.prod(inner))
    starts = range(0, max(1, len(flat)), together)
    blocks = [make(flat[i : i + together]) for i in starts]

    def join(*parts: HostArray) -> HostArray:
        return np.concatenate(parts).reshape(*outs, *parts[0].shape[1:])

    made: Made = jax.tree.map(join, *blocks)
    return made


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
    values = weight / np.expand_dims(np.where(is_scaled, scale, 1), inner)
    if not is_scaled.all():
        np.copyto(values, 0, where=~np.expand_dims(is_scaled, inner))
    return values, scale


def _scale(scale: Float[np.ndarray, "*out"]) -> Float[np.ndarray, "*out"]:
    """The next larger one that has few bits; 0 where it is no normal number."""
    is_normal = scale >= np.finfo(np.float32).tiny
    bits = scale.view(np.uint32) + np.uint32(~SCALE_BITS & 0xFFFFFFFF)
    short = (bits & np.uint32(SCALE_BITS)).view(np.float32)
    return np.where(np.isfinite(scale), np.where(is_normal, short, 0), scale)
