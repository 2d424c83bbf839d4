"""Rotary position embedding (Su et al. 2021) from a table made once on the host."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxserver.core.config import ModelConfig, RopeScaling


class RopeTable(NamedTuple):
    """Cosine and sine of every position's angles, one column per pair."""

    cos: Float[np.ndarray, "positions pairs"]
    sin: Float[np.ndarray, "positions pairs"]


def rope_table(config: ModelConfig, max_len: int) -> RopeTable:
    """Angles in float64, factors in float32: the same bits wherever they are used."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64)
    frequencies = config.rope_theta ** (-pairs / config.head_dim)
    if config.rope_scaling is not None:
        frequencies = scale_frequencies(frequencies, config.rope_scaling)
    angles = np.arange(max_len, dtype=np.float64)[:, None] * frequencies[None, :]
    return RopeTable(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    )


def scale_frequencies(
    frequencies: Float[np.ndarray, " pairs"], scaling: RopeScaling
) -> Float[np.ndarray, " pairs"]:
    """Stretches rotary frequencies as `RopeScaling` describes."""
    if scaling.kind == "factors":
        return frequencies / np.asarray(scaling.factors, np.float64)
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_max_len * frequencies / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    share_kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return slow * (1 - share_kept) + frequencies * share_kept


def rotate(
    x: Float[Array, "rows time kv_heads heads head_dim"],
    table: RopeTable,
    positions: Int[Array, "rows time"],
) -> Float[Array, "rows time kv_heads heads head_dim"]:
    """Turns the pairs `(i, i + head_dim / 2)` of every head by their position."""
    cos = jnp.asarray(table.cos).at[positions].get(mode="clip")[:, :, None, None, :]
    sin = jnp.asarray(table.sin).at[positions].get(mode="clip")[:, :, None, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
