"""The likeliest tokens' logits, computed with all that is known of their weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from jaxserver.core.ops.int8_product import BYTE_BITS, in_parts
from jaxserver.core.ops.linear import Weight
from jaxserver.core.ops.quantize import PARTS, Int8Weight

REFINED = 8
"""How many; 64 find no other best token (12,288 tokens of English)."""
BLOCK = 128
"""Entries of which the largest is found first."""


def refine_likeliest(
    logits: Float[Array, "tokens vocab"], x: Float[Array, "tokens embed"], head: Weight
) -> Float[Array, "tokens vocab"]:
    """Adds to the largest logits of each token what rounding the head took from them.

    Of a head in int8 one byte is multiplied with every token, which finds those that
    matter. Their second byte is multiplied here, by integers, in any order exactly.

    Args:
        logits: `linear(x, head)`.
        x: What they were computed of.
        head: Where it has no `rest`, the logits are given back.
    """
    if not isinstance(head, Int8Weight) or head.rest is None:
        return logits
    num_tokens = logits.shape[0]
    ids = largest(logits, REFINED)
    kept: Int8[Array, "tokens likeliest embed"] = head.rest.at[ids].get(mode="clip")
    rest = kept.astype(jnp.int32)
    parts, step = in_parts(x.astype(jnp.float32))
    both = jnp.stack([parts >> BYTE_BITS, parts & (PARTS - 1)]).astype(jnp.int32)
    sums: Int32[Array, "bytes tokens likeliest"]
    sums = jnp.sum(rest[None] * both[:, :, None, :], axis=-1)
    high, low = sums.astype(jnp.float32)
    scale = head.scale.at[ids].get(mode="clip") / PARTS
    more = (high + low / PARTS) * scale
    rows = jnp.arange(num_tokens)[:, None]
    refined: Array = logits.at[rows, ids].add(more * step, unique_indices=True)
    return refined


def largest(
    x: Float[Array, "rows entries"], count: int
) -> Int32[Array, "rows largest"]:
    """Where the largest entries of each row are, best first; of equal ones any.

    They lie in the blocks that have the largest of all, which all cores look for; then
    one core has few entries to select from (CPU).
    """
    (rows, entries), count = x.shape, min(count, x.shape[1])
    if count * BLOCK >= entries:
        return jax.lax.top_k(x, count)[1]
    spare = ((0, 0), (0, -entries % BLOCK))
    padded = jnp.pad(x, spare, constant_values=-jnp.inf)
    blocks = padded.reshape(rows, -1, BLOCK)
    _, best = jax.lax.top_k(jnp.max(blocks, axis=-1), count)
    those = jnp.take_along_axis(blocks, best[:, :, None], axis=1)
    _, at = jax.lax.top_k(those.reshape(rows, -1), count)
    nth: Array = jnp.take_along_axis(best, at // BLOCK, axis=1)
    return nth * BLOCK + at % BLOCK
