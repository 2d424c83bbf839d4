"""Normalisation of the residual stream."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxserver.core.config import MIN_SUMMED
from jaxserver.core.ops.linear import pad_tokens


def rms_norm(
    x: Float[Array, "tokens embed"], weight: Float[Array, " embed"], eps: float
) -> Float[Array, "tokens embed"]:
    """RMSNorm (Zhang and Sennrich 2019)."""
    padded = pad_tokens(x, -(-MIN_SUMMED // x.shape[1]))
    mean_square = jnp.mean(padded * padded, axis=-1, keepdims=True)[: x.shape[0]]
    return x * jax.lax.rsqrt(mean_square + eps) * weight.astype(x.dtype)[None, :]
