"""Weights in floats of 8 bits (Micikevicius et al. 2022, E4M3).

Scales are powers of two: what is multiplied by one is exact, so that it does not matter
whether the compiler joins that to an addition behind it, and costs a float nothing.
"""

import dataclasses
from typing import Any, Generic, TypeVar

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float

from jaxserver.core.ops.quantize import scaled

Leaf = TypeVar("Leaf")

FP8 = "float8_e4m3fn"
QUANTIZED = ("int8", FP8)
"""Types of weights that have scales beside them."""
LARGEST = 448
"""The largest number that a weight is rounded to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight(Generic[Leaf]):
    """A weight `[*out *in]` as `values * scale`.

    Attributes:
        values: float8_e4m3fn `[*out *in]`, from -448 to 448.
        scale: float32 `[*out]`, one for each output.
    """

    values: Leaf
    scale: Leaf


def quantize_to_fp8(
    weight: Float[np.ndarray, "*out_and_in"], num_out: int
) -> Fp8Weight[np.ndarray[Any, Any]]:
    """As `quantize`, for int8."""
    inner = tuple(range(num_out, weight.ndim))
    values, scale = scaled(weight, inner, lambda most: _power_above(most / LARGEST))
    return Fp8Weight(values=values.astype(ml_dtypes.float8_e4m3fn), scale=scale)


def _power_above(scale: Float[np.ndarray, "*out"]) -> Float[np.ndarray, "*out"]:
    """The next power of two that is no smaller; 0 where it is no normal number."""
    part, exponent = np.frexp(scale)
    power = np.ldexp(np.float32(1), exponent - (part == 0.5))
    is_normal = scale >= np.finfo(np.float32).tiny
    return np.where(np.isfinite(scale), np.where(is_normal, power, 0), scale)
