"""The likeliest tokens' logits, computed with all that is known of their weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from jaxserver.core.ops.int8_product import MIDDLE, split_bytes
from jaxserver.core.ops.linear import Weight
from jaxserver.core.ops.quantize import PARTS, Int8Weight

REFINED = 8
"""How many; 64 find no other best token (12,288 tokens of English)."""


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
    num_tokens, vocab = logits.shape
    _, ids = jax.lax.top_k(logits, min(REFINED, vocab))
    kept: Int8[Array, "tokens likeliest embed"] = head.rest.at[ids].get(mode="clip")
    rest = kept.astype(jnp.int32)
    both, step = split_bytes(x.astype(jnp.float32))
    parts = both.astype(jnp.int32).reshape(2, num_tokens, 1, -1)
    sums: Int32[Array, "bytes tokens likeliest"] = jnp.sum(rest[None] * parts, axis=-1)
    high = sums[0] - MIDDLE * jnp.sum(rest, axis=-1)
    scale = head.scale.at[ids].get(mode="clip") / PARTS
    more = (high.astype(jnp.float32) + sums[1].astype(jnp.float32) / PARTS) * scale
    rows = jnp.arange(num_tokens)[:, None]
    refined: Array = logits.at[rows, ids].add(more * step, unique_indices=True)
    return refined
