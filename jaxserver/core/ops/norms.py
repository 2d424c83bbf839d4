"""Normalisation of the residual stream."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxserver.core.ops.sums import sum_last


def rms_norm(
    x: Float[Array, "tokens embed"], weight: Float[Array, " embed"], eps: float
) -> Float[Array, "tokens embed"]:
    """RMSNorm (Zhang and Sennrich 2019), in float32 whatever it takes and gives."""
    wide = x.astype(jnp.float32)
    mean_square = sum_last(wide * wide)[:, None] / x.shape[1]
    scaled = wide * jax.lax.rsqrt(mean_square + eps)
    return (scaled * weight.astype(jnp.float32)[None, :]).astype(x.dtype)
