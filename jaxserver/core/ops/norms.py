"""Normalisation of the residual stream."""

import jax
from jaxtyping import Array, Float

from jaxserver.core.ops.sums import sum_last


def rms_norm(
    x: Float[Array, "tokens embed"], weight: Float[Array, " embed"], eps: float
) -> Float[Array, "tokens embed"]:
    """RMSNorm (Zhang and Sennrich 2019)."""
    mean_square = sum_last(x * x)[:, None] / x.shape[1]
    return x * jax.lax.rsqrt(mean_square + eps) * weight.astype(x.dtype)[None, :]
